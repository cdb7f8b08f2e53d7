"""The documents hang together: each can be found from the index, and no link leads nowhere."""

import re

import pytest

from tests.architecture.modules import ROOT

DOCUMENTS = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")])
LINK = re.compile(r"\]\((?!\w+:)([^)#\s]*)(?:#([^)\s]+))?\)")


def anchors(text: str) -> set[str]:
    """The anchors that a running server makes of the headings."""
    headings = re.findall(r"^#+ (.+)$", text, flags=re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).strip().replace(" ", "-").replace("_", "-") for heading in headings}


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
class TestDocument:
    def test_links_to_what_exists(self, document):
        for target, anchor in LINK.findall(document.read_text()):
            linked = (document.parent / target).resolve() if target else document

            assert linked.exists(), f"{target} does not exist"
            if anchor:
                assert anchor in anchors(linked.read_text()), f"{target} has no heading for #{anchor}"

    def test_is_in_the_index(self, document):
        if not document.is_relative_to(ROOT / "docs") or document.name == "index.md":
            return
        listed = {
            (ROOT / "docs" / target).resolve() for target, _ in LINK.findall((ROOT / "docs/index.md").read_text())
        }

        assert document in listed
