"""
Every documented query parameter of every list does what it says: it narrows, or is refused, and never fails. Any other
is refused by every operation, in words that name those that are known.
"""

import json
import re
from collections.abc import Callable
from functools import cache
from typing import Any
from urllib.parse import urlencode

import pytest
from django.test import Client
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from rest_framework.test import APIClient

from rensei.core import views
from rensei.core.errors import ERRORS_MAX
from rensei.orgs.models import Org, User
from tests import answers
from tests.architecture.test_isolation import REST, Stage, stage  # noqa: F401 - a fixture

VALUES = {"string": "x", "integer": "1", "number": "1", "boolean": "true"}
FORMATS = {"date": "2026-11-02", "date-time": "2026-11-02T00:00:00Z"}


@cache
def documented() -> list[tuple[str, str, str]]:
    """The paths without parameters of their own, each with a query parameter and a value of its type."""
    return [
        (path, parameter["name"], _value(parameter["schema"]))
        for path, operations in answers.document()["paths"].items()
        if "get" in operations and "{" not in path
        for parameter in operations["get"].get("parameters", [])
        if parameter["in"] == "query"
    ]


def _may_be_blank(path: str, name: str) -> bool:
    parameters = answers.document()["paths"][path]["get"]["parameters"]
    (schema,) = (one["schema"] for one in parameters if one["name"] == name)
    words, is_text = (
        schema.get("enum", [""]),
        schema.get("type") == "string" and schema.get("format") in (None, "cursor"),
    )
    return is_text and "" in words and not schema.get("minLength")


def _value(schema: dict[str, Any]) -> str:
    if "enum" in schema:
        return str(schema["enum"][-1])
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

    def test_may_be_blank_where_the_document_says_so(
        self, acme: Org, ada: User, catalog: None, api_as: Callable[[User], APIClient], subtests: Any
    ) -> None:
        client = api_as(ada)

        for path, name, _ in documented():
            with subtests.test(f"{path}?{name}="):
                answer = client.get(path, {name: ""})

                assert answer.status_code == (200 if _may_be_blank(path, name) else 400), answer.content

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


@pytest.mark.django_db
class TestOthers:
    """Parameters that an operation does not declare."""

    def test_are_refused_by_every_operation(self, stage: Stage, subtests: Any) -> None:  # noqa: F811
        for method, path in REST:
            with subtests.test(f"{method} {path}"):
                known = parameters(method, path)

                answer = asked(stage, method, path, {"no-such-name": "5"})

                assert answer.status_code == 400, answer.content
                (error,) = answer.json()["errors"]
                assert error["pointer"] == "/query/no-such-name"
                assert error["detail"].startswith("This query parameter is not known here")
                assert error["detail"].endswith(f"Known: {', '.join(known)}." if known else "no other is. Remove it.")
        for (method, path), row in REST.items():
            if row.object and method == "GET":
                with subtests.test(f"{path} is still there"):
                    assert asked(stage, method, path, {}).status_code in (200, 409)

    def test_are_refused_by_the_document(self, client: Client) -> None:
        assert client.get("/api/v1/schema", {"format": "yaml"}).status_code == 400
        assert client.get("/api/v1/schema").status_code == 200

    def test_are_told_to_those_who_may_call_only(self, stage: Stage) -> None:  # noqa: F811
        anonymous, auditor = stage.clients["anonymous"], stage.clients["auditor"]

        assert anonymous.get("/api/v1/runs", {"limit": "5"}).status_code == 401
        assert auditor.post("/api/v1/projects?limit=5", {"id": "new", "name": "New"}).status_code == 403

    def test_are_refused_in_few_words(self, stage: Stage) -> None:  # noqa: F811
        query = "&".join(f"x{number}=1" for number in range(500))

        answer = stage.clients["owner"].get(f"/api/v1/runs?{query}")

        assert answer.status_code == 400
        assert len(answer.json()["errors"]) == ERRORS_MAX

    @given(data=st.data())
    @settings(max_examples=200, deadline=None)
    def test_name_the_one_that_is_meant(self, data: Any) -> None:
        name = data.draw(st.sampled_from(sorted({name for _, name, _ in documented() if len(name) > 3})))
        place = data.draw(st.integers(1, len(name) - 1))
        misspelt = data.draw(
            st.sampled_from(
                [name[:place] + name[place + 1 :], name[:place] + name[place] + name[place:], name.upper(), name + "s"]
            )
        )
        known = {name, "cursor", "pageSize"}
        assume(misspelt not in known)

        assert f"Did you mean {name}?" in views._unknown(misspelt, known)

    @pytest.mark.parametrize(
        ("path", "given", "meant"),
        [
            ("runs", "limit", "pageSize"),
            ("runs", "per_page", "pageSize"),
            ("runs", "offset", "cursor"),
            ("runs", "status", "state"),
            ("runs", "since", "createdAfter"),
            ("runs", "until", "createdBefore"),
            ("runs", "model", "servedModel"),
            ("usage", "since", "from"),
            ("audit-events", "search", "q"),
        ],
    )
    def test_have_the_names_of_other_apis(
        self, acme: Org, ada: User, api_as: Callable[[User], APIClient], path: str, given: str, meant: str
    ) -> None:
        answer = api_as(ada).get(f"/api/v1/{path}", {given: "5"})

        (error,) = answer.json()["errors"]
        assert f"Did you mean {meant}?" in error["detail"]


def parameters(method: str, path: str) -> list[str]:
    """The names of the query of an operation, as the document has them."""
    operation = answers.document()["paths"]["/api/v1/" + path.replace("<", "{").replace(">", "}")][method.lower()]
    return sorted(one["name"] for one in operation.get("parameters", []) if one["in"] == "query")


def asked(stage: Stage, method: str, path: str, query: dict[str, str]) -> Any:  # noqa: F811
    """The answer to the first of the callers who is permitted: the owner, or a machine."""
    address = "/api/v1/" + re.sub(r"<(\w+)>", lambda found: str(stage.ids[found[1]]), path)
    body = json.dumps(REST[method, path].body or {})
    for client in (stage.clients["owner"], stage.machines["owner"]):
        answer = client.generic(method, f"{address}?{urlencode(query)}", body, content_type="application/json")
        if answer.status_code not in (401, 403):
            break
    return answer
