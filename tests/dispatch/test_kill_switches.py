"""What an operator has stopped: refused at the dispatch, shown by the dry run, judged again at the claim."""

from collections.abc import Callable
from typing import Any

import pytest
from rest_framework.test import APIClient

from billing.models import CostEvent, Entitlement, Hold, SharedUsage
from integrations.keys import platform
from integrations.models import PlatformKey
from rensei.audit.models import AuditEvent
from rensei.core.errors import RenseiError
from rensei.core.secret import Secret
from rensei.dispatch.admission import admit, test_message
from rensei.dispatch.admission.requests import DispatchRequest, messages_from
from rensei.dispatch.models import Attempt, Run
from rensei.dispatch.queue import claims
from rensei.orgs import kill_switches
from rensei.orgs.access import Access
from rensei.orgs.kill_switches import Kind, OrgSuspended, PausedByOperator
from rensei.orgs.models import KillSwitch, User
from tests.dispatch.test_leases import Machine, machine, make_machine

__all__ = ["machine", "make_machine"]

pytestmark = pytest.mark.django_db(transaction=True)

MODEL = "claude-opus-5-5"
WHY = "Elevated errors at Anthropic"


@pytest.fixture
def stop(grace: User) -> Callable[..., KillSwitch]:
    def stop_it(kind: Kind, target: str, **fields: Any) -> KillSwitch:
        return kill_switches.stop(operator=grace, kind=kind, target=target, reason=WHY, **fields)

    return stop_it


@pytest.fixture
def dispatch(ada_access: Access) -> Callable[[], Run]:
    request = DispatchRequest(profile_id="prof_deep", messages=messages_from(text="Hi.", messages=None))
    return lambda: admit.dispatch(ada_access, request)


@pytest.fixture
def pool_key(make_key: Callable[..., str], ada_access: Access) -> Callable[..., PlatformKey]:
    Entitlement.objects.filter(org=ada_access.org).update(metered_enabled=True)

    def make(name: str, pool: str = "metered", **fields: Any) -> PlatformKey:
        return platform.add_platform_key(
            actor=None, provider="claude", pool=pool, name=name, api_key=Secret(make_key()), **fields
        )

    return make


# What is stopped for everybody, and what the refused read of it.
WIDE = [
    (Kind.PROVIDER, "claude", "provider 'claude'"),
    (Kind.MODEL, MODEL, f"model '{MODEL}'"),
    (Kind.AUTH_MODE, "byok", "auth mode 'byok'"),
]


def assert_nothing_was_spent(simulator: Any) -> None:
    assert not Attempt.objects.exists()
    assert not CostEvent.objects.exists()
    assert not Hold.objects.exists()
    assert not SharedUsage.objects.exclude(used=0, held=0).exists()
    assert not [call for call in simulator.requests() if call["path"].startswith("/v1/messages")]


