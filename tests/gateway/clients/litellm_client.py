"""LiteLLM's library, as a client that is told to speak Anthropic's API."""

import litellm
from steps import CALL, CITY, GATEWAY, HELLO, LONG, MODEL, REFUSE, SIXTY, TOKEN, finish, picture

litellm.telemetry = False


def ask(content, **more):
    messages = content if isinstance(content, list) and "role" in content[0] else [{"role": "user", "content": content}]
    return litellm.completion(
        model=f"anthropic/{MODEL}",
        messages=messages,
        max_tokens=500,
        api_base=GATEWAY,
        api_key=TOKEN,
        num_retries=0,
        **more,
    )


def text_of(answer):
    return answer.choices[0].message.content


found = {"plain": text_of(ask(HELLO))}
found["stream"] = "".join(part.choices[0].delta.content or "" for part in ask(SIXTY, stream=True))
tools = [{"type": "function", "function": {"name": "get_weather", "description": "Tells it.", "parameters": CITY}}]
first = ask(CALL, tools=tools).choices[0].message
turns = [{"role": "user", "content": CALL}, first.model_dump()]
turns += [{"role": "tool", "tool_call_id": call.id, "content": "Sunny."} for call in first.tool_calls]
found["tools"] = {"called": len(first.tool_calls), "text": text_of(ask(turns, tools=tools))}
url = {"url": f"data:image/png;base64,{picture()}"}
found["image"] = text_of(ask([{"type": "image_url", "image_url": url}, {"type": "text", "text": HELLO}]))
thought = ask(HELLO, reasoning_effort="low").choices[0].message
found["thinking"] = ["thinking"] if thought.thinking_blocks else []
form = {"type": "json_schema", "json_schema": {"name": "place", "schema": CITY}}
found["structured"] = text_of(ask(HELLO, response_format=form))
found["refusal"] = ask(REFUSE).choices[0].finish_reason
parts = ask(LONG, stream=True)
found["cancel"] = bool(next(part for part in parts if part.choices[0].delta.content))
parts.close() if hasattr(parts, "close") else None
finish(found)
