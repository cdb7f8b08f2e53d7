"""
The failures of a request, chosen by a word in the key or by `[[fault:…]]` in the prompt.

Statuses, types and codes: https://platform.claude.com/docs/en/api/errors and the error classes of the `anthropic` SDK.
"""

from collections import Counter
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta
from typing import Literal

from rensei.simulator.directives import FaultDirective
from rensei.simulator.errors import ApiError

Reach = Literal["everywhere", "messages"]


@dataclass(frozen=True, kw_only=True)
class Refusal:
    """An error answer. Those that reach only messages do not affect listing models or counting tokens."""

    status: int
    message: str
    code: str | None = None
    details: dict[str, str] = field(default_factory=dict)
    retry_after: int | None = None
    reach: Reach = "everywhere"

    def to_error(self, *, options: dict[str, str]) -> ApiError:
        """Create the error, with the options of the prompt (`retry-after`, `code`)."""
        wait = options.get("retry-after", self.retry_after)
        code = options.get("code", self.code)
        headers = {"retry-after": str(wait)} if wait is not None else {}
        return ApiError(
            self.status, self.message, code=code, details=dict(self.details), headers=headers, on_purpose=True
        )


def _next_month() -> date:
    return (datetime.now(UTC).date().replace(day=1) + timedelta(days=32)).replace(day=1)


_RESUMES = f"You will regain access on {_next_month()} at 00:00 UTC."

REFUSALS: dict[str, Refusal] = {
    "revoked": Refusal(status=401, message="invalid x-api-key"),
    "badtoken": Refusal(status=401, message="Invalid bearer token"),
    "expired": Refusal(status=401, message="Invalid authentication credentials"),
    "inactive": Refusal(status=401, message="Invalid authentication credentials"),
    "oauthinvalid": Refusal(status=401, message="OAuth access token is invalid."),
    "oauthexpired": Refusal(status=401, message="OAuth token has expired"),
    "oauthrevoked": Refusal(status=401, message="OAuth token has been revoked"),
    "adminkey": Refusal(status=401, message="admin credentials do not work on the Messages API"),
    "nocredit": Refusal(
        status=400,
        message="Your credit balance is too low to access the Anthropic API. "
        "Please go to Plans & Billing to upgrade or purchase credits.",
        reach="messages",
    ),
    "billing": Refusal(
        status=402, message="Your account has a billing problem. Update your payment details.", reach="messages"
    ),
    "disabledorg": Refusal(status=400, message="This organization has been disabled."),
    "onhold": Refusal(
        status=400,
        message="This organization is on hold.",
        code="organization_on_hold",
        details={"appeal_url": "https://platform.claude.com/appeal"},
    ),
    "spendlimit": Refusal(
        status=400, message=f"You have reached your specified API usage limits. {_RESUMES}", reach="messages"
    ),
    "workspacelimit": Refusal(
        status=400, message=f"You have reached your specified workspace API usage limits. {_RESUMES}", reach="messages"
    ),
    "tiercap": Refusal(
        status=429,
        message="Your organization has reached the monthly spend limit of its usage tier.",
        code="enforced_spend_limit_reached",
        reach="messages",
    ),
    "contractcap": Refusal(
        status=429,
        message="Your organization has reached the spend limit of its contract.",
        code="contract_spend_limit_reached",
        reach="messages",
    ),
    "ramplimit": Refusal(
        status=429,
        message="Your usage has grown faster than the ramp limit allows.",
        code="ramp_limit_exceeded",
        retry_after=5,
        reach="messages",
    ),
    "linkedbilling": Refusal(
        status=402,
        message="Billing through the linked organization is unavailable.",
        code="linked_organization_billing_unavailable",
        reach="messages",
    ),
    "linkedspend": Refusal(
        status=402,
        message="The linked organization has reached its spend limit.",
        code="linked_organization_spend_limit_reached",
        reach="messages",
    ),
    "forbidden": Refusal(status=403, message="Your API key does not have permission to use the specified resource."),
    "ipblocked": Refusal(
        status=403, message="Your IP address is not in the allowed range.", code="ip_not_in_allowed_range"
    ),
    "oauthblocked": Refusal(status=403, message="OAuth authentication is currently not allowed for this organization."),
    "notfound": Refusal(status=404, message="Not found", reach="messages"),
    "timeout": Refusal(status=408, message="The request timed out."),
    "conflict": Refusal(status=409, message="The request conflicts with the state of the resource."),
    "toolarge": Refusal(status=413, message="Request exceeds the maximum size"),
    "unprocessable": Refusal(status=422, message="The request could not be processed."),
    "ratelimited": Refusal(status=429, message="This request would exceed your rate limit.", retry_after=2),
    "ratelimitednowait": Refusal(status=429, message="This request would exceed your rate limit."),
    "clientclosed": Refusal(status=499, message="The client closed the request."),
    "down": Refusal(status=500, message="Internal server error"),
    "unavailable": Refusal(status=503, message="Service unavailable"),
    "gatewaytimeout": Refusal(status=504, message="The request took too long. Use streaming for long requests."),
    "overloaded": Refusal(status=529, message="Overloaded"),
}

# A prompt may also name a status: [[fault:500 times=2]].
NAME_OF_STATUS = {
    "401": "revoked",
    "402": "billing",
    "403": "forbidden",
    "404": "notfound",
    "408": "timeout",
    "409": "conflict",
    "413": "toolarge",
    "422": "unprocessable",
    "429": "ratelimitednowait",
    "499": "clientclosed",
    "500": "down",
    "503": "unavailable",
    "504": "gatewaytimeout",
    "529": "overloaded",
}

# False counts of tokens, events of unknown kinds, or characters that few databases can store; `replies.py` and
# `streaming.py` produce them.
USAGE = frozenset({"nousage", "negativeusage", "hugeusage", "nanusage"})
STREAM = frozenset({"streamerror", "truncate", "cut", "unknownevents"})
TEXT = frozenset({"oddtext"})


def refusal_by_key(words: frozenset[str], *, reach: Reach) -> ApiError | None:
    """Find the refusal that a key's words request at this stage of a request."""
    for name in sorted(words & REFUSALS.keys()):
        if REFUSALS[name].reach == reach:
            return REFUSALS[name].to_error(options={})
    return None


class FaultCounter:
    """Counts how often a fault was produced, so that a request can fail N times and then succeed."""

    def __init__(self) -> None:
        self._given: Counter[tuple[str, str, int]] = Counter()

    def clear(self) -> None:
        self._given.clear()

    def next_fault(self, faults: list[FaultDirective], *, key_sha256: str, prompt: str) -> FaultDirective | None:
        """Return the first fault of the prompt that is not used up for this key and exact prompt."""
        for position, fault in enumerate(faults):
            if "times" not in fault.options:
                return fault
            identity = (key_sha256, prompt, position)
            if self._given[identity] < fault.number("times", 1):
                self._given[identity] += 1
                return fault
        return None


def canonical_name(name: str) -> str:
    """Normalize the name of a fault: `stream-error` is `streamerror`, `500` is `down`."""
    return NAME_OF_STATUS.get(name, name.replace("-", "").replace("_", ""))
