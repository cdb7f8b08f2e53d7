"""Counts of rate limits: never forgotten early, the same for all processes, and kept up without the database."""

from concurrent.futures import ThreadPoolExecutor

import pytest
from django.core.cache import cache
from django.db import OperationalError, connection
from hypothesis import given, settings
from hypothesis import strategies as st

from rensei.core import rate_store
from rensei.core.models import StoredValue, WindowCount
from rensei.core.rates import COUNTERS_MAX, Rates
from tests.attacks import sized

KEYS = st.sampled_from(["api:token:a", "api:token:b", "sign-in:192.0.2.1"])
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("count"), st.integers(0, 2), KEYS, st.integers(0, 50)),
        st.tuples(st.just("exactly"), st.integers(0, 2), KEYS, st.integers(1, 3)),
        st.tuples(st.just("exchange"), st.integers(0, 2)),
    ),
    max_size=25,
)


class Away:
    """A database that does not answer."""

    def __call__(self, execute, sql, params, many, context):
        raise OperationalError("the database is away")


@pytest.mark.django_db(transaction=True)
class TestProcesses:
    @settings(max_examples=60)
    @given(steps=STEPS)
    def test_all_come_to_the_sum_of_what_each_has_counted(self, steps):
        WindowCount.objects.all().delete()
        processes = [Rates(timer=lambda: 1000.0) for _ in range(3)]
        sums: dict[str, int] = {}
        for kind, process, *more in steps:
            if kind == "exchange":
                processes[process].exchange()
                continue
            key, by = more
            sums[key] = sums.get(key, 0) + by
            count = processes[process].count if kind == "count" else processes[process].count_exactly
            count(key, seconds=60, by=by)
        for process in processes:
            process.exchange()

        for process in processes:
            for key in sums:
                process.count(key, seconds=60, by=0)
            process.exchange()

        assert [{key: process.known(key).total for key in sums} for process in processes] == [sums] * 3

    def test_that_count_at_the_same_moment_get_a_number_each(self):
        def count(place):
            try:
                return Rates().count_exactly("sign-in:192.0.2.1", seconds=60).total
            finally:
                connection.close()

        with ThreadPoolExecutor(8) as pool:
            numbers = list(pool.map(count, range(40)))

        assert sorted(numbers) == list(range(1, 41))


@pytest.mark.django_db
class TestWindow:
    def test_opens_with_the_first_one_and_begins_anew_when_it_has_ended(self):
        now = 1000.0
        process = Rates(timer=lambda: now)
        first = [process.count_exactly("a:b", seconds=60) for _ in range(2)]
        now += 59.5
        last = process.count_exactly("a:b", seconds=60)
        now += 0.75
        anew = process.count_exactly("a:b", seconds=60)

        assert [*first, last, anew] == [(1, 1060.0), (2, 1060.0), (3, 1060.0), (1, 1120.25)]

    def test_is_not_forgotten_for_other_callers(self):
        process = Rates()
        for _ in range(5):
            process.count_exactly("login:ada", seconds=300)
        for place in range(1000):
            process.count(f"api:token:{place}", seconds=60)
        process.exchange()

        assert Rates().count_exactly("login:ada", seconds=300).total == 6
        assert WindowCount.objects.count() == 1001

    def test_is_deleted_by_the_job_when_it_counts_no_more(self):
        process = Rates(timer=lambda: 1000.0)
        process.count_exactly("a:old", seconds=60)
        process.count_exactly("a:live", seconds=3600)
        cache.set("guard", "y", timeout=3600)

        rate_store.forget_ended(now=1060.0 + rate_store.KEPT_SECONDS + 1)

        assert list(WindowCount.objects.values_list("key", flat=True)) == ["a:live"]
        assert cache.get("guard") == "y"

    def test_takes_one_statement_for_hundreds_of_callers(self, django_assert_num_queries):
        process = Rates()
        for place in range(rate_store.ROWS_AT_ONCE):
            process.count(f"api:token:{place}", seconds=60)

        with django_assert_num_queries(1):
            process.exchange()
        with django_assert_num_queries(0):
            process.exchange()


class TestMemory:
    def test_is_bounded_and_the_others_of_a_kind_share_a_counter(self, monkeypatch):
        most = sized(1_000, COUNTERS_MAX)
        monkeypatch.setattr("rensei.core.rates.COUNTERS_MAX", most)
        now = 1000.0
        process = Rates(timer=lambda: now)
        for place in range(most):
            process.count(f"unknown-token:{place}", seconds=60)

        shared = [process.count(f"unknown-token:new-{place}", seconds=60).total for place in range(3)]
        kept = process.count("unknown-token:5", seconds=60).total
        now += 61
        later = [process.count(f"unknown-token:late-{place}", seconds=60).total for place in range(3)]

        assert (shared, kept, later) == ([1, 2, 3], 2, [1, 1, 1])

    def test_that_addresses_fill_leaves_each_token_its_own_counter(self, monkeypatch):
        monkeypatch.setattr("rensei.core.rates.COUNTERS_MAX", 100)
        process = Rates(timer=lambda: 1000.0)
        for place in range(300):
            process.count(f"api:address:2001:db8:{place}::/64", seconds=60)
            process.count(f"sign-in:2001:db8:{place}::/64", seconds=60)

        for kind in ("gateway-token", "gateway-org", "api:token", "org"):
            assert [process.count(f"{kind}:{name}", seconds=60).total for name in ("victim", "other")] == [1, 1]

    def test_of_a_window_that_was_forgotten_makes_room(self, monkeypatch):
        monkeypatch.setattr("rensei.core.rates.COUNTERS_MAX", 2)
        process = Rates(timer=lambda: 1000.0)
        for name in "ab":
            process.count(f"api:token:{name}", seconds=60)
        process.forget("api:token:a")

        assert [process.count(f"api:token:{name}", seconds=60).total for name in "cc"] == [1, 2]


@pytest.mark.django_db
class TestWithoutTheDatabase:
    def test_limits_hold_for_what_the_process_knows_and_the_log_says_so_once(self, caplog):
        process = Rates(timer=lambda: 1000.0)
        process.count_exactly("sign-in:a", seconds=60)
        with connection.execute_wrapper(Away()):
            counts = [process.count_exactly("sign-in:a", seconds=60).total for _ in range(3)]
            process.count("api:b", seconds=60, by=7)
            process.exchange()
            known = process.known("api:b").total

        process.exchange()

        assert (counts, known) == ([2, 3, 4], 7)
        told = [record.msg["event"] for record in caplog.records if record.name == "rensei.core.rates"]
        assert told == ["rates_not_shared"]
        assert dict(WindowCount.objects.values_list("key", "count")) == {"sign-in:a": 4, "api:b": 7}


@pytest.mark.django_db
class TestStoredCache:
    def test_keeps_everything_until_its_time(self, monkeypatch):
        for place in range(400):
            assert cache.add(f"used?code={place}", "y", timeout=60)

        assert not cache.add("used?code=0", "y", timeout=60)
        assert cache.get("used?code=0") == "y"
        StoredValue.objects.update(expires_at=0)
        assert cache.get("used?code=0") is None
        assert cache.add("used?code=0", "y", timeout=60)

    def test_does_what_the_libraries_ask_of_it(self):
        cache.set("history", [1.5, 2.5], 60)
        cache.set("history", [*cache.get("history"), 3.5], 60)

        assert cache.get("history", []) == [1.5, 2.5, 3.5]
        assert cache.touch("history", 100)
        assert cache.delete("history")
        assert not cache.delete("history")
        assert cache.get("history", []) == []