class TestADispatch:
    @pytest.mark.parametrize(("kind", "target", "what"), WIDE, ids=[kind.value for kind, _, _ in WIDE])
    def test_is_refused_with_the_reason_and_writes_nothing(
        self,
        simulator: Any,
        connect: Any,
        make_profile: Any,
        ada: User,
        api_as: Callable[..., APIClient],
        stop: Any,
        kind: Kind,
        target: str,
        what: str,
    ) -> None:
        connect()
        make_profile()
        api = api_as(ada)
        stop(kind, target)

        answer = api.post("/api/v1/runs", {"profileId": "prof_deep", "input": "Hi."})

        assert answer.status_code == 503
        body = answer.json()
        assert body["code"] == "PAUSED_BY_OPERATOR"
        assert body["retryable"] is True
        assert f"has paused {what}: {WHY}." in body["detail"]
        assert body["trace"][0]["verdict"] == "gate-failed"
        assert not Run.objects.exists()
        assert_nothing_was_spent(simulator)

    def test_of_a_suspended_organization_is_refused_with_the_operators_address(
        self, simulator: Any, connect: Any, make_profile: Any, ada: User, api_as: Any, stop: Any, settings: Any
    ) -> None:
        settings.RENSEI_SUPPORT_EMAIL = "help@platform.test"
        integration = connect()
        make_profile()
        api = api_as(ada)
        stop(Kind.ORGANIZATION, integration.org_id, org=integration.org)

        answer = api.post("/api/v1/runs", {"profileId": "prof_deep", "input": "Hi."})

        assert answer.status_code == 403
        body = answer.json()
        assert body["code"] == "ORG_SUSPENDED"
        assert f"{WHY}." in body["detail"]
        assert "help@platform.test" in body["detail"]
        assert not Run.objects.exists()
        assert_nothing_was_spent(simulator)

    def test_of_another_organization_is_not_concerned(
        self, simulator: Any, connect: Any, make_profile: Any, dispatch: Any, eve: User, access_of: Any, stop: Any
    ) -> None:
        connect()
        make_profile()
        evil = access_of(eve, "evil").org
        stop(Kind.ORGANIZATION, evil.id, org=evil)

        assert dispatch().state == Run.State.QUEUED

    def test_goes_through_again_once_it_is_resumed(
        self, simulator: Any, connect: Any, make_profile: Any, dispatch: Any, grace: User, stop: Any
    ) -> None:
        connect()
        make_profile()
        switch = stop(Kind.MODEL, MODEL)
        with pytest.raises(PausedByOperator):
            dispatch()

        kill_switches.resume(switch, operator=grace)

        assert dispatch().state == Run.State.QUEUED

    def test_is_not_given_to_another_mode_whose_money_it_would_be(
        self, simulator: Any, connect: Any, make_profile: Any, dispatch: Any, pool_key: Any, stop: Any
    ) -> None:
        connect()
        pool_key("main")
        make_profile(auth_modes=["byok", "metered"])
        stop(Kind.AUTH_MODE, "byok")

        with pytest.raises(PausedByOperator):
            dispatch()

        assert_nothing_was_spent(simulator)

    def test_by_a_key_of_the_organization_that_is_paused_is_refused(
        self, simulator: Any, connect: Any, make_profile: Any, dispatch: Any, stop: Any
    ) -> None:
        integration = connect()
        make_profile()
        stop(Kind.INTEGRATION, integration.id, org=integration.org)

        with pytest.raises(PausedByOperator, match=f"the key that this organization has connected: {WHY}"):
            dispatch()

    def test_for_a_retired_model_is_refused_if_the_one_that_serves_it_is_paused(
        self, simulator: Any, connect: Any, make_profile: Any, ada_access: Access, stop: Any, api_as: Any, ada: User
    ) -> None:
        connect()
        make_profile(model_id="claude-opus-4-1-20250514")
        api = api_as(ada)
        served = api.post("/api/v1/profiles/prof_deep/resolve", {}).json()["servedModel"]
        stop(Kind.MODEL, served)

        answer = api.post("/api/v1/runs", {"profileId": "prof_deep", "input": "Hi."})

        assert answer.json()["code"] == "PAUSED_BY_OPERATOR"


class TestADryRun:
    def test_shows_the_pause_in_its_code_its_trace_and_its_quotes(
        self, simulator: Any, connect: Any, make_profile: Any, ada: User, api_as: Any, pool_key: Any, stop: Any
    ) -> None:
        connect()
        pool_key("main")
        make_profile(auth_modes=["byok", "metered"])
        stop(Kind.AUTH_MODE, "byok")

        body = api_as(ada).post("/api/v1/profiles/prof_deep/resolve", {"input": "Hi."}).json()

        assert (body["wouldRun"], body["code"]) == (False, "PAUSED_BY_OPERATOR")
        assert WHY in body["detail"]
        assert body["trace"][0]["verdict"] == "gate-failed"
        assert {quote["mode"]: quote["code"] for quote in body["quotes"]} == {
            "byok": "PAUSED_BY_OPERATOR",
            "metered": None,
        }


