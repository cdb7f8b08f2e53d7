"""Integrations without a stored key: connected, replaced, bound, and used by the queue."""

import json
from collections.abc import Callable
from typing import Any

import pytest
from django.test import Client
from rest_framework.test import APIClient

from billing.models import CostEvent
from integrations.keys import credentials, platform, services
from integrations.models import Integration, PlatformKey
from integrations.providers.anthropic.federation import tokens
from integrations.providers.base import Federation
from integrations.vault.errors import CredentialUnreadable
from rensei.audit.models import AuditEvent
from rensei.core.errors import AlreadyExists, FieldError
from rensei.core.secret import Secret
from rensei.dispatch.models import Attempt, Run
from rensei.orgs.access import Access
from rensei.orgs.models import Org, User
from tests.dispatch.conftest import work  # noqa: F401 - a fixture
from tests.integrations.federating import make_federation, trust

pytestmark = pytest.mark.django_db


@pytest.fixture(autouse=True)
def _no_tokens() -> None:
    tokens.clear()


@pytest.fixture
def federation() -> Federation:
    return make_federation()


@pytest.fixture
def federated(ada_access: Access, federation: Federation) -> Integration:
    return services.add_integration(ada_access, provider="claude", federation=federation, name="Main")


def opened(integration: Integration) -> Any:
    return services.open_integration(Integration.objects.select_related("org").get(pk=integration.pk))


class TestServices:
    def test_stores_no_key(self, federated: Integration, federation: Federation) -> None:
        credential = opened(federated)

        assert credential.federation == federation
        assert credential.secret.reveal() == ""
        assert credential.subject == f"rensei:organization:{federated.org_id}"
        assert federated.key_hint == f"fdrl_…{federation.rule_id[-4:]}"
        assert AuditEvent.objects.get(action="integration.added").detail["federation"] == federation.wire()

    @pytest.mark.parametrize(
        "column",
        [
            {"federation": {"ruleId": "fdrl_x", "organizationId": "o", "serviceAccountId": "svac_x"}},
            {"federation": None},
        ],
    )
    def test_what_a_writer_of_the_database_puts_there_is_not_used(
        self, federated: Integration, federation: Federation, column: dict[str, Any]
    ) -> None:
        Integration.objects.update(**column)

        if column["federation"] is None:
            with pytest.raises(CredentialUnreadable):
                opened(federated)
        else:
            assert opened(federated).federation == federation

    def test_a_key_does_not_open_as_a_federation(self, connected: Integration, federation: Federation) -> None:
        Integration.objects.update(federation=federation.wire())
        with pytest.raises(CredentialUnreadable):
            opened(connected)

    def test_a_record_of_another_organization_does_not_open(self, federated: Integration, eve: User) -> None:
        other = Org.objects.exclude(pk=federated.org_id).get()
        Integration.objects.filter(pk=federated.pk).update(org=other)
        with pytest.raises(CredentialUnreadable):
            opened(federated)

    def test_needs_exactly_one_of_key_and_federation(
        self, ada_access: Access, federation: Federation, key: str
    ) -> None:
        for given in ({}, {"api_key": Secret(key), "federation": federation}):
            with pytest.raises(FieldError):
                services.add_integration(ada_access, provider="claude", **given)

    def test_has_no_address_of_its_own(
        self, ada_access: Access, federated: Integration, federation: Federation
    ) -> None:
        with pytest.raises(FieldError):
            services.add_integration(
                ada_access, provider="claude", federation=make_federation(), base_url="https://93.184.215.14"
            )
        with pytest.raises(FieldError):
            services.update_integration(ada_access, federated, base_url="https://93.184.215.14")

    @pytest.mark.parametrize("name", ["rule_id", "organization_id", "service_account_id"])
    @pytest.mark.parametrize("value", ["", "x", "fdrl_ 1", "svac_\n1234", "fdrl_" + "a" * 200, "'; --"])
    def test_refuses_what_is_no_id(self, ada_access: Access, federation: Federation, name: str, value: str) -> None:
        with pytest.raises(FieldError):
            services.add_integration(
                ada_access, provider="claude", federation=Federation(**{**vars(federation), name: value})
            )

    def test_one_rule_may_be_used_once_in_each_workspace(
        self, ada_access: Access, federated: Integration, federation: Federation
    ) -> None:
        with pytest.raises(AlreadyExists):
            services.add_integration(ada_access, provider="claude", federation=federation)
        other = services.add_integration(ada_access, provider="claude", federation=federation, workspace_id="wrkspc_1")
        assert opened(other).workspace_id == "wrkspc_1"
        with pytest.raises(AlreadyExists):
            services.update_integration(ada_access, Integration.objects.get(pk=other.pk), workspace_id="")

    def test_a_key_is_replaced_by_a_federation_and_back(
        self, ada_access: Access, connect: Callable[..., Integration], federation: Federation, simulator: Any, key: str
    ) -> None:
        integration = connect()
        trust(simulator, ada_access.org, federation)
        services.rotate_integration(ada_access, integration, federation=federation)
        assert opened(integration).federation == federation
        assert Integration.objects.get().status == Integration.Status.OK

        services.rotate_integration(ada_access, integration, api_key=Secret(key))
        assert opened(integration).federation is None
        assert opened(integration).secret.reveal() == key

    def test_keeps_the_key_where_the_federation_does_not_work(
        self, ada_access: Access, connect: Callable[..., Integration], federation: Federation, simulator: Any
    ) -> None:
        integration = connect()
        trust(simulator, ada_access.org, federation, archived=True)
        with pytest.raises(services.KeyNotAccepted):
            services.rotate_integration(ada_access, integration, federation=federation)
        assert opened(Integration.objects.get()).federation is None

    def test_a_pool_takes_one_too(self, db: None, federation: Federation) -> None:
        key = platform.add_platform_key(
            actor=None, provider="claude", pool="metered", name="p", federation=federation, workspace_id="wrkspc_1"
        )
        found = platform.open_platform_key(PlatformKey.objects.get(pk=key.pk))
        assert (found.federation, found.workspace_id) == (federation, "wrkspc_1")
        assert found.subject == "rensei:platform:metered"
        PlatformKey.objects.update(workspace_id="wrkspc_2")
        with pytest.raises(CredentialUnreadable):
            platform.open_platform_key(PlatformKey.objects.get(pk=key.pk))


