"""
Claude Code as the program of an agent: where a worker finds it, and how it is started in a sandbox.

It is one file, and reaches nothing but the model: what it would look up or report elsewhere is turned off, so that it
does not wait for it. In a cloud, it is a program of the image. Its account, its settings and its permissions are those
of the sandbox alone.
https://docs.claude.com/en/docs/claude-code/settings#environment-variables
"""

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

from django.conf import settings

# Where a sandbox has it. Its own folder is no folder of the host.
INSIDE = "/opt/claude-code/claude"
# How it is called in an image that has it.
IN_IMAGE = "claude"
# What it may be asked for by an alias, or asks for by itself for small tasks, is the model of the run too.
_MODELS = (
    "ANTHROPIC_DEFAULT_FABLE_MODEL",
    "ANTHROPIC_DEFAULT_HAIKU_MODEL",
    "ANTHROPIC_DEFAULT_OPUS_MODEL",
    "ANTHROPIC_DEFAULT_SONNET_MODEL",
    "ANTHROPIC_SMALL_FAST_MODEL",
    "CLAUDE_CODE_SUBAGENT_MODEL",
)
_QUIET = (
    "CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC",
    "DISABLE_AUTOUPDATER",
    "DISABLE_ERROR_REPORTING",
    "DISABLE_TELEMETRY",
)


def find() -> Path | None:
    """Find the program on this machine, behind all links. It may be another file after an update."""
    found = shutil.which(settings.RENSEI_CLAUDE_CODE) if settings.RENSEI_CLAUDE_CODE else None
    return Path(found).resolve() if found is not None else None


def command(*, program: str, model: str, max_turns: int | None) -> Sequence[str]:
    """Return the command without the task, which it reads from its standard input."""
    options = ["--print", "--output-format", "stream-json", "--verbose", "--include-partial-messages"]
    # The sandbox isolates it, and there is no person to ask.
    options += ["--dangerously-skip-permissions", "--no-session-persistence", "--strict-mcp-config"]
    # It fetches pages from its own machine, which has no network.
    options += ["--disallowedTools", "WebFetch", "--model", model]
    return [program, *options, *(["--max-turns", str(max_turns)] if max_turns is not None else [])]


def environment(*, model: str, max_tokens: int, seconds: int) -> Mapping[str, str]:
    return {
        **dict.fromkeys(_MODELS, model),
        **dict.fromkeys(_QUIET, "1"),
        # The user of an image may be root, for whom it would refuse to work without asking.
        "IS_SANDBOX": "1",
        "CLAUDE_CODE_MAX_OUTPUT_TOKENS": str(max_tokens),
        # A call waits for the one before it, which may take as long as the program has.
        "API_TIMEOUT_MS": str(seconds * 1000),
    }
