"""What djlint has no rule for."""

import tomllib
from pathlib import Path

import pytest

pytestmark = pytest.mark.outside
ROOT = Path(__file__).parents[2]


def test_no_line_of_a_template_is_longer_than_its_limit() -> None:
    limit = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["djlint"]["max_line_length"]

    long = [
        f"{path.relative_to(ROOT)}:{number}: {len(line)} characters"
        for path in sorted((ROOT / "templates").rglob("*.*"))
        for number, line in enumerate(path.read_text().splitlines(), 1)
        if len(line) > limit
    ]

    assert long == []