@pytest.mark.django_db(transaction=True)
def test_the_queue_signs_with_a_token(
    ada_access: Access,
    federated: Integration,
    federation: Federation,
    simulator: Any,
    make_profile: Callable[..., Any],
    api_as: Callable[..., APIClient],
    ada: User,
    work: Callable[[], list[Run]],  # noqa: F811
) -> None:
    trust(simulator, ada_access.org, federation)
    profile = make_profile()
    api = api_as(ada)
    for _ in range(3):
        assert api.post("/api/v1/runs", {"profileId": profile.public_id, "input": "Hello."}).status_code in (201, 202)

    assert [run.state for run in work()] == ["SUCCEEDED"] * 3
    assert CostEvent.objects.filter(payer="organization").count() == 3
    assert sum(call["path"] == "/v1/oauth/token" for call in simulator.requests()) == 1


@pytest.mark.django_db(transaction=True)
def test_a_token_that_ended_early_is_asked_for_again_within_the_run(
    ada_access: Access,
    federated: Integration,
    federation: Federation,
    simulator: Any,
    make_profile: Callable[..., Any],
    api_as: Callable[..., APIClient],
    ada: User,
    work: Callable[[], list[Run]],  # noqa: F811
) -> None:
    trust(simulator, ada_access.org, federation)
    tokens.get(opened(federated))
    simulator.revoke_tokens()
    api_as(ada).post("/api/v1/runs", {"profileId": make_profile().public_id, "input": "Hello."})

    (run,) = work()
    assert run.state == "SUCCEEDED"
    assert Attempt.objects.count() == 2
    assert Integration.objects.get().status != Integration.Status.FAILING


