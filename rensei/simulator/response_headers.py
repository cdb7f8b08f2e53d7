"""
The headers of an answer.

Source: https://platform.claude.com/docs/en/api/rate-limits (names and form; the simulator enforces no limit)
"""

import secrets
from datetime import UTC, datetime, timedelta

from rensei.simulator.exchange import Exchange
from rensei.simulator.keys import Account

_LIMITS = {"requests": 4000, "input-tokens": 2_000_000, "output-tokens": 400_000, "tokens": 2_400_000}


def new_request_id() -> str:
    return f"req_{secrets.token_hex(12)}"


def response_headers(account: Account, exchange: Exchange, *, request_id: str) -> dict[str, str]:
    """Build the headers of the answer to every accepted request."""
    reset = (datetime.now(UTC) + timedelta(seconds=60)).strftime("%Y-%m-%dT%H:%M:%SZ")
    headers = {
        "request-id": request_id,
        "anthropic-organization-id": account.organization_id,
        "anthropic-workspace-id": exchange.headers.get("anthropic-workspace-id", account.workspace_id),
    }
    for name, limit in _LIMITS.items():
        headers[f"anthropic-ratelimit-{name}-limit"] = str(limit)
        headers[f"anthropic-ratelimit-{name}-remaining"] = str(limit if name != "requests" else limit - 1)
        headers[f"anthropic-ratelimit-{name}-reset"] = reset
    return headers
