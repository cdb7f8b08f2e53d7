"""One row that cannot be dealt with is reported, and keeps no other from its turn."""

from collections import Counter
from collections.abc import Callable, Iterator
from datetime import date, timedelta
from typing import Any

import pytest
from django.conf import settings
from django.db import connection

from billing.integrity import anchor_files, anchors, seals
from billing.models import CostEvent, LedgerAnchor, LedgerSeal, LineToSeal, UsageDaily
from integrations.models import Integration
from rensei import worker
from rensei.core import jobs
from rensei.core.clock import database_now
from rensei.core.unknown import note_unknown, take_counts
from rensei.dispatch import retention
from rensei.dispatch.admission import admit
from rensei.dispatch.admission.requests import DispatchRequest, messages_from
from rensei.dispatch.execution import reaper
from rensei.dispatch.models import Run, RunChunk, RunInput
from rensei.dispatch.queue import claims
from rensei.dispatch.settlement import audit
from rensei.orgs.access import Access
from rensei.orgs.models import Org, StoredBytes, User
from tests.billing.ledger_triggers import triggers_lifted

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture(autouse=True)
def passed_over(monkeypatch: pytest.MonkeyPatch) -> Iterator[Counter[tuple[str, str]]]:
    """What this test's jobs have reported. The counts of the process are taken by any thread that stores them."""
    reported: Counter[tuple[str, str]] = Counter()

    def note(kind: str, name: str) -> None:
        reported[kind, name] += 1
        note_unknown(kind, name)

    monkeypatch.setattr(jobs, "note_unknown", note)
    yield reported
    take_counts()


@pytest.fixture
def dispatch(
    simulator: Any,
    ada_access: Access,
    connect: Callable[..., Integration],
    make_profile: Callable[..., Any],
) -> Callable[[], Run]:
    connect()
    make_profile()

    def send() -> Run:
        messages = messages_from(text="What is two and two?", messages=None)
        return admit.dispatch(ada_access, DispatchRequest(profile_id="prof_deep", messages=messages))

    return send


def abandon(run: Run) -> Run:
    """Have a worker claim a run, write its attempt, and die."""
    claim = claims.claim_next(owner="dead")
    assert claim is not None
    claims.open_attempt(claim.run, credential_id="int_x", credential_version=1, input_tokens=100)
    Run.objects.filter(id=run.id).update(lease_until=database_now() - timedelta(seconds=1))
    return run


