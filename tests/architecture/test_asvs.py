"""`docs/asvs.md` goes through each requirement of the ASVS 5.0.0 of level 1 and 2, once, and names what exists."""

from collections import Counter

from tests.architecture.modules import ROOT
from tests.architecture.test_threat_model import PATH, missing, rows

SHEET = (ROOT / "docs/asvs.md").read_text()
STATES = {"met", "not met", "operator's", "does not apply"}
# By section: the last numbers of the requirements of level 1, and of those of level 2.
# https://github.com/OWASP/ASVS/tree/v5.0.0/5.0
REQUIREMENTS: dict[str, tuple[str, str]] = {
    "1.1": ("", "1 2"),
    "1.2": ("1 2 3 4 5", "6 7 8 9"),
    "1.3": ("1 2", "3 4 5 6 7 8 9 10 11"),
    "1.4": ("", "1 2 3"),
    "1.5": ("1", "2"),
    "2.1": ("1", "2 3"),
    "2.2": ("1 2", "3"),
    "2.3": ("1", "2 3 4"),
    "2.4": ("", "1"),
    "3.2": ("1 2", ""),
    "3.3": ("1", "2 3 4"),
    "3.4": ("1 2", "3 4 5 6"),
    "3.5": ("1 2 3", "4 5"),
    "3.7": ("", "1 2"),
    "4.1": ("1", "2 3"),
    "4.2": ("", "1"),
    "4.3": ("", "1 2"),
    "4.4": ("1", "2 3 4"),
    "5.1": ("", "1"),
    "5.2": ("1 2", "3"),
    "5.3": ("1 2", ""),
    "5.4": ("", "1 2 3"),
    "6.1": ("1", "2 3"),
    "6.2": ("1 2 3 4 5 6 7 8", "9 10 11 12"),
    "6.3": ("1 2", "3 4"),
    "6.4": ("1 2", "3 4"),
    "6.5": ("", "1 2 3 4 5"),
    "6.6": ("", "1 2 3"),
    "6.8": ("", "1 2 3 4"),
    "7.1": ("", "1 2 3"),
    "7.2": ("1 2 3 4", ""),
    "7.3": ("", "1 2"),
    "7.4": ("1 2", "3 4 5"),
    "7.5": ("", "1 2"),
    "7.6": ("", "1 2"),
    "8.1": ("1", "2"),
    "8.2": ("1 2", "3"),
    "8.3": ("1", ""),
    "8.4": ("", "1"),
    "9.1": ("1 2 3", ""),
    "9.2": ("1", "2 3 4"),
    "10.1": ("", "1 2"),
    "10.2": ("", "1 2"),
    "10.3": ("", "1 2 3 4"),
    "10.4": ("1 2 3 4 5", "6 7 8 9 10 11"),
    "10.5": ("", "1 2 3 4 5"),
    "10.6": ("", "1 2"),
    "10.7": ("", "1 2 3"),
    "11.1": ("", "1 2"),
    "11.2": ("", "1 2 3"),
    "11.3": ("1 2", "3"),
    "11.4": ("1", "2 3 4"),
    "11.5": ("", "1"),
    "11.6": ("", "1"),
    "12.1": ("1", "2 3"),
    "12.2": ("1 2", ""),
    "12.3": ("", "1 2 3 4"),
    "13.1": ("", "1"),
    "13.2": ("", "1 2 3 4 5"),
    "13.3": ("", "1 2"),
    "13.4": ("1", "2 3 4 5"),
    "14.1": ("", "1 2"),
    "14.2": ("1", "2 3 4"),
    "14.3": ("1", "2 3"),
    "15.1": ("1", "2 3"),
    "15.2": ("1", "2 3"),
    "15.3": ("1", "2 3 4 5 6 7"),
    "16.1": ("", "1"),
    "16.2": ("", "1 2 3 4 5"),
    "16.3": ("", "1 2 3 4"),
    "16.4": ("", "1 2 3"),
    "16.5": ("", "1 2 3"),
    "17.1": ("", "1"),
    "17.2": ("", "1 2 3 4"),
    "17.3": ("", "1 2"),
}


def requirements() -> list[tuple[str, str]]:
    """List the numbers of all requirements, each with its level."""
    return [
        (f"{section}.{last}", str(level))
        for section, by_level in REQUIREMENTS.items()
        for level, numbers in enumerate(by_level, start=1)
        for last in numbers.split()
    ]


def table() -> list[list[str]]:
    return [row for row in rows(SHEET) if row[0][0].isdigit()]


class TestTheSheet:
    def test_has_each_requirement_once_with_its_level(self) -> None:
        assert len(requirements()) == 253
        assert sorted((number, level) for number, level, *_ in table()) == sorted(requirements())

    def test_says_of_each_what_it_asks_and_how_it_stands(self) -> None:
        for number, _, asks, state, place in table():
            assert asks, number
            assert state in STATES, number
            assert place, number

    def test_names_a_place_of_each_that_is_met(self) -> None:
        without = [number for number, _, _, state, place in table() if state == "met" and not PATH.search(place)]

        assert [number for number in without if number not in WITHOUT_A_PLACE] == []

    def test_names_nothing_that_is_not_there(self) -> None:
        assert missing(SHEET) == []

    def test_counts_the_states_rightly(self) -> None:
        counted = Counter(state for _, _, _, state, _ in table())
        told = {row[0]: int(row[2]) for row in rows(SHEET) if row[0] in STATES}

        assert told == dict(counted)


# Met by what is not there, such as headers of CORS or default accounts.
WITHOUT_A_PLACE = {"1.3.10", "3.4.2", "6.4.2"}
