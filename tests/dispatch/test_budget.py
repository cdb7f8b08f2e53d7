"""The monthly budget from the dispatch to the settlement, with a provider that answers, fails and breaks off."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from typing import Any

import pytest
from django.db import connection
from rest_framework.test import APIClient

from billing.limits.budget import MeteredBudgetExceeded
from billing.models import BudgetHold, BudgetUsage, CostEvent, Entitlement
from catalog import pricing
from catalog.pricing import UnitPrices
from integrations.keys import platform
from integrations.models import PlatformKey
from integrations.providers.base import Credential, ProviderFailure
from rensei.core.auth_modes import AuthMode
from rensei.core.clock import database_now
from rensei.core.secret import Secret
from rensei.core.usage import Usage, UsagePart
from rensei.dispatch import services
from rensei.dispatch.admission import admit
from rensei.dispatch.admission.requests import DispatchRequest, messages_from
from rensei.dispatch.execution import execute, reaper
from rensei.dispatch.models import Attempt, IdempotencyKey, Run, RunInput
from rensei.dispatch.modes import MODES
from rensei.dispatch.queue import claims
from rensei.dispatch.settlement import settle
from rensei.dispatch.settlement.settle import SettlementPlan
from rensei.orgs.access import Access
from rensei.orgs.models import User
from tests.dispatch.dying_worker import plant_death
from tests.dispatch.reconcile import assert_explained
from tests.dispatch.test_crashes import let_leases_run_out
from tests.dying import die_at
from tests.waiting import wait_until

pytestmark = pytest.mark.django_db(transaction=True)

DOLLAR = 10**12


@pytest.fixture
def metered(ada_access: Access, make_profile: Any, make_key: Callable[..., str], simulator: Any) -> Callable[..., None]:
    """Open metered to Acme, with so much of a budget."""
    make_profile(auth_modes=["metered"], max_tokens=1000, effort="low")

    def open_it(budget: int | None = None, word: str = "") -> None:
        platform.add_platform_key(
            actor=None, provider="claude", pool="metered", name="one", api_key=Secret(make_key(word))
        )
        Entitlement.objects.filter(org=ada_access.org).update(metered_enabled=True, monthly_budget_picodollars=budget)

    return open_it


@pytest.fixture
def dispatch(ada_access: Access) -> Callable[..., Run]:
    def send(text: str = "Hi.", **fields: Any) -> Run:
        request = DispatchRequest(profile_id="prof_deep", messages=messages_from(text=text, messages=None))
        return admit.dispatch(ada_access, request, **fields)

    return send


def usage() -> tuple[int, int]:
    row = BudgetUsage.objects.get()
    return row.used, row.held


def billed() -> int:
    return sum(CostEvent.objects.values_list("billed_picodollars", flat=True))


def assert_nothing_is_held() -> None:
    """After everything has ended nothing is held, and what is used is what was billed."""
    assert not BudgetHold.objects.exists()
    assert usage() == (billed(), 0)


class TestAMeteredRun:
    def test_holds_the_most_that_it_can_cost_and_pays_what_it_did(
        self, metered: Any, dispatch: Any, work: Any, simulator: Any
    ) -> None:
        metered(budget=DOLLAR)

        run = dispatch("[[reply 50 words]] Tell me of the sea.")
        held = BudgetHold.objects.get().picodollars
        before = usage()
        (ended,) = work()

        bands = [UnitPrices.from_dict(band) for band in run.prices]
        top = bands[0]
        assert held >= run.max_tokens * top.output + 10 * top.input
        assert held <= pricing.worst_case(bands, prompt_tokens=5000, max_tokens=run.max_tokens)
        assert before == (0, held)
        assert ended.state == Run.State.SUCCEEDED, ended.error
        assert 0 < ended.amount_picodollars == usage()[0] < held
        assert_nothing_is_held()
        assert_explained(simulator)

    @pytest.mark.parametrize("caching", ["off", "ephemeral", "static"])
    @pytest.mark.parametrize("ttl", ["5m", "1h"])
    def test_holds_the_writes_of_the_callers_own_breakpoints(
        self, metered: Any, ada_access: Access, caching: str, ttl: str
    ) -> None:
        metered()
        text = "word " * 5000
        mark = {"type": "ephemeral", "ttl": ttl}
        block = {"type": "text", "text": text, "cache_control": mark}
        request = DispatchRequest(
            profile_id="prof_deep",
            messages=[{"role": "user", "content": [block]}],
            prompt_caching=caching,
        )

        run = admit.dispatch(ada_access, request)

        (band, *_) = [UnitPrices.from_dict(band) for band in run.prices]
        price = band.cache_write_1h if ttl == "1h" else band.cache_write_5m
        assert BudgetHold.objects.get().picodollars >= len(text) * price + run.max_tokens * band.output

    @pytest.mark.parametrize("reported", [False, True], ids=["nothing reported", "a prompt reported"])
    @pytest.mark.parametrize("mode", [AuthMode.METERED, AuthMode.SHARED, AuthMode.BYOK])
    def test_is_not_called_again_on_one_hold_once_a_prompt_was_reported(
        self, ada_access: Access, mode: AuthMode, reported: bool
    ) -> None:
        parts = (UsagePart(usage=Usage(input_tokens=900_000)),) if reported else ()
        failure = ProviderFailure(
            code="PROVIDER_OVERLOADED", message="Busy.", fix="", retryable=True, maybe_billed=True, parts=parts
        )
        key = Credential(id="key_1", version=1, secret=Secret("x"), base_url="")
        run = Run(org=ada_access.org, auth_mode=mode, attempt_count=1, caps=[])

        again = execute._try_again(run, MODES[mode], key, failure)

        assert (again is None) is (reported and mode is not AuthMode.BYOK)

    @pytest.mark.parametrize("fields", [{}, {"max_tokens": 0}], ids=["stream", "cache"])
    def test_pays_for_its_prompt_if_it_is_cancelled_before_the_first_event(
        self, metered: Any, ada_access: Access, work: Any, simulator: Any, fields: dict[str, Any]
    ) -> None:
        metered(budget=DOLLAR)
        messages = messages_from(text="[[stall]]", messages=None)
        run = admit.dispatch(ada_access, DispatchRequest(profile_id="prof_deep", messages=messages, **fields))

        def work_elsewhere() -> list[Run]:
            try:
                return list(work())
            finally:
                connection.close()

        with ThreadPoolExecutor(1) as pool:
            working = pool.submit(work_elsewhere)
            wait_until(lambda: bool(simulator.requests()), what="the call")
            services.cancel_run(ada_access, run)
            (ended,) = working.result()

        line = CostEvent.objects.get()
        assert ended.state == Run.State.CANCELLED
        assert Attempt.objects.get().state == Attempt.State.SETTLED
        assert (line.estimated, line.output_tokens) == (True, 0)
        assert usage() == (line.billed_picodollars, 0)
        assert line.billed_picodollars > 0

    def test_is_refused_when_it_may_cost_more_than_is_left(
        self, metered: Any, dispatch: Any, work: Any, simulator: Any
    ) -> None:
        metered()
        dispatch()
        one = BudgetHold.objects.get().picodollars
        Entitlement.objects.update(monthly_budget_picodollars=2 * one - 1)

        with pytest.raises(MeteredBudgetExceeded):
            dispatch()
        work()
        dispatch()

        used = CostEvent.objects.get().billed_picodollars
        assert usage() == (used, one)
        assert used < one

    def test_leaves_nothing_when_it_is_refused(
        self, metered: Any, ada: User, api_as: Callable[..., APIClient], simulator: Any
    ) -> None:
        metered(budget=1)
        body = {"profileId": "prof_deep", "input": "Hi."}

        answer = api_as(ada).post("/api/v1/runs", body, headers={"Idempotency-Key": "once"})

        problem = answer.json()
        assert (answer.status_code, problem["code"], problem["retryable"]) == (402, "METERED_BUDGET_EXCEEDED", False)
        assert (problem["used"], problem["held"], problem["limit"]) == ("0.000000", "0.000000", "0.000000000001")
        assert problem["resetsAt"].endswith("-01T00:00:00Z")
        assert "maxTokens" in problem["detail"]
        for model in (Run, RunInput, Attempt, CostEvent, BudgetHold, BudgetUsage, IdempotencyKey):
            assert not model.objects.exists(), model
        assert simulator.requests() == []

    def test_is_foreseen_by_the_dry_run(
        self, metered: Any, dispatch: Any, ada: User, api_as: Callable[..., APIClient]
    ) -> None:
        metered()
        api = api_as(ada)
        fits = api.post("/api/v1/profiles/prof_deep/resolve", {"input": "Hi."}).json()
        dispatch()
        one = BudgetHold.objects.get().picodollars
        Entitlement.objects.update(monthly_budget_picodollars=2 * one - 1)
        before = list(BudgetUsage.objects.values())

        full = api.post("/api/v1/profiles/prof_deep/resolve", {"input": "Hi."}).json()

        assert (fits["wouldRun"], fits["quotes"][0]["code"]) == (True, None)
        assert (full["wouldRun"], full["code"]) == (False, "METERED_BUDGET_EXCEEDED")
        assert full["quotes"][0]["code"] == "METERED_BUDGET_EXCEEDED"
        assert full["trace"][1]["verdict"] == "gate-failed"
        assert list(BudgetUsage.objects.values()) == before

    def test_holds_once_for_an_idempotency_key(self, metered: Any, dispatch: Any) -> None:
        metered(budget=DOLLAR)

        runs = {dispatch(idempotency_key="once", body_digest="x").id for _ in range(3)}

        assert len(runs) == BudgetHold.objects.count() == 1

    def test_is_never_held_for_under_another_mode(
        self, metered: Any, connect: Any, ada_access: Access, make_profile: Any, work: Any
    ) -> None:
        metered(budget=0)
        connect()
        make_profile(name="own", auth_modes=["byok", "metered"])
        asked = messages_from(text="Hi.", messages=None)

        run = admit.dispatch(ada_access, DispatchRequest(profile_id="prof_own", messages=asked))
        (ended,) = work()

        assert (run.auth_mode, ended.state) == ("byok", Run.State.SUCCEEDED)
        assert not BudgetUsage.objects.exists()


class TestEveryEnd:
    @pytest.mark.parametrize(
        "text",
        [
            "Hi. [[fault:529 times=9]]",
            "Hi. [[fault:500 times=1]]",
            "Hi. [[reply 40 words]] [[fault:cut after=5]]",
            "Hi. [[reply 40 words]] [[fault:truncate after=5]]",
            "Hi. [[reply 40 words]] [[fault:stream-error after=5]]",
            "Hi. [[fault:no-usage]]",
            "Hi. [[fault:huge-usage]]",
        ],
    )
    def test_lets_go_whatever_the_provider_does(
        self, metered: Any, dispatch: Any, work: Any, simulator: Any, text: str
    ) -> None:
        metered(budget=DOLLAR)
        dispatch(text)

        (run,) = work()

        assert run.finished_at is not None
        assert_nothing_is_held()
        assert_explained(simulator)

    def test_lets_go_after_retries_under_the_same_hold(
        self, metered: Any, dispatch: Any, work: Any, simulator: Any
    ) -> None:
        metered(budget=DOLLAR, word="ratelimited")
        run = dispatch()
        hold = BudgetHold.objects.get()

        (ended,) = work()

        assert hold.run_id == run.id
        assert ended.state == Run.State.FAILED
        assert ended.attempts.count() >= 1
        assert_nothing_is_held()

    def test_lets_go_of_a_cancelled_run(self, metered: Any, dispatch: Any, ada_access: Access) -> None:
        metered(budget=DOLLAR)

        services.cancel_run(ada_access, dispatch())

        assert_nothing_is_held()

    def test_lets_go_of_a_run_that_waited_too_long(self, metered: Any, dispatch: Any) -> None:
        metered(budget=DOLLAR)
        run = dispatch()
        Run.objects.filter(id=run.id).update(deadline_at=database_now() - timedelta(seconds=1))

        reaper.reap()

        assert Run.objects.get().error["code"] == "RUN_TIMEOUT"
        assert_nothing_is_held()

    def test_lets_go_of_a_run_whose_key_is_gone(self, metered: Any, dispatch: Any, work: Any) -> None:
        metered(budget=DOLLAR)
        dispatch()
        PlatformKey.objects.update(health=PlatformKey.Health.QUARANTINED)

        (run,) = work()

        assert run.error["code"] == "METERED_KEY_NOT_CONFIGURED"
        assert_nothing_is_held()

    @pytest.mark.parametrize("point", ["after-the-claim", "mid-stream", "before-the-settlement-commits"])
    def test_lets_go_of_a_run_whose_worker_dies(
        self, metered: Any, dispatch: Any, work: Any, simulator: Any, point: str
    ) -> None:
        metered(budget=DOLLAR)
        dispatch("[[reply 60 words]] Tell me of the sea. [[slow 0.01]]")
        one = BudgetHold.objects.get().picodollars

        die_at(point, plant=plant_death)
        assert usage() == (0, one)
        let_leases_run_out()
        reaper.reap()
        work()

        assert_nothing_is_held()
        assert_explained(simulator)

    def test_counts_an_interrupted_run_only_when_it_is_settled_late(
        self, metered: Any, dispatch: Any, simulator: Any
    ) -> None:
        metered(budget=DOLLAR)
        dispatch()
        claim = claims.claim_next(owner="slow")
        assert claim is not None
        attempt = claims.open_attempt(claim.run, credential_id="key_1", credential_version=1, input_tokens=9)
        assert attempt is not None
        let_leases_run_out()
        reaper.reap()
        interrupted = usage()

        settle.write(
            [
                SettlementPlan(
                    run=claim.run, now=database_now(), attempt=attempt, usage=Usage(input_tokens=20, output_tokens=30)
                )
            ]
        )

        assert interrupted == (0, 0)
        assert usage()[0] > 0
        assert_nothing_is_held()


class TestManyAtOnce:
    def test_never_pass_the_budget(self, metered: Any, dispatch: Any, work: Any, ada_access: Access) -> None:
        metered()
        first = dispatch()
        one = BudgetHold.objects.get().picodollars
        services.cancel_run(ada_access, first)
        Entitlement.objects.update(monthly_budget_picodollars=5 * one)

        def contend(_: int) -> int:
            admitted = 0
            try:
                for _ in range(3):
                    try:
                        dispatch()
                        admitted += 1
                    except MeteredBudgetExceeded:
                        pass
            finally:
                connection.close()
            return admitted

        with ThreadPoolExecutor(6) as pool:
            admitted = sum(pool.map(contend, range(6)))

        assert admitted == 5
        assert usage() == (0, 5 * one)
        assert len(work()) == 5
        assert_nothing_is_held()
