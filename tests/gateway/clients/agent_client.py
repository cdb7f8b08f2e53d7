"""The Claude Agent SDK, with the Claude Code that it brings along."""

import asyncio
import os

from claude_agent_sdk import ClaudeAgentOptions, ResultMessage, query
from steps import GATEWAY, HELLO, MODEL, TOKEN, finish

ENVIRONMENT = {
    "ANTHROPIC_BASE_URL": GATEWAY,
    "ANTHROPIC_AUTH_TOKEN": TOKEN,
    "ANTHROPIC_DEFAULT_HAIKU_MODEL": MODEL,
    "CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC": "1",
}


async def main():
    options = ClaudeAgentOptions(model=MODEL, max_turns=3, setting_sources=[], env={**os.environ, **ENVIRONMENT})
    async for message in query(prompt=HELLO, options=options):
        if isinstance(message, ResultMessage):
            finish({"plain": message.result})


asyncio.run(main())
