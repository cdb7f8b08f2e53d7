"""The Claude Agent SDK, with the Claude Code that it brings along."""

import asyncio
import os

from claude_agent_sdk import (
    ClaudeAgentOptions,
    ClaudeSDKClient,
    ResultMessage,
    StreamEvent,
    create_sdk_mcp_server,
    query,
    tool,
)
from steps import GATEWAY, HELLO, LONG, MODEL, REFUSE, SIXTY, TOKEN, finish, picture

ENVIRONMENT = {
    "ANTHROPIC_BASE_URL": GATEWAY,
    "ANTHROPIC_AUTH_TOKEN": TOKEN,
    "ANTHROPIC_DEFAULT_HAIKU_MODEL": MODEL,
    "CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC": "1",
    # It would be found by a search, which no directive asks for.
    "ENABLE_TOOL_SEARCH": "false",
}
called = []


@tool("get_weather", "Tells the weather.", {"city": str})
async def get_weather(given):
    called.append(given["city"])
    return {"content": [{"type": "text", "text": "Sunny."}]}


def options(**more):
    return ClaudeAgentOptions(model=MODEL, max_turns=3, setting_sources=[], env={**os.environ, **ENVIRONMENT}, **more)


async def ask(prompt, **more):
    """Ask once, and give the result with the pieces of text that came before it."""
    pieces = []
    async for message in query(prompt=prompt, options=options(**more)):
        if isinstance(message, StreamEvent):
            pieces.append(message.event.get("delta", {}).get("text", ""))
        if isinstance(message, ResultMessage):
            result = message
    return result, "".join(pieces)


async def with_picture():
    source = {"type": "base64", "media_type": "image/png", "data": picture()}
    content = [{"type": "image", "source": source}, {"type": "text", "text": HELLO}]
    yield {"type": "user", "message": {"role": "user", "content": content}}


async def leave():
    """Interrupt an answer at its first words."""
    async with ClaudeSDKClient(options(include_partial_messages=True)) as client:
        await client.query(LONG)
        left = False
        async for message in client.receive_response():
            if not left and isinstance(message, StreamEvent) and message.event.get("type") == "content_block_delta":
                left = True
                await client.interrupt()
        return left


async def main():
    found = {"plain": (await ask(HELLO))[0].result}
    found["stream"] = (await ask(SIXTY, include_partial_messages=True))[1]
    server = create_sdk_mcp_server("weather", tools=[get_weather])
    name = "mcp__weather__get_weather"
    told, _ = await ask(f"[[use {name}]]", mcp_servers={"weather": server}, allowed_tools=[name])
    found["tools"] = {"called": len(called), "text": told.result}
    found["image"] = (await ask(with_picture()))[0].result
    found["refusal"] = (await ask(REFUSE))[0].result
    found["cancel"] = await leave()
    finish(found)


asyncio.run(main())
