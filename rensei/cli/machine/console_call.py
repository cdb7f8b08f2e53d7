"""
One call with the SDK's own login, in a separate process: parameters on standard input, events on standard output.

The SDK takes a second to load, keeps credentials in memory, and reads ANTHROPIC_* variables. None of this should
happen in the process that calls Rensei.
"""

import json
import os
import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import anthropic

from rensei.cli.errors import ADD_ALL
from rensei.cli.machine.console import LOG_IN

API_URL = "https://api.anthropic.com"
_FIRST_WORD_SECONDS = 60.0
_CREDIT = ("credit balance is too low", "api usage limits", "plans & billing", "spend limit")


def main() -> None:
    task = json.load(sys.stdin)
    for name in [name for name in os.environ if name.startswith("ANTHROPIC_")]:
        del os.environ[name]
    try:
        import anthropic
    except ModuleNotFoundError:
        missing = "The Anthropic SDK is not installed with this command, and it opens the Console login."
        _write({"type": "failure", "code": "HOST_LOGIN_MISSING", "detail": missing, "fix": ADD_ALL, "sent": False})
        return

    try:
        client = anthropic.Anthropic(**({"profile": task["profile"]} if task["profile"] else {}), max_retries=0)
        if task.get("look"):
            client.models.list(limit=1)
            _write({"type": "works"})
        else:
            _call(client, task["request"], attempt_id=task["attempt_id"])
    except anthropic.AnthropicError as fault:
        _write({"type": "failure", **_failure(fault)})
    except TypeError as fault:
        # The SDK raises this if it finds no login.
        if "authentication method" not in str(fault):
            raise
        missing = "The Anthropic SDK finds no login on this machine."
        _write({"type": "failure", "code": "HOST_LOGIN_MISSING", "detail": missing, "fix": LOG_IN, "sent": False})


def _call(client: "anthropic.Anthropic", request: dict[str, Any], *, attempt_id: str) -> None:
    named = {name: request[name] for name in ("model", "max_tokens", "messages")}
    # The parameters from the server may have names that this SDK does not support yet.
    others = {name: value for name, value in request.items() if name not in named}
    # The same header as on the server's calls: a lost attempt can be found among the provider's requests.
    headers = {"x-rensei-attempt": attempt_id}
    with client.messages.create(**named, stream=True, extra_body=others, extra_headers=headers) as events:
        for event in events:
            _write({"type": "stream_event", "event": event.model_dump(mode="json", exclude_unset=True)})


def _write(document: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(document) + "\n")
    sys.stdout.flush()


def _failure(fault: "anthropic.AnthropicError") -> dict[str, Any]:
    """Translate an error into a code and a sentence of the server's contract."""
    import anthropic

    code, fix, sent = "PROVIDER_REJECTED", "", True
    text = _message(fault)
    match fault:
        case anthropic.AuthenticationError():
            code, fix = "HOST_LOGIN_MISSING", LOG_IN
        case anthropic.APIStatusError() if fault.status_code == 402 or any(word in text.lower() for word in _CREDIT):
            code, fix = "HOST_PLAN_EXHAUSTED", "Add credit in the Claude Console, or wait until the limit resets."
        case anthropic.PermissionDeniedError():
            code = "PROVIDER_AUTH_FAILED"
        case anthropic.RateLimitError():
            code, fix = "PROVIDER_RATE_LIMITED", "Try again in a while."
        case anthropic.APIStatusError() if fault.status_code == 529:
            code, fix = "PROVIDER_OVERLOADED", "Try again in a while."
        case anthropic.APIStatusError() if fault.status_code >= 500:
            code, fix = "PROVIDER_UNAVAILABLE", "Try again in a while."
        case anthropic.APIStatusError():
            pass
        case anthropic.APIConnectionError():
            code, fix = "PROVIDER_UNAVAILABLE", "Check this machine's connection to Anthropic."
        case anthropic.APIError():
            code = "PROVIDER_STREAM_BROKEN"
        case _:
            # All failures before a request: no login was found, or it could not be read or renewed.
            code, fix, sent = "HOST_LOGIN_MISSING", LOG_IN, False
    return {"code": code, "detail": text, "fix": fix, "sent": sent}


def _message(fault: Exception) -> str:
    import anthropic

    if isinstance(fault, anthropic.APIStatusError) and isinstance(fault.body, dict):
        error = fault.body.get("error")
        if isinstance(error, dict) and error.get("message"):
            return f"Anthropic answered: {error['message']}"
    return str(fault).partition("\n")[0][:500]


if __name__ == "__main__":
    main()
