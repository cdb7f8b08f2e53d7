"""The OpenAPI document: its form, and that answers are what it says they are."""

import json
import re
from collections.abc import Callable, Iterator
from typing import Any

import openapi_spec_validator
import pytest
from jsonschema import Draft202012Validator
from rest_framework.test import APIClient

from rensei.core import views
from rensei.core.api import CamelSerializer
from rensei.core.problems import PROBLEM
from rensei.core.schema import EXAMPLES_FILE
from rensei.orgs.models import Org, User
from tests import answers
from tests.answers import resolved
from tests.examples import SECRETS


@pytest.fixture(scope="module")
def document() -> Any:
    return answers.document()


@pytest.mark.django_db
def test_is_generated_once_in_a_process(monkeypatch: pytest.MonkeyPatch) -> None:
    made = []
    generate = views.Document.generator_class.get_schema
    monkeypatch.setattr(views, "_generated", [])

    def counted(*args: Any, **options: Any) -> Any:
        made.append(args)
        return generate(*args, **options)

    monkeypatch.setattr(views.Document.generator_class, "get_schema", counted)

    received = [APIClient().get("/api/v1/schema") for _ in range(3)]

    assert len(made) == 1
    assert received[0].status_code == 200
    assert received[0].json()["openapi"] == "3.1.0"
    assert len({answer.content for answer in received}) == 1


def operations(document: Any) -> Iterator[tuple[str, str, Any]]:
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            yield path, method, operation


def nodes(node: Any) -> Iterator[dict[str, Any]]:
    if isinstance(node, dict):
        yield node
    for inner in node.values() if isinstance(node, dict) else node if isinstance(node, list) else ():
        yield from nodes(inner)


# What may hold anything: each says why in its description.
FREE = {
    "AuditDetail",
    "Block",
    "EffortApplied",
    "ImageBlock",
    "ImageSource",
    "Metadata",
    "ModelRequest",
    "OtherBlock",
    "PoolConfig",
    "ProviderUsage",
    "ReceiptContent",
    "TextBlock",
    "ToolResultBlock",
    "WorkflowDocument",
    "WorkflowInput",
}


def _is_free(node: Any) -> bool:
    """Tell whether a schema is that of an object of any members, or of anything."""
    is_object = node.get("type") in ("object", ["object", "null"])
    is_open = node.get("additionalProperties") in (True, {}) or not ({"additionalProperties", "properties"} & set(node))
    return (is_object and is_open) or any(inner == {} for inner in node.get("properties", {}).values())


