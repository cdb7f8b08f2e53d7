"""
How the REST views describe themselves in OpenAPI.

A view nests its serializers under fixed names, and needs no further annotation: `Body` is what it takes,
`Answer` what it gives, `Created` what a POST gives where that is more. Lists name a `pagination_class`.
"""

from typing import Any

from drf_spectacular.openapi import AutoSchema
from drf_spectacular.plumbing import ResolvedComponent

from rensei.core.api import PROBLEM

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
        return name

    def _lists(self) -> bool:
        return getattr(self.view, "pagination_class", None) is not None

    def _get_response_bodies(self, direction: Any = "response") -> Any:
        bodies: dict[str, Any] = (
            {"204": {"description": "Done. There is no body."}}
            if self.method == "DELETE"
            else dict(super()._get_response_bodies(direction))
        )
        problem = ResolvedComponent(  # type: ignore[no-untyped-call]
            name="Problem", type=ResolvedComponent.SCHEMA, object="Problem", schema=PROBLEM_SCHEMA
        )
        self.registry.register_on_missing(problem)
        bodies["default"] = {"description": "A refusal", "content": {PROBLEM: {"schema": problem.ref}}}
        return bodies