class TestAPausedPoolKey:
    def test_is_skipped_while_the_pool_has_another(
        self, simulator: Any, make_profile: Any, dispatch: Any, pool_key: Any, stop: Any, work: Any
    ) -> None:
        paused, other = pool_key("paused", weight=30_000), pool_key("other")
        make_profile(auth_modes=["metered"])
        stop(Kind.PLATFORM_KEY, paused.id)

        dispatch()
        (run,) = work()

        assert run.state == Run.State.SUCCEEDED
        assert run.credential_id == other.id

    @pytest.mark.parametrize("pool", ["metered", "shared"])
    def test_is_the_reason_of_the_refusal_where_it_is_the_only_one(
        self, simulator: Any, make_profile: Any, dispatch: Any, pool_key: Any, stop: Any, pool: str
    ) -> None:
        key = pool_key("only", pool, model_ids=[MODEL], max_tokens_cap=1000)
        make_profile(auth_modes=[pool])
        stop(Kind.PLATFORM_KEY, key.id)

        with pytest.raises(PausedByOperator, match=WHY) as refused:
            dispatch()

        assert key.id not in refused.value.detail
        assert_nothing_was_spent(simulator)

    def test_does_not_cap_the_answers_of_the_others(
        self, simulator: Any, make_profile: Any, dispatch: Any, pool_key: Any, stop: Any
    ) -> None:
        tight = pool_key("tight", "shared", model_ids=[MODEL], max_tokens_cap=100)
        pool_key("wide", "shared", model_ids=[MODEL], max_tokens_cap=4000)
        make_profile(auth_modes=["shared"])
        stop(Kind.PLATFORM_KEY, tight.id)

        assert dispatch().max_tokens == 4000


class TestAQueuedRun:
    @pytest.mark.parametrize("kind", [Kind.ORGANIZATION, Kind.PROVIDER, Kind.MODEL, Kind.AUTH_MODE, Kind.INTEGRATION])
    def test_ends_with_the_reason_and_without_a_call(
        self, simulator: Any, connect: Any, make_profile: Any, dispatch: Any, stop: Any, work: Any, kind: Kind
    ) -> None:
        integration = connect()
        make_profile()
        dispatch()
        target, org = {
            Kind.ORGANIZATION: (integration.org_id, integration.org),
            Kind.PROVIDER: ("claude", None),
            Kind.MODEL: (MODEL, None),
            Kind.AUTH_MODE: ("byok", None),
            Kind.INTEGRATION: (integration.id, integration.org),
        }[kind]
        stop(kind, target, org=org)

        (run,) = work()

        assert run.state == Run.State.FAILED
        assert run.error is not None
        assert run.error["code"] == ("ORG_SUSPENDED" if kind is Kind.ORGANIZATION else "PAUSED_BY_OPERATOR")
        assert WHY in run.error["detail"]
        assert_nothing_was_spent(simulator)

    def test_gives_its_shared_run_back(
        self, simulator: Any, make_profile: Any, dispatch: Any, pool_key: Any, stop: Any, work: Any
    ) -> None:
        key = pool_key("only", "shared", model_ids=[MODEL], max_tokens_cap=1000)
        make_profile(auth_modes=["shared"])
        dispatch()
        stop(Kind.PLATFORM_KEY, key.id)

        (run,) = work()

        assert run.error is not None
        assert run.error["code"] == "PAUSED_BY_OPERATOR"
        assert run.error["retryable"] is True
        assert_nothing_was_spent(simulator)

    def test_that_runs_already_is_settled(
        self, simulator: Any, connect: Any, make_profile: Any, dispatch: Any, stop: Any, work: Any, monkeypatch: Any
    ) -> None:
        connect()
        make_profile()
        run = dispatch()
        add_chunk = claims.add_chunk
        stopped: list[KillSwitch] = []

        def stop_midway(*args: Any, **kwargs: Any) -> bool:
            if not stopped:
                stopped.append(stop(Kind.PROVIDER, "claude"))
            return add_chunk(*args, **kwargs)

        monkeypatch.setattr(claims, "add_chunk", stop_midway)

        work()

        run.refresh_from_db()
        assert stopped
        assert run.state == Run.State.SUCCEEDED
        assert CostEvent.objects.filter(run_id=run.id).count() == 1


