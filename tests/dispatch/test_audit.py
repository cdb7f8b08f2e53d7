import io
import json
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from typing import Any

import pytest
from django.core.management import call_command
from django.core.management.base import CommandError
from django.db import connection
from django.db.models import F
from django.test import Client
from django.utils import timezone

from billing.integrity import anchors, seals
from billing.models import (
    BudgetHold,
    BudgetUsage,
    CostEvent,
    Entitlement,
    Hold,
    LedgerAnchor,
    LedgerSeal,
    SharedUsage,
    Statement,
    UsageDaily,
)
from billing.statements import statements
from integrations.capacity import prices
from integrations.keys import platform
from rensei import worker
from rensei.core.clock import database_now
from rensei.core.ids import new_id
from rensei.core.jobs import Schedule
from rensei.core.secret import Secret
from rensei.core.transactions import durable, snapshot
from rensei.core.usage import Usage
from rensei.dispatch import services
from rensei.dispatch.admission import admit
from rensei.dispatch.admission.requests import DispatchRequest, messages_from
from rensei.dispatch.models import Attempt, LedgerAudit, Run, Sandbox
from rensei.dispatch.settlement import audit, settle
from rensei.orgs.access import Access
from rensei.orgs.models import User
from tests.billing.ledger_triggers import triggers_lifted
from tests.billing.record import capacity_line, record_charges
from tests.dispatch.losing import lose

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture
def dispatch(
    simulator: Any,
    ada_access: Access,
    connect: Callable[..., Any],
    make_profile: Callable[..., Any],
    make_key: Callable[..., str],
) -> Callable[..., Run]:
    """Dispatch a run of Acme's in a mode, byok, metered or shared."""
    connect()
    Entitlement.objects.filter(org=ada_access.org).update(metered_enabled=True)
    for mode in ("byok", "metered", "shared"):
        make_profile(name=mode, auth_modes=[mode])
        if mode != "byok":
            platform.add_platform_key(
                actor=None,
                provider="claude",
                pool=mode,
                name=mode,
                api_key=Secret(make_key()),
                model_ids=["claude-opus-5-5"],
                max_tokens_cap=4000,
            )

    def make(mode: str, text: str = "What is two and two?") -> Run:
        messages = messages_from(text=text, messages=None)
        return admit.dispatch(ada_access, DispatchRequest(profile_id=f"prof_{mode}", messages=messages))

    return make


@pytest.fixture
def ledger(dispatch: Callable[..., Run], work: Callable[[], list[Run]], ada_access: Access) -> dict[str, Run]:
    """
    A bit of everything: runs of three modes, one that failed half-way, one cancelled in the queue, one still
    queued, one whose call nobody saw end, and one of those that was settled late.
    """
    for mode in ("byok", "metered", "shared"):
        dispatch(mode)
    dispatch("byok", "[[reply 40 words]] Go. [[break after 5]]")
    runs = {run.auth_mode: run for run in reversed(work())}
    cancelled = dispatch("shared")
    services.cancel_run(ada_access, cancelled)
    runs["lost"] = lose(dispatch("metered"))
    late = lose(dispatch("metered"))
    settle_late(late, Usage(input_tokens=9, output_tokens=11))
    runs["late"] = late
    runs["queued"] = dispatch("shared")
    return runs


def settle_late(run: Run, usage: Usage) -> None:
    plan = settle.SettlementPlan(run=run, now=database_now(), attempt=run.attempts.get(), usage=usage)
    settle.write([plan])


def kinds() -> list[str]:
    return [difference.kind for difference in audit.differences()]


def close_statement(*, more: int = 0, **changes: str) -> Statement:
    """Close this month's statement, or one that says something else under a digest that fits it."""
    usage = BudgetUsage.objects.get()
    lines, adjustments, total = statements.read_ledger(usage.org, usage.month).content
    lines[0] |= changes
    return Statement.objects.create(
        org_id=usage.org_id,
        month=usage.month,
        lines=lines,
        adjustments=adjustments,
        total_picodollars=total + more,
        digest=statements.digest_of(usage.org_id, usage.month, lines, adjustments, total + more),
        closed_at=timezone.now(),
        closed_by="grace@platform.test",
    )


def sql(statement: str, *values: object) -> None:
    with triggers_lifted(), connection.cursor() as cursor:
        cursor.execute(statement, values)


@pytest.fixture
def without_unique_charges() -> Iterator[None]:
    """Let an attempt be charged twice, which the database refuses otherwise."""
    constraint = next(each for each in CostEvent._meta.constraints if each.name == "one_charge_per_attempt_and_model")
    with connection.schema_editor() as editor:
        editor.remove_constraint(CostEvent, constraint)
    yield
    sql("DELETE FROM billing_costevent")
    with connection.schema_editor() as editor:
        editor.add_constraint(CostEvent, constraint)


