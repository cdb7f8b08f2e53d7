"""The page of a receipt verifies it in the browser, and refuses one that was changed."""

import json
from collections.abc import Callable
from typing import Any

import pytest
from django.db import IntegrityError
from playwright.sync_api import expect

from billing.integrity import anchors, seals
from billing.integrity.anchors import AnchorsCut
from billing.models import LedgerAnchor
from integrations.models import Integration
from profiles.models import ModelProfile
from rensei.dispatch.admission import admit
from rensei.dispatch.admission.requests import DispatchRequest
from rensei.dispatch.models import Run
from rensei.orgs.access import Access
from rensei.orgs.models import User
from tests.journeys.person import Person
from tests.journeys.stack import Stack
from tests.waiting import wait_until

pytestmark = [
    pytest.mark.outside,
    pytest.mark.browser,
    pytest.mark.timeout(300),
    pytest.mark.django_db(transaction=True),
]
HELLO = {"role": "user", "content": [{"type": "text", "text": "Grüße."}]}


class TestReceipt:
    def test_is_verified_in_the_browser_and_a_changed_one_is_not(
        self, person: Person, ada: User, ada_access: Access, connected: Integration, stack: Stack, settings: Any,
        make_profile: Callable[..., ModelProfile],
    ) -> None:  # fmt: skip
        settings.RENSEI_LEDGER_ANCHOR_KEY = stack.folder / "ledger_anchor.key"
        # The worker's mark may record an anchor of an earlier test, which is no longer in the database.
        anchors.mark_path().unlink(missing_ok=True)
        make_profile(name="deep", auth_modes=["byok"])
        run = admit.dispatch(ada_access, DispatchRequest(profile_id="prof_deep", messages=[HELLO]))
        wait_until(lambda: Run.objects.get(id=run.id).state in Run.ENDED)
        wait_until(is_signed)
        person.sign_in(ada)
        person.page.set_viewport_size({"width": 390, "height": 844})

        person.open(f"/o/acme/runs/{run.id}/receipt")
        person.click("Verify")
        verdict = person.page.locator("[data-receipt-verdict]")
        expect(verdict).to_contain_text(f"Genuine: this server signed exactly this receipt of {run.id}.")

        document = json.loads(person.page.locator("[data-receipt]").inner_text())
        document["receipt"]["total"]["amountUsd"] = "0.000001"
        changed = {"name": "receipt.json", "mimeType": "application/json", "buffer": json.dumps(document).encode()}
        person.page.get_by_label("A receipt's JSON file").set_input_files(changed)
        expect(verdict).to_contain_text("Its signature does not belong to what it says.")
        assert person.page.evaluate("document.documentElement.scrollWidth <= innerWidth")


def is_signed() -> bool:
    """Seal and sign beside the worker, which does the same: either may be first."""
    try:
        seals.seal()
        anchors.anchor()
    except (IntegrityError, AnchorsCut):
        return False
    return LedgerAnchor.objects.exclude(org=None).exists()
