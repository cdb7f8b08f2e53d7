"""
The possible faults between a key and Anthropic's API, and their remedies, in Rensei's own text.

Sources: https://platform.claude.com/docs/en/api/errors, …/api/rate-limits and the error classes of the `anthropic` SDK.
"""

from dataclasses import dataclass

_CONSOLE_KEYS = "https://platform.claude.com/settings/keys"
_CONSOLE_BILLING = "https://platform.claude.com/settings/billing"
_CONSOLE_IDENTITY = "https://platform.claude.com/settings/workload-identity-federation"
_CONSOLE_LIMITS = "https://platform.claude.com/settings/limits"


@dataclass(frozen=True, kw_only=True)
class Diagnosis:
    """
    One way in which a call fails. A test of a key shows `name`, a run's error contains `code`.

    `retryable` applies to a request for which no byte of an answer has arrived.
    """

    name: str
    code: str
    message: str
    fix: str
    retryable: bool = False


def _make(name: str, code: str, message: str, fix: str, *, retryable: bool = False) -> Diagnosis:
    return Diagnosis(name=name, code=code, message=message, fix=fix, retryable=retryable)


KEY_REJECTED = _make(
    "KEY_REJECTED",
    "PROVIDER_AUTH_FAILED",
    "Anthropic rejected this key.",
    f"It may be mistyped, revoked or deleted. Make a new key at {_CONSOLE_KEYS} and paste it here.",
)
BEARER_REJECTED = _make(
    "BEARER_REJECTED",
    "PROVIDER_AUTH_FAILED",
    "Anthropic does not accept this token.",
    f"Check that the whole API key was pasted. If it was, make a new one at {_CONSOLE_KEYS}.",
)
OAUTH_EXPIRED = _make(
    "OAUTH_EXPIRED",
    "PROVIDER_AUTH_FAILED",
    "This sign-in token has expired or was revoked.",
    f"A server needs an API key, not a sign-in token. Make one at {_CONSOLE_KEYS}.",
)
KEY_DISABLED = _make(
    "KEY_DISABLED",
    "PROVIDER_AUTH_FAILED",
    "Anthropic knows this key, but it is disabled or past its expiry date.",
    f"Enable the key at {_CONSOLE_KEYS}, or make a new one and rotate to it here.",
)
ADMIN_KEY = _make(
    "ADMIN_KEY",
    "PROVIDER_AUTH_FAILED",
    "This is an Admin key, which cannot call models.",
    f"Make an API key (sk-ant-api03-…) at {_CONSOLE_KEYS} and paste that one.",
)
OAUTH_NOT_ALLOWED = _make(
    "OAUTH_NOT_ALLOWED",
    "PROVIDER_AUTH_FAILED",
    "The Anthropic organization does not allow sign-in tokens.",
    f"Use an API key from {_CONSOLE_KEYS}, or ask an admin of the Anthropic organization to allow them.",
)
FEDERATION_INVALID = _make(
    "FEDERATION_INVALID",
    "PROVIDER_AUTH_FAILED",
    "Anthropic does not accept one of the ids of the federation.",
    f"Copy the rule's id (fdrl_…), the service account's (svac_…), the organization's and the workspace's from "
    f"{_CONSOLE_IDENTITY} again.",
)
FEDERATION_REFUSED = _make(
    "FEDERATION_REFUSED",
    "PROVIDER_AUTH_FAILED",
    "Anthropic did not exchange the identity of this server for a token.",
    f"Anthropic does not say why, but the Console does, at {_CONSOLE_IDENTITY}?tab=history. Without an entry there, "
    "the id of the rule is wrong, or the rule is archived.",
)
FEDERATION_TOKEN_REJECTED = _make(
    "FEDERATION_TOKEN_REJECTED",
    "PROVIDER_AUTH_FAILED",
    "Anthropic does not accept a token any more that it has issued for this server's identity.",
    f"The next call asks for another one. If it goes on, look at the rule and its service account at "
    f"{_CONSOLE_IDENTITY}.",
    retryable=True,
)
FEDERATION_TOKENS_REJECTED = _make(
    "FEDERATION_TOKENS_REJECTED",
    "PROVIDER_AUTH_FAILED",
    "Anthropic rejects each token that it has just issued for this server's identity.",
    f"Look at the service account, its workspaces and the rule at {_CONSOLE_IDENTITY}. Another token is asked for "
    "once a minute at most.",
)
FEDERATION_KEY_NEW = _make(
    "FEDERATION_KEY_NEW",
    "PROVIDER_AUTH_FAILED",
    "Anthropic did not accept this server's identity, perhaps because it has not fetched its new signing key yet.",
    "It does so within 15 minutes. If its keys are pasted into the Console (inline), paste the new one there.",
    retryable=True,
)
IDENTITY_NOT_SIGNED = _make(
    "IDENTITY_NOT_SIGNED",
    "PROVIDER_UNAVAILABLE",
    "This server could not sign its identity, so nothing was sent.",
    "Try again in a moment. If it goes on, ask the operator to look at the vault's state at /readyz.",
    retryable=True,
)
NO_CREDIT = _make(
    "NO_CREDIT",
    "PROVIDER_UNFUNDED",
    "The key works, but its Anthropic organization has no credit left.",
    f"Buy credits or switch on auto-reload at {_CONSOLE_BILLING}.",
)
BILLING_PROBLEM = _make(
    "BILLING_PROBLEM",
    "PROVIDER_UNFUNDED",
    "Anthropic reports a billing problem of the organization that the key belongs to.",
    f"Check the payment method at {_CONSOLE_BILLING}.",
)
ORGANIZATION_DISABLED = _make(
    "ORGANIZATION_DISABLED",
    "PROVIDER_AUTH_FAILED",
    "Anthropic has disabled the organization that the key belongs to.",
    "Sign in to the Claude Console to see why, or write to Anthropic's support.",
)
ORGANIZATION_ON_HOLD = _make(
    "ORGANIZATION_ON_HOLD",
    "PROVIDER_AUTH_FAILED",
    "Anthropic has put the organization that the key belongs to on hold.",
    "Sign in to the Claude Console, where the hold can be appealed.",
)
SPEND_LIMIT_REACHED = _make(
    "SPEND_LIMIT_REACHED",
    "PROVIDER_UNFUNDED",
    "The spend limit that was set for the Anthropic organization is reached.",
    f"Raise the limit at {_CONSOLE_LIMITS}, or wait until it resets.",
)
WORKSPACE_LIMIT_REACHED = _make(
    "WORKSPACE_LIMIT_REACHED",
    "PROVIDER_UNFUNDED",
    "The spend limit that was set for the key's workspace is reached.",
    "Raise the workspace's limit in the Claude Console, or use a key of another workspace.",
)
TIER_LIMIT_REACHED = _make(
    "TIER_LIMIT_REACHED",
    "PROVIDER_UNFUNDED",
    "The monthly spend cap of the Anthropic organization's usage tier is reached.",
    f"Move to a higher tier at {_CONSOLE_LIMITS}, or wait until the first of next month (UTC).",
)
CONTRACT_LIMIT_REACHED = _make(
    "CONTRACT_LIMIT_REACHED",
    "PROVIDER_UNFUNDED",
    "The spend cap of the Anthropic organization's contract is reached.",
    "Ask your Anthropic account manager to raise it.",
)
LINKED_BILLING_UNAVAILABLE = _make(
    "LINKED_BILLING_UNAVAILABLE",
    "PROVIDER_UNFUNDED",
    "The organization that pays for the key's organization cannot be billed.",
    "Ask the owner of the linked Anthropic organization to mend its billing.",
)
LINKED_LIMIT_REACHED = _make(
    "LINKED_LIMIT_REACHED",
    "PROVIDER_UNFUNDED",
    "The organization that pays for the key's organization has reached its spend limit.",
    "Ask the owner of the linked Anthropic organization to raise its limit.",
)
RAMP_LIMIT_EXCEEDED = _make(
    "RAMP_LIMIT_EXCEEDED",
    "PROVIDER_RATE_LIMITED",
    "Usage of this Anthropic organization has grown faster than Anthropic's ramp limit allows.",
    "Wait a little, and raise the load step by step.",
    retryable=True,
)
RATE_LIMITED = _make(
    "RATE_LIMITED",
    "PROVIDER_RATE_LIMITED",
    "The Anthropic organization's rate limit is reached.",
    "Try again in a minute, or ask Anthropic for higher limits.",
    retryable=True,
)
NO_PERMISSION = _make(
    "NO_PERMISSION",
    "PROVIDER_AUTH_FAILED",
    "The key is valid, but may not do this.",
    "Check the key's workspace and role in the Claude Console, and that your region is supported.",
)
IP_NOT_ALLOWED = _make(
    "IP_NOT_ALLOWED",
    "PROVIDER_AUTH_FAILED",
    "The Anthropic organization only admits listed IP addresses, and this server's is not among them.",
    "Add this server's outgoing address to the IP allow-list in the Claude Console.",
)
MODEL_NOT_AVAILABLE = _make(
    "MODEL_NOT_AVAILABLE",
    "PROVIDER_REJECTED",
    "This model does not exist, is retired, or is not open to the key's organization.",
    "Choose a model from the list that Test Connection shows.",
)
DATA_RETENTION_REQUIRED = _make(
    "DATA_RETENTION_REQUIRED",
    "PROVIDER_REJECTED",
    "This model needs data retention, which the Anthropic organization has switched off.",
    "Switch retention on for the organization or workspace, or choose another model.",
)
WORKSPACE_REQUIRED = _make(
    "WORKSPACE_REQUIRED",
    "PROVIDER_REJECTED",
    "This key is linked to a person or service account, so the call must name a workspace.",
    "Fill in the Workspace ID (wrkspc_…) of the integration.",
)
PROMPT_TOO_LONG = _make(
    "PROMPT_TOO_LONG",
    "PROVIDER_REJECTED",
    "The prompt is longer than the model's context window.",
    "Shorten the prompt, or choose a model with a larger window.",
)
TOO_LARGE = _make(
    "TOO_LARGE",
    "PROVIDER_REJECTED",
    "The request is larger than Anthropic accepts.",
    "Send fewer or smaller images, or a shorter prompt.",
)
REQUEST_REJECTED = _make(
    "REQUEST_REJECTED",
    "PROVIDER_REJECTED",
    "Anthropic rejected the request as not valid.",
    "See what it says, and change the request or the profile.",
)
CONFLICT = _make(
    "CONFLICT",
    "PROVIDER_UNAVAILABLE",
    "Anthropic reports a conflict with another request.",
    "Try again.",
    retryable=True,
)
OVERLOADED = _make(
    "OVERLOADED",
    "PROVIDER_OVERLOADED",
    "Anthropic is overloaded at the moment.",
    "Try again in a few minutes.",
    retryable=True,
)
SERVER_ERROR = _make(
    "SERVER_ERROR",
    "PROVIDER_UNAVAILABLE",
    "Anthropic has an internal error.",
    "Try again in a few minutes, and see https://status.claude.com.",
    retryable=True,
)
SERVER_TIMEOUT = _make(
    "SERVER_TIMEOUT",
    "PROVIDER_UNAVAILABLE",
    "Anthropic did not finish in its own time limit.",
    "Try again in a few minutes.",
    retryable=True,
)
UNREACHABLE = _make(
    "UNREACHABLE",
    "PROVIDER_UNAVAILABLE",
    "The provider's address cannot be reached from this server.",
    "Check the network, the DNS and the base URL.",
    retryable=True,
)
TOO_MANY_ADDRESSES = _make(
    "TOO_MANY_ADDRESSES",
    "PROVIDER_UNAVAILABLE",
    "Calls to too many different base URLs of this organization are under way, so nothing was sent.",
    "Wait until some have ended, or use fewer base URLs.",
    retryable=True,
)
ADDRESS_REFUSED = _make(
    "ADDRESS_REFUSED",
    "PROVIDER_UNAVAILABLE",
    "The base URL leads to an address that this server may not call, so nothing was sent.",
    "Use a public address, or ask the operator to list the address in RENSEI_OUTBOUND_ALLOWLIST.",
)
NO_ANSWER = _make(
    "NO_ANSWER",
    "PROVIDER_UNAVAILABLE",
    "The provider did not answer in time.",
    "Try again. If it goes on, check the base URL and https://status.claude.com.",
    retryable=True,
)
CONNECTION_LOST = _make(
    "CONNECTION_LOST",
    "PROVIDER_UNAVAILABLE",
    "The connection to the provider broke before an answer came.",
    "Try again. If it goes on, check the network between this server and the provider.",
    retryable=True,
)
CLIENT_CLOSED = _make(
    "CLIENT_CLOSED",
    "PROVIDER_UNAVAILABLE",
    "Anthropic saw the connection closed before it had answered.",
    "Check for a proxy between this server and the provider that cuts long requests.",
)
STREAM_BROKEN = _make(
    "STREAM_BROKEN",
    "PROVIDER_STREAM_BROKEN",
    "The provider's answer broke off before its end.",
    "Dispatch the run again. What had come until then is counted.",
)
REDIRECTED = _make(
    "REDIRECTED",
    "PROVIDER_UNAVAILABLE",
    "The base URL answers with a redirect, which is not followed, so that the key goes nowhere else.",
    "Enter the final address as base URL.",
)
ENCODING_UNKNOWN = _make(
    "ENCODING_UNKNOWN",
    "PROVIDER_UNAVAILABLE",
    "The answer is compressed in a way that Rensei cannot read, so what it costs cannot be known.",
    "Make the server at the base URL answer without content-encoding, or with gzip, deflate, br or zstd.",
)
NOT_THE_API = _make(
    "NOT_THE_API",
    "PROVIDER_UNAVAILABLE",
    "What answers at the base URL does not speak Anthropic's API.",
    "Check the base URL: leave it empty for Anthropic itself, and out of it the final /v1.",
)
