"""What `docs/threat-model.md` and `docs/asvs.md` name exists: modules, documents and tests."""

import ast
import re
from functools import cache

import pytest

from tests.architecture.modules import ROOT

MODEL = (ROOT / "docs/threat-model.md").read_text()
ACTORS = (
    "A caller who is not signed in",
    "A member",
    "An owner or admin",
    "An auditor",
    "The holder of a token, or of a machine",
    "Operators",
    "Another organization",
    "A person with the database",
    "A person with the disk or a backup",
    "A malicious provider, or a base URL",
    "A dependency",
)
PATH = re.compile(r"`([\w./-]+\.(?:py|md|toml|txt|yaml|html|js)|\.?[\w-]+/[\w./-]*)(?:::([\w:]+))?`")


@cache
def names_in(path: str) -> frozenset[str]:
    """Name the tests of a file, with their classes."""
    tree = ast.parse((ROOT / path).read_text())
    functions = (ast.FunctionDef, ast.AsyncFunctionDef)
    classes = [node for node in tree.body if isinstance(node, ast.ClassDef)]
    return frozenset(
        {f"{each.name}::{test.name}" for each in classes for test in each.body if isinstance(test, functions)}
        | {node.name for node in tree.body if isinstance(node, functions)}
        | {each.name for each in classes}
    )


def missing(text: str) -> list[str]:
    """List what a text names and the project does not have."""
    return [
        f"{path}::{test}" if test else path
        for path, test in PATH.findall(text)
        if not (ROOT / path).exists() or (test and test not in names_in(path))
    ]


def rows(text: str) -> list[list[str]]:
    """Read the rows of the tables, without their heads."""
    found = [line for line in text.splitlines() if line.startswith("| ")]
    return [[cell.strip() for cell in line.strip("| ").split(" | ")] for line in found]


class TestTheModel:
    @pytest.mark.parametrize("actor", ACTORS)
    def test_has_a_table_for_each_actor(self, actor: str) -> None:
        section = re.split(r"^## ", MODEL, flags=re.MULTILINE)
        (mine,) = [each for each in section if each.startswith(f"{actor}\n")]
        head, *attempts = rows(mine)

        assert head == ["Attempt", "What holds it", "Module", "Test"]
        assert len(attempts) >= 3
        for _, _, module, test in attempts:
            assert PATH.fullmatch(module), module
            found = PATH.fullmatch(test)
            assert test == "*no test*" or (found and found[2]), test

    def test_names_nothing_that_is_not_there(self) -> None:
        assert missing(MODEL) == []

    def test_would_be_caught_naming_what_is_not_there(self) -> None:
        assert missing("`rensei/core/nothing.py`") == ["rensei/core/nothing.py"]
        assert missing("`tests/core/test_json_body.py::TestNothing::test_none`") != []