class TestDocument:
    def test_has_no_choice_that_null_cannot_satisfy(self, document: Any) -> None:
        choices = [node["oneOf"] for node in nodes(document) if "oneOf" in node]

        assert choices
        assert not [one for one in choices if {} in one]
        assert "NullEnum" not in json.dumps(document)
        assert not [node for node in nodes(document) if node.get("nullable") is True]

    def test_gives_each_operation_a_summary_and_a_tag_that_is_described(self, document: Any) -> None:
        described = {tag["name"] for tag in document["tags"] if tag["description"]}

        for path, method, operation in operations(document):
            assert operation["summary"], (path, method)
            assert set(operation["tags"]) <= described, (path, method)

    def test_lists_the_refusals_that_every_address_of_a_form_has(self, document: Any) -> None:
        for path, method, operation in operations(document):
            refused = set(operation["responses"])
            assert {"400", "429", "500", "503"} <= refused, (path, method)
            assert "default" not in refused, (path, method)
            assert ("404" in refused) >= ("{" in path), (path, method)
            assert ("415" in refused) == ("requestBody" in operation), (path, method)

    def test_lists_each_refusal_by_its_code_with_an_example(self, document: Any) -> None:
        problem = Draft202012Validator(document["components"]["schemas"]["Problem"])

        listed = set()
        for path, method, operation in operations(document):
            for status, refusal in operation["responses"].items():
                if not status.startswith("2"):
                    listed |= {(int(status), code) for code in resolved(refusal)["content"][PROBLEM]["examples"]}
                    assert resolved(refusal)["description"], (path, method, status)
        examples = {code: example["value"] for code, example in document["components"]["examples"].items()}

        assert {code for _, code in listed} == set(examples)
        assert listed == {(example["status"], example["code"]) for example in examples.values()}
        assert not [error.message for example in examples.values() for error in problem.iter_errors(example)]

    def test_lists_what_the_modes_and_the_provider_add_to_a_dispatch(self, document: Any) -> None:
        responses = document["paths"]["/api/v1/runs"]["post"]["responses"]
        found = {
            status: set(resolved(one)["content"][PROBLEM]["examples"])
            for status, one in responses.items()
            if not status.startswith("2")
        }

        assert found["402"] == {"METERED_BUDGET_EXCEEDED", "SPEND_CAP_EXCEEDED"}
        assert "SHARED_QUOTA_EXCEEDED" in found["429"]
        assert {"BYOK_NOT_CONFIGURED", "HOST_SESSION_WRONG_MACHINE", "MODEL_UNPRICED"} <= found["409"]
        assert {"EFFORT_NOT_SUPPORTED", "INVALID_IMAGE", "CONTEXT_WINDOW_EXCEEDED"} <= found["422"]

    def test_names_things_as_people_would(self, document: Any) -> None:
        names = set(document["components"]["schemas"])

        assert {"Run", "Profile", "Integration", "Workflow", "RunUsage", "RunCost"} <= names
        assert not [name for name in names if name.endswith(("Schema", "Answer", "Serializer"))]

    def test_shows_no_docstring_of_the_code(self, document: Any) -> None:
        inherited = (CamelSerializer.__doc__ or "").strip().splitlines()[0]

        assert inherited not in json.dumps(document)

    def test_gives_each_operation_a_summary_of_its_own(self, document: Any) -> None:
        summaries = [operation["summary"] for _, _, operation in operations(document)]

        assert sorted(summaries) == sorted(set(summaries))

    def test_is_valid(self, document: Any) -> None:
        openapi_spec_validator.validate(document)

    def test_has_no_object_that_may_hold_anything_but_those_that_say_why(self, document: Any) -> None:
        schemas = document["components"]["schemas"]
        free = {name for name, schema in schemas.items() if any(_is_free(node) for node in nodes(schema))}

        assert free == FREE
        for name in FREE:
            assert all(node.get("description") for node in nodes(schemas[name]) if _is_free(node)), name

    def test_has_an_example_for_every_body(self, document: Any) -> None:
        for path, method, operation in operations(document):
            sent = operation.get("requestBody", {}).get("content", {})
            received = [one.get("content", {}) for status, one in operation["responses"].items() if status[0] == "2"]
            for content in (sent, *received):
                if (media := content.get("application/json")) is not None:
                    form = {**media["schema"], "components": document["components"]}
                    wrong = [error.message for error in Draft202012Validator(form).iter_errors(media["example"])]
                    assert wrong == [], (path, method)

    def test_has_examples_without_secrets(self) -> None:
        text = EXAMPLES_FILE.read_text()

        assert re.findall(r"(?:rsk_live_|sk-ant-[a-z0-9]+-)[A-Za-z0-9]+", text) == []
        assert set(re.findall(r'"apiKey": "(.*?)"', text)) == {SECRETS["apiKey"]}
        assert set(re.findall(r'"deviceCode": "(.*?)"', text)) == {SECRETS["deviceCode"]}

    def test_takes_what_a_change_may_leave_out(self, document: Any) -> None:
        schemas = document["components"]["schemas"]

        assert "required" not in schemas["ProfileChange"]
        assert "required" not in schemas["HostDetailBody"]
        assert schemas["ProjectDetailBody"]["required"] == ["name"]

    def test_refuses_unknown_fields_where_the_server_does(self, document: Any) -> None:
        schemas = document["components"]["schemas"]
        for path, method, operation in operations(document):
            for media in operation.get("requestBody", {}).get("content", {}).values():
                name = media["schema"]["$ref"].rsplit("/", 1)[1]
                assert schemas[name]["additionalProperties"] is False, (path, method, name)


@pytest.mark.django_db
class TestAnswers:
    @pytest.mark.parametrize("role", ["ada", "mia", "otto"])
    def test_are_what_the_document_says(
        self,
        document: Any,
        acme: Org,
        catalog: None,
        api_as: Callable[[User], APIClient],
        request: pytest.FixtureRequest,
        role: str,
        subtests: Any,
    ) -> None:
        client = api_as(request.getfixturevalue(role))

        for path, method, operation in operations(document):
            if method != "get" or "{" in path or path.endswith(".csv"):
                continue
            with subtests.test(path):
                answer = client.get(path)

                described = operation["responses"][str(answer.status_code)]["content"]
                (media,) = described.values()
                form = {**media["schema"], "components": document["components"]}
                assert not [error.message for error in Draft202012Validator(form).iter_errors(answer.json())]


class TestTheComparison:
    """What `tests.answers` does to every answer of the suite."""

    def test_finds_what_is_not_declared(self) -> None:
        refusal = {**answers.document()["components"]["examples"]["NOT_FOUND"]["value"]}

        assert answers.differences("GET", "/api/v1/me", 200, "application/json", b"{}")
        assert answers.differences("GET", "/api/v1/me", 200, "text/html", b"")
        assert answers.differences("GET", "/api/v1/me", 404, PROBLEM, json.dumps(refusal).encode())
        assert answers.differences("GET", "/api/v1/runs/{run_id}", 404, PROBLEM, json.dumps(refusal).encode()) == []
        other = json.dumps({**refusal, "code": "GONE"}).encode()
        assert answers.differences("GET", "/api/v1/runs/{run_id}", 404, PROBLEM, other)