class TestTestConnection:
    def test_of_a_suspended_organization_makes_no_call(
        self, simulator: Any, connect: Any, ada: User, api_as: Any, make_key: Any, stop: Any
    ) -> None:
        integration = connect()
        api = api_as(ada)
        simulator.reset()
        stop(Kind.ORGANIZATION, integration.org_id, org=integration.org)

        stored = api.post(f"/api/v1/integrations/{integration.id}/test")
        unsaved = api.post("/api/v1/integrations/test", {"provider": "claude", "apiKey": make_key()})

        assert [answer.json()["code"] for answer in (stored, unsaved)] == ["ORG_SUSPENDED", "ORG_SUSPENDED"]
        assert simulator.requests() == []

    def test_message_of_a_suspended_organization_is_refused(
        self, simulator: Any, connect: Any, ada_access: Access, stop: Any
    ) -> None:
        integration = connect()
        stop(Kind.ORGANIZATION, integration.org_id, org=integration.org)

        with pytest.raises(OrgSuspended):
            test_message.send(ada_access, integration)


class TestStopping:
    def test_is_written_down_and_so_is_resuming(self, grace: User, ada_access: Access, stop: Any) -> None:
        org = ada_access.org
        switch = stop(Kind.ORGANIZATION, org.id, org=org)
        kill_switches.resume(switch, operator=grace)
        kill_switches.resume(switch, operator=grace)

        events = list(
            AuditEvent.objects.for_org(org)
            .filter(user_id=grace.pk)
            .order_by("id")
            .values_list("action", "object_id", "detail")
        )

        assert events == [
            ("org.suspended", org.id, {"reason": WHY}),
            ("org.resumed", org.id, {"reason": WHY}),
        ]

    @pytest.mark.parametrize("reason", ["", "  ", "x" * 301], ids=["none", "blank", "long"])
    def test_asks_for_a_reason(self, grace: User, reason: str) -> None:
        with pytest.raises(RenseiError) as refused:
            kill_switches.stop(operator=grace, kind=Kind.PROVIDER, target="claude", reason=reason)

        assert refused.value.code == "VALIDATION_FAILED"
        assert not KillSwitch.objects.exists()

    def test_twice_is_refused_and_keeps_the_first_reason(self, grace: User, stop: Any) -> None:
        stop(Kind.PROVIDER, "claude")

        with pytest.raises(RenseiError) as refused:
            kill_switches.stop(operator=grace, kind=Kind.PROVIDER, target="claude", reason="Another")

        assert refused.value.code == "ALREADY_EXISTS"
        assert KillSwitch.objects.get().reason == WHY


class TestAMachine:
    @pytest.mark.parametrize(("kind", "target"), [(Kind.AUTH_MODE, "host-session"), (Kind.MODEL, MODEL)])
    def test_gets_no_lease_of_a_run_that_waited_while_it_was_stopped(
        self, simulator: Any, machine: Machine, make_profile: Any, stop: Any, kind: Kind, target: str
    ) -> None:
        make_profile(auth_modes=["host-session"])
        run_id = machine.api.post("/api/v1/runs", {"profileId": "prof_deep", "input": "Hi."}).json()["id"]
        stop(kind, target)

        answer = machine.api.post(f"/api/v1/hosts/{machine.host.id}/lease", {"runId": run_id})

        run = Run.objects.get(id=run_id)
        assert answer.json()["code"] == "PAUSED_BY_OPERATOR"
        assert run.state == Run.State.FAILED
        assert run.error is not None
        assert WHY in run.error["detail"]
        assert not Attempt.objects.exists()

    def test_reports_what_it_had_begun(
        self, simulator: Any, machine: Machine, make_profile: Any, stop: Any, ada_access: Access
    ) -> None:
        make_profile(auth_modes=["host-session"])
        machine.api.post("/api/v1/runs", {"profileId": "prof_deep", "input": "Hi."})
        lease = machine.lease().json()
        stop(Kind.ORGANIZATION, ada_access.org.id, org=ada_access.org)

        answer = machine.tell("finish", lease, **machine.report(machine.call(lease)))

        assert answer.json()["state"] == "SUCCEEDED"
        assert CostEvent.objects.count() == 1
