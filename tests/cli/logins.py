"""Logins to Anthropic as Anthropic's own tools leave them in a home, and a stand-in for the `claude` program."""

import json
import secrets
import time
from pathlib import Path

from tests.cli.terminal import Terminal


def log_in_to_console(terminal: Terminal, *, base_url: str, word: str = "") -> str:
    """
    Leave a Console login behind, as `ant auth login` does, and give its token.

    https://platform.claude.com/docs/en/manage-claude/authentication
    """
    token = _token("oat01", word)
    folder = terminal.home / ".config/anthropic"
    _write(
        folder / "configs/default.json",
        {"version": "1.0", "authentication": {"type": "user_oauth"}, "base_url": base_url},
    )
    credentials = {"type": "oauth_token", "access_token": token, "expires_at": int(time.time()) + 3600}
    _write(folder / "credentials/default.json", credentials)
    return token


def log_in_to_claude(terminal: Terminal, *, base_url: str, word: str = "") -> str:
    """Leave a login of the `claude` program behind, whose settings send it to the simulator. Give its token."""
    token = _token("oat01", word)
    login = {
        "accessToken": token,
        "refreshToken": _token("ort01", word),
        "expiresAt": int((time.time() + 3600) * 1000),
        "scopes": ["user:inference", "user:profile"],
        "subscriptionType": "max",
    }
    folder = terminal.home / ".claude"
    _write(folder / ".credentials.json", {"claudeAiOauth": login})
    quiet = {"ANTHROPIC_BASE_URL": base_url, "CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC": "1"}
    _write(folder / "settings.json", {"env": quiet})
    return token


STAND_IN = """\
#!/usr/bin/env python3
# Behaves as the real program does, as far as the faults go that cannot be had from it here.
import json, os, sys, time

if "--version" in sys.argv:
    print("{version} (Claude Code)")
elif sys.argv[1:] == ["auth", "status"]:
    sys.exit({status})
else:
    prompt = sys.stdin.read()
    json.dump({{"arguments": sys.argv, "prompt": prompt, "environment": dict(os.environ), "folder": os.listdir(".")}},
              open(os.path.expanduser("~/called.json"), "w"))
    def say(**document):
        print(json.dumps(document), flush=True)
    def event(**event):
        say(type="stream_event", event=event)
    error = {error!r}
    if error:
        say(type="result", subtype="success", is_error=True, result=error[0], api_error_status=error[1])
        sys.exit(1)
    event(type="message_start", message={{"usage": {{"input_tokens": 9, "output_tokens": 1}}}})
    event(type="content_block_start", index=0, content_block={{"type": "text", "text": ""}})
    for word in ("Slow ", "and ", "steady."):
        event(type="content_block_delta", index=0, delta={{"type": "text_delta", "text": word}})
        time.sleep({seconds})
    event(type="message_delta", delta={{"stop_reason": "end_turn"}}, usage={{"output_tokens": 3}})
    event(type="message_stop")
    say(type="result", subtype="success", is_error=False, result="Slow and steady.")
"""


def install_stand_in(
    terminal: Terminal,
    *,
    version: str = "2.1.197",
    status: int = 0,
    error: tuple[str, int | None] | None = None,
    seconds: float = 0.0,
) -> Path:
    """Put a `claude` onto the PATH, and give the file in which it keeps how it was called."""
    terminal.install_program("claude", STAND_IN.format(version=version, status=status, error=error, seconds=seconds))
    return terminal.home / "called.json"


def _token(kind: str, word: str) -> str:
    return "-".join(filter(None, ["sk-ant", kind, word, secrets.token_hex(24)]))


def _write(path: Path, document: object) -> None:
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    path.write_text(json.dumps(document))
    path.chmod(0o600)
