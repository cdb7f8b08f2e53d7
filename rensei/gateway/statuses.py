"""
The HTTP status and error type of each refusal at the gateway, chosen for the correct reaction of Anthropic's clients.

They repeat a call after 408, 409, 429 and every 5xx, some also after 422, and few of them read `x-should-retry`. So a
call that would be refused again gets a status that none of them repeats, even if REST uses another one. Only a call
worth repeating gets 429, 503 or 529. Claude Code repeats a 400 without its betas, and a 404 with its fallback model.
"""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Place:
    """
    The gateway's response. `repeats`: the same call may succeed soon, and `retry-after` is sent.

    `period` is the period of a used-up amount. Claude Code supports `daily`, `weekly` and `monthly`.
    """

    status: int
    type: str
    repeats: bool = False
    period: str = ""


MALFORMED = Place(status=400, type="invalid_request_error")
NO_CALLER = Place(status=401, type="authentication_error")
REFUSED = Place(status=403, type="permission_error")
NOT_THERE = Place(status=404, type="not_found_error")
OTHER_METHOD = Place(status=405, type="invalid_request_error")
# A retry may be faster. The connection is closed.
TOO_SLOW = Place(status=408, type="timeout_error", repeats=True)
TOO_LARGE = Place(status=413, type="request_too_large")
OTHER_ENCODING = Place(status=415, type="invalid_request_error")
DAY_USED_UP = Place(status=429, type="billing_error", period="daily")
MONTH_USED_UP = Place(status=429, type="billing_error", period="monthly")
TOO_OFTEN = Place(status=429, type="rate_limit_error", repeats=True)
FAULT = Place(status=500, type="api_error")
BAD_UPSTREAM = Place(status=502, type="api_error")
BUSY = Place(status=503, type="api_error", repeats=True)
OVERLOADED = Place(status=529, type="overloaded_error", repeats=True)

PLACES: dict[str, Place] = {
    # The request itself.
    "VALIDATION_FAILED": MALFORMED,
    "NOT_AUTHENTICATED": NO_CALLER,
    "NOT_PERMITTED": REFUSED,
    "SCOPE_MISSING": REFUSED,
    "NETWORK_NOT_ALLOWED": REFUSED,
    "NOT_FOUND": NOT_THERE,
    "METHOD_NOT_ALLOWED": OTHER_METHOD,
    "ALREADY_EXISTS": REFUSED,
    "IN_USE": REFUSED,
    "REQUEST_TOO_LARGE": TOO_LARGE,
    "REQUEST_TOO_SLOW": TOO_SLOW,
    "UNSUPPORTED_MEDIA_TYPE": OTHER_ENCODING,
    "RATE_LIMITED": TOO_OFTEN,
    "TOO_MANY_STREAMS": TOO_OFTEN,
    "DATABASE_UNAVAILABLE": BUSY,
    "INTERNAL": FAULT,
    "IDEMPOTENCY_KEY_REUSED": MALFORMED,
    # Policies, credentials and payers. None of these changes within the seconds before a client's retry.
    "AUTHMODES_UNSATISFIABLE": REFUSED,
    "MODEL_NOT_ALLOWED_BY_POLICY": REFUSED,
    "BYOK_NOT_CONFIGURED": REFUSED,
    "METERED_NOT_ENTITLED": REFUSED,
    "METERED_KEY_NOT_CONFIGURED": REFUSED,
    "SHARED_KEY_NOT_CONFIGURED": REFUSED,
    "CREDENTIAL_UNREADABLE": REFUSED,
    "MODEL_UNPRICED": REFUSED,
    "STORAGE_LIMIT_REACHED": REFUSED,
    "LIMIT_REACHED": REFUSED,
    "ORG_SUSPENDED": REFUSED,
    "PAUSED_BY_OPERATOR": REFUSED,
    "METERED_BUDGET_EXCEEDED": MONTH_USED_UP,
    "SPEND_CAP_EXCEEDED": MONTH_USED_UP,
    "SHARED_QUOTA_EXCEEDED": DAY_USED_UP,
    "KEY_KIND_REFUSED": REFUSED,
    "BASE_URL_REFUSED": REFUSED,
    # Where a run may execute.
    "AUTH_MODE_REQUIRES_LOCAL_CAPACITY": REFUSED,
    "HOST_SESSION_WRONG_MACHINE": REFUSED,
    "HOST_LOGIN_MISSING": REFUSED,
    "HOST_PLAN_EXHAUSTED": REFUSED,
    "LEASE_LOST": REFUSED,
    "NO_ELIGIBLE_POOL": REFUSED,
    "SANDBOX_NOT_CREATED": REFUSED,
    "SANDBOX_LOST": REFUSED,
    "AGENT_FAILED": REFUSED,
    "AGENT_PROGRAM_UNAVAILABLE": REFUSED,
    "GIT_HOST_NOT_ALLOWED": REFUSED,
    "GIT_CLONE_FAILED": REFUSED,
    "POOL_CANNOT_REACH_SERVER": REFUSED,
    "POOL_CREDENTIAL_REFUSED": REFUSED,
    "POOL_FULL": REFUSED,
    "DEVICE_CODE_PENDING": REFUSED,
    "DEVICE_CODE_INVALID": REFUSED,
    "INVITATION_NOT_VALID": REFUSED,
    "INVITATION_FOR_SOMEBODY_ELSE": REFUSED,
    # The model and its input.
    "PROFILE_REQUIRED": REFUSED,
    "MODEL_NOT_IN_CATALOG": NOT_THERE,
    "MODEL_RETIRED": NOT_THERE,
    "EFFORT_NOT_SUPPORTED": MALFORMED,
    "IMAGES_NOT_SUPPORTED": MALFORMED,
    "INVALID_IMAGE": MALFORMED,
    "CONTEXT_WINDOW_EXCEEDED": MALFORMED,
    "WORKFLOW_INVALID": MALFORMED,
    "INPUT_REQUIRED": MALFORMED,
    # A call that was in progress. A retry would be another run, paid again.
    "RUN_CANCELLED": REFUSED,
    "RUN_TIMEOUT": REFUSED,
    "RUN_INTERRUPTED": REFUSED,
    "RUN_NOT_CANCELLABLE": REFUSED,
    "WORKFLOW_RUN_NOT_ENDED": REFUSED,
    "RECEIPT_NOT_READY": REFUSED,
    "RECEIPT_DISAGREES": REFUSED,
    "RECEIPT_KEY_UNAVAILABLE": REFUSED,
    # The provider. A failing key is never 401: users would sign in again, which does not help.
    "PROVIDER_AUTH_FAILED": REFUSED,
    "PROVIDER_UNFUNDED": REFUSED,
    "PROVIDER_REJECTED": MALFORMED,
    "PROVIDER_RATE_LIMITED": TOO_OFTEN,
    "PROVIDER_OVERLOADED": OVERLOADED,
    "PROVIDER_UNAVAILABLE": BUSY,
    "PROVIDER_STREAM_BROKEN": BAD_UPSTREAM,
}


# Codes that are final as a rule, and that say `retryable` where their cause may pass within seconds.
PASSING = {"CREDENTIAL_UNREADABLE": BUSY, "PROVIDER_AUTH_FAILED": BUSY}


def place_of(code: str, *, repeats: bool = True, passes: bool = False) -> Place:
    """
    Return the response for a code.

    `repeats` is False for a provider failure that a retry would meet again; `passes` is True for a refusal that says
    itself that it is retryable.
    """
    place = PASSING[code] if passes and code in PASSING else PLACES.get(code, REFUSED)
    return place if repeats or not place.repeats else BAD_UPSTREAM
