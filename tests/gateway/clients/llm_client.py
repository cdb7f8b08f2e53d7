"""Simon Willison's llm with its Anthropic plug-in, which takes the address from the environment."""

import base64

import llm
from steps import CALL, HELLO, LONG, MODEL, REFUSE, SIXTY, TOKEN, finish, picture

model = llm.get_model(f"anthropic/{MODEL}")
model.key = TOKEN
called = []


def get_weather(city: str) -> str:
    """Tells the weather."""
    called.append(city)
    return "Sunny."


def ask(text, **more):
    return model.prompt(text, max_tokens=500, **more)


found = {"plain": ask(HELLO, stream=False).text()}
found["stream"] = "".join(ask(SIXTY))
chain = model.chain(CALL, tools=[get_weather], options={"max_tokens": 500})
found["tools"] = {"text": chain.text(), "called": len(called)}
image = llm.Attachment(content=base64.b64decode(picture()), type="image/png")
found["image"] = ask(HELLO, attachments=[image]).text()
schema = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
found["structured"] = ask(HELLO, schema=schema).text()
try:
    ask(REFUSE, stream=False).text()
except llm.ModelError as refused:
    found["refusal"] = type(refused).__name__
found["cancel"] = bool(next(iter(ask(LONG))))
finish(found)
