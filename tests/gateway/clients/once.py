"""One call by LiteLLM or the Python SDK, with as many retries as each makes by itself. It prints what came of it."""

import json
import os
from typing import Any

import anthropic

URL, TOKEN, MODEL = os.environ["GATEWAY"], os.environ["TOKEN"], os.environ["MODEL"]
MESSAGES: Any = [{"role": "user", "content": os.environ["PROMPT"]}]


def by_sdk(*, stream: bool) -> None:
    client = anthropic.Anthropic(base_url=URL, api_key=TOKEN)
    asked: Any = {"model": MODEL, "max_tokens": 900, "messages": MESSAGES}
    if not stream:
        client.messages.create(**asked)
        return
    with client.messages.stream(**asked) as events:
        events.get_final_message()


def by_litellm(*, stream: bool) -> None:
    """Through its router, as its proxy calls, which tries twice more where it takes an error for a passing one."""
    import litellm  # which takes seconds

    deployment = {"model": f"anthropic/{MODEL}", "api_base": URL, "api_key": TOKEN}
    router = litellm.Router([{"model_name": "model", "litellm_params": deployment}], num_retries=2)
    answer = router.completion("model", MESSAGES, max_tokens=900, stream=stream)
    if stream:
        for _ in answer:
            pass


CALLS = {"sdk": by_sdk, "litellm": by_litellm}

client_name, _, kind = os.environ["CALL"].partition("-")
try:
    CALLS[client_name](stream=kind == "stream")
    print(json.dumps({"error": None}))
except Exception as error:  # noqa: BLE001 - each client has its own classes, and this prints any of them
    print(json.dumps({"error": f"{type(error).__name__} {error}"}))
