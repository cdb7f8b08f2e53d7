"""Translation of Anthropic's errors into our failures. The result never contains a header or a key."""

import re
from collections.abc import Mapping
from typing import Any

import httpx2

from integrations.outbound.http import AddressRefused, AnswerRefused, DeadlinePassed, EncodingRefused
from integrations.providers.anthropic import diagnoses as d
from integrations.providers.anthropic.diagnoses import Diagnosis
from integrations.providers.base import ProviderFailure
from rensei.core.limits import limit
from rensei.core.texts import read_storable

_PROVIDER_MESSAGE_CHARACTERS_MAX = 300
_RETRY_AFTER_SECONDS_MAX = limit(
    24 * 3600, "seconds", what="Pause that a provider may ask for", told="the caller: a longer one counts as none"
)
_NAME = re.compile(r"[a-z0-9_]{1,64}")
_REQUEST_ID = re.compile(r"[A-Za-z0-9_-]{1,100}")
# Matches anything that looks like a credential, including ours, in text from others.
_KEY_LIKE = re.compile(r"(sk-|rsk_|Bearer\s+)\S+|[A-Za-z0-9_+/=-]{40,}", re.IGNORECASE)

_BY_ERROR_CODE: dict[str, Diagnosis] = {
    "enforced_spend_limit_reached": d.TIER_LIMIT_REACHED,
    "contract_spend_limit_reached": d.CONTRACT_LIMIT_REACHED,
    "ramp_limit_exceeded": d.RAMP_LIMIT_EXCEEDED,
    "organization_on_hold": d.ORGANIZATION_ON_HOLD,
    "linked_organization_billing_unavailable": d.LINKED_BILLING_UNAVAILABLE,
    "linked_organization_spend_limit_reached": d.LINKED_LIMIT_REACHED,
    "ip_not_in_allowed_range": d.IP_NOT_ALLOWED,
    "request_body_too_large_after_decoding": d.TOO_LARGE,
}
# Statuses whose type adds nothing to the status. `_BY_TEXT` distinguishes cases by text: (how it begins or
# what it contains, what it means). Texts are compared in lower case, and only where Anthropic gives no code.
_BY_STATUS: dict[int, Diagnosis] = {
    400: d.REQUEST_REJECTED,
    401: d.KEY_REJECTED,
    402: d.BILLING_PROBLEM,
    403: d.NO_PERMISSION,
    404: d.MODEL_NOT_AVAILABLE,
    408: d.SERVER_TIMEOUT,
    409: d.CONFLICT,
    413: d.TOO_LARGE,
    422: d.REQUEST_REJECTED,
    429: d.RATE_LIMITED,
    499: d.CLIENT_CLOSED,
    504: d.SERVER_TIMEOUT,
    529: d.OVERLOADED,
}
_BY_TYPE: dict[str, Diagnosis] = {
    "authentication_error": d.KEY_REJECTED,
    "billing_error": d.BILLING_PROBLEM,
    "permission_error": d.NO_PERMISSION,
    "not_found_error": d.MODEL_NOT_AVAILABLE,
    "request_too_large": d.TOO_LARGE,
    "rate_limit_error": d.RATE_LIMITED,
    "overloaded_error": d.OVERLOADED,
    "timeout_error": d.SERVER_TIMEOUT,
    "api_error": d.SERVER_ERROR,
    "invalid_request_error": d.REQUEST_REJECTED,
}
_BY_TEXT: dict[Diagnosis, tuple[tuple[str, Diagnosis], ...]] = {
    d.KEY_REJECTED: (
        ("invalid bearer token", d.BEARER_REJECTED),
        ("oauth access token is invalid", d.BEARER_REJECTED),
        ("oauth token has expired", d.OAUTH_EXPIRED),
        ("oauth token has been revoked", d.OAUTH_EXPIRED),
        ("oauth authentication is currently not", d.OAUTH_NOT_ALLOWED),
        ("invalid authentication credentials", d.KEY_DISABLED),
        ("admin credentials", d.ADMIN_KEY),
    ),
    d.NO_PERMISSION: (
        ("oauth authentication is currently not", d.OAUTH_NOT_ALLOWED),
        ("admin credentials", d.ADMIN_KEY),
        ("ip address", d.IP_NOT_ALLOWED),
    ),
    d.REQUEST_REJECTED: (
        ("your credit balance is too low", d.NO_CREDIT),
        ("this organization has been disabled", d.ORGANIZATION_DISABLED),
        ("you have reached your specified workspace api usage limits", d.WORKSPACE_LIMIT_REACHED),
        ("you have reached your specified api usage limits", d.SPEND_LIMIT_REACHED),
        ("anthropic-workspace-id is required", d.WORKSPACE_REQUIRED),
        ("must have data retention enabled", d.DATA_RETENTION_REQUIRED),
        ("prompt is too long", d.PROMPT_TOO_LONG),
    ),
}
# Where Anthropic's own text is more precise: what is wrong with the request, when access resumes.
_QUOTED = (d.REQUEST_REJECTED, d.SPEND_LIMIT_REACHED, d.WORKSPACE_LIMIT_REACHED, d.NO_PERMISSION, d.MODEL_NOT_AVAILABLE)


