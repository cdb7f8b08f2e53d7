"""REST conventions: camelCase, problem documents (RFC 9457), cursor pages, body limits."""

import math
from collections.abc import Iterator
from functools import cached_property
from http import HTTPStatus
from itertools import islice
from typing import Any

from django.conf import settings
from django.core.exceptions import PermissionDenied
from django.http import Http404, HttpRequest, JsonResponse
from rest_framework import exceptions, parsers, serializers
from rest_framework.metadata import BaseMetadata
from rest_framework.negotiation import DefaultContentNegotiation
from rest_framework.request import Request
from rest_framework.response import Response

from rensei.core.errors import (
    DATABASE_FAULTS,
    ERRORS_MAX,
    NotFound,
    NotPermitted,
    RateLimited,
    RenseiError,
    Said,
    database_refusal,
    json_pointer,
    note_refused,
)
from rensei.core.json_body import LARGE_WORK, read_object, work_of
from rensei.core.json_check import check_apart
from rensei.core.limits import limit
from rensei.core.shares import ThreadTurns
from rensei.core.transactions import leave_database

PROBLEM = "application/problem+json"
DEFAULT_BODY_LIMIT = limit(
    1024 * 1024, "bytes", what="Body of a REST request", told="the caller: 413 `REQUEST_TOO_LARGE`"
)
ANONYMOUS_BODY_LIMIT = limit(
    16 * 1024,
    "bytes",
    what="Body of a request without a login, or to an address that needs none, forms included",
    told="the caller: 413 `REQUEST_TOO_LARGE`",
)
LARGE_BODY_LIMIT = limit(
    32 * 1024 * 1024,
    "bytes",
    what="Body of a dispatch, of a machine's answer and of a gateway call",
    told="the caller: 413 `REQUEST_TOO_LARGE`",
)


def camel(name: str) -> str:
    head, *tail = name.split("_")
    return head + "".join(part.capitalize() for part in tail)


class CamelSerializer(serializers.Serializer[Any]):
    """
    A serializer whose declared names are camelCase on the wire and snake_case inside.

    A request may spell a declared name either way, but not both; undeclared names are rejected.
    Only declared names are converted, so the keys of a caller's own JSON are unchanged.
    """

    def get_fields(self) -> dict[str, serializers.Field[Any, Any, Any, Any]]:
        fields = {}
        for name, field in super().get_fields().items():
            if camel(name) != name and field.source is None:
                field.source = name
            fields[camel(name)] = field
        return fields

    def to_internal_value(self, data: Any) -> Any:
        if isinstance(data, dict):
            data = self._to_camel(data)
        return super().to_internal_value(data)

    def _to_camel(self, data: dict[str, Any]) -> dict[str, Any]:
        known: dict[str, Any] = {}
        errors: dict[str, Any] = {}
        for key, value in data.items():
            if len(errors) == ERRORS_MAX:
                break
            name = camel(key) if "_" in key else key
            field = self.fields.get(name)
            if field is None or field.read_only:
                errors[key] = [self._unknown]
            elif name in known:
                errors[key] = [f"This field is given twice, as {name} and in snake_case. Keep one."]
            elif wrong := _wrong_value(field, value):
                errors[key] = wrong
            else:
                known[name] = value
        if errors:
            raise serializers.ValidationError(errors)
        return known

    @cached_property
    def _unknown(self) -> str:
        known = [name for name, field in self.fields.items() if not field.read_only]
        if not known:
            return "This field is not known here, and no other is. Remove it."
        return f"This field is not known here. Known: {', '.join(sorted(known))}."


def _wrong_value(field: Any, value: Any) -> Any:
    """
    Name what is wrong with the JSON type or the length of a value. The framework would read "1" as a number, 1 as a
    text and "yes" as true, so two readers of one body could interpret it differently.
    """
    if value is None:
        return None
    if isinstance(field, serializers.ListField) and isinstance(value, list):
        wrongs = ((place, wrong) for place, one in enumerate(value) if (wrong := _wrong_value(field.child, one)))
        return dict(islice(wrongs, ERRORS_MAX)) or None
    for kind, (types, words) in _JSON_TYPES.items():
        if isinstance(field, kind) and not (
            isinstance(value, types) and (bool in types or not isinstance(value, bool))
        ):
            return [words]
    # Before surrounding white space is removed, as the OpenAPI document counts the length.
    longest = getattr(field, "max_length", None)
    if isinstance(value, str) and longest is not None and len(value) > longest:
        return [f"Use at most {longest} characters."]
    return None


