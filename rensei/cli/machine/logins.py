"""Which login this machine has, and the runner that uses it."""

from rensei.cli.config import Context
from rensei.cli.errors import Refused
from rensei.cli.machine.claude_code import ClaudeCode
from rensei.cli.machine.console import Console
from rensei.cli.machine.runners import Login, Runner

CHOICES = ("console", "claude-code", "none")


def runner_for(context: Context) -> Runner:
    """
    Return the runner that was chosen in `rensei setup`.

    :raises Refused: if none was chosen
    """
    if context.login == "console":
        return Console(context.anthropic_profile)
    if context.login == "claude-code":
        return ClaudeCode()
    raise Refused(
        "HOST_LOGIN_MISSING",
        "This machine has no login to Anthropic that Rensei may use.",
        fix="Log in with `ant auth login` or with `claude`, and run `rensei setup` again.",
    )


def look_at_all(profile: str | None) -> dict[str, Login]:
    """Check both kinds of login, without cost."""
    return {"console": Console(profile).look(), "claude-code": ClaudeCode().look()}
