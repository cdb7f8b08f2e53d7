"""The two ways in which a machine signs a call: a Console login of the SDK, and the person's own `claude` program."""

import json
from dataclasses import dataclass
from typing import Any, Protocol

from rensei.cli.machine.child import Child


class CallFailed(Exception):
    """A call that did not complete, with a code of the server's contract."""

    def __init__(self, code: str, detail: str, *, fix: str = "", sent: bool) -> None:
        self.code = code
        self.detail = detail
        self.fix = fix
        self.sent = sent
        super().__init__(detail)


@dataclass(frozen=True, kw_only=True)
class Login:
    """The result of checking a login. Only the SDK and `claude` read the credential itself, in their processes."""

    works: bool
    detail: str
    fix: str = ""


class Runner(Protocol):
    """Makes one call in a separate process, which writes the provider's events as lines of JSON."""

    name: str

    def look(self) -> Login:
        """Check whether the login works, without cost."""

    def start(self, request: dict[str, Any], *, attempt_id: str) -> Child:
        """:raises CallFailed: if the request is not supported, or there is no program to start"""

    def failure(self, document: dict[str, Any]) -> CallFailed | None:
        """Return the failure that a line reports which is not an event of the stream, if it reports one."""

    def silent_failure(self, complaint: str) -> CallFailed:
        """Return the failure of a process that ended without any output."""


def parse_line(line: str) -> dict[str, Any]:
    """Parse a line of a call's process; a line that is not a JSON object gives an empty one."""
    try:
        document = json.loads(line)
    except ValueError:
        return {}
    return document if isinstance(document, dict) else {}
