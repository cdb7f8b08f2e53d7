"""
Refusals in Anthropic's own shape, so that every client understands them, with our code beside.

Source: https://platform.claude.com/docs/en/api/errors
"""

import json
from typing import Any

from rensei.core.errors import RenseiError, StoredError

_TYPES = {
    401: "authentication_error",
    402: "billing_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    504: "timeout_error",
}
Headers = list[tuple[bytes, bytes]]


def refusal_answer(refusal: RenseiError, *, request_id: str) -> tuple[int, Headers, bytes]:
    """Write a refusal as an answer: its status, headers and body."""
    told = {name: value for name, value in refusal.extra.items() if name != "trace"}
    headers = _headers(request_id)
    if not refusal.retryable or (refusal.status == 429 and "resetsAt" in told):
        # Clients try again by themselves after these statuses, and would wait in vain for hours.
        headers.append((b"x-should-retry", b"false"))
    if "retryAfter" in told:
        headers.append((b"retry-after", str(told.pop("retryAfter")).encode()))
    body = _error(
        _type_of(refusal.status),
        refusal.detail,
        request_id=request_id,
        code=refusal.code,
        **told,
    )
    return refusal.status, headers, body


def failure_answer(error: StoredError, *, status: int, request_id: str) -> tuple[int, Headers, bytes]:
    """Write the error of a call that got no answer from the provider. `error` is the run's."""
    headers = _headers(request_id)
    if not error["retryable"]:
        headers.append((b"x-should-retry", b"false"))
    return status, headers, _error(_type_of(status), error["detail"], request_id=request_id, code=error["code"])


def stream_error(message: str, *, code: str, request_id: str) -> bytes:
    """Write the last event of a stream that cannot go on."""
    return b"event: error\ndata: " + _error("api_error", message, request_id=request_id, code=code) + b"\n\n"


def _headers(request_id: str) -> Headers:
    return [
        (b"content-type", b"application/json"),
        (b"cache-control", b"no-store"),
        (b"x-content-type-options", b"nosniff"),
        (b"request-id", request_id.encode()),
    ]


def _type_of(status: int) -> str:
    return _TYPES.get(status) or ("invalid_request_error" if status < 500 else "api_error")


def _error(kind: str, message: str, *, request_id: str, **more: Any) -> bytes:
    document = {"type": "error", "error": {"type": kind, "message": message, **more}, "request_id": request_id}
    return json.dumps(document).encode()
