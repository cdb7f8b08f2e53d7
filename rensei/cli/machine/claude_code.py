"""
Runner B: the person's own, unmodified `claude` program, which signs with its own login.

This module starts it and reads its output, and never opens its files. Options, output and environment were checked
with Claude Code 2.1.197: https://code.claude.com/docs/en/cli-reference
"""

import re
import shutil
import subprocess
from typing import Any

from rensei.cli.machine.child import Child, clean_environment
from rensei.cli.machine.runners import CallFailed, Login

OLDEST = (2, 1, 0)
LOG_IN = "Log in with it: run `claude`, then /login. Then run `rensei setup` again."
INSTALL = "Install it: https://code.claude.com/docs/en/setup"
_LOOK_SECONDS_MAX = 40
_EXHAUSTED = ("usage limit", "limit reached", "out of extra usage", "credit balance", "hit your limit")
_LOGGED_OUT = ("/login", "not logged in", "invalid api key", "oauth token", "authentication")
# Messages by which `claude` of another version rejects our input.
_STRANGE_OPTION = re.compile(r"unknown option|invalid (value|option)", re.IGNORECASE)
_KNOWN = {
    "model",
    "max_tokens",
    "messages",
    "system",
    "thinking",
    "output_config",
    "stream",
    "metadata",
    "cache_control",
}


class ClaudeCode:
    """Passes model, system prompt, effort, maximum length and prompt, and refuses what `claude` does not support."""

    name = "claude-code"

    def look(self) -> Login:
        program = shutil.which("claude")
        if program is None:
            return Login(works=False, detail="There is no `claude` program on the PATH.", fix=INSTALL)
        version = _run(program, "--version")
        if version is None or _number(version.stdout) < OLDEST:
            found = version.stdout.strip() if version else "no version"
            wanted = ".".join(map(str, OLDEST))
            return Login(works=False, detail=f"`claude` is too old: {found}.", fix=f"Update it to {wanted} or newer.")
        status = _run(program, "auth", "status")
        if status is None or status.returncode != 0:
            return Login(works=False, detail="`claude` is not logged in.", fix=LOG_IN)
        return Login(works=True, detail=f"`claude` {version.stdout.split()[0]} is logged in.")

    def start(self, request: dict[str, Any], *, attempt_id: str) -> Child:
        prompt = _prompt(request)
        program = shutil.which("claude")
        if program is None:
            raise CallFailed(
                "HOST_LOGIN_MISSING", "There is no `claude` program on this machine.", fix=INSTALL, sent=False
            )
        command = [program, "-p", "--output-format", "stream-json", "--verbose", "--include-partial-messages"]
        # It only answers: no tools, no servers, no project files, nothing stored.
        command += ["--tools", "", "--strict-mcp-config", "--disable-slash-commands", "--no-session-persistence"]
        command += ["--setting-sources", "user", "--model", request["model"]]
        command += ["--system-prompt", _system(request)]
        if effort := (request.get("output_config") or {}).get("effort"):
            command += ["--effort", effort]
        limits = {"CLAUDE_CODE_MAX_OUTPUT_TOKENS": str(request["max_tokens"]), "CLAUDE_CODE_MAX_RETRIES": "1"}
        # An empty folder, so that no file of the person becomes part of the prompt.
        return Child(command, text=prompt, extra=limits, in_empty_folder=True)

    def failure(self, document: dict[str, Any]) -> CallFailed | None:
        if document.get("type") != "result" or not document.get("is_error"):
            return None
        return _failure(str(document.get("result") or document.get("subtype")), document.get("api_error_status"))

    def silent_failure(self, complaint: str) -> CallFailed:
        if _STRANGE_OPTION.search(complaint):
            return CallFailed(
                "PROVIDER_REJECTED",
                f"This `claude` does not take what Rensei gives it: {complaint}",
                fix=f"Update it to {'.'.join(map(str, OLDEST))} or newer.",
                sent=False,
            )
        return _failure(complaint or "`claude` ended without a word.", None)


def _prompt(request: dict[str, Any]) -> str:
    """:raises CallFailed: if the request is more than one user message of text"""
    messages = request["messages"]
    content = messages[0]["content"]
    blocks = [{"type": "text", "text": content}] if isinstance(content, str) else content
    others = sorted({block["type"] for block in blocks if block["type"] != "text"})
    unknown = sorted(set(request) - _KNOWN)
    if len(messages) > 1:
        raise _cannot("a conversation of several messages")
    if others:
        raise _cannot(f"blocks of the kind {', '.join(others)}")
    if unknown:
        raise _cannot(f"the parameters {', '.join(unknown)}")
    if set(request.get("output_config") or {}) - {"effort"}:
        raise _cannot("an output format")
    return "\n\n".join(block["text"] for block in blocks)


def _system(request: dict[str, Any]) -> str:
    system = request.get("system") or ""
    return system if isinstance(system, str) else "\n\n".join(block["text"] for block in system)


def _cannot(what: str) -> CallFailed:
    return CallFailed(
        "PROVIDER_REJECTED",
        f"The `claude` program cannot take {what}.",
        fix="Use a Console login on this machine (`rensei setup --login console`), or another auth mode.",
        sent=False,
    )


def _failure(text: str, status: object) -> CallFailed:
    said = text.lower()
    if any(word in said for word in _EXHAUSTED) or status == 402:
        return CallFailed("HOST_PLAN_EXHAUSTED", text[:500], fix="Wait until the plan renews.", sent=True)
    if status == 401 or any(word in said for word in _LOGGED_OUT):
        return CallFailed("HOST_LOGIN_MISSING", text[:500], fix=LOG_IN, sent=status is not None)
    codes = {403: "PROVIDER_AUTH_FAILED", 429: "PROVIDER_RATE_LIMITED", 529: "PROVIDER_OVERLOADED"}
    if isinstance(status, int):
        code = codes.get(status, "PROVIDER_UNAVAILABLE" if status >= 500 else "PROVIDER_REJECTED")
        return CallFailed(code, text[:500], sent=True)
    return CallFailed("PROVIDER_UNAVAILABLE", text[:500], sent=True)


def _run(*command: str) -> "subprocess.CompletedProcess[str] | None":
    try:
        return subprocess.run(  # noqa: S603 - the program was found on the person's own PATH
            command,
            capture_output=True,
            text=True,
            env=clean_environment(),
            timeout=_LOOK_SECONDS_MAX,
            check=False,
            stdin=subprocess.DEVNULL,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None


def _number(version: str) -> tuple[int, ...]:
    found = re.match(r"(\d+)\.(\d+)\.(\d+)", version)
    return tuple(map(int, found.groups())) if found else (0,)
