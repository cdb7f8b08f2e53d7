import os
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, date, datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest
from django.db import IntegrityError, connection, transaction

from billing.limits.quota import SharedQuotaExceeded, release_holds, require_room, shared_quota, take_shared_run
from billing.models import BillingSetting, Entitlement, Hold, SharedUsage
from rensei.core.transactions import durable
from rensei.orgs.models import Org
from tests.billing import contender

ROOT = Path(__file__).resolve().parents[2]
NOON = datetime(2026, 3, 14, 12, 0, tzinfo=UTC)


@pytest.fixture
def limit(acme: Org) -> Callable[[int], None]:
    def set_to(runs: int) -> None:
        Entitlement.objects.filter(org=acme).update(shared_runs_per_day=runs)

    return set_to


def take(org: Org, run_id: str, now: datetime = NOON) -> None:
    with transaction.atomic():
        take_shared_run(org_id=org.pk, run_id=run_id, now=now)


def release(**spent: bool) -> None:
    with transaction.atomic():
        release_holds(spent=spent, now=NOON)


class TestTakeSharedRun:
    def test_holds_one_of_the_days_runs(self, acme: Org) -> None:
        take(acme, "run_1")

        row = SharedUsage.objects.get()
        assert (row.day, row.held, row.used) == (date(2026, 3, 14), 1, 0)
        assert Hold.objects.get().run_id == "run_1"

    def test_refuses_the_run_after_the_last(self, acme: Org, limit: Callable[[int], None]) -> None:
        limit(2)
        take(acme, "run_1")
        take(acme, "run_2")
        before = list(SharedUsage.objects.values())

        with pytest.raises(SharedQuotaExceeded) as refused:
            take(acme, "run_3", now=NOON + timedelta(seconds=0.5))

        assert refused.value.extra == {
            "used": 2,
            "limit": 2,
            "resetsAt": "2026-03-15T00:00:00Z",
            "retryAfter": 43_200,
        }
        assert "2 of its 2 shared runs" in refused.value.detail
        assert refused.value.retryable
        assert list(SharedUsage.objects.values()) == before
        assert Hold.objects.count() == 2

    def test_leaves_nothing_when_it_refuses_the_first(self, acme: Org, limit: Callable[[int], None]) -> None:
        limit(0)

        with pytest.raises(SharedQuotaExceeded):
            take(acme, "run_1")

        assert not SharedUsage.objects.exists()
        assert not Hold.objects.exists()

    def test_follows_the_platforms_limit_where_the_organization_has_none(self, acme: Org) -> None:
        BillingSetting.objects.create(shared_runs_per_day=1)
        take(acme, "run_1")

        with pytest.raises(SharedQuotaExceeded):
            take(acme, "run_2")

    def test_counts_each_organization_apart(self, acme: Org, eve: Any, limit: Callable[[int], None]) -> None:
        limit(1)
        take(acme, "run_1")

        take(Org.objects.get(slug="evil"), "run_2")

        assert SharedUsage.objects.for_org(acme).get().held == 1

    def test_refuses_a_second_hold_of_a_run(self, acme: Org) -> None:
        take(acme, "run_1")

        with pytest.raises(IntegrityError):
            take(acme, "run_1")

        assert SharedUsage.objects.get().held == 1

    def test_takes_four_queries(self, acme: Org, django_assert_num_queries: Callable[..., Any]) -> None:
        take(acme, "run_1")

        with durable(), django_assert_num_queries(4):
            take_shared_run(org_id=acme.pk, run_id="run_2", now=NOON)

    @pytest.mark.parametrize(
        ("now", "day", "seconds"),
        [
            (datetime(2026, 3, 14, 23, 59, 59, 999_000, UTC), date(2026, 3, 14), 1),
            (datetime(2026, 3, 15, 0, 0, 0, 0, UTC), date(2026, 3, 15), 86_400),
            (datetime(2028, 2, 29, 12, 0, 0, 0, UTC), date(2028, 2, 29), 43_200),
            (datetime(2026, 12, 31, 23, 0, 0, 0, UTC), date(2026, 12, 31), 3_600),
            # The same moment as 23:30 in UTC, told by a clock of another zone.
            (datetime(2026, 3, 15, 1, 30, tzinfo=timezone(timedelta(hours=2))), date(2026, 3, 14), 1_800),
        ],
    )
    def test_keeps_days_by_utc(
        self, acme: Org, limit: Callable[[int], None], now: datetime, day: date, seconds: int
    ) -> None:
        limit(1)
        take(acme, "run_1", now=now)

        with pytest.raises(SharedQuotaExceeded) as refused:
            take(acme, "run_2", now=now)

        assert SharedUsage.objects.get().day == day
        assert refused.value.extra["retryAfter"] == seconds

    def test_begins_anew_at_midnight(self, acme: Org, limit: Callable[[int], None]) -> None:
        limit(1)
        take(acme, "run_1", now=datetime(2026, 3, 14, 23, 59, 59, 999_999, UTC))

        take(acme, "run_2", now=datetime(2026, 3, 15, 0, 0, tzinfo=UTC))

        assert SharedUsage.objects.count() == 2