class TestDifferences:
    def test_are_none_where_all_is_well(self, ledger: dict[str, Run]) -> None:
        assert {run.state for run in Run.objects.all()} == {"QUEUED", "SUCCEEDED", "FAILED", "CANCELLED"}
        assert CostEvent.objects.filter(kind="adjustment").exists()
        assert list(audit.differences()) == []

    def test_are_none_in_pages_of_any_size(self, ledger: dict[str, Run], monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(audit, "PAGE", 2)

        assert list(audit.differences()) == []

    def test_name_a_double_settlement(self, ledger: dict[str, Run], without_unique_charges: None) -> None:
        run = ledger["metered"]
        plan = settle.SettlementPlan(
            run=Run.objects.select_related("project").get(id=run.id),
            now=timezone.now(),
            attempt=run.attempts.get(),
            usage=Usage(input_tokens=5),
        )
        with durable():
            record_charges(settle.plan_charges(plan))

        found = list(audit.differences())

        assert "double-charge" in {difference.kind for difference in found}
        assert {difference.object for difference in found} >= {run.attempts.get().id, run.id}

    def test_name_a_doubled_adjustment(self, ledger: dict[str, Run]) -> None:
        adjustment = CostEvent.objects.get(kind="adjustment")
        adjustment.pk = new_id("cost")
        adjustment.save(force_insert=True)

        assert {"billed", "run-amount", "run-usage", "roll-up"} <= set(kinds())

    def test_name_a_missing_charge(self, ledger: dict[str, Run]) -> None:
        attempt = ledger["byok"].attempts.get()
        sql("DELETE FROM billing_costevent WHERE attempt_id = %s", attempt.id)

        found = {difference.kind: difference for difference in audit.differences()}

        assert found["missing-charge"].object == attempt.id
        assert {"run-amount", "run-usage", "roll-up"} <= set(found)

    def test_name_a_charge_for_a_call_that_was_never_sent(self, ledger: dict[str, Run]) -> None:
        Attempt.objects.filter(run=ledger["byok"]).update(state=Attempt.State.VOID)

        assert kinds() == ["unexpected-charge"]

    def test_name_an_open_attempt_of_an_ended_run(self, ledger: dict[str, Run]) -> None:
        Attempt.objects.filter(run=ledger["byok"]).update(state=Attempt.State.OPEN)

        assert set(kinds()) == {"open-attempt", "unexpected-charge"}

    def test_name_a_lost_attempt(self, ledger: dict[str, Run]) -> None:
        Attempt.objects.filter(run=ledger["byok"]).delete()

        assert set(kinds()) == {"attempt-count", "stray-line"}

    def test_name_a_line_without_a_run(self, ledger: dict[str, Run]) -> None:
        Run.objects.filter(id=ledger["byok"].id).delete()

        (difference,) = audit.differences()
        assert (difference.kind, difference.org) == ("stray-line", ledger["byok"].org_id)

    def test_name_a_sandbox_without_its_line_and_a_line_without_its_sandbox(
        self, ledger: dict[str, Run], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        run, now = ledger["byok"], database_now()
        box = Sandbox.objects.create(
            org=run.org,
            run=run,
            epoch=1,
            pool="e2b",
            provider_id="e2b",
            token_digest=run.id,
            calls_left=0,
            vcpus=2,
            memory_mib=512,
            second_picodollars=30_250_000,
            created_at=now - timedelta(seconds=90),
            ended_at=now,
        )
        assert kinds() == ["capacity-line"]

        capacity_line(run.org, run_id=run.id, sandbox_id=box.id)
        # A list of prices that is added later, for a time before, changes no line.
        monkeypatch.setattr(prices, "second_picodollars", lambda *_, **__: 1)
        assert kinds() == []

        Sandbox.objects.update(second_picodollars=1, ended_at=now + timedelta(seconds=1))
        assert set(kinds()) == {"capacity-price", "capacity-seconds"}

        box.delete()
        assert kinds() == ["stray-line"]

    def test_name_a_changed_amount(self, ledger: dict[str, Run]) -> None:
        charge = CostEvent.objects.get(run_id=ledger["metered"].id)
        sql(
            "UPDATE billing_costevent SET input_tokens = input_tokens + 1, "
            "amount_picodollars = amount_picodollars + input_picodollars, "
            "billed_picodollars = billed_picodollars + input_picodollars WHERE id = %s",
            charge.id,
        )

        assert set(kinds()) == {"run-usage", "run-amount", "roll-up", "budget-used"}

    def test_name_changed_prices(self, ledger: dict[str, Run]) -> None:
        charge = CostEvent.objects.get(run_id=ledger["byok"].id)
        sql(
            "UPDATE billing_costevent SET input_picodollars = input_picodollars + 1, "
            "amount_picodollars = amount_picodollars + input_tokens WHERE id = %s",
            charge.id,
        )

        found = {difference.kind: difference for difference in audit.differences()}

        assert found["line-prices"].object == charge.id

    def test_name_another_payer(self, ledger: dict[str, Run]) -> None:
        charge = CostEvent.objects.get(run_id=ledger["shared"].id)
        sql("UPDATE billing_costevent SET payer = 'organization' WHERE id = %s", charge.id)

        (difference,) = audit.differences()
        assert (difference.kind, difference.object) == ("line-payer", charge.id)
        assert (difference.expected, difference.found) == (charge.payer, "organization")

    def test_name_a_bill_for_what_nobody_saw(self, ledger: dict[str, Run]) -> None:
        charge = CostEvent.objects.get(run_id=ledger["lost"].id)
        sql(
            "UPDATE billing_costevent SET billed = %s, billed_picodollars = amount_picodollars WHERE id = %s",
            True,
            charge.id,
        )

        assert set(kinds()) == {"billed", "roll-up", "budget-used"}

    def test_name_a_wrong_roll_up(self, ledger: dict[str, Run]) -> None:
        row = UsageDaily.objects.filter(auth_mode="metered").first()
        UsageDaily.objects.filter(pk=row.pk).update(amount_picodollars=F("amount_picodollars") + 1)

        (difference,) = audit.differences()
        assert difference.kind == "roll-up"
        assert "amount_picodollars" in difference.object
        assert "metered" in difference.object
        assert int(difference.found) == int(difference.expected) + 1

    def test_name_a_roll_up_of_nothing_and_one_that_is_missing(self, ledger: dict[str, Run]) -> None:
        UsageDaily.objects.filter(auth_mode="shared").update(day=F("day") - timedelta(days=1))

        found = list(audit.differences())

        assert {difference.kind for difference in found} == {"roll-up"}
        assert {"0"} <= {difference.found for difference in found}
        assert {"0"} <= {difference.expected for difference in found}

    def test_name_wrong_figures_of_a_run(self, ledger: dict[str, Run]) -> None:
        Run.objects.filter(id=ledger["byok"].id).update(amount_picodollars=1, usage={"output_tokens": 1})

        assert set(kinds()) == {"run-amount", "run-usage"}

    def test_name_a_stale_hold(self, ledger: dict[str, Run]) -> None:
        run = ledger["shared"]
        Hold.objects.create(run_id=run.id, org_id=run.org_id, day=run.created_at.date())

        assert set(kinds()) == {"hold", "shared-held"}

    def test_name_a_hold_of_no_run(self, ledger: dict[str, Run]) -> None:
        Hold.objects.create(run_id="run_gone", org_id=ledger["byok"].org_id, day=ledger["byok"].created_at.date())

        assert set(kinds()) == {"hold", "shared-held"}

    def test_name_a_lost_hold(self, ledger: dict[str, Run]) -> None:
        Hold.objects.filter(run_id=ledger["queued"].id).delete()

        assert set(kinds()) == {"hold", "shared-held", "shared-spending-held"}

    def test_name_a_stale_hold_of_the_budget(self, ledger: dict[str, Run]) -> None:
        run = ledger["metered"]
        BudgetHold.objects.create(run_id=run.id, org_id=run.org_id, picodollars=5, created_at=run.created_at)

        assert kinds() == ["hold", "budget-held"]

    def test_name_a_lost_hold_of_the_budget(self, ledger: dict[str, Run], dispatch: Callable[..., Run]) -> None:
        run = dispatch("metered")
        BudgetHold.objects.filter(run_id=run.id).delete()

        assert kinds() == ["hold", "budget-held"]

    @pytest.mark.parametrize("column", ["held", "used"])
    def test_name_a_wrong_budget(self, ledger: dict[str, Run], column: str) -> None:
        BudgetUsage.objects.update(**{column: F(column) + 1})

        (difference,) = audit.differences()
        assert difference.kind == f"budget-{column}"
        assert int(difference.found) == int(difference.expected) + 1

    @pytest.mark.parametrize("wrong", [0, 1])
    def test_name_a_statement_that_says_another_sum(self, ledger: dict[str, Run], wrong: int) -> None:
        close_statement(more=wrong)

        assert kinds() == ["statement", "statement-digest"][: 2 * wrong]

    def test_name_a_statement_that_was_changed_after_it_was_closed(self, ledger: dict[str, Run]) -> None:
        statement = close_statement()
        statement.lines[0]["served_model_id"] = "claude-another"
        with triggers_lifted():
            statement.save()

        (difference,) = audit.differences()
        assert difference.kind == "statement-digest"
        assert "the digest of what it says" in difference.expected

    def test_name_a_statement_that_was_closed_with_other_lines(self, ledger: dict[str, Run]) -> None:
        close_statement(served_model_id="claude-another")

        (difference,) = audit.differences()
        assert difference.kind == "statement-digest"
        assert "the digest of the lines of the ledger" in difference.expected

    @pytest.mark.parametrize("column", ["held", "used"])
    def test_name_a_wrong_count_of_shared_runs(self, ledger: dict[str, Run], column: str) -> None:
        SharedUsage.objects.update(**{column: F(column) + 1})

        (difference,) = audit.differences()
        assert difference.kind == f"shared-{column}"
        assert (difference.expected, difference.found) == ("1", "2")

    def test_name_sums_beyond_what_the_database_can_add(self, ledger: dict[str, Run]) -> None:
        UsageDaily.objects.filter(auth_mode="byok").update(amount_picodollars=2**63 - 1)
        UsageDaily.objects.filter(auth_mode="metered").update(amount_picodollars=2**63 - 1)

        assert kinds() == ["roll-up", "roll-up"]


class TestSnapshot:
    def test_shows_one_moment_and_keeps_nobody_waiting(self, ledger: dict[str, Run], dispatch: Any) -> None:
        def change() -> None:
            SharedUsage.objects.update(used=F("used") + 1)
            connection.close()

        with snapshot():
            before = SharedUsage.objects.get().used
            with ThreadPoolExecutor(1) as pool:
                pool.submit(change).result(timeout=15)
            during = SharedUsage.objects.get().used

        assert during == before
        assert SharedUsage.objects.get().used == before + 1


class TestAudit:
    def test_stores_what_it_found(self, ledger: dict[str, Run]) -> None:
        seals.seal()
        anchors.anchor()
        UsageDaily.objects.filter(auth_mode="metered").update(calls=F("calls") + 1)

        audit.audit_nightly()

        result = audit.last()
        assert result is not None
        assert (result.ok, result.difference_count) == (False, 1)
        assert result.first_differences[0]["kind"] == "roll-up"

    def test_examines_the_seals_too(self, ledger: dict[str, Run]) -> None:
        seals.seal()
        sql("UPDATE billing_costevent SET provider_request_id = 'x' WHERE run_id = %s", ledger["byok"].id)

        (found,) = audit.audit().first_differences
        assert found["kind"] == "seal"


class TestLast:
    def test_is_none_before_the_first_audit(self) -> None:
        assert audit.last() is None

    def test_is_the_newest(self, ledger: dict[str, Run]) -> None:
        seals.seal()
        SharedUsage.objects.update(held=F("held") + 7)
        audit.audit()
        SharedUsage.objects.update(held=F("held") - 7)
        newest = audit.audit()

        assert audit.last() == newest
        assert newest.ok


class TestPeriodicJobs:
    def test_seal_anchor_and_audit(self, ledger: dict[str, Run]) -> None:
        for _ in range(2):  # The first look only writes down that a job is due.
            worker.run_due_jobs(Schedule(worker.JOBS))
            worker.run_due_jobs(Schedule(worker.SLOW_JOBS))

        assert LedgerSeal.objects.count() == CostEvent.objects.count()
        assert LedgerAnchor.objects.exclude(org=None).get().seq == LedgerSeal.objects.count()
        assert LedgerAudit.objects.get().difference_count == 0


class TestLedgerAuditAdmin:
    def test_shows_operators_what_was_found(self, grace: User, page_as: Callable[[User], Client]) -> None:
        difference = {"kind": "roll-up", "org": "org_1", "object": "<b>", "expected": "1", "found": "2"}
        stored = LedgerAudit.objects.create(
            ran_at=timezone.now(), seconds=1.5, difference_count=1, first_differences=[difference]
        )
        page = page_as(grace)

        assert page.get("/admin/dispatch/ledgeraudit/").status_code == 200
        shown = page.get(f"/admin/dispatch/ledgeraudit/{stored.pk}/change/").content.decode()
        assert "roll-up org_1 &lt;b&gt;: expected 1, found 2" in shown


class TestAuditLedger:
    def test_says_that_everything_agrees(self, ledger: dict[str, Run]) -> None:
        out = io.StringIO()

        call_command("audit_ledger", stdout=out)

        assert out.getvalue().startswith("Everything agrees")
        assert LedgerAudit.objects.get().difference_count == 0

    def test_names_each_difference_and_fails(self, ledger: dict[str, Run]) -> None:
        SharedUsage.objects.update(held=7)
        out = io.StringIO()

        with pytest.raises(CommandError, match="1 difference"):
            call_command("audit_ledger", "--json", stdout=out)

        day, org_id = SharedUsage.objects.values_list("day", "org_id").get()
        assert json.loads(out.getvalue()) == {
            "kind": "shared-held",
            "org": org_id,
            "object": str(day),
            "expected": "1",
            "found": "7",
        }
