"""A request with thousands of wrong fields is refused with the first of them, at every address of REST."""

import json
from typing import Any

import pytest

from rensei.core.errors import ERRORS_MAX
from tests.architecture.test_isolation import REST

MANY = 5000
# One error for each of so many fields would be some 500 kB.
ANSWER_BYTES_MAX = 30_000


def _bodies(row: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Wrong fields beside the right ones, and in the place of each value that holds others."""
    found: dict[str, dict[str, Any]] = {"names": {**row, **{f"x{number}": 0 for number in range(MANY)}}}
    for name, value in row.items():
        if isinstance(value, list):
            found |= {f"{name}, {wrong!r}": {**row, name: [wrong] * MANY} for wrong in (0, "x", {"x": 0})}
        if isinstance(value, dict):
            found[f"{name}, names"] = {**row, name: {f"x{number}": 0 for number in range(MANY)}}
            found[f"{name}, below"] = {**row, name: {"*": {f"x{number}": 0 for number in range(MANY)}}}
    return found


CASES = [
    pytest.param(method, path, body, id=f"{method} {path}: {kind}")
    for (method, path), row in REST.items()
    if row.body is not None and not row.object
    for kind, body in _bodies(row.body).items()
]


@pytest.fixture
def api(acme: Any, ada: Any, api_as: Any) -> Any:
    return api_as(ada)


@pytest.mark.parametrize(("method", "path", "body"), CASES)
def test_is_refused_in_few_words(api: Any, method: str, path: str, body: dict[str, Any]) -> None:
    answer = api.generic(method, f"/api/v1/{path}", json.dumps(body).encode(), content_type="application/json")

    assert 400 <= answer.status_code < 500
    assert len(answer.json()["errors"]) <= ERRORS_MAX
    assert len(answer.content) <= ANSWER_BYTES_MAX
