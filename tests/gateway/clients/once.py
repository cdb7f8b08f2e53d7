"""
Calls by LiteLLM or the Python SDK, with as many retries as each makes by itself: one for each line of JSON that is
read. For each it prints a line that says what came of it.
"""

import json
import sys
from typing import Any

import anthropic


def by_sdk(given: dict[str, str], *, stream: bool) -> None:
    client = anthropic.Anthropic(base_url=given["GATEWAY"], api_key=given["TOKEN"])
    asked: Any = {"model": given["MODEL"], "max_tokens": 900, "messages": messages_of(given)}
    if not stream:
        client.messages.create(**asked)
        return
    with client.messages.stream(**asked) as events:
        events.get_final_message()


def by_litellm(given: dict[str, str], *, stream: bool) -> None:
    """Through its router, as its proxy calls, which tries twice more where it takes an error for a passing one."""
    import litellm  # which takes seconds

    deployment = {
        "model": f"anthropic/{given['MODEL']}",
        "api_base": given["GATEWAY"],
        "api_key": given["TOKEN"],
    }
    router = litellm.Router([{"model_name": "model", "litellm_params": deployment}], num_retries=2)
    answer = router.completion("model", messages_of(given), max_tokens=900, stream=stream)
    if stream:
        for _ in answer:
            pass


def messages_of(given: dict[str, str]) -> Any:
    return [{"role": "user", "content": given["PROMPT"]}]


def outcome_of(given: dict[str, str]) -> str | None:
    client_name, _, kind = given["CALL"].partition("-")
    try:
        CALLS[client_name](given, stream=kind == "stream")
    except Exception as error:  # noqa: BLE001 - each client has its own classes, and this prints any of them
        return f"{type(error).__name__} {error}"
    return None


CALLS = {"sdk": by_sdk, "litellm": by_litellm}

for line in sys.stdin:
    print(json.dumps({"error": outcome_of(json.loads(line))}), flush=True)
