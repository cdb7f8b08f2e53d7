"""
How the REST views describe themselves in OpenAPI.

A view nests its serializers under fixed names, and needs no further annotation: `Body` is the request,
`Answer` the answer, `Created` the answer of a POST if it has more. Lists name a `pagination_class`, and a `Filter` for
their query. `does = {"GET": "…"}` is what each method does, where its function does not say it.
`refusals = {"POST": (InUse, …)}` lists each method's errors beyond those of every address of its form.
"""

import inspect
import json
import re
from pathlib import Path
from typing import Any

from drf_spectacular.openapi import AutoSchema
from drf_spectacular.plumbing import ResolvedComponent, append_meta
from rest_framework import serializers

from rensei.core.api import CamelSerializer, RequestTooLarge
from rensei.core.asgi_limits import BodyTooSlow
from rensei.core.errors import DatabaseUnavailable, NotFound, RateLimited, RenseiError
from rensei.core.json_fields import NOT_BLANK, JSONDocument, Text
from rensei.core.problems import PROBLEM, Internal, Invalid, UnsupportedMediaType

# The direction in a serializer's name, which the document shows anyway.
_DIRECTION = re.compile(r"Answer(?=[A-Z]|$)")
# Requests and answers as recorded from tests, by operation id.
EXAMPLES_FILE = Path(__file__).parent / "openapi_examples.json"
_PLACEHOLDER = re.compile(r"\{\w+\}")

PROBLEM_SCHEMA = {
    "type": "object",
    "description": "A refusal, as RFC 9457 has it. `code` is what programs match on; `type` is its documentation.",
    "required": ["type", "title", "status", "detail", "code", "requestId", "retryable", "resetsAt", "errors"],
    "properties": {
        "type": {"type": "string", "format": "uri"},
        "title": {"type": "string"},
        "status": {"type": "integer"},
        "detail": {"type": "string"},
        "code": {"type": "string"},
        "requestId": {"type": ["string", "null"]},
        "retryable": {"type": "boolean"},
        "resetsAt": {"type": ["string", "null"], "format": "date-time"},
        "retryAfter": {"type": "integer", "minimum": 1, "description": "Seconds, as in the header `Retry-After`"},
        "errors": {
            "type": "array",
            "items": {
                "type": "object",
                "required": ["pointer", "code", "detail"],
                "properties": {
                    "pointer": {"type": "string", "description": "A JSON pointer into the body"},
                    "code": {"type": "string"},
                    "detail": {"type": "string"},
                },
            },
        },
    },
}


class Schema(AutoSchema):
    """Reads a view's nested serializers, and adds the problem document that every address may answer with."""

    def get_request_serializer(self) -> Any:
        return getattr(self.view, "Body", None) or super().get_request_serializer()

    def get_response_serializers(self) -> Any:
        answer = getattr(self.view, "Answer", None)
        if answer is None:
            return super().get_response_serializers()
        if self.method == "POST" and self._lists():
            return {201: getattr(self.view, "Created", answer)}
        return answer(many=True) if self.method == "GET" and self._lists() else answer

    def get_serializer_name(self, serializer: Any, direction: Any) -> str:
        name: str = type(serializer).__qualname__.replace(".", "")
        return _DIRECTION.sub("", name)

    def get_operation_id(self) -> str:
        return _in_words(super().get_operation_id())

    def get_description(self) -> str:  # type: ignore[override]
        described: str = getattr(self.view, "does", {}).get(self.method) or super().get_description()
        return described

    def get_override_parameters(self) -> list[Any]:
        query = getattr(self.view, "Filter", None)
        is_filtered = self.method in getattr(self.view, "filtered", ())
        return [query] if query and is_filtered else super().get_override_parameters()

    def get_summary(self) -> str:
        first = (self.get_description() or "").strip().split("\n", 1)[0]
        return re.split(r"(?<=[.;:]) ", first, maxsplit=1)[0].rstrip(".;:")

    def _map_serializer(self, serializer: Any, direction: Any, bypass_extensions: bool = False) -> Any:
        found = super()._map_serializer(serializer, direction, bypass_extensions)  # type: ignore[no-untyped-call]
        kind = type(serializer)
        if isinstance(serializer, CamelSerializer):
            if direction == "request":
                found["additionalProperties"] = False
            if not kind.__doc__ or inspect.getdoc(kind) == inspect.getdoc(CamelSerializer):
                found.pop("description", None)
        return found

    def _map_serializer_field(self, field: Any, direction: Any, bypass_extensions: bool = False) -> Any:
        if isinstance(field, JSONDocument):
            for name, part in field.parts.items():
                self._component(ResolvedComponent.SCHEMA, name, part)
            form = self._component(ResolvedComponent.SCHEMA, field.form_name, field.form)
            return append_meta(form, self._get_serializer_field_meta(field, direction))  # type: ignore[no-untyped-call]
        found = super()._map_serializer_field(field, direction, bypass_extensions)  # type: ignore[no-untyped-call]
        if isinstance(field, Text):
            return {**found, **field.described()}
        if direction == "request" and type(field) is serializers.CharField and not field.allow_blank:
            if field.trim_whitespace:
                found.setdefault("pattern", NOT_BLANK)
            else:
                found.setdefault("minLength", 1)
        return found

    def _insert_field_validators(self, field: Any, schema: dict[str, Any]) -> None:
        super()._insert_field_validators(field, schema)  # type: ignore[no-untyped-call]
        if isinstance(field, Text) and "oneOf" in schema:
            # It adds an empty text to the form of a field that may be blank. Rensei's form has it already, and a
            # `oneOf` rejects an empty text that matches two forms.
            own, _ = schema.pop("oneOf")
            schema.update(own)

    def _lists(self) -> bool:
        return getattr(self.view, "pagination_class", None) is not None

    def _get_response_bodies(self, direction: Any = "response") -> Any:
        bodies: dict[str, Any] = (
            {"204": {"description": "Done. There is no body."}}
            if self.method == "DELETE"
            else dict(super()._get_response_bodies(direction))
        )
        for status, refusals in self._refusals().items():
            bodies[str(status)] = self._refused(refusals)
        return bodies

    def _refusals(self) -> dict[int, list[type[RenseiError]]]:
        """List the errors of the operation, one class for each code, by status."""
        kinds: list[type[RenseiError]] = [Invalid, RateLimited, Internal, DatabaseUnavailable]
        for asked in (*self.view.get_authenticators(), *self.view.get_permissions()):
            kinds += getattr(asked, "refusals", ())
        if "{" in self.path:
            kinds.append(NotFound)
        if self.method in ("POST", "PUT", "PATCH") and self.get_request_serializer() is not None:
            kinds += [RequestTooLarge, UnsupportedMediaType, BodyTooSlow]
        kinds += getattr(self.view, "refusals", {}).get(self.method, ())
        by_code = {kind.code: kind for kind in reversed(kinds)}
        found: dict[int, list[type[RenseiError]]] = {}
        for kind in sorted(by_code.values(), key=lambda kind: (kind.status, kind.code)):
            found.setdefault(kind.status, []).append(kind)
        return found

    def _refused(self, kinds: list[type[RenseiError]]) -> dict[str, Any]:
        """Describe the problem documents of one status. Operations with the same codes share its description."""
        problem = self._component(ResolvedComponent.SCHEMA, "Problem", PROBLEM_SCHEMA)
        examples = {
            kind.code: self._component(
                ResolvedComponent.EXAMPLE, kind.code, {"summary": kind.title, "value": _example_of(kind)}
            )
            for kind in kinds
        }
        response = {
            "description": " or ".join(f"`{kind.code}`" for kind in kinds),
            "content": {PROBLEM: {"schema": problem, "examples": examples}},
        }
        if len(kinds) > 1:
            return response
        return self._component(ResolvedComponent.RESPONSE, kinds[0].__name__, response)

    def _component(self, kind: str, name: str, described: dict[str, Any]) -> dict[str, str]:
        component = ResolvedComponent(name=name, type=kind, object=name, schema=described)  # type: ignore[no-untyped-call]
        self.registry.register_on_missing(component)
        reference: dict[str, str] = component.ref
        return reference


