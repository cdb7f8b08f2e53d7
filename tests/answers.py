"""
Compares every answer of `/api/v1` that a test receives with the OpenAPI document: its status is declared for the
operation, a refusal's code is listed there, and the body has the declared form. A test that receives another one fails.
"""

import functools
import json
import re
from collections.abc import Iterator
from http import HTTPStatus
from typing import Any

import jsonschema_rs
import pytest
from django.http import HttpResponseBase
from django.test.client import AsyncClient, Client, FakePayload
from django.urls import Resolver404
from drf_spectacular.generators import SchemaGenerator

from tests import examples

PREFIX = "api/v1/"
PROBLEM = "application/problem+json"
# A parameter of a path, as Django writes it.
_PARAMETER = re.compile(r"<(?:\w+:)?(\w+)>")

undeclared: list[str] = []


@functools.cache
def document() -> Any:
    """The document as readers get it."""
    return json.loads(json.dumps(SchemaGenerator(api_version="v1").get_schema(request=None, public=True)))


def differences(method: str, path: str, status: int, media_type: str, body: bytes) -> list[str]:
    """Tell in what an answer differs from what the document says of its operation."""
    operation = document()["paths"].get(path, {}).get(method.lower())
    if operation is None:
        return [] if status in (404, 405) or method == "OPTIONS" else ["the operation is not documented"]
    declared = resolved(operation["responses"].get(str(status)))
    if declared is None:
        return [f"the status is not declared: {body[:400]!r}"]
    content = declared.get("content", {})
    if not content:
        return [f"a body is not declared: {body[:200]!r}"] if body else []
    if media_type not in content:
        return [f"{media_type} is not declared"]
    if media_type not in (PROBLEM, "application/json"):
        return []
    found = json.loads(body)
    errors = validator(content[media_type]["schema"]).iter_errors(found)
    wrong = [f"{error.instance_path}: {error.message[:200]}" for error in errors]
    if media_type == PROBLEM and found["code"] not in content[PROBLEM]["examples"]:
        wrong.append(f"the code {found['code']} is not listed")
    return wrong


def resolved(node: Any) -> Any:
    """Follow a reference to a shared response."""
    if node is not None and "$ref" in node:
        return document()["components"]["responses"][node["$ref"].rsplit("/", 1)[1]]
    return node


def validator(form: dict[str, Any]) -> jsonschema_rs.Draft202012Validator:
    """Give what validates a form. To make it takes milliseconds, and most operations share the form of a refusal."""
    return _validator(json.dumps(form))


@functools.cache
def _validator(form: str) -> jsonschema_rs.Draft202012Validator:
    whole = {**json.loads(form), "components": document()["components"]}
    return jsonschema_rs.Draft202012Validator(whole, validate_formats=True)


def _compare(request: Any, response: HttpResponseBase, sent: bytes = b"") -> None:
    try:
        route = response.resolver_match.route  # type: ignore[attr-defined]
    except Resolver404:
        return
    if not route.startswith(PREFIX) or route == f"{PREFIX}schema":
        return
    path = "/" + _PARAMETER.sub(r"{\1}", route)
    body = b"" if response.streaming else response.content  # type: ignore[attr-defined]
    media_type = response.headers.get("Content-Type", "").split(";")[0]
    found = differences(request["method"], path, response.status_code, media_type, body)
    undeclared.extend(f"{request['method']} {path} {response.status_code}: {difference}" for difference in found)
    operation = document()["paths"].get(path, {}).get(request["method"].lower())
    if examples.RECORD and operation and not found and response.status_code < HTTPStatus.BAD_REQUEST:
        received = json.loads(body) if media_type == "application/json" else None
        examples.record(operation["operationId"], response.status_code, json.loads(sent) if sent else None, received)


_request, _async_request = Client.request, AsyncClient.request


def _watched(client: Client, **request: Any) -> Any:
    sent = b""
    if examples.RECORD and "json" in request.get("CONTENT_TYPE", "") and "wsgi.input" in request:
        sent = request["wsgi.input"].read()
        request["wsgi.input"] = FakePayload(sent)
    response = _request(client, **request)
    _compare({"method": request.get("REQUEST_METHOD", "GET")}, response, sent)
    return response


async def _async_watched(client: AsyncClient, **request: Any) -> Any:
    response = await _async_request(client, **request)
    _compare(request, response)
    return response


Client.request = _watched  # type: ignore[method-assign]
AsyncClient.request = _async_watched  # type: ignore[method-assign]


@pytest.fixture(autouse=True)
def _answers_are_declared() -> Iterator[None]:
    undeclared.clear()
    yield
    assert undeclared == []