@pytest.mark.django_db(transaction=True)
def test_a_token_that_is_always_rejected_marks_the_integration(
    ada_access: Access,
    federated: Integration,
    federation: Federation,
    simulator: Any,
    make_profile: Callable[..., Any],
    api_as: Callable[..., APIClient],
    ada: User,
    monkeypatch: pytest.MonkeyPatch,
    work: Callable[[], list[Run]],  # noqa: F811
) -> None:
    trust(simulator, ada_access.org, federation)
    obtain = tokens.get

    def obtain_one_that_is_rejected(credential: Any) -> Secret:
        secret = obtain(credential)
        simulator.revoke_tokens()
        return secret

    monkeypatch.setattr(tokens, "get", obtain_one_that_is_rejected)
    profile = make_profile()
    for _ in range(3):
        api_as(ada).post("/api/v1/runs", {"profileId": profile.public_id, "input": "Hello."})

    assert {run.state for run in work()} == {"FAILED"}
    assert sum(call["path"] == "/v1/oauth/token" for call in simulator.requests()) == 3
    stored = Integration.objects.get()
    assert stored.status == Integration.Status.FAILING
    assert stored.last_error is not None
    assert stored.last_error["code"] == "FEDERATION_TOKENS_REJECTED"
    assert not CostEvent.objects.filter(output_tokens__gt=0).exists()


@pytest.mark.django_db(transaction=True)
def test_a_refused_exchange_ends_the_run_at_no_cost(
    ada_access: Access,
    federated: Integration,
    federation: Federation,
    simulator: Any,
    make_profile: Callable[..., Any],
    api_as: Callable[..., APIClient],
    ada: User,
    work: Callable[[], list[Run]],  # noqa: F811
) -> None:
    trust(simulator, ada_access.org, federation, subject="rensei:organization:org_other")
    api_as(ada).post("/api/v1/runs", {"profileId": make_profile().public_id, "input": "Hello."})

    (run,) = work()
    assert (run.state, run.error["code"]) == ("FAILED", "PROVIDER_AUTH_FAILED")  # type: ignore[index]
    assert credentials.subject_of(ada_access.org) in run.error["fix"]  # type: ignore[index]
    assert not CostEvent.objects.exists()
    assert Integration.objects.get().status == Integration.Status.FAILING


class TestRest:
    def test_shows_what_to_enter_and_connects(
        self, api_as: Callable[..., APIClient], ada: User, acme: Org, federation: Federation, simulator: Any
    ) -> None:
        api = api_as(ada)
        identity = api.get("/api/v1/providers/claude/identity").json()
        assert identity["subject"] == f"rensei:organization:{acme.id}"
        assert identity["audience"] == "https://api.anthropic.com"
        trust(simulator, acme, federation, subject=identity["subject"], issuer=identity["issuer"])

        body = {"provider": "claude", "federation": federation.wire()}
        assert api.post("/api/v1/integrations/test", body).json()["ok"] is True
        added = api.post("/api/v1/integrations", body)
        assert added.status_code == 201
        assert added.json()["federation"] == federation.wire()
        assert api.post(f"/api/v1/integrations/{added.json()['id']}/test").json()["code"] == "OK"

    @pytest.mark.parametrize(
        "federation",
        [None, [], {}, {"ruleId": "fdrl_1234"}, {"ruleId": 5, "organizationId": [], "serviceAccountId": {}}],
    )
    def test_refuses_other_forms(self, api_as: Callable[..., APIClient], ada: User, acme: Org, federation: Any) -> None:
        answer = api_as(ada).post("/api/v1/integrations", {"provider": "claude", "federation": federation})
        assert answer.status_code == 400

    def test_a_key_shows_none(self, api_as: Callable[..., APIClient], ada: User, connected: Integration) -> None:
        assert api_as(ada).get(f"/api/v1/integrations/{connected.id}").json()["federation"] is None

    def test_no_such_provider(self, api_as: Callable[..., APIClient], ada: User, acme: Org) -> None:
        assert api_as(ada).get("/api/v1/providers/other/identity").status_code == 404


