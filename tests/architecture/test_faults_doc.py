"""`docs/faults.md` names a test for each fault, or says that there is none."""

import ast
import re
from functools import cache
from pathlib import Path

import pytest

from tests.architecture.modules import ROOT

ROWS = re.findall(r"^\| (F\d+) \| (.+) \| (.+) \| (.+) \|$", (ROOT / "docs/faults.md").read_text(), flags=re.MULTILINE)
TEST = re.compile(r"`(tests/[\w/]+\.py)::([\w:]+)`")


@cache
def names_in(path: Path) -> set[str]:
    """The names of a file's tests, as pytest has them."""
    names = set()
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.FunctionDef):
            names.add(node.name)
        elif isinstance(node, ast.ClassDef):
            names |= {f"{node.name}::{each.name}" for each in node.body if isinstance(each, ast.FunctionDef)}
    return names


def test_lists_every_fault_once():
    assert [number for number, *_ in ROWS] == [f"F{number}" for number in range(1, 26)]


@pytest.mark.parametrize(("number", "proof"), [(row[0], row[3]) for row in ROWS], ids=[row[0] for row in ROWS])
class TestAFault:
    def test_names_tests_that_there_are(self, number, proof):
        for path, name in TEST.findall(proof):
            assert (ROOT / path).exists(), path
            assert name in names_in(ROOT / path), f"{path} has no {name}"

    def test_is_provoked_or_says_that_it_is_not(self, number, proof):
        assert TEST.search(proof) or "*Not yet:*" in proof
