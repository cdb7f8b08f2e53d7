"""Bodies and keys that the OpenAPI document does not allow, at every operation that takes one: each is refused."""

import json
import re
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import pytest
from django.http import HttpResponse

from rensei.dispatch.models import Run
from rensei.orgs.access import Access
from rensei.orgs.models import User
from rensei.tokens.machines import register_host
from tests import answers
from tests.architecture.test_isolation import (
    NEEDS,
    OWNER,
    REST,
    Stage,
    as_bearer,
    stage,  # noqa: F401 - a fixture
    undone,
)
from tests.attacks import sized

# One of each JSON type, and lists and objects that hold what is not expected.
VALUES: tuple[Any, ...] = (None, True, -1, 1.5, "", "surely-unknown", [None], {"surely-unknown": None})
OF_MACHINES = {*NEEDS["leases"], *NEEDS["manage leases"]}
REFUSED = {400, 422}
# The first and last characters of each kind, and those that lines and headers treat on their own.
CODES = sized([1, 8, 9, 10, 11, 13, 31, 32, 33, 34, 44, 65, 126, 127, 128, 159, 160, 173, 255], [*range(1, 256)])
# What a message may not be sent beside.
BESIDE = {"messages": "input"}
WITHOUT_A_ROW = {("POST", "device-codes"): {"hostName": "laptop"}, ("POST", "device-codes/token"): {"deviceCode": "x"}}


class Operation(NamedTuple):
    """An operation that takes a body, with the form of it."""

    method: str
    route: str
    form: dict[str, Any]
    # The form of its Idempotency-Key, if it takes one.
    key: dict[str, Any] | None

    def body_with(self, field: str, value: Any) -> dict[str, Any]:
        """Make a body that it takes but for this field."""
        place = (self.method, self.route)
        body = WITHOUT_A_ROW.get(place) or REST[place].body or {}
        return {name: one for name, one in body.items() if name != BESIDE.get(field)} | {field: value}


def operations() -> Iterator[Operation]:
    document = answers.document()
    for path, methods in document["paths"].items():
        for method, described in methods.items():
            if "requestBody" in described:
                form = described["requestBody"]["content"]["application/json"]["schema"]["$ref"].rsplit("/", 1)[1]
                route = re.sub(r"\{(\w+)\}", r"<\1>", path.removeprefix("/api/v1/"))
                keys = [one["schema"] for one in described.get("parameters", ()) if one["name"] == "Idempotency-Key"]
                yield Operation(method.upper(), route, document["components"]["schemas"][form], *(keys or [None]))


def is_allowed(form: dict[str, Any], value: Any) -> bool:
    return bool(answers.validator(form).is_valid(value))


def padded(form: dict[str, Any]) -> Iterator[str]:
    """Make a text that is too long only by the white space around it, if the form limits its length."""
    for one in (form, *form.get("oneOf", ())):
        if "maxLength" in one:
            yield "x" + " " * one["maxLength"]


# What is compared with a profile, at an operation that also answers where none is named.
WITH_A_PROFILE = {("POST", "why", "providerConfig")}

Send = Callable[..., HttpResponse]


@pytest.fixture
def send(stage: Stage, ada: User, access_of: Callable[..., Access]) -> Send:  # noqa: F811
    """Send a body as one who may call the operation, and undo what it did."""
    host, _, secret = register_host(access_of(ada), name="laptop")
    machine, ids = as_bearer(secret), {**stage.ids, "host_id": host.pk}
    Run.objects.filter(pk=ids["run_id"]).update(auth_mode="host-session", payer="host-account", host=host)

    def send(operation: Operation, body: Any, *, key: str = "") -> HttpResponse:
        method, route, *_ = operation
        client = machine if (method, route) in OF_MACHINES else stage.clients[OWNER]
        path = "/api/v1/" + re.sub(r"<(\w+)>", lambda found: str(ids[found[1]]), route)
        with undone():
            answer: HttpResponse = client.generic(
                method, path, json.dumps(body), content_type="application/json", HTTP_IDEMPOTENCY_KEY=key
            )
        return answer

    return send


@pytest.mark.outside
@pytest.mark.django_db
class TestEveryOperation:
    def test_refuses_a_body_that_is_no_object(self, send: Send) -> None:
        taken = [
            (*operation[:2], body)
            for operation in operations()
            for body in (None, False, 0, "", [])
            if send(operation, body).status_code != 400
        ]

        assert taken == []

    def test_refuses_a_value_that_its_field_does_not_allow(self, send: Send) -> None:
        wrong, sent = [], 0
        for operation in operations():
            for field, form in operation.form["properties"].items():
                for value in (*VALUES, *padded(form)):
                    if is_allowed(form, value) or (*operation[:2], field) in WITH_A_PROFILE:
                        continue
                    answer, sent = send(operation, operation.body_with(field, value)), sent + 1
                    if answer.status_code not in REFUSED or not _names(answer, field):
                        wrong.append((*operation[:2], field, value, answer.content[:200]))

        assert wrong == []
        assert sent > 500

    def test_takes_a_blank_text_where_its_field_allows_one(self, send: Send) -> None:
        refused, sent = [], 0
        for operation in operations():
            for field, form in operation.form["properties"].items():
                for value in ("", " "):
                    if not is_allowed(form, value):
                        continue
                    answer, sent = send(operation, operation.body_with(field, value)), sent + 1
                    errors = answer.json().get("errors", []) if answer.status_code == 400 else []
                    if {"pointer": f"/{field}", "code": "blank"}.items() <= next(iter(errors), {}).items():
                        refused.append((*operation[:2], field, value))

        assert refused == []
        assert sent > 10

    def test_takes_the_idempotency_keys_that_the_document_allows(self, send: Send) -> None:
        taking = [one for one in operations() if one.key is not None]
        keys = ["", "k", "k" * 255, "k" * 256, " ", *(f"k{chr(code)}k" for code in CODES)]

        assert len(taking) == 3
        for operation in taking:
            for key in keys:
                answer = send(operation, {"surely-unknown": 1}, key=key)
                refused = [one["pointer"] for one in answer.json()["errors"]] == ["/headers/Idempotency-Key"]
                assert refused != is_allowed(operation.key, key), (operation.route, key)


def _names(answer: Any, field: str) -> bool:
    if answer.json()["code"] == "WORKFLOW_INVALID":
        # Its places are those of the document.
        return field == "document"
    return any(one["pointer"].startswith(f"/{field}") for one in answer.json()["errors"])
