"""The newest Python SDK, its tool runner included."""

import anthropic
from steps import CALL, CITY, GATEWAY, HELLO, LONG, MODEL, REFUSE, SIXTY, TOKEN, finish, picture

client = anthropic.Anthropic(api_key=TOKEN, base_url=GATEWAY, max_retries=0)
called = []


@anthropic.beta_tool
def get_weather(city: str) -> str:
    """Tells the weather.

    Args:
        city: Where
    """
    called.append(city)
    return "Sunny."


def asked(text, **more):
    return {"model": MODEL, "max_tokens": 500, "messages": [{"role": "user", "content": text}], **more}


def text_of(message):
    return "".join(block.text for block in message.content if block.type == "text")


found = {"plain": text_of(client.messages.create(**asked(HELLO)))}
with client.messages.stream(**asked(SIXTY)) as stream:
    found["stream"] = "".join(stream.text_stream)
last = client.beta.messages.tool_runner(**asked(CALL), tools=[get_weather]).until_done()
found["tools"] = {"called": len(called), "text": text_of(last)}
source = {"type": "base64", "media_type": "image/png", "data": picture()}
found["image"] = text_of(
    client.messages.create(**asked([{"type": "image", "source": source}, {"type": "text", "text": HELLO}]))
)
thought = client.messages.create(
    **asked(HELLO, thinking={"type": "adaptive", "display": "summarized"}, output_config={"effort": "low"})
)
found["thinking"] = [block.type for block in thought.content]
place = {"type": "json_schema", "schema": CITY}
found["structured"] = text_of(client.messages.create(**asked(HELLO, output_config={"format": place})))
found["refusal"] = client.messages.create(**asked(REFUSE)).stop_reason
with client.messages.stream(**asked(LONG)) as stream:
    found["cancel"] = next(iter(stream.text_stream)) != ""
finish(found)