class TestPages:
    CONNECT = "/o/acme/settings/integrations/add/claude/identity"

    @pytest.fixture
    def page(self, page_as: Callable[[User], Client], ada: User, ada_access: Access) -> Client:
        return page_as(ada)

    def form(self, federation: Federation, **more: str) -> dict[str, str]:
        return {**vars(federation), **more}

    def test_shows_what_to_enter(self, page: Client, acme: Org) -> None:
        text = page.get(self.CONNECT).content.decode()
        for told in (f"rensei:organization:{acme.id}", "https://api.anthropic.com", "jwks.json"):
            assert told in text

    def test_tests_and_saves(self, page: Client, acme: Org, federation: Federation, simulator: Any) -> None:
        trust(simulator, acme, federation)
        tested = page.post(self.CONNECT, self.form(federation, action="test"), headers={"HX-Request": "true"})
        assert "Identity works." in tested.content.decode()
        assert not Integration.objects.exists()

        page.post(self.CONNECT, self.form(federation, action="save"))
        assert Integration.objects.get().federation == federation.wire()
        assert federation.service_account_id in page.get("/o/acme/settings/integrations").content.decode()

    def test_shows_the_fault_beside_its_field(self, page: Client, federation: Federation) -> None:
        answer = page.post(self.CONNECT, self.form(federation, rule_id="x"))
        assert answer.status_code == 422
        assert "begins with fdrl_" in answer.content.decode()

    def test_replaces_a_key(
        self, page: Client, acme: Org, connect: Callable[..., Integration], federation: Federation, simulator: Any
    ) -> None:
        integration = connect()
        trust(simulator, acme, federation)
        page.post(f"/o/acme/settings/integrations/{integration.id}/identity", self.form(federation))
        assert Integration.objects.get().federation == federation.wire()

    def test_members_may_not(self, page_as: Callable[[User], Client], mia: User, ada_access: Access) -> None:
        assert page_as(mia).get(self.CONNECT).status_code == 403


class TestAdmin:
    ADD = "/admin/integrations/platformkey/add/"

    def fields(self, federation: Federation | None, **more: str) -> dict[str, str]:
        ids = federation.wire() if federation else dict.fromkeys(("ruleId", "organizationId", "serviceAccountId"), "")
        return {
            "provider": "claude",
            "pool": "metered",
            "name": "pool",
            "weight": "1",
            "active": "on",
            "api_key": "",
            "federation_rule": ids["ruleId"],
            "federation_organization": ids["organizationId"],
            "federation_service_account": ids["serviceAccountId"],
            **more,
        }

    def test_an_operator_adds_changes_and_replaces_one(
        self,
        page_as: Callable[[User], Client],
        grace: User,
        acme: Org,
        federation: Federation,
        simulator: Any,
        key: str,
    ) -> None:
        operator = page_as(grace)
        trust(simulator, acme, federation, subject="rensei:platform:metered")
        assert operator.post(self.ADD, self.fields(federation)).status_code == 302
        stored = PlatformKey.objects.get()
        assert platform.open_platform_key(stored).federation == federation

        change = f"/admin/integrations/platformkey/{stored.pk}/change/"
        assert federation.rule_id in operator.get(change).content.decode()
        assert operator.post(change, self.fields(federation, weight="7")).status_code == 302
        stored.refresh_from_db()
        assert (stored.weight, stored.secret_version) == (7, 1)

        assert operator.post(change, self.fields(federation, api_key=key)).status_code == 302
        stored.refresh_from_db()
        assert platform.open_platform_key(stored).secret.reveal() == key
        assert stored.federation is None

    @pytest.mark.parametrize("more", [{}, {"federation_rule": "x"}])
    def test_one_that_is_incomplete_is_refused(
        self, page_as: Callable[[User], Client], grace: User, more: dict[str, str]
    ) -> None:
        answer = page_as(grace).post(self.ADD, self.fields(None, **more))
        assert answer.status_code == 200
        assert not PlatformKey.objects.exists()

    def test_one_that_does_not_work_is_not_saved(
        self, page_as: Callable[[User], Client], grace: User, acme: Org, federation: Federation, simulator: Any
    ) -> None:
        trust(simulator, acme, federation, subject="rensei:platform:shared")
        assert "did not exchange" in page_as(grace).post(self.ADD, self.fields(federation)).content.decode()
        assert not PlatformKey.objects.exists()


def test_no_token_is_stored(ada_access: Access, federated: Integration, federation: Federation, simulator: Any) -> None:
    trust(simulator, ada_access.org, federation)
    services.check_integration(ada_access, federated)
    token = tokens.get(opened(federated)).reveal()
    rows = [list(Integration.objects.values()), list(AuditEvent.objects.values())]
    assert token not in json.dumps(rows, default=str)
