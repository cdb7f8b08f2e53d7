"""Where runs can execute now, by REST and on the page."""

from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
from django.test import Client

from integrations.keys import services as integrations
from rensei.audit.models import AuditEvent
from rensei.core.clock import database_now
from rensei.core.models import WorkerHeartbeat
from rensei.core.secret import Secret
from rensei.dispatch import services
from rensei.dispatch.admission import admit
from rensei.dispatch.admission.requests import DispatchRequest, messages_from
from rensei.dispatch.models import CapacityPool, Run
from rensei.orgs.access import Access
from rensei.orgs.models import Org, User
from tests.billing.record import capacity_line

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


class TestAPool:
    @pytest.fixture
    def pool(self, ada_access: Access) -> CapacityPool:
        return services.create_pool(ada_access, name="cloud", provider_id="e2b", config={"lifetimeSeconds": 120})

    def test_is_changed_setting_by_setting(self, pool: CapacityPool, ada: User, api_as: Any) -> None:
        api = api_as(ada)

        off = api.patch(f"/api/v1/pools/{pool.id}", {"active": False}).json()
        changed = api.patch(f"/api/v1/pools/{pool.id}", {"config": {"template": "mine"}}).json()
        assert api.patch(f"/api/v1/pools/{pool.id}", {}).status_code == 400

        assert (off["active"], off["config"]) == (False, {"lifetimeSeconds": 120})
        assert (changed["active"], changed["config"]) == (False, {"template": "mine"})
        assert AuditEvent.objects.filter(action="pool.changed", object_id=pool.id).count() == 2

    @pytest.mark.parametrize(
        ("provider_id", "config", "pointer"),
        [
            ("e2b", {"lifetimeSeconds": 5}, "/config/lifetimeSeconds"),
            ("e2b", {"slot": 5}, "/config/slot"),
            ("e2b", {"slots": 0}, "/config/slots"),
            ("local", {"slots": 5}, "/config"),
            ("sandbox", {"slots": 1001}, "/config/slots"),
            ("sandbox", {"slots": True}, "/config/slots"),
            ("sandbox", {"template": "mine"}, "/config/template"),
            ("modal", {"slots": 0}, "/config/slots"),
        ],
    )
    def test_refuses_a_setting_that_its_provider_does_not_have(
        self, ada_access: Access, ada: User, api_as: Any, provider_id: str, config: dict[str, Any], pointer: str
    ) -> None:
        api = api_as(ada)
        made = api.post("/api/v1/pools", {"name": "new", "providerId": provider_id}).json()

        for refused in (
            api.post("/api/v1/pools", {"name": "wrong", "providerId": provider_id, "config": config}),
            api.patch(f"/api/v1/pools/{made['id']}", {"config": config}),
        ):
            assert refused.status_code == 400
            assert refused.json()["errors"][0]["pointer"] == pointer
        assert [(one.name, one.config) for one in CapacityPool.objects.all()] == [("new", {})]

    def test_has_a_cost_by_window(self, pool: CapacityPool, ada: User, acme: Org, eve: User, api_as: Any) -> None:
        now = database_now()
        capacity_line(acme, pool="cloud")
        capacity_line(acme, pool="cloud", second_picodollars=None, occurred_at=now - timedelta(days=3))
        capacity_line(acme, pool="gone", occurred_at=now - timedelta(days=20))

        found = {
            window: {
                one["pool"]: (one["sandboxes"], one["seconds"], one["amountUsd"], one["unpriced"])
                for one in api_as(ada).get(f"/api/v1/capacity/cost?window={window}").json()["results"]
            }
            for window in ("24h", "7d", "30d")
        }

        assert found["24h"] == {"cloud": (1, 90, "0.0027225", 0)}
        assert found["7d"] == {"cloud": (2, 180, "0.0027225", 1)}
        assert found["30d"] == {**found["7d"], "gone": (1, 90, "0.0027225", 0)}
        assert api_as(eve, "evil").get("/api/v1/capacity/cost").json()["results"] == []
        assert api_as(ada).get("/api/v1/capacity/cost?window=1h").status_code == 400


class TestThePages:
    @pytest.fixture
    def page(self, ada: User, ada_access: Access) -> Client:
        client = Client()
        client.force_login(ada)
        return client

    def test_add_change_and_delete_a_pool(self, page: Client, ada_access: Access) -> None:
        base = "/o/acme/settings/capacity"
        fields = {"name": "cloud", "provider_id": "e2b", "config": '{"lifetimeSeconds": 120}', "active": "on"}

        assert page.post(f"{base}/new", fields).status_code == 302
        pool = CapacityPool.objects.get(name="cloud")
        assert (pool.config, pool.active) == ({"lifetimeSeconds": 120}, True)

        assert "lifetimeSeconds" in page.get(f"{base}/{pool.id}").content.decode()
        page.post(f"{base}/{pool.id}", {"config": ""})
        pool.refresh_from_db()
        assert (pool.config, pool.active) == ({}, False)

        page.post(f"{base}/{pool.id}/delete")
        assert not CapacityPool.objects.exists()

    def test_say_what_is_wrong_beside_its_field(self, page: Client) -> None:
        for config, said in (
            ('{"lifetimeSeconds": 5}', "It is a number from 60 to 86400."),
            ("{", "Enter a valid JSON."),
            ("[]", "Write an object"),
        ):
            fields = {"name": "cloud", "provider_id": "e2b", "config": config, "active": "on"}

            answer = page.post("/o/acme/settings/capacity/new", fields)

            assert (answer.status_code, said in answer.content.decode()) == (422, True)
        assert not CapacityPool.objects.exists()

    def test_say_which_runs_a_deletion_concerns(
        self, page: Client, ada_access: Access, connected: Any, make_profile: Any
    ) -> None:
        pool = services.create_pool(ada_access, name="office", provider_id="local", config={})
        make_profile(auth_modes=["byok"])
        asked = messages_from(text="Hi.", messages=None)
        admit.dispatch(ada_access, DispatchRequest(profile_id="prof_deep", messages=asked, pool="office"))

        html = page.get(f"/o/acme/settings/capacity/{pool.id}/delete").content.decode()

        assert "1 run of it is under way or waiting." in html

    def test_show_the_cost_of_the_month_and_of_pools_that_are_gone(
        self, page: Client, acme: Org, ada_access: Access
    ) -> None:
        services.create_pool(ada_access, name="cloud", provider_id="e2b", config={})
        capacity_line(acme, pool="cloud")
        capacity_line(acme, pool="cloud", second_picodollars=None)
        capacity_line(acme, pool="gone")
        # The name was that of a pool at another provider before.
        capacity_line(acme, pool="cloud", provider="vercel", second_picodollars=None)

        html = " ".join(page.get("/o/acme/settings/capacity").content.decode().split())

        assert html.count("$0.00272") == 2
        assert "1 without a price" in html
        assert "<code>gone</code> at e2b $0.00272" in html
        assert "<code>cloud</code> at vercel — (1 without a price)" in html

    def test_have_a_figure_of_their_own_and_are_no_model_of_runs(self, page: Client, acme: Org) -> None:
        capacity_line(acme)

        html = " ".join(page.get("/o/acme/usage").content.decode().split())

        assert "<dt>You pay capacity providers</dt> <dd> $0.00272" in html
        assert "<dt>You pay the provider</dt> <dd> $0.00" in html
        assert "capacity.e2b" not in page.get("/o/acme/runs").content.decode()