def _example_of(kind: type[RenseiError]) -> dict[str, Any]:
    """Write the problem document of an error, with dots in place of a request's own words."""
    return {
        "type": f"https://rensei.example/docs/errors#{kind.code.lower().replace('_', '-')}",
        "title": kind.title,
        "status": kind.status,
        "detail": _PLACEHOLDER.sub("…", kind.message),
        "code": kind.code,
        "requestId": "req_01kaf3m2q8v5x7z9b1c4d6e8f0",
        "retryable": kind.retryable,
        "resetsAt": None,
        "errors": [],
    }


def _in_words(operation_id: str) -> str:
    """Name an operation in plain words: `runs_cancel`, not `runs_cancel_create`."""
    for last, verb in (("_retrieve", "_get"), ("_partial_update", "_update"), ("_destroy", "_delete")):
        operation_id = re.sub(f"{last}$", verb, operation_id)
    return re.sub(
        r"_(preview|resolve|lease|token|cancel|retry|resend|chunks|finish|heartbeat)_create$", r"_\1", operation_id
    )


def finish(result: dict[str, Any], generator: Any, request: Any, public: bool) -> dict[str, Any]:
    """Write nullable values as OpenAPI 3.1 does: null does not satisfy a `oneOf` of anything and null."""
    schemas = result.get("components", {}).get("schemas", {})
    schemas.pop("NullEnum", None)
    _add_examples(result)
    _mend_null(result)
    return result


def _add_examples(result: dict[str, Any]) -> None:
    recorded = json.loads(EXAMPLES_FILE.read_text())
    for methods in result["paths"].values():
        for operation in methods.values():
            example = recorded.get(operation["operationId"], {"request": None, "responses": {}})
            for media in operation.get("requestBody", {}).get("content", {}).values():
                if example["request"] is not None:
                    media["example"] = example["request"]
            for status, answer in example["responses"].items():
                for media in operation["responses"].get(status, {}).get("content", {}).values():
                    media["example"] = answer


def _mend_null(node: Any) -> None:
    if isinstance(node, list):
        for inner in node:
            _mend_null(inner)
    elif isinstance(node, dict):
        choices = node.get("oneOf")
        if isinstance(choices, list):
            named = [{"type": "null"} if one.get("$ref", "").endswith("/NullEnum") else one for one in choices]
            if {} in named:
                del node["oneOf"]
            else:
                node["oneOf"] = named
        if node.get("nullable") is True and isinstance(node.get("type"), str):
            del node["nullable"]
            node["type"] = [node["type"], "null"]
        for inner in node.values():
            _mend_null(inner)