_JSON_TYPES: dict[type[serializers.Field[Any, Any, Any, Any]], tuple[tuple[type, ...], str]] = {
    serializers.BooleanField: ((bool,), "Give true or false."),
    serializers.IntegerField: ((int, float), "Give a whole number, without quotes."),
    serializers.CharField: ((str,), "Give a text, in quotes."),
    serializers.ChoiceField: ((str,), "Give a text, in quotes."),
}


class AllowedMethods(BaseMetadata):
    """The answer to OPTIONS: `Allow` only. What the methods accept is in the OpenAPI document."""

    def determine_metadata(self, request: Request, view: Any) -> dict[str, Any]:
        return {}


class OptionalText(serializers.CharField):
    """A text of an answer; null where it is empty."""

    def __init__(self, **options: Any) -> None:
        super().__init__(allow_null=True, **options)

    def to_representation(self, value: str) -> str | None:  # type: ignore[override]
        return value or None


def read_body(form: type[serializers.Serializer[Any]], request: Request) -> dict[str, Any]:
    """:raises ValidationError: if the body of a request is not what the form declares"""
    body = form(data=request.data)
    body.is_valid(raise_exception=True)
    fields: dict[str, Any] = body.validated_data
    return fields


class AlwaysJson(DefaultContentNegotiation):
    """Answers in JSON for any `Accept`, so that every client can read an error."""

    def select_renderer(self, request: Request, renderers: Any, format_suffix: str | None = None) -> Any:
        return renderers[0], renderers[0].media_type


class RequestTooLarge(RenseiError):
    """The body is larger than this address accepts."""

    code = "REQUEST_TOO_LARGE"
    status = 413
    title = "Request too large"
    message = Said("The body is larger than {size}.", "Send less, or smaller images.")

    def __init__(self, *, limit: int) -> None:
        kilobytes = limit // 1024
        super().__init__(size=f"{kilobytes // 1024} MB" if kilobytes >= 1024 else f"{kilobytes} kB")


large_bodies = ThreadTurns(
    limit(
        2,
        "at once",
        what="REST bodies over 64 KiB, or about 1,000 values, that are read, each process, and one at a time of each "
        "organization",
        told="the caller: it waits for its turn",
    )
)


class JSONBodyParser(parsers.BaseParser):
    """Reads a JSON body up to the view's `body_limit`, and no further."""

    media_type = "application/json"

    def parse(self, stream: Any, media_type: str | None = None, parser_context: Any = None) -> Any:
        most = getattr((parser_context or {}).get("view"), "body_limit", DEFAULT_BODY_LIMIT)
        body = stream.read(most + 1)
        if len(body) > most:
            raise RequestTooLarge(limit=most)
        if work_of(body) <= LARGE_WORK:
            return read_object(body)
        leave_database()
        org = getattr(getattr((parser_context or {}).get("request"), "auth", None), "org", None)
        with large_bodies.of(org.pk if org is not None else ""):
            check_apart(body, is_stored=True)
            return read_object(body)


def problem_handler(fault: Exception, context: dict[str, Any]) -> Response | None:
    """Turn a `RenseiError` into a problem document. None passes a bug on to the 500 page."""
    request: Request = context["request"]
    if isinstance(fault, RenseiError):
        return problem(request, fault)
    if isinstance(fault, Http404):
        return problem(request, NotFound())
    if isinstance(fault, PermissionDenied | exceptions.PermissionDenied):
        return problem(request, NotPermitted())
    if isinstance(fault, exceptions.Throttled):
        seconds = max(1, math.ceil(getattr(fault, "wait", None) or 1))
        return problem(request, RateLimited(seconds=seconds), headers={"Retry-After": str(seconds)})
    if isinstance(fault, exceptions.ValidationError):
        return problem(request, Invalid(), errors=list(islice(_flatten(fault.detail), ERRORS_MAX)))
    if isinstance(fault, DATABASE_FAULTS):
        return problem(request, database_refusal(fault))
    if isinstance(fault, exceptions.APIException):
        refusal = _BY_STATUS.get(fault.status_code, Invalid)
        detail: dict[str, Any] = {"detail": str(fault.detail)} if refusal is Invalid else {}
        return problem(request, refusal(), **detail)
    return None


