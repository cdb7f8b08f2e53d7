"""The sweeps of accounts in clouds: each takes some accounts, and the next one those behind."""

from datetime import timedelta
from typing import Any

import pytest

from integrations.keys import services as integrations
from rensei.core.clock import database_now
from rensei.core.secret import Secret
from rensei.dispatch.execution import clouds
from rensei.dispatch.execution.clouds import Clouds
from rensei.dispatch.models import Run, Sandbox
from rensei.orgs.access import Access
from rensei.orgs.models import Org
from tests.dispatch.test_fair_order import wait_in_line

pytestmark = pytest.mark.django_db(transaction=True)


def leave(org: Org, count: int, *, credential_id: str) -> None:
    """Leave the rows of sandboxes whose worker has died."""
    ids = wait_in_line(org, count)
    Run.objects.filter(id__in=ids).update(state=Run.State.FAILED)
    now = database_now()
    Sandbox.objects.bulk_create(
        Sandbox(
            org=org,
            run_id=run_id,
            epoch=1,
            pool="e2b",
            provider_id="e2b",
            token_digest=run_id,
            calls_left=0,
            created_at=now - timedelta(minutes=10),
            credential_id=credential_id,
        )
        for run_id in ids
    )


def test_an_account_is_reached_behind_those_that_cannot_be_opened(
    acme: Org, ada_access: Access, settings: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings.PUBLIC_URL = "https://rensei.example.com"
    monkeypatch.setattr(clouds, "LEFT_AT_ONCE", 3)
    monkeypatch.setattr(clouds, "ACCOUNTS_AT_ONCE", 2)
    monkeypatch.setattr(clouds, "open_session", lambda: None)
    for place in range(3):
        leave(acme, 4, credential_id=f"int_{place}")
    key = integrations.add_integration(ada_access, provider="e2b", api_key=Secret(f"e2b_{'a' * 40}"))
    leave(acme, 2, credential_id=key.id)
    sweeps = Clouds()

    found = [sweeps.left() for _ in range(4)]

    # Its turn comes in every second sweep, whatever the others are.
    assert sum(len(each) for each in found) == 2
    assert all(len(rows) == 2 for each in found for _, rows in each)
