"""Where runs can execute now, by REST and on the page."""

from collections.abc import Callable
from typing import Any

import pytest
from django.test import Client

from integrations.keys import services as integrations
from rensei.core.clock import database_now
from rensei.core.models import WorkerHeartbeat
from rensei.core.secret import Secret
from rensei.dispatch import services
from rensei.dispatch.admission import admit
from rensei.dispatch.admission.requests import DispatchRequest, messages_from
from rensei.dispatch.models import Run
from rensei.orgs.access import Access
from rensei.orgs.models import User

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture
def shown(ada_access: Access, ada: User, api_as: Any) -> Callable[[], dict[str, Any]]:
    """Read the pools by name."""
    api = api_as(ada)

    def read() -> dict[str, Any]:
        return {pool.pop("name"): pool for pool in api.get("/api/v1/capacity").json()["results"]}

    return read


class TestCapacity:
    def test_has_the_built_in_pools_and_those_of_the_organization(self, shown: Any, ada_access: Access) -> None:
        services.create_pool(ada_access, name="lab", provider_id="sandbox", config={})
        off = services.create_pool(ada_access, name="office", provider_id="local", config={})
        services.create_pool(ada_access, name="cloud", provider_id="e2b", config={})
        services.update_pool(ada_access, off, active=False)
        WorkerHeartbeat.objects.create(worker="w", seen_at=database_now(), offers_sandboxes=True)

        found = shown()

        assert {name: (pool["state"], pool["reason"]) for name, pool in found.items()} == {
            "local": ("active", None),
            "sandbox": ("active", None),
            "cloud": ("unavailable", found["cloud"]["reason"]),
            "lab": ("active", None),
            "office": ("inactive", "The pool 'office' is not active."),
        }
        assert found["cloud"]["reason"].startswith("No account at E2B is connected.")

    def test_has_the_pool_of_a_connected_account(self, shown: Any, ada_access: Access, settings: Any) -> None:
        integrations.add_integration(ada_access, provider="e2b", api_key=Secret(f"e2b_{'a' * 40}"))
        assert shown()["e2b"]["state"] == "unavailable"

        settings.PUBLIC_URL = "https://rensei.example.com"

        assert (shown()["e2b"]["providerId"], shown()["e2b"]["state"]) == ("e2b", "active")
        settings.RENSEI_SANDBOXES_AT_ONCE = 0
        assert "RENSEI_SANDBOXES_AT_ONCE" in shown()["e2b"]["reason"]

    def test_says_why_there_are_no_sandboxes(self, shown: Any) -> None:
        WorkerHeartbeat.objects.create(worker="w", seen_at=database_now(), sandbox_refusal="no bubblewrap.")

        assert shown()["sandbox"]["reason"] == "This server starts no sandboxes: no bubblewrap."

    def test_counts_the_runs_on_each(self, shown: Any, ada_access: Access, connected: Any, make_profile: Any) -> None:
        make_profile(auth_modes=["byok"])
        asked = messages_from(text="Hi.", messages=None)
        made = [admit.dispatch(ada_access, DispatchRequest(profile_id="prof_deep", messages=asked)) for _ in range(3)]
        Run.objects.filter(id=made[0].id).update(state=Run.State.RUNNING)
        Run.objects.filter(id=made[1].id).update(pool="sandbox", in_sandbox=True)
        Run.objects.filter(id=made[2].id).update(state=Run.State.FAILED)

        found = shown()

        assert (found["local"]["running"], found["local"]["waiting"]) == (1, 0)
        assert (found["sandbox"]["running"], found["sandbox"]["waiting"]) == (0, 1)

    def test_is_on_a_page(self, shown: Any, ada: User, client: Client) -> None:
        WorkerHeartbeat.objects.create(worker="w", seen_at=database_now(), sandbox_refusal="no bubblewrap.")
        client.force_login(ada)

        page = client.get("/o/acme/settings/capacity").content.decode()

        assert "no bubblewrap." in page
        assert "Unavailable" in page
