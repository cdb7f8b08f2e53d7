"""The cap of a token from the dispatch to the settlement, in every mode, with a provider that answers and fails."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, date, datetime, timedelta
from typing import Any

import pytest
from django.db import connection
from django.test.utils import CaptureQueriesContext
from rest_framework.test import APIClient

from billing.limits.caps import CostNotBounded, SpendCapExceeded
from billing.models import BudgetUsage, CapHold, CostEvent, Entitlement, Hold
from catalog.models import CatalogEntry, Price
from integrations.keys import platform
from integrations.models import Integration
from rensei.core.periods import month_of
from rensei.core.secret import Secret
from rensei.dispatch import services
from rensei.dispatch.admission import admit
from rensei.dispatch.admission.requests import DispatchRequest, messages_from
from rensei.dispatch.execution import reaper
from rensei.dispatch.models import Attempt, IdempotencyKey, Run, RunInput
from rensei.dispatch.queue import claims
from rensei.orgs.access import Access
from rensei.orgs.models import SpendCap, StoredBytes
from rensei.tokens.look_up import for_token
from rensei.tokens.models import ApiToken
from rensei.tokens.services import create_token, update_token
from rensei.workflows import services as workflows
from tests.dispatch.dying_worker import plant_death
from tests.dispatch.reconcile import assert_explained
from tests.dispatch.test_crashes import let_leases_run_out
from tests.dying import die_at

pytestmark = pytest.mark.django_db(transaction=True)

DOLLAR = 10**12


@pytest.fixture
def make_access(ada_access: Access) -> Callable[..., Access]:
    """Sign in with a new token, which has so much of a cap in picodollars."""

    def make(cap: int | None = DOLLAR, by: Access = ada_access) -> Access:
        _, secret = create_token(by, name="program", cap=cap)
        access = for_token(token=secret.reveal())
        assert access is not None
        return access

    return make


@pytest.fixture
def byok(connected: Integration, make_profile: Any, simulator: Any) -> None:
    make_profile(auth_modes=["byok"], max_tokens=1000, effort="low")


def send(access: Access, text: str = "Hi.", **fields: Any) -> Run:
    request = DispatchRequest(profile_id="prof_deep", messages=messages_from(text=text, messages=None))
    return admit.dispatch(access, request, **fields)


def figures(access: Access) -> tuple[int, int]:
    assert access.token is not None
    cap = SpendCap.objects.get(scope_id=access.token.pk)
    return cap.used, cap.held


def cost() -> int:
    return sum(amount or 0 for amount in CostEvent.objects.values_list("amount_picodollars", flat=True))


def again(access: Access) -> Access:
    """Read what the token may now, as the next request does."""
    assert access.token is not None
    token = ApiToken.objects.get(pk=access.token.pk)
    return Access(
        user=access.user, org=access.org, role=access.role, membership=access.membership, token=token, caps=token.caps
    )


class TestARunUnderACap:
    def test_holds_the_most_that_it_can_cost_and_counts_what_it_did(
        self, byok: None, make_access: Any, work: Any, simulator: Any
    ) -> None:
        access = make_access()

        send(access, "[[reply 50 words]] Tell me of the sea.")
        held = CapHold.objects.get().picodollars
        before = figures(access)
        (ended,) = work()

        assert before == (0, held)
        assert ended.payer == "organization"
        assert 0 < ended.amount_picodollars == figures(access)[0] < held
        assert figures(access)[1] == 0
        assert not CapHold.objects.exists()
        assert_explained(simulator)

    def test_is_refused_when_it_may_cost_more_than_is_left(
        self, byok: None, make_access: Any, work: Any, ada_access: Access
    ) -> None:
        access = make_access()
        send(access)
        one = CapHold.objects.get().picodollars
        SpendCap.objects.update(picodollars=2 * one - 1)

        with pytest.raises(SpendCapExceeded):
            send(access)
        work()
        send(access)
        send(ada_access)

        assert figures(access) == (cost(), one)

    def test_leaves_nothing_when_it_is_refused(self, byok: None, ada_access: Access, simulator: Any) -> None:
        _, secret = create_token(ada_access, name="program", cap=1)
        api = APIClient(headers={"Authorization": f"Bearer {secret.reveal()}", "Idempotency-Key": "once"})

        answer = api.post("/api/v1/runs", {"profileId": "prof_deep", "input": "Hi."}, format="json")

        problem = answer.json()
        assert (answer.status_code, problem["code"], problem["retryable"]) == (402, "SPEND_CAP_EXCEEDED", False)
        assert (problem["used"], problem["held"], problem["limit"]) == ("0.000000", "0.000000", "0.000000000001")
        assert problem["resetsAt"].endswith("-01T00:00:00Z")
        for model in (Run, RunInput, Attempt, CostEvent, CapHold, IdempotencyKey):
            assert not model.objects.exists(), model
        assert StoredBytes.objects.get(org=ada_access.org).held == 0
        assert simulator.requests() == []

    def test_is_foreseen_by_the_dry_run(self, byok: None, ada_access: Access) -> None:
        _, secret = create_token(ada_access, name="program", cap=1)
        api = APIClient(headers={"Authorization": f"Bearer {secret.reveal()}"})

        found = api.post("/api/v1/profiles/prof_deep/resolve", {"input": "Hi."}, format="json").json()

        assert (found["wouldRun"], found["code"]) == (False, "SPEND_CAP_EXCEEDED")
        assert found["quotes"][0]["code"] == "SPEND_CAP_EXCEEDED"
        assert SpendCap.objects.get().held == 0

    def test_is_refused_without_a_price(self, byok: None, make_access: Any, ada_access: Access) -> None:
        access = make_access()
        Price.objects.all().delete()

        with pytest.raises(CostNotBounded) as refused:
            send(access)

        assert refused.value.code == "MODEL_UNPRICED"
        assert "use a token without a cap" in refused.value.detail
        assert send(ada_access).prices is None

    def test_is_refused_for_an_entry_of_the_organizations_own(
        self, byok: None, make_access: Any, make_profile: Any, ada_access: Access
    ) -> None:
        access = make_access()
        CatalogEntry.objects.update(org=ada_access.org)

        with pytest.raises(CostNotBounded):
            send(access)

    def test_counts_a_call_that_was_not_reported_within_its_hold(
        self, byok: None, make_access: Any, work: Any, simulator: Any
    ) -> None:
        access = make_access()
        send(access, "[[fault:cut after=5]] Tell me of the sea.")
        held = CapHold.objects.get().picodollars

        work()

        assert 0 < figures(access)[0] == cost() <= held
        assert figures(access)[1] == 0
        assert_explained(simulator)

    def test_makes_no_other_attempt_that_no_longer_fits(
        self, byok: None, make_access: Any, work: Any, monkeypatch: pytest.MonkeyPatch, simulator: Any
    ) -> None:
        access = make_access()
        send(access, "[[fault:504 times=1]] Hi.")
        one = CapHold.objects.get().picodollars
        SpendCap.objects.update(picodollars=one)

        (run,) = work()

        # The first call may have been billed, so that it and another one may cost more than the cap.
        line = CostEvent.objects.get()
        assert line.amount_picodollars
        assert (run.state, run.error["code"], run.attempt_count) == (Run.State.FAILED, "SPEND_CAP_EXCEEDED", 1)
        assert figures(access) == (line.amount_picodollars, 0)

    def test_releases_what_it_held_when_it_is_cancelled(self, byok: None, make_access: Any) -> None:
        access = make_access()
        run = send(access)

        services.cancel_run(access, run)

        assert figures(access) == (0, 0)
        assert not CapHold.objects.exists()

    @pytest.mark.parametrize("point", ["after-the-claim", "mid-stream", "before-the-settlement-commits"])
    def test_is_released_when_its_worker_dies(
        self, byok: None, make_access: Any, work: Any, simulator: Any, point: str
    ) -> None:
        access = make_access()
        send(access, "[[reply 60 words]] Tell me of the sea. [[slow 0.01]]")
        one = CapHold.objects.get().picodollars

        die_at(point, plant=plant_death)
        assert figures(access) == (0, one)
        let_leases_run_out()
        reaper.reap()
        work()

        assert figures(access) == (cost(), 0)
        assert cost() <= one
        assert_explained(simulator)

    def test_holds_in_a_platform_mode_beside_the_limit_of_the_mode(
        self, make_access: Any, make_profile: Any, make_key: Any, work: Any, ada_access: Access, simulator: Any
    ) -> None:
        make_profile(auth_modes=["metered"], max_tokens=1000, effort="low")
        platform.add_platform_key(actor=None, provider="claude", pool="metered", name="one", api_key=Secret(make_key()))
        Entitlement.objects.filter(org=ada_access.org).update(
            metered_enabled=True, monthly_budget_picodollars=10 * DOLLAR
        )
        access = make_access()
        send(access)
        one = CapHold.objects.get().picodollars
        Entitlement.objects.update(monthly_budget_picodollars=one)

        # Refused by the budget, together with what it took of the cap.
        with pytest.raises(Exception, match="budget"):
            send(access)
        (run,) = work()

        assert figures(access) == (run.amount_picodollars, 0)
        assert BudgetUsage.objects.get().used == run.amount_picodollars
        assert not Hold.objects.exists()
        assert_explained(simulator)

    def test_gives_a_cap_back_for_one_of_several_that_the_budget_refuses(
        self, make_access: Any, make_profile: Any, make_key: Any, ada_access: Access
    ) -> None:
        make_profile(auth_modes=["metered"], max_tokens=1000, effort="low")
        platform.add_platform_key(actor=None, provider="claude", pool="metered", name="one", api_key=Secret(make_key()))
        Entitlement.objects.filter(org=ada_access.org).update(metered_enabled=True)
        access = make_access()
        request = DispatchRequest(profile_id="prof_deep", messages=messages_from(text="Hi.", messages=None))
        judgement = admit.decide.decide(admit.decide.load(access, request), request)
        plans = [admit.plan(access, judgement, request) for _ in range(3)]
        one = plans[0].at_most
        Entitlement.objects.update(monthly_budget_picodollars=2 * one)

        refused = admit.write(plans)

        assert [refusal.code for refusal in refused.values()] == ["METERED_BUDGET_EXCEEDED"]
        assert figures(access) == (0, 2 * one)
        assert CapHold.objects.count() == Run.objects.count() == 2

    def test_costs_a_token_without_a_cap_no_statement(
        self, byok: None, make_access: Any, work: Any, ada_access: Access
    ) -> None:
        access = make_access(cap=None)

        with CaptureQueriesContext(
            connection,
        ) as queries:
            send(access)
            work()

        texts = [query["sql"] for query in queries]
        assert not [text for text in texts if "spendcap" in text or "caphold" in text]

    def test_starts_anew_each_month(self, byok: None, make_access: Any, work: Any) -> None:
        access = make_access()
        send(access)
        one = CapHold.objects.get().picodollars
        work()
        SpendCap.objects.update(picodollars=one, period=date(2020, 1, 1))

        send(access)

        assert figures(access) == (0, one)


class TestManyDispatchesAtOnce:
    def test_never_pass_the_cap(self, byok: None, make_access: Any, work: Any, simulator: Any) -> None:
        access = make_access()
        send(access)
        one = CapHold.objects.get().picodollars
        SpendCap.objects.update(picodollars=5 * one)

        def dispatch(_: int) -> bool:
            try:
                send(access)
            except SpendCapExceeded:
                return False
            finally:
                connection.close()
            return True

        with ThreadPoolExecutor(8) as pool:
            admitted = sum(pool.map(dispatch, range(24)))

        assert admitted == 4
        assert figures(access) == (0, 5 * one)
        work()
        assert figures(access) == (cost(), 0)
        assert_explained(simulator)


class TestTheCapsOfALineOfTokens:
    def test_hold_for_what_a_token_makes(self, byok: None, make_access: Any, work: Any, simulator: Any) -> None:
        first = make_access()
        second = make_access(cap=2 * DOLLAR, by=first)
        third = make_access(cap=None, by=second)

        send(third)
        one = CapHold.objects.get().picodollars

        assert figures(first) == figures(second) == (0, one)
        work()
        assert figures(first) == figures(second) == (cost(), 0)
        assert_explained(simulator)

    def test_hold_all_or_none(self, byok: None, make_access: Any) -> None:
        first = make_access()
        second = make_access(cap=1, by=first)

        with pytest.raises(SpendCapExceeded) as refused:
            send(second)

        assert second.token.pk in refused.value.detail
        assert figures(first) == figures(second) == (0, 0)

    def test_hold_for_tokens_made_before_the_cap(
        self, byok: None, make_access: Any, ada_access: Access, work: Any
    ) -> None:
        first = make_access(cap=None)
        second = make_access(cap=None, by=first)
        send(second)
        work()

        update_token(ada_access, ApiToken.objects.get(pk=first.token.pk), cap=DOLLAR)
        send(again(second))

        # What was spent in this month before counts.
        used, held = figures(first)
        assert (used, held) == (cost(), CapHold.objects.get().picodollars)

    def test_hold_for_the_runs_of_a_workflow(self, byok: None, make_access: Any) -> None:
        access = make_access()
        node = {
            "nodeId": "a",
            "nodeType": "action/llm.inference",
            "config": {"profileId": "prof_deep", "prompt": "Hi."},
        }
        workflow, _ = workflows.apply_document(access, {"name": "one", "nodes": [node]})

        workflows.start(access, workflow)

        assert figures(access)[1] == CapHold.objects.get().picodollars > 0

    def test_are_gone_when_they_are_removed(self, byok: None, make_access: Any, ada_access: Access, work: Any) -> None:
        access = make_access()
        send(access)

        update_token(ada_access, ApiToken.objects.get(pk=access.token.pk), cap=None)
        work()
        send(again(access))
        # A process that has read the token before the change.
        send(access)

        assert not SpendCap.objects.exists()
        assert CapHold.objects.count() == 1
        (_, last) = work()
        assert last.state == Run.State.SUCCEEDED
        assert not CapHold.objects.exists()


class TestASettlementOfAPastMonth:
    def test_changes_nothing_of_this_one(self, byok: None, make_access: Any, work: Any) -> None:
        access = make_access()
        send(access)
        next_month = (month_of(datetime.now(UTC)) + timedelta(days=32)).replace(day=1)
        SpendCap.objects.update(period=next_month, used=7)

        work()

        assert figures(access) == (7, 0)


def test_a_waiting_run_is_released_at_its_deadline(byok: None, make_access: Any) -> None:
    access = make_access()
    run = send(access)
    Run.objects.filter(pk=run.pk).update(deadline_at=run.created_at - timedelta(hours=1))

    assert claims.claim_next(owner="late") is None
    reaper.reap()

    assert Run.objects.get().error["code"] == "RUN_TIMEOUT"
    assert figures(access) == (0, 0)