@pytest.mark.django_db(transaction=True)
class TestManyDispatchesAtOnce:
    def test_never_pass_the_limit_in_threads(self, acme: Org, limit: Callable[[int], None]) -> None:
        limit(25)

        def contend(place: int) -> int:
            try:
                return contender.main(acme.pk, place * 100, 10)
            finally:
                connection.close()

        with ThreadPoolExecutor(8) as pool:
            granted = list(pool.map(contend, range(8)))

        assert sum(granted) == 25
        assert SharedUsage.objects.get().held == 25
        assert Hold.objects.count() == 25

    def test_never_pass_the_limit_in_processes(self, acme: Org, limit: Callable[[int], None]) -> None:
        limit(100)
        command = [sys.executable, "-m", "tests.billing.contender", acme.pk]
        environment = {**os.environ, "DATABASE_URL": _database_url(), "DJANGO_SETTINGS_MODULE": "tests.settings"}

        contenders = [
            subprocess.Popen(
                [*command, str(place * 1000), "60"], cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True
            )
            for place in range(3)
        ]
        granted = [int(process.communicate(timeout=60)[0]) for process in contenders]

        assert sum(granted) == 100
        assert SharedUsage.objects.get().held == 100
        assert Hold.objects.count() == 100

    def test_release_a_run_once(self, acme: Org) -> None:
        for number in range(10):
            take(acme, f"run_{number}")
        spent = {f"run_{number}": number < 5 for number in range(10)}

        def let_go(_: int) -> None:
            try:
                release(**spent)
            finally:
                connection.close()

        with ThreadPoolExecutor(4) as pool:
            list(pool.map(let_go, range(4)))

        row = SharedUsage.objects.get()
        assert (row.used, row.held) == (5, 0)


class TestReleaseHolds:
    def test_counts_a_spent_run(self, acme: Org) -> None:
        take(acme, "run_1")

        release(run_1=True)

        row = SharedUsage.objects.get()
        assert (row.used, row.held) == (1, 0)
        assert not Hold.objects.exists()

    def test_gives_the_slot_of_an_unsent_run_back(self, acme: Org, limit: Callable[[int], None]) -> None:
        limit(1)
        take(acme, "run_1")

        release(run_1=False)

        take(acme, "run_2")
        row = SharedUsage.objects.get()
        assert (row.used, row.held) == (0, 1)

    def test_changes_nothing_the_second_time(self, acme: Org) -> None:
        take(acme, "run_1")
        take(acme, "run_2")
        release(run_1=True)
        before = list(SharedUsage.objects.values())

        release(run_1=True)
        release(run_1=False, run_without_a_hold=True)

        assert list(SharedUsage.objects.values()) == before

    def test_charges_the_day_that_the_run_was_admitted_on(self, acme: Org) -> None:
        take(acme, "run_1", now=datetime(2026, 3, 14, 23, 59, 59, tzinfo=UTC))
        take(acme, "run_2", now=datetime(2026, 3, 15, 0, 0, 1, tzinfo=UTC))

        release(run_1=True, run_2=False)

        used = {row.day.day: (row.used, row.held) for row in SharedUsage.objects.all()}
        assert used == {14: (1, 0), 15: (0, 0)}

    def test_leaves_other_runs_alone(self, acme: Org) -> None:
        take(acme, "run_1")
        take(acme, "run_2")

        release(run_1=True)

        assert Hold.objects.get().run_id == "run_2"


class TestSharedQuota:
    def test_counts_live_and_spent_runs(self, acme: Org, limit: Callable[[int], None]) -> None:
        limit(5)
        take(acme, "run_1")
        take(acme, "run_2")
        release(run_1=True)

        quota = shared_quota(acme, NOON)

        assert (quota.used, quota.limit, quota.resets_at) == (2, 5, datetime(2026, 3, 15, tzinfo=UTC))

    def test_is_read_in_one_query(self, acme: Org, django_assert_num_queries: Callable[..., Any]) -> None:
        with django_assert_num_queries(1):
            quota = shared_quota(acme, NOON)

        assert (quota.used, quota.limit) == (0, 20)


class TestRequireRoom:
    def test_passes_where_a_run_is_left(self, acme: Org, limit: Callable[[int], None]) -> None:
        limit(1)

        require_room(shared_quota(acme, NOON), now=NOON)

    def test_refuses_where_none_is_left(self, acme: Org, limit: Callable[[int], None]) -> None:
        limit(1)
        take(acme, "run_1")

        with pytest.raises(SharedQuotaExceeded):
            require_room(shared_quota(acme, NOON), now=NOON)


def _database_url() -> str:
    """The test database, as another process names it."""
    database = connection.settings_dict
    if connection.vendor == "sqlite":
        return f"sqlite:///{database['NAME']}"
    user = f"{database['USER']}:{database['PASSWORD']}".rstrip(":")
    return f"postgres://{user}@{database['HOST']}:{database['PORT']}/{database['NAME']}"
