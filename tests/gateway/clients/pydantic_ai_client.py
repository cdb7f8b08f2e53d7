"""Pydantic AI with its Anthropic model."""

import asyncio
import base64

from pydantic import BaseModel
from pydantic_ai import Agent, BinaryContent, NativeOutput
from pydantic_ai.models.anthropic import AnthropicModel, AnthropicModelSettings
from pydantic_ai.providers.anthropic import AnthropicProvider
from steps import CALL, GATEWAY, HELLO, LONG, MODEL, REFUSE, SIXTY, TOKEN, finish, picture


class Place(BaseModel):
    city: str


model = AnthropicModel(MODEL, provider=AnthropicProvider(api_key=TOKEN, base_url=GATEWAY))
settings = AnthropicModelSettings(max_tokens=500)
called = []


def agent(**more):
    return Agent(model, model_settings=settings, retries=0, **more)


def get_weather(city: str) -> str:
    """Tells the weather."""
    called.append(city)
    return "Sunny."


async def main():
    found = {"plain": (await agent().run(HELLO)).output}
    async with agent().run_stream(SIXTY) as result:
        found["stream"] = await result.get_output()
    answer = await agent(tools=[get_weather]).run(CALL)
    found["tools"] = {"called": len(called), "text": answer.output}
    image = BinaryContent(base64.b64decode(picture()), media_type="image/png")
    found["image"] = (await agent().run([image, HELLO])).output
    thinking = {**settings, "anthropic_thinking": {"type": "adaptive", "display": "summarized"}}
    thought = await agent().run(HELLO, model_settings=thinking)
    found["thinking"] = [part.part_kind for message in thought.all_messages() for part in message.parts]
    found["structured"] = (await agent(output_type=NativeOutput(Place)).run(HELLO)).output.model_dump()
    refused = await agent().run(REFUSE)
    found["refusal"] = refused.all_messages()[-1].finish_reason
    async with agent().run_stream(LONG) as result:
        async for text in result.stream_text(debounce_by=None):
            found["cancel"] = bool(text)
            break
    finish(found)


asyncio.run(main())
