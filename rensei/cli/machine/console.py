"""
Runner A: a Console login, which the Anthropic SDK finds and renews.

https://platform.claude.com/docs/en/manage-claude/authentication
"""

import json
import os
import queue
import sys
from typing import Any

from rensei.cli.machine.child import Child
from rensei.cli.machine.runners import CallFailed, Login

LOG_IN = "Log in with Anthropic's own tool: `ant auth login`. Then run `rensei setup` again."
_LOOK_SECONDS_MAX = 40.0


class Console:
    """Sends the parameters unchanged, signed by the chosen profile of the SDK, or by the active one."""

    name = "console"

    def __init__(self, profile: str | None) -> None:
        self._profile = profile

    def look(self) -> Login:
        with self._child({"look": True}) as child:
            try:
                line = child.next_line(seconds=_LOOK_SECONDS_MAX)
            except queue.Empty:
                return Login(works=False, detail="Anthropic did not answer in time.", fix="Try again.")
            if line is None:
                failure = self.silent_failure(child.complaint())
                return Login(works=False, detail=failure.detail, fix=failure.fix)
        document = json.loads(line)
        if document["type"] == "works":
            return Login(works=True, detail="The Console login of the Anthropic SDK works.")
        return Login(works=False, detail=document["detail"], fix=document["fix"])

    def start(self, request: dict[str, Any], *, attempt_id: str) -> Child:
        return self._child({"request": request, "attempt_id": attempt_id})

    def failure(self, document: dict[str, Any]) -> CallFailed | None:
        if document.get("type") != "failure":
            return None
        return CallFailed(document["code"], document["detail"], fix=document["fix"], sent=document["sent"])

    def silent_failure(self, complaint: str) -> CallFailed:
        # The error output may quote what was sent; its last line names the error.
        last = complaint.splitlines()[-1] if complaint else "no word about it"
        return CallFailed("PROVIDER_STREAM_BROKEN", f"The call's process ended with {last}.", sent=True)

    def _child(self, task: dict[str, Any]) -> Child:
        command = (sys.executable, "-P", "-m", "rensei.cli.machine.console_call")
        # The child imports this package from where this process did, and nothing from the current folder.
        places = {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
        return Child(command, text=json.dumps({"profile": self._profile, **task}), extra=places)
