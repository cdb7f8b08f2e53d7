"""Every documented query parameter of every list does what it says: it narrows, or is refused, and never fails."""

from collections.abc import Callable
from functools import cache
from typing import Any

import pytest
from drf_spectacular.generators import SchemaGenerator
from rest_framework.test import APIClient

from rensei.orgs.models import Org, User

VALUES = {"string": "x", "integer": "1", "number": "1", "boolean": "true"}
FORMATS = {"date": "2026-11-02", "date-time": "2026-11-02T00:00:00Z"}


@cache
def documented() -> list[tuple[str, str, str]]:
    """The paths without parameters of their own, each with a query parameter and a value of its type."""
    schema: Any = SchemaGenerator(api_version="v1").get_schema(request=None, public=True)
    return [
        (path, parameter["name"], _value(parameter["schema"]))
        for path, operations in schema["paths"].items()
        if "get" in operations and "{" not in path
        for parameter in operations["get"].get("parameters", [])
        if parameter["in"] == "query"
    ]


def _value(schema: dict[str, Any]) -> str:
    if "enum" in schema:
        return str(schema["enum"][0])
    if "$ref" in schema or "allOf" in schema or "oneOf" in schema:
        return "x"
    return FORMATS.get(schema.get("format", ""), VALUES[schema.get("type", "string")])


@pytest.mark.django_db
class TestQueryParameters:
    def test_are_documented_for_lists(self) -> None:
        assert ("/api/v1/audit-events", "q", "x") in documented()
        assert len(documented()) > 30

    @pytest.mark.parametrize("role", ["ada", "mia", "otto"])
    def test_are_answered(
        self,
        acme: Org,
        catalog: None,
        api_as: Callable[[User], APIClient],
        request: pytest.FixtureRequest,
        role: str,
        subtests: Any,
    ) -> None:
        client = api_as(request.getfixturevalue(role))
        allowed = {path: client.get(path).status_code for path, _, _ in documented()}

        for path, name, value in documented():
            with subtests.test(f"{path}?{name}={value}"):
                answer = client.get(path, {name: value})

                expected = {403} if allowed[path] == 403 else {200, 400}
                assert answer.status_code in expected, answer.content

    def test_are_named_where_one_is_unknown(
        self, acme: Org, ada: User, catalog: None, api_as: Callable[[User], APIClient], subtests: Any
    ) -> None:
        client = api_as(ada)
        refusing = set()

        for path in {path for path, _, _ in documented()}:
            answer = client.get(path, {"no-such-name": "5"})
            # Some lists pass over names that they do not know.
            if answer.status_code == 200:
                continue
            refusing.add(path.removeprefix("/api/v1/"))
            with subtests.test(path):
                assert answer.status_code == 400, answer.content
                (error,) = answer.json()["errors"]
                known = sorted(name for place, name, _ in documented() if place == path)
                assert error["pointer"] == "/query/no-such-name"
                assert error["detail"] == f"This field is not known here. Known: {', '.join(known)}."
        assert refusing >= {"runs", "usage", "cost-events", "cost-events.csv", "audit-events"}

    def test_search_the_audit_log_for_every_word(
        self, acme: Org, ada: User, api_as: Callable[[User], APIClient]
    ) -> None:
        client = api_as(ada)
        events = client.get("/api/v1/audit-events").json()["results"]
        assert {event["action"] for event in events} >= {"token.created"}

        found = client.get("/api/v1/audit-events", {"q": "token ada@acme"}).json()["results"]

        assert [event["id"] for event in found] == [
            event["id"] for event in events if "token" in event["action"] and event["actor"].startswith("ada@acme")
        ]
        assert found
        assert client.get("/api/v1/audit-events", {"q": "token no-such-word"}).json()["results"] == []