class TestTheReaper:
    @pytest.mark.parametrize(
        "usage",
        [{"input_tokens": "many"}, {"novel_tokens": 5}, {"input_tokens": 2**70}, {"input_tokens": None}],
        ids=["text", "unknown field", "beyond every integer", "nothing"],
    )
    def test_passes_over_a_run_that_it_cannot_end_and_reports_it(
        self, passed_over: Counter[tuple[str, str]], dispatch: Callable[[], Run], usage: dict[str, Any]
    ) -> None:
        bad, good = abandon(dispatch()), abandon(dispatch())
        RunChunk.objects.create(run=bad, seq=99, kind=RunChunk.Kind.USAGE, data=usage)

        reaper.reap()

        good.refresh_from_db()
        bad.refresh_from_db()
        assert good.error is not None
        assert (good.state, good.error["code"]) == ("FAILED", "RUN_INTERRUPTED")
        assert bad.state == "RUNNING"
        assert passed_over == {("failed_row", f"reap {bad.id}"): 1}

    def test_leaves_a_run_alone_whose_worker_came_back(
        self, passed_over: Counter[tuple[str, str]], dispatch: Callable[[], Run], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        first, second = abandon(dispatch()), abandon(dispatch())
        end = reaper._end

        def renew_then_end(run_id: str, **rest: Any) -> None:
            Run.objects.filter(id=second.id).update(lease_until=database_now() + claims.LEASE)
            end(run_id, **rest)

        monkeypatch.setattr(reaper, "_end", renew_then_end)

        reaper.reap()

        first.refresh_from_db()
        second.refresh_from_db()
        assert (first.state, second.state) == ("FAILED", "RUNNING")
        assert passed_over == {}


class TestTheRetentionOfImages:
    def test_passes_over_an_input_that_it_cannot_read(
        self,
        passed_over: Counter[tuple[str, str]],
        dispatch: Callable[[], Run],
        work: Callable[[], list[Run]],
        settings: Any,
    ) -> None:
        runs = sorted(dispatch().id for _ in range(3))
        work()
        RunInput.objects.update(has_images=True)
        RunInput.objects.filter(run_id=runs[0]).update(body={"nothing": True})
        Run.objects.update(finished_at=database_now() - timedelta(days=settings.RENSEI_IMAGE_RETENTION_DAYS + 1))

        retention.drop_old_images()

        kept = list(RunInput.objects.filter(has_images=True).values_list("run_id", flat=True))
        assert kept == runs[:1]
        assert passed_over == {("failed_row", f"drop-old-images {runs[0]}"): 1}


class TestTheSealer:
    @pytest.mark.sqlite
    def test_passes_over_a_line_that_it_cannot_read(
        self, passed_over: Counter[tuple[str, str]], dispatch: Callable[[], Run], work: Callable[[], list[Run]]
    ) -> None:
        dispatch(), dispatch()
        work()
        bad = CostEvent.objects.earliest("id").id
        with triggers_lifted(), connection.cursor() as cursor:
            cursor.execute("UPDATE billing_costevent SET occurred_at = 'yesterday' WHERE id = %s", [bad])

        seals.seal()

        assert LedgerSeal.objects.count() == 1
        assert list(LineToSeal.objects.values_list("event_id", flat=True)) == [bad]
        assert passed_over["failed_row", f"seal-ledger {bad}"] >= 1


class TestTheAnchors:
    @pytest.mark.sqlite  # PostgreSQL's columns take nothing else.
    @pytest.mark.parametrize("bad", ["seq = 'first'", "digest = 'x' || digest", "digest = zeroblob(64)"])
    def test_sign_the_other_chains_where_the_end_of_one_is_no_seal(
        self,
        passed_over: Counter[tuple[str, str]],
        dispatch: Callable[[], Run],
        work: Callable[[], list[Run]],
        bad: str,
    ) -> None:
        run = dispatch()
        work()
        seals.seal()
        with triggers_lifted(), connection.cursor() as cursor:
            cursor.execute(f"UPDATE billing_ledgerseal SET {bad} WHERE org_id = %s", [run.org_id])

        anchors.anchor()

        (signed,) = LedgerAnchor.objects.all()
        assert (signed.org, signed.counter) == (None, 1)
        assert passed_over == {("failed_row", f"anchor-ledger {run.org_id}"): 1}
        assert next(anchor_files.read(settings.RENSEI_LEDGER_ANCHORS, 10_000)).anchor == signed


class TestTheAudit:
    def test_names_a_run_that_it_cannot_read_and_compares_the_others(
        self, dispatch: Callable[[], Run], work: Callable[[], list[Run]]
    ) -> None:
        bad, wrong = sorted([dispatch().id, dispatch().id])
        work()
        Run.objects.filter(id=bad).update(usage={"novel_tokens": 5})
        Run.objects.filter(id=wrong).update(amount_picodollars=1)

        found = [(each.kind, each.object) for each in audit.differences()]

        assert found == [("unreadable", bad), ("run-amount", wrong)]

    @pytest.mark.sqlite
    @pytest.mark.parametrize(
        ("change", "places"),
        [
            ("dispatch_run SET usage = '{' WHERE id", 1),
            ("billing_costevent SET amount_picodollars = 'x' WHERE run_id", 2),
        ],
    )
    def test_names_a_row_that_cannot_be_loaded_and_compares_the_other_runs(
        self, dispatch: Callable[[], Run], work: Callable[[], list[Run]], change: str, places: int
    ) -> None:
        bad, wrong = sorted([dispatch().id, dispatch().id])
        work()
        Run.objects.filter(id=wrong).update(amount_picodollars=1)
        with triggers_lifted(), connection.cursor() as cursor:
            cursor.execute("PRAGMA ignore_check_constraints = ON")
            cursor.execute(f"UPDATE {change} = %s", [bad])
            cursor.execute("PRAGMA ignore_check_constraints = OFF")

        found = [(each.kind, each.object) for each in audit.differences()]

        assert ("run-amount", wrong) in found
        # The row itself, and if it is a line, the sums of its organization.
        assert [kind for kind, _ in found].count("unreadable") == places

    @pytest.mark.sqlite
    def test_compares_the_sums_of_the_other_organizations(
        self, dispatch: Callable[[], Run], work: Callable[[], list[Run]], eve: User
    ) -> None:
        run = dispatch()
        work()
        other = Org.objects.get(slug="evil")
        UsageDaily.objects.create(org=other, day=date(2026, 1, 1), calls=7)
        with connection.cursor() as cursor:
            cursor.execute("UPDATE billing_usagedaily SET day = 'yesterday' WHERE org_id = %s", [run.org_id])

        found = {(each.kind, each.org) for each in audit.differences()}

        assert found >= {("unreadable", run.org_id), ("roll-up", other.pk)}

    @pytest.mark.sqlite
    def test_names_a_figure_that_became_a_float_although_it_compares_equal(
        self, dispatch: Callable[[], Run], work: Callable[[], list[Run]]
    ) -> None:
        run = dispatch()
        work()
        with connection.cursor() as cursor:
            # A float in a column of whole numbers stays one only where it cannot be told from its neighbours.
            cursor.execute("UPDATE billing_usagedaily SET input_tokens = 1e19 WHERE 1")
            cursor.execute("UPDATE dispatch_run SET amount_picodollars = '8.0e9'")

        found = [(each.kind, each.object.split()[0]) for each in audit.differences()]

        assert ("stored-type", "input_tokens") in found
        assert ("stored-type", "amount_picodollars") in found
        assert Run.objects.get(id=run.id).amount_picodollars == 8_000_000_000

    @pytest.mark.sqlite
    def test_is_kept_as_failed_where_a_row_breaks_it_off(
        self, dispatch: Callable[[], Run], work: Callable[[], list[Run]]
    ) -> None:
        dispatch()
        work()
        with connection.cursor() as cursor:
            cursor.execute("UPDATE billing_usagedaily SET amount_picodollars = 'much'")

        result = audit.audit()

        kinds = {each["kind"] for each in result.first_differences}
        assert not result.ok
        assert {"stored-type", "unreadable"} <= kinds


class TestTheCountOfStoredBytes:
    @pytest.mark.sqlite  # PostgreSQL's column takes nothing else.
    def test_passes_over_an_organization_whose_count_cannot_be_read(
        self, passed_over: Counter[tuple[str, str]], dispatch: Callable[[], Run], ada_access: Access, eve: User
    ) -> None:
        dispatch()
        bad, good = ada_access.org, Org.objects.get(slug="evil")
        StoredBytes.objects.update_or_create(org=good, defaults={"used": 7})
        with connection.cursor() as cursor:
            cursor.execute("UPDATE orgs_storedbytes SET used = 'many' WHERE org_id = %s", [bad.pk])

        assert good.pk in worker.count_stored_bytes()

        assert passed_over["failed_row", f"count-stored-bytes {bad.pk}"] == 1
        assert StoredBytes.objects.get(org=good).used == 0