class Invalid(RenseiError):
    """The body or the query is not what the address accepts."""

    code = "VALIDATION_FAILED"
    status = 400
    title = "The request is not valid"
    message = Said("Something in the request is not valid.", "See `errors` for each field.")


class NotAuthenticated(RenseiError):
    """The request has no valid login: no session, or an unknown, expired or revoked token."""

    code = "NOT_AUTHENTICATED"
    status = 401
    title = "Not authenticated"
    message = "Sign in, or send a valid API token as `Authorization: Bearer rsk_live_…`."
    gateway_message = "Send a valid Rensei API token, rsk_live_…, as x-api-key or as Authorization: Bearer."


class MethodNotAllowed(RenseiError):
    """The address exists, but not for this method."""

    code = "METHOD_NOT_ALLOWED"
    status = 405
    title = "Method not allowed"
    message = Said("This address does not take that method.", "`Allow` lists those that it takes.")
    gateway_message = "This address does not take that method. Messages are sent by POST, and models are listed by GET."


class UnsupportedMediaType(RenseiError):
    """The body is not JSON."""

    code = "UNSUPPORTED_MEDIA_TYPE"
    status = 415
    title = "Unsupported media type"
    message = "Send the body as application/json."


class Internal(RenseiError):
    """A bug in Rensei. The request id finds it in the logs."""

    code = "INTERNAL"
    status = 500
    title = "Something went wrong"
    message = Said("This is a fault in Rensei, not in the request.", "Quote the request id to your operator.")


_BY_STATUS: dict[int, type[RenseiError]] = {
    400: Invalid,
    401: NotAuthenticated,
    404: NotFound,
    405: MethodNotAllowed,
    415: UnsupportedMediaType,
}


def documented_at(code: str) -> str:
    """Return the address of a code's section in the documentation."""
    return f"{settings.PUBLIC_URL}/docs/errors#{code.lower().replace('_', '-')}"


def problem_body(request: HttpRequest | Request, refusal: RenseiError, **overrides: Any) -> dict[str, Any]:
    """Write an error as the RFC 9457 document that every endpoint answers with."""
    return {
        "type": documented_at(refusal.code),
        "title": refusal.title,
        "status": refusal.status,
        "detail": refusal.detail,
        "code": refusal.code,
        "requestId": getattr(request, "id", None),
        "retryable": refusal.retryable,
        "resetsAt": None,
        "errors": getattr(refusal, "errors", []),
        **refusal.extra,
        **overrides,
    }


def problem(
    request: HttpRequest | Request, refusal: RenseiError, *, headers: dict[str, str] | None = None, **overrides: Any
) -> Response:
    """Answer with an error."""
    token = getattr(getattr(request, "_auth", None), "token", None)
    note_refused(refusal, method=request.method, path=request.path, token_id=token.pk if token else "")
    body = problem_body(request, refusal, **overrides)
    headers = {**(headers or {}), **refusal_headers(refusal)}
    return Response(body, status=refusal.status, headers=headers, content_type=PROBLEM)


def problem_page(request: HttpRequest, refusal: RenseiError) -> JsonResponse:
    """Answer with an error outside a REST view, such as for an unknown `/api` path."""
    body, headers = problem_body(request, refusal), refusal_headers(refusal)
    return JsonResponse(body, status=refusal.status, headers=headers, content_type=PROBLEM)


def refusal_headers(refusal: RenseiError) -> dict[str, str]:
    """Return the headers of an error on every endpoint: when to retry, and how to sign in."""
    headers = {}
    if seconds := refusal.extra.get("retryAfter"):
        headers["Retry-After"] = str(seconds)
    if refusal.status == HTTPStatus.UNAUTHORIZED:
        headers["WWW-Authenticate"] = "Bearer"
    return headers


def _flatten(detail: Any, pointer: str = "") -> Iterator[dict[str, str]]:
    if isinstance(detail, dict):
        for key, inner in detail.items():
            yield from _flatten(inner, pointer + json_pointer(key) if key != "" else pointer)
    elif isinstance(detail, list):
        for place, inner in enumerate(detail):
            nested = isinstance(inner, dict | list)
            yield from _flatten(inner, f"{pointer}/{place}" if nested else pointer)
    else:
        yield {"pointer": pointer, "code": getattr(detail, "code", "invalid"), "detail": str(detail)}
