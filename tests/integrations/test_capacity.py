"""Connecting an account at a capacity provider: by REST and on the pages, as a provider of models is connected."""

from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import pytest
from django.test import Client
from rest_framework.test import APIClient

from integrations.capacity import account
from integrations.capacity import modal as account_api
from integrations.capacity.prices import Size, second_picodollars
from integrations.keys import platform
from integrations.models import Integration
from rensei.core.errors import FieldError
from rensei.core.secret import Secret
from rensei.dispatch import services
from rensei.dispatch.pools import NoEligiblePool, find_pool
from rensei.orgs.access import Access
from rensei.orgs.models import User
from tests.cloud_stand_in import Fault, StandIn

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture
def api(ada: User, ada_access: Access, api_as: Callable[..., APIClient]) -> APIClient:
    return api_as(ada)


def new(stand_in: StandIn, **fields: Any) -> dict[str, Any]:
    own = {"provider": stand_in.provider, "apiKey": stand_in.key, "workspaceId": stand_in.workspace_id}
    return {**own, **fields}


class TestByRest:
    @pytest.mark.parametrize("provider", ["e2b", "modal", "vercel"])
    def test_is_a_provider_of_capacity(self, api: APIClient, ada_access: Access, provider: str) -> None:
        found = {one["id"]: one for one in api.get("/api/v1/providers").json()["results"]}

        assert (found[provider]["category"], found[provider]["authModes"]) == ("Capacity", [])

    def test_is_connected_tested_and_rotated(self, api: APIClient, stand_in: StandIn) -> None:
        made = api.post("/api/v1/integrations", new(stand_in))
        assert made.status_code == 201
        assert stand_in.key not in made.content.decode()
        address = f"/api/v1/integrations/{made.json()['id']}"

        assert api.post(f"{address}/test").json()["ok"] is True
        assert api.get(address).json()["status"] == "ok"
        assert api.post(f"{address}/rotate", {"apiKey": stand_in.unknown_key}).status_code == 400
        assert api.post(f"{address}/rotate", {"apiKey": stand_in.keys[1]}).status_code == 200
        assert "list" in stand_in.requests
        assert api.delete(address).status_code == 204

    @pytest.mark.parametrize(
        ("status", "code", "is_conclusive"),
        [
            (401, "KEY_REJECTED", True),
            (429, "RATE_LIMITED", False),
            (500, "SERVER_ERROR", False),
        ],
    )
    def test_tells_what_its_test_found(
        self, api: APIClient, stand_in: StandIn, status: int, code: str, is_conclusive: bool
    ) -> None:
        made = api.post("/api/v1/integrations", new(stand_in)).json()
        stand_in.faults.append(Fault(on="list", does=status))

        verdict = api.post(f"/api/v1/integrations/{made['id']}/test").json()

        assert (verdict["ok"], verdict["code"]) == (False, code)
        assert Integration.objects.get().status == ("failing" if is_conclusive else "untested")

    def test_takes_403_as_its_provider_means_it(self, api: APIClient, stand_in: StandIn) -> None:
        """At E2B it is about the team or a template; at the others it is about the token."""
        stand_in.faults.append(Fault(on="list", does=403))

        verdict = api.post("/api/v1/integrations/test", new(stand_in)).json()

        assert verdict["code"] == ("SERVER_ERROR" if stand_in.provider == "e2b" else "KEY_REJECTED")

    def test_tells_that_it_was_not_reached(
        self,
        api: APIClient,
        settings: Any,
        ada_access: Access,
        stand_in: StandIn,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        # Modal's library tries again and again.
        monkeypatch.setattr(account, "_TEST_SECONDS", 0.3)
        setattr(settings, f"RENSEI_{stand_in.provider.upper()}_BASE_URL", "http://127.0.0.1:9")

        verdict = api.post("/api/v1/integrations/test", new(stand_in)).json()

        assert (verdict["ok"], verdict["code"]) == (False, "UNREACHABLE")

    @pytest.mark.parametrize(
        ("fields", "status", "word"),
        [
            ({"apiKey": "sk-ant-api03-" + "a" * 40}, 422, "KEY_KIND_REFUSED"),
            ({"baseUrl": "https://proxy.example.com"}, 400, "/baseUrl"),
            ({"workspaceId": "wrkspc_1"}, 400, "/workspaceId"),
            (
                {
                    "federation": {
                        "ruleId": "fdrl_abcd1234",
                        "organizationId": "0" * 36,
                        "serviceAccountId": "svac_abcd1234",
                    }
                },
                400,
                "/apiKey",
            ),
        ],
    )
    def test_is_refused_what_it_has_not(
        self,
        api: APIClient,
        ada_access: Access,
        stand_in: StandIn,
        fields: dict[str, Any],
        status: int,
        word: str,
    ) -> None:
        answer = api.post("/api/v1/integrations", new(stand_in) | fields)

        assert answer.status_code == status
        assert word in answer.content.decode()
        assert not Integration.objects.exists()

    def test_signs_for_no_profile(self, api: APIClient, ada_access: Access, catalog: None, stand_in: StandIn) -> None:
        made = api.post("/api/v1/integrations", new(stand_in)).json()
        profile = {"name": "deep", "provider": "claude", "modelId": "claude-opus-4-8", "authModes": ["byok"]}

        answer = api.post("/api/v1/profiles", {**profile, "integrationId": made["id"]})

        assert answer.status_code == 400
        assert "/integrationId" in answer.content.decode()
        assert api.post("/api/v1/profiles", {**profile, "provider": stand_in.provider}).status_code == 400

    def test_is_in_no_pool_of_the_platform(self, db: None, stand_in: StandIn) -> None:
        with pytest.raises(FieldError):
            platform.add_platform_key(
                actor=None, provider=stand_in.provider, pool="metered", name="cloud", api_key=Secret(stand_in.key)
            )


class TestOnThePages:
    def test_is_chosen_and_connected(self, stand_in: StandIn, ada: User, ada_access: Access, client: Client) -> None:
        client.force_login(ada)
        page = f"/o/acme/settings/integrations/add/{stand_in.provider}"

        assert page in client.get("/o/acme/settings/integrations/add").content.decode()
        form = client.get(page).content.decode()
        assert "test message" not in form
        assert ("ak-…:as-…" in form) == (stand_in.provider == "modal")
        assert ("Team and project" in form) == bool(stand_in.workspace_id)
        assert "Workspace ID" not in form
        fields = {"api_key": stand_in.key, "name": "Cloud", "base_url": "", "workspace_id": stand_in.workspace_id}
        tested = client.post(page, {**fields, "action": "test"}).content.decode()
        assert "Key works." in tested
        client.post(page, {**fields, "action": "save"})

        made = Integration.objects.get()
        assert (made.provider, made.name, made.workspace_id) == (stand_in.provider, "Cloud", stand_in.workspace_id)
        shown = client.get("/o/acme/settings/integrations").content.decode()
        assert "Cloud" in shown
        assert "Send a test message" not in shown
        assert client.post(f"/o/acme/settings/integrations/{made.id}/message").status_code == 404
        for page in ("edit", "rotate", "remove"):
            assert client.get(f"/o/acme/settings/integrations/{made.id}/{page}").status_code == 200
        # The first steps lead to a provider of models still.
        assert "Connect" in client.get("/o/acme/").content.decode()


class TestModal:
    """What only an account there has: a token of two parts, and a library."""

    @pytest.mark.parametrize("key", ["ak-abc", "as-abc", "ak-abc:", "as-abc:ak-abc", "ak-abc:as-abc\n", "ak-a as-a"])
    def test_needs_the_id_and_the_secret_of_a_token(self, api: APIClient, ada_access: Access, key: str) -> None:
        answer = api.post("/api/v1/integrations", {"provider": "modal", "apiKey": key})

        assert answer.status_code in {400, 422}
        assert not Integration.objects.exists()

    def test_says_that_its_library_is_missing(
        self, api: APIClient, ada_access: Access, modal: StandIn, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(account_api, "is_installed", lambda: False)

        verdict = api.post("/api/v1/integrations/test", new(modal)).json()

        assert (verdict["ok"], verdict["code"]) == (False, "UNREACHABLE")
        assert "pip install 'rensei[modal]'" in verdict["message"]
        api.post("/api/v1/integrations", new(modal))
        with pytest.raises(NoEligiblePool, match="rensei"):
            find_pool(ada_access.org, "modal").require_driver()


class TestVercel:
    """What only an account there has: a team and a project."""

    @pytest.mark.parametrize("workspace_id", ["", "team_a", "team_a/", "prj_a/team_a", "team_a/prj_a/b", "wrkspc_1"])
    def test_needs_a_team_and_a_project(self, api: APIClient, ada_access: Access, workspace_id: str) -> None:
        body = {"provider": "vercel", "apiKey": "a" * 24, "workspaceId": workspace_id}

        answer = api.post("/api/v1/integrations", body)

        assert (answer.status_code, "/workspaceId" in answer.content.decode()) == (400, True)

    def test_lists_the_sandboxes_of_that_project(self, api: APIClient, ada_access: Access, vercel: StandIn) -> None:
        given = new(vercel, workspaceId="team_other/prj_stand")

        verdict = api.post("/api/v1/integrations/test", given).json()

        assert (verdict["ok"], verdict["code"]) == (False, "KEY_REJECTED")
        assert "team and project" in verdict["message"]


class TestAPool:
    @pytest.mark.parametrize(
        ("provider", "config", "pointer"),
        [
            ("e2b", {"template": ""}, "/template"),
            ("e2b", {"template": "a b"}, "/template"),
            ("e2b", {"template": 1}, "/template"),
            ("e2b", {"lifetimeSeconds": 59}, "/lifetimeSeconds"),
            ("e2b", {"lifetimeSeconds": 86401}, "/lifetimeSeconds"),
            ("e2b", {"lifetimeSeconds": True}, "/lifetimeSeconds"),
            ("e2b", {"lifetimeSeconds": 60.5}, "/lifetimeSeconds"),
            ("e2b", {"memory": 1}, "/memory"),
            ("vercel", {"image": "a b"}, "/image"),
            ("vercel", {"lifetimeSeconds": 18001}, "/lifetimeSeconds"),
            ("vercel", {"vcpus": 3}, "/vcpus"),
            ("vercel", {"vcpus": True}, "/vcpus"),
            ("vercel", {"template": "base"}, "/template"),
            ("modal", {"image": "python:3.12"}, "/image"),
            ("modal", {"lifetimeSeconds": 86401}, "/lifetimeSeconds"),
            ("modal", {"vcpus": 0}, "/vcpus"),
            ("modal", {"memoryMib": 256}, "/memoryMib"),
            ("modal", {"memory": 1024}, "/memory"),
            ("modal", {"region": "US East"}, "/region"),
            ("modal", {"egress": ["0.0.0.0/0"]}, "/egress"),
        ],
    )
    def test_is_refused_with_another_setting(
        self, ada_access: Access, provider: str, config: dict[str, Any], pointer: str
    ) -> None:
        with pytest.raises(FieldError) as refusal:
            services.create_pool(ada_access, name="cloud", provider_id=provider, config=config)

        assert refusal.value.errors[0]["pointer"] == f"/config{pointer}"

    @pytest.mark.parametrize(
        ("provider", "config"),
        [
            ("e2b", {"template": "team/my-template:v2", "lifetimeSeconds": 86400}),
            ("vercel", {"image": "team/image@sha256:0a", "lifetimeSeconds": 18000, "vcpus": 8}),
            ("modal", {"image": "im-0Aa", "vcpus": 1, "memoryMib": 4096, "region": "eu-west", "egress": ["pypi.org"]}),
        ],
    )
    def test_takes_its_settings(self, ada_access: Access, provider: str, config: dict[str, Any]) -> None:
        assert services.create_pool(ada_access, name="cloud", provider_id=provider, config=config).config == config


class TestThePriceOfASecond:
    @pytest.mark.parametrize(
        ("vcpus", "memory_mib", "picodollars"),
        [(2, 512, 30_250_000), (8, 4096, 130_000_000), (1, 1, 14_004_395)],
    )
    def test_is_that_of_its_size_rounded_up(self, vcpus: int, memory_mib: int, picodollars: int) -> None:
        size = Size(vcpus=vcpus, memory_mib=memory_mib)

        assert second_picodollars("e2b", size, moment=datetime(2026, 11, 30, tzinfo=UTC)) == picodollars

    @pytest.mark.parametrize(("provider", "year"), [("e2b", 2025), ("another", 2026)])
    def test_is_unknown_before_a_list_and_without_one(self, provider: str, year: int) -> None:
        size = Size(vcpus=2, memory_mib=512)

        assert second_picodollars(provider, size, moment=datetime(year, 11, 30, tzinfo=UTC)) is None
