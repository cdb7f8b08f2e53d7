"""
Refusals in Anthropic's error format, which every client supports, with Rensei's code in addition.

Source: https://platform.claude.com/docs/en/api/errors
"""

import json
import math
from datetime import UTC, datetime
from typing import Any

from rensei.core.asgi_limits import transport_headers
from rensei.core.errors import RenseiError, StoredError, note_refused
from rensei.gateway.addresses import NotServed
from rensei.gateway.statuses import Place, place_of

# The `retry-after` of a retryable call if the provider sends none.
RETRY_SECONDS = 5
_UNIFIED = b"anthropic-ratelimit-unified-"
Headers = list[tuple[bytes, bytes]]
TRANSPORT: Headers = [(name.lower().encode(), value.encode()) for name, value in transport_headers().items()]
Answer = tuple[int, Headers, bytes]


def refusal_answer(refusal: RenseiError, *, request_id: str) -> Answer:
    """Convert a refusal to a response: its status, headers and body."""
    note_refused(refusal, path="gateway", request_id=request_id)
    told = {_snake(name): value for name, value in refusal.extra.items() if name != "trace"}
    place = place_of(refusal.code, passes=refusal.retryable)
    headers = _headers(place, request_id, retry_after=told.pop("retry_after", None))
    # The cap of a run does not reset.
    if place.period and "resets_at" in told:
        headers += _used_up_headers(str(told.get("resets_at", "")), place)
    if isinstance(refusal, NotServed) and refusal.is_openais:
        # https://platform.openai.com/docs/guides/error-codes
        error = {"message": refusal.detail, "type": "invalid_request_error", "param": None, "code": refusal.code}
        return place.status, headers, json.dumps({"error": error}).encode()
    body = _error(place, refusal.detail_for_gateway, request_id=request_id, code=refusal.code, **told)
    return place.status, headers, body


def failure_answer(error: StoredError, *, request_id: str, retry_after: float | None = None) -> Answer:
    """Build the response for a call without a provider response to pass on. `error` is the run's."""
    place = place_of(error["code"], repeats=error["retryable"], passes=error["retryable"])
    headers = _headers(place, request_id, retry_after=retry_after)
    return place.status, headers, _error(place, _said(error), request_id=request_id, code=error["code"])


def stream_error(error: StoredError, *, request_id: str) -> bytes:
    """Build the last event of a stream that cannot continue. `error` is the run's."""
    place = place_of(error["code"], repeats=error["retryable"], passes=error["retryable"])
    return b"event: error\ndata: " + _error(place, _said(error), request_id=request_id, code=error["code"]) + b"\n\n"


def own_headers(request_id: str) -> Headers:
    """Return the headers of every response that the gateway itself creates."""
    return [
        (b"content-type", b"application/json"),
        (b"cache-control", b"no-store"),
        (b"x-content-type-options", b"nosniff"),
        (b"request-id", request_id.encode()),
    ]


def _headers(place: Place, request_id: str, *, retry_after: float | None) -> Headers:
    headers = own_headers(request_id)
    if not place.repeats:
        return [*headers, (b"x-should-retry", b"false")]
    return [*headers, (b"retry-after", b"%d" % math.ceil(retry_after or RETRY_SECONDS))]


def _used_up_headers(resets_at: str, place: Place) -> Headers:
    """
    Return the headers for a used-up amount, in the form of Anthropic's spend limit of an organization.

    With these, Claude Code prints only the message and stops. With a claim or an overage status in addition, it would
    print its own sentence about an account at Anthropic.
    """
    reset = datetime.fromisoformat(resets_at)
    seconds = max(1, math.ceil((reset - datetime.now(UTC)).total_seconds()))
    at = b"%d" % reset.timestamp()
    return [
        (b"retry-after", b"%d" % seconds),
        (_UNIFIED + b"status", b"rejected"),
        (_UNIFIED + b"reset", at),
        (_UNIFIED + b"overage-reset", at),
        (_UNIFIED + b"overage-utilization", b"1"),
        (_UNIFIED + b"overage-surpassed-threshold", b"1"),
        (_UNIFIED + b"overage-period", place.period.encode()),
        (_UNIFIED + b"overage-disabled-reason", b"org_spend_cap_reached"),
    ]


def _said(error: StoredError) -> str:
    return f"{error['detail']} {error['fix']}".strip()


def _error(place: Place, message: str, *, request_id: str, **more: Any) -> bytes:
    document = {"type": "error", "error": {"type": place.type, "message": message, **more}, "request_id": request_id}
    return json.dumps(document).encode()


def _snake(name: str) -> str:
    """Convert a REST name to the snake case of the Messages API."""
    return "".join(f"_{character.lower()}" if character.isupper() else character for character in name)
