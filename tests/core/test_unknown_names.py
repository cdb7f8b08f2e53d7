"""The counts of what is not known, from a process's memory to the table that all processes share."""

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from django.db import OperationalError, connection
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rensei.core import unknown_names
from rensei.core.models import UnknownName
from rensei.core.unknown import NAME_CHARACTERS_MAX, NAMES_MAX, OTHERS, note_unknown, take_counts
from tests.waiting import wait_until

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture(autouse=True)
def _nothing_counted() -> Iterator[None]:
    take_counts()
    yield
    take_counts()


def stored() -> dict[tuple[str, str], int]:
    return {(row.kind, row.name): row.count for row in UnknownName.objects.all()}


class TestNoteUnknown:
    @given(name=st.text(max_size=300))
    def test_keeps_a_name_that_fits_and_can_be_shown(self, name: str) -> None:
        take_counts()

        note_unknown("header", name)

        ((kind, kept),) = take_counts()
        assert kind == "header"
        assert len(kept) <= NAME_CHARACTERS_MAX
        assert kept.isprintable()

    def test_counts_no_more_names_than_it_may(self) -> None:
        for number in range(NAMES_MAX + 20):
            note_unknown("header", f"x-{number}")

        counts = take_counts()

        assert len(counts) == NAMES_MAX + 1
        assert counts["header", OTHERS] == 20


class TestStore:
    def test_adds_to_what_is_there(self) -> None:
        note_unknown("usage_field", "new_tokens")
        unknown_names.store()
        first = UnknownName.objects.get()
        note_unknown("usage_field", "new_tokens", count=2)

        unknown_names.store()

        again = UnknownName.objects.get()
        assert (first.count, again.count) == (1, 3)
        assert again.first_seen_at == first.first_seen_at
        assert again.last_seen_at >= first.last_seen_at

    @settings(max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
    @given(names=st.lists(st.tuples(st.sampled_from(["header", "model"]), st.text(max_size=90)), max_size=40))
    def test_loses_no_count(self, names: list[tuple[str, str]]) -> None:
        UnknownName.objects.all().delete()
        for kind, name in names:
            note_unknown(kind, name)

        unknown_names.store()

        assert sum(stored().values()) == len(names)

    def test_of_nothing_asks_nothing_of_the_database(self, django_assert_num_queries: Any) -> None:
        with django_assert_num_queries(0):
            unknown_names.store()

    def test_keeps_to_its_rows_and_counts_the_others_together(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(unknown_names, "ROWS_MAX", 3)
        for number in range(5):
            note_unknown("header", f"x-{number}")
        unknown_names.store()
        note_unknown("header", "x-0")
        note_unknown("header", "x-9")

        unknown_names.store()

        assert stored() == {
            ("header", "x-0"): 2,
            ("header", "x-1"): 1,
            ("header", "x-2"): 1,
            ("header", OTHERS): 3,
        }

    def test_takes_the_same_number_of_statements_for_one_name_as_for_many(self, django_assert_num_queries: Any) -> None:
        for number in range(200):
            note_unknown("header", f"x-{number}")

        with django_assert_num_queries(5, exact=False):
            unknown_names.store()

    def test_counts_again_what_the_database_did_not_take(self, monkeypatch: pytest.MonkeyPatch) -> None:
        note_unknown("header", "x-new", count=7)
        with monkeypatch.context() as patch:
            patch.setattr(unknown_names, "ADD", "INSERT INTO nowhere VALUES (%s, %s, %s, %s, %s)")
            unknown_names.store()
        assert stored() == {}

        unknown_names.store()

        assert stored() == {("header", "x-new"): 7}

    def test_by_several_processes_at_once_adds_up(self) -> None:
        counts = {("header", f"x-{number}"): 1 for number in range(50)}

        def add(_: int) -> None:
            try:
                unknown_names._add(counts)
            except OperationalError:  # pragma: no cover - shown by the sum below
                pass
            finally:
                connection.close()

        with ThreadPoolExecutor(4) as pool:
            list(pool.map(add, range(8)))

        assert set(stored().values()) == {8}


class TestStoreUntil:
    def test_stores_from_a_thread_of_its_own_until_it_is_stopped(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(unknown_names, "STORE_SECONDS", 0.01)
        stopped = threading.Event()
        thread = threading.Thread(target=unknown_names.store_until, args=(stopped,))
        thread.start()
        try:
            note_unknown("header", "x-new")
            wait_until(lambda: stored() == {("header", "x-new"): 1})
        finally:
            stopped.set()
            thread.join()
