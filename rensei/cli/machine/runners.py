"""The two ways in which a machine signs a call: a Console login of the SDK, and the person's own `claude` program."""

import json
from dataclasses import dataclass
from typing import Any, Protocol

from rensei.cli.machine.child import Child


class CallFailed(Exception):
    """A call that did not come to its end, in the words of the server's contract."""

    def __init__(self, code: str, detail: str, *, fix: str = "", sent: bool) -> None:
        self.code = code
        self.detail = detail
        self.fix = fix
        self.sent = sent
        super().__init__(detail)


@dataclass(frozen=True, kw_only=True)
class Login:
    """What a look at a login found. Nobody reads the credential itself: the SDK and `claude` do, in their processes."""

    works: bool
    detail: str
    fix: str = ""


class Runner(Protocol):
    """Makes one call in a process of its own, which writes the provider's events as lines of JSON."""

    name: str

    def look(self) -> Login:
        """Find out whether the login works, without spending anything."""

    def start(self, request: dict[str, Any], *, attempt_id: str) -> Child:
        """:raises CallFailed: if the request cannot be honoured, or there is nothing to start"""

    def failure(self, document: dict[str, Any]) -> CallFailed | None:
        """What a line that is no event of the stream says about the call, if it went wrong."""

    def silent_failure(self, complaint: str) -> CallFailed:
        """What it means that the process ended without an answer and without a word on its output."""


def parse_line(line: str) -> dict[str, Any]:
    """Read a line of a call's process; one that is no JSON object says nothing."""
    try:
        document = json.loads(line)
    except ValueError:
        return {}
    return document if isinstance(document, dict) else {}
