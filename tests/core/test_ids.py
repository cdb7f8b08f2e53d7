"""Public ids are ULIDs: read by any reader of them, unique, and sorted as they were made."""

from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st
from ulid import ULID

from rensei.core.ids import first_id_of, new_id


class TestNewId:
    def test_is_a_ulid_of_this_moment(self) -> None:
        before = datetime.now(UTC) - timedelta(milliseconds=1)
        made = new_id("run")
        after = datetime.now(UTC)

        prefix, _, ulid = made.partition("_")
        assert (prefix, len(ulid), ulid) == ("run", 26, ulid.lower())
        assert before <= ULID.from_str(ulid.upper()).datetime <= after

    def test_sorts_as_it_was_made(self) -> None:
        made = [new_id("run") for _ in range(20_000)]

        assert all(earlier < later for earlier, later in pairwise(made))

    def test_is_unique_in_all_threads(self) -> None:
        with ThreadPoolExecutor(8) as threads:
            made = list(threads.map(lambda _: [new_id("run") for _ in range(2000)], range(8)))

        assert len({one for some in made for one in some}) == 16_000
        assert all(some == sorted(some) for some in made)

    def test_has_eighty_random_bits(self) -> None:
        # Of different milliseconds, so that no two are of one run of numbers.
        by_moment = {
            ulid.milliseconds: ulid for ulid in (ULID.from_str(new_id("x")[2:].upper()) for _ in range(20_000))
        }
        random = [int.from_bytes(ulid.bytes[6:]) for ulid in by_moment.values()]

        assert len(random) > 1
        assert max(random) - min(random) > 2**60


class TestFirstIdOf:
    @given(st.datetimes(datetime(1990, 1, 1), datetime(2200, 1, 1), timezones=st.just(UTC)))  # noqa: DTZ001 - hypothesis asks for bounds without a zone
    def test_is_the_lowest_ulid_of_its_millisecond(self, moment: datetime) -> None:
        first = first_id_of("run", moment)

        assert first.startswith("run_")
        assert first.endswith("0" * 16)
        assert ULID.from_str(first[4:].upper()).milliseconds == int(moment.timestamp() * 1000)

    def test_is_in_order_at_both_ends_of_time(self) -> None:
        ends = [datetime.min, datetime(1969, 12, 31), datetime(1970, 1, 1), datetime(2026, 1, 1), datetime.max]  # noqa: DTZ001, DTZ901 - zoned below
        ids = [first_id_of("run", moment.replace(tzinfo=UTC)) for moment in ends]

        assert ids == sorted(ids)
        assert ids[0] == "run_" + 26 * "0"
