"""`docs/limits.md` has one row for each limit that the code declares, and no other row."""

import re

import pytest

from rensei.core.limits import declared, limit
from tests.architecture.modules import ROOT, modules

modules()
DOC = (ROOT / "docs/limits.md").read_text()
# The table's head and the line under it are no rows.
ROWS = re.findall(r"^\|.*\|$", DOC, flags=re.MULTILINE)[2:]
CODES = set(re.findall(r"^\| `([A-Z_]+)` \|", (ROOT / "docs/errors.md").read_text(), flags=re.MULTILINE))


class TestTheTable:
    def test_has_a_row_for_each_limit_of_the_code(self):
        missing = [found.row() for found in declared() if found.row() not in ROWS]

        assert not missing, "docs/limits.md lacks:\n" + "\n".join(missing)

    def test_has_no_row_that_the_code_does_not_hold_to(self):
        known = {found.row() for found in declared()}

        assert [row for row in ROWS if row not in known] == []

    def test_has_each_row_once_and_in_order(self):
        assert [row.split(" | ")[0] for row in ROWS] == [f"| {found.what}" for found in declared()]


@pytest.mark.parametrize("found", declared(), ids=lambda found: found.what)
class TestALimit:
    def test_is_told_of_with_a_code_that_is_documented(self, found):
        named = re.findall(r"`([A-Z][A-Z_]+)`", found.told)

        assert set(named) <= CODES
        assert found.told.startswith(("the caller: ", "operators: ", "the run: ")), "who is told, and what"


class TestLimit:
    def test_refuses_a_second_one_for_the_same_work(self):
        with pytest.raises(ValueError, match="Two limits"):
            limit(5, "bytes", what=declared()[0].what, told="the caller: 413 `REQUEST_TOO_LARGE`")
