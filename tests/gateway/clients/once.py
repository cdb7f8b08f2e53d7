"""
Calls by LiteLLM or the Python SDK, with as many retries as each makes by itself.

Each line of standard input describes one as a JSON document, and a line of standard output says what came of it.
"""

import json
import sys
from typing import Any

import anthropic


def by_sdk(*, url: str, token: str, model: str, messages: Any, stream: bool) -> None:
    client = anthropic.Anthropic(base_url=url, api_key=token)
    asked: Any = {"model": model, "max_tokens": 900, "messages": messages}
    if not stream:
        client.messages.create(**asked)
        return
    with client.messages.stream(**asked) as events:
        events.get_final_message()


def by_litellm(*, url: str, token: str, model: str, messages: Any, stream: bool) -> None:
    """Through its router, as its proxy calls, which tries twice more where it takes an error for a passing one."""
    import litellm  # which takes seconds

    deployment = {"model": f"anthropic/{model}", "api_base": url, "api_key": token}
    router = litellm.Router([{"model_name": "model", "litellm_params": deployment}], num_retries=2)
    answer = router.completion("model", messages, max_tokens=900, stream=stream)
    if stream:
        for _ in answer:
            pass


CALLS = {"sdk": by_sdk, "litellm": by_litellm}

for line in sys.stdin:
    call = json.loads(line)
    client_name, _, kind = call["call"].partition("-")
    messages = [{"role": "user", "content": call["prompt"]}]
    error = None
    try:
        CALLS[client_name](
            url=call["url"], token=call["token"], model=call["model"], messages=messages, stream=kind == "stream"
        )
    except Exception as failure:  # noqa: BLE001 - each client has its own classes, and this prints any of them
        error = f"{type(failure).__name__} {failure}"
    print(json.dumps({"error": error}), flush=True)