def diagnose(*, status: int, error: Mapping[str, Any]) -> Diagnosis:
    """Determine what an error answer means: by its code, else by status or type, then by text if there is no code."""
    details = error.get("details")
    code = str(details.get("error_code")) if isinstance(details, Mapping) else ""
    if code in _BY_ERROR_CODE:
        return _BY_ERROR_CODE[code]
    kind = _BY_STATUS.get(status) if status != 200 else None
    kind = kind or _BY_TYPE.get(str(error.get("type"))) or (d.SERVER_ERROR if status >= 500 or status == 200 else None)
    if kind is None:
        return d.REDIRECTED if 300 <= status < 400 else d.REQUEST_REJECTED
    text = str(error.get("message", "")).lower()
    return next((meaning for part, meaning in _BY_TEXT.get(kind, ()) if part in text), kind)


def failure_of_answer(*, status: int, body: bytes, headers: Mapping[str, str]) -> ProviderFailure:
    """Translate an answer whose status is not 200."""
    document = parse_object(body)
    error = error_of(document)
    if error is None and status not in (401, 403, 429) and status < 500 and not 300 <= status < 400:
        # A status of success may mean that the answer was generated and billed.
        return make_failure(d.NOT_THE_API, status=status, maybe_billed=status < 300)
    found = diagnose(status=status, error=error or {})
    return make_failure(
        found,
        status=status,
        error=error or {},
        request_id=request_id_of(headers),
        retry_after_seconds=_retry_after_of(headers),
        # After a gateway's time-out, the answer may still have been generated and billed.
        maybe_billed=found in (d.SERVER_TIMEOUT, d.CLIENT_CLOSED),
    )


def failure_of_transport(error: Exception) -> ProviderFailure:
    """Translate a connection that failed before any answer arrived."""
    cause = error if isinstance(error, httpx2.HTTPError) else error.__cause__
    match cause:
        case AddressRefused():
            return make_failure(d.ADDRESS_REFUSED, sent=False)
        case httpx2.ConnectError() | httpx2.ConnectTimeout() | httpx2.PoolTimeout():
            return make_failure(d.UNREACHABLE, sent=False)
        case EncodingRefused():
            return make_failure(d.ENCODING_UNKNOWN, maybe_billed=True)
        case AnswerRefused():
            return make_failure(d.NOT_THE_API, maybe_billed=True)
        case DeadlinePassed():
            return make_failure(d.NO_ANSWER, maybe_billed=True, retryable=False, provider_code="deadline")
        case httpx2.TimeoutException():
            return make_failure(d.NO_ANSWER, maybe_billed=True)
        case _:
            return make_failure(d.CONNECTION_LOST, maybe_billed=True)


def make_failure(
    diagnosis: Diagnosis, *, error: Mapping[str, Any] | None = None, provider_code: str = "", **facts: Any
) -> ProviderFailure:
    """Build a failure from our own text, with Anthropic's text where it is more precise."""
    error = error or {}
    details = error.get("details")
    code = str(details.get("error_code") or "") if isinstance(details, Mapping) else ""
    code = code or str(error.get("type") or "") or provider_code
    message = diagnosis.message
    if diagnosis in _QUOTED and (said := _quote(error.get("message"))):
        message += f" Anthropic says: {said}"
    return ProviderFailure(
        code=diagnosis.code,
        message=message,
        fix=diagnosis.fix,
        retryable=facts.pop("retryable", diagnosis.retryable),
        gave_up=facts.pop("gave_up", diagnosis is d.NO_ANSWER),
        diagnosis=diagnosis.name,
        provider_code=code if _NAME.fullmatch(code) else "",
        **facts,
    )


def parse_object(text: bytes | str) -> dict[str, Any]:
    """Parse a JSON object. Anything else gives an empty one."""
    try:
        found = read_storable(text)
    except (ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def error_of(document: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return the error in an error document, or None if it is no such document."""
    error = document.get("error")
    return error if isinstance(error, dict) else None


def request_id_of(headers: Mapping[str, str]) -> str:
    found = headers.get("request-id", "")
    return found if _REQUEST_ID.fullmatch(found) else ""


def _retry_after_of(headers: Mapping[str, str]) -> float | None:
    try:
        seconds = float(headers.get("retry-after", ""))
    except ValueError:
        return None
    return seconds if 0 <= seconds <= _RETRY_AFTER_SECONDS_MAX else None


def _quote(said: object) -> str:
    """Make text from others safe to show: one line, short, and without anything like a key."""
    if not isinstance(said, str):
        return ""
    printable = "".join(character if character.isprintable() else " " for character in said)
    text = _KEY_LIKE.sub("***", " ".join(printable.split()))
    return text if len(text) <= _PROVIDER_MESSAGE_CHARACTERS_MAX else text[:_PROVIDER_MESSAGE_CHARACTERS_MAX] + "…"
