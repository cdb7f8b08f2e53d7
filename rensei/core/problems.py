"""Problem documents (RFC 9457): what every error is answered with, and the errors that the framework itself raises."""

import math
from collections.abc import Iterator
from http import HTTPStatus
from itertools import islice
from typing import Any

from django.conf import settings
from django.core.exceptions import PermissionDenied
from django.http import Http404, HttpRequest, JsonResponse
from rest_framework import exceptions
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

PROBLEM = "application/problem+json"


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
