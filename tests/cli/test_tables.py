"""Tables and details in the width of a terminal: what has to be copied stays whole, for any content and width."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rensei.cli import tables
from rensei.cli.tables import Column

pytestmark = pytest.mark.outside

words = st.text(alphabet=st.characters(categories=["L", "N"]), min_size=1, max_size=30)
texts = st.lists(words, min_size=1, max_size=8).map(" ".join)


@st.composite
def columns(draw: st.DrawFn) -> list[Column]:
    count = draw(st.integers(min_value=1, max_value=4))
    made = []
    for number in range(draw(st.integers(min_value=1, max_value=8))):
        is_text = draw(st.booleans())
        cells = draw(st.lists(texts if is_text else words, min_size=count, max_size=count))
        made.append(Column(f"C{number}", cells, may_be_shortened=is_text))
    return made


class TestFit:
    @given(columns(), st.integers(min_value=10, max_value=250))
    def test_gives_lines_that_fit_and_breaks_nothing_but_texts(self, made, width):
        shown = tables.fit(made, width)

        lines = tables.write(shown, width, bold=False)
        assert len(shown) == 1 or max(map(tables.cells_of, lines)) <= width
        assert not any(line.endswith(" ") for line in lines)
        for before, after in zip(made, shown, strict=False):
            assert before.heading == after.heading
            if not before.may_be_shortened:
                assert before.cells == after.cells
            for whole, cell in zip(before.cells, after.cells, strict=True):
                assert cell == whole or (cell.endswith("…") and whole.startswith(cell[:-1].rstrip()))

    @given(columns(), st.integers(min_value=10, max_value=250))
    def test_leaves_out_no_column_that_has_room(self, made, width):
        shown = tables.fit(made, width)

        if len(shown) < len(made):
            following = made[: len(shown) + 1]
            least = [
                min(one.width, max(12, tables.cells_of(one.heading))) if one.may_be_shortened else one.width
                for one in following
            ]
            assert sum(least) + (2 if width >= 60 else 1) * (len(following) - 1) > width

    @given(columns())
    def test_keeps_everything_where_there_is_no_width(self, made):
        assert tables.fit(made, None) == made


class TestDetails:
    @given(st.dictionaries(words, texts, min_size=1, max_size=6), st.integers(min_value=10, max_value=250))
    def test_break_lines_only_between_words(self, values, width):
        lines = tables.write_details(values, width)

        said = [word for heading, value in values.items() for word in (*heading.split(), *value.split())]
        assert " ".join(lines).split() == said
        for line in lines:
            assert tables.cells_of(line) <= width or len(line.split()) <= 2
            assert not line.endswith(" ")

    def test_keep_the_lines_of_a_text(self):
        lines = tables.write_details({"Id": "prof_a", "System prompt": "Be brief.\nBe kind."}, None)

        assert lines == ["Id             prof_a", "System prompt  Be brief.", "               Be kind."]

    def test_put_a_long_id_below_its_heading(self):
        run_id = "run_01kb6v0z3w9t6x5q4n3m2k1j0h"

        assert tables.write_details({"Input tokens": run_id}, 40) == ["Input tokens", f"  {run_id}"]
