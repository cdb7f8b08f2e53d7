"""Every refusal is documented, under the address that its problem document names."""

import re

import pytest

from rensei.core.errors import RenseiError, Said
from tests.architecture.modules import ROOT, modules

modules()
REFUSALS = sorted(RenseiError.__subclasses__(), key=lambda refusal: (refusal.code, refusal.__module__))
DOCS = (ROOT / "docs/errors.md").read_text()
ROWS = dict(re.findall(r"^\| `([A-Z_]+)` \| (\d{3}) \|", DOCS, flags=re.MULTILINE))


@pytest.mark.parametrize("refusal", REFUSALS, ids=lambda refusal: f"{refusal.code}-{refusal.__name__}")
class TestEveryRefusal:
    def test_has_a_row_with_its_status(self, refusal):
        assert ROWS.get(refusal.code) == str(refusal.status)

    def test_has_a_heading_that_is_its_anchor(self, refusal):
        assert f"\n### {refusal.code}\n" in DOCS

    def test_says_what_is_wrong_in_sentences(self, refusal):
        assert refusal.title
        assert not refusal.title.endswith(".")
        assert refusal.__doc__ != RenseiError.__doc__

    def test_has_what_to_do_apart_from_the_cause(self, refusal):
        ends_twice = re.search(r"\.(?= )|\{reason\}(?= )", refusal.message)

        assert bool(ends_twice) <= isinstance(refusal.message, Said)

    def test_inherits_one_level_deep(self, refusal):
        assert refusal.__bases__ == (RenseiError,)
        assert not refusal.__subclasses__()


class TestDocs:
    def test_name_no_code_that_does_not_exist(self):
        sources = "".join(
            path.read_text()
            for package in ("rensei", "integrations", "profiles", "catalog", "billing")
            for path in (ROOT / package).rglob("*.py")
            if "simulator" not in path.parts
        )

        assert [code for code in ROWS if code not in sources] == []

    def test_give_each_row_a_heading_and_each_heading_a_row(self):
        assert set(re.findall(r"^### ([A-Z_]+)$", DOCS, flags=re.MULTILINE)) == set(ROWS)
