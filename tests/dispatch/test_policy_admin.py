"""The system's access policy in the admin: what it would change is said before it is saved."""

import random
import re
from typing import Any

import pytest
from django.test import Client

from rensei.core.auth_modes import AuthMode
from rensei.orgs.access import Access
from rensei.policies.models import AccessPolicy

ADD = "/admin/policies/accesspolicy/add/"
DENY_BYOK = {"*": {"byok": {"allowed": False}}}


@pytest.fixture
def admin(grace: Any, page_as: Any) -> Client:
    browser: Client = page_as(grace)
    return browser


def confirmation(html: str) -> str:
    found = re.search(r'name="confirmed" value="(\w+)"', html)
    assert found is not None
    return found[1]


@pytest.mark.django_db
class TestSystemPolicy:
    def test_is_saved_when_what_it_changes_has_been_shown(
        self, admin: Client, ada_access: Access, make_profile: Any
    ) -> None:
        make_profile()

        shown = admin.post(ADD, {"denied": ["byok:*"]}).content.decode()
        assert not AccessPolicy.objects.exists()
        admin.post(ADD, {"denied": ["byok:*"], "confirmed": confirmation(shown)})

        assert "Profiles that would change: 1." in shown
        assert "prof_deep: BYOK_NOT_CONFIGURED → AUTHMODES_UNSATISFIABLE" in shown
        assert AccessPolicy.objects.get().matrix == DENY_BYOK

    def test_is_shown_again_when_it_has_been_changed_since(
        self, admin: Client, ada_access: Access, make_profile: Any
    ) -> None:
        make_profile()
        shown = admin.post(ADD, {"denied": ["byok:*"]}).content.decode()

        admin.post(ADD, {"denied": ["byok:claude"], "confirmed": confirmation(shown)})

        assert not AccessPolicy.objects.exists()

    def test_is_saved_at_once_where_no_profile_changes(self, admin: Client, ada_access: Access) -> None:
        admin.post(ADD, {"denied": ["byok:*"]})

        assert AccessPolicy.objects.get().matrix == DENY_BYOK

    def test_offers_only_rows_and_modes_that_there_are(self, admin: Client, ada_access: Access) -> None:
        for cell in ("byok:claude-opus-9", "none:*", "byok"):
            answer = admin.post(ADD, {"denied": [cell]}).content.decode()

            assert "is not one of the available choices" in answer
        assert not AccessPolicy.objects.exists()

    @pytest.mark.parametrize("seed", range(20))
    def test_keeps_what_is_allowed_and_what_is_ticked(
        self, admin: Client, ada_access: Access, catalog: None, seed: int
    ) -> None:
        chance = random.Random(seed)
        rows = ["*", "claude", "claude-opus-5-5", "claude-haiku-5-5"]
        cells = [(row, mode) for row in rows for mode in ("byok", "metered", "shared")]
        stored: dict[str, Any] = {}
        for row, mode in chance.sample(cells, 5):
            stored.setdefault(row, {})[mode] = {"allowed": chance.random() < 0.5}
        policy = AccessPolicy.objects.create(scope="system", matrix=stored)
        address = f"/admin/policies/accesspolicy/{policy.pk}/change/"
        shown = admin.get(address).context["adminform"].form.initial["denied"]
        denied = chance.sample(cells, 4)

        admin.post(address, {"denied": [f"{mode}:{row}" for row, mode in denied]})

        before = {(row, mode): rule["allowed"] for row, rules in stored.items() for mode, rule in rules.items()}
        assert set(shown) == {f"{mode}:{row}" for (row, mode), allowed in before.items() if not allowed}
        policy.refresh_from_db()
        after = {(row, mode): rule["allowed"] for row, rules in policy.matrix.items() for mode, rule in rules.items()}
        assert after == {cell: True for cell, allowed in before.items() if allowed} | dict.fromkeys(denied, False)

    def test_of_an_organization_is_shown_in_words(self, admin: Client, ada_access: Access) -> None:
        policy = AccessPolicy.objects.create(scope="organization", org=ada_access.org, matrix=DENY_BYOK)

        html = admin.get(f"/admin/policies/accesspolicy/{policy.pk}/change/").content.decode()

        assert f": Deny {AuthMode.BYOK.label}</div>" in html
