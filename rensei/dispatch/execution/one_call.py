"""The work of the sandbox of a run without an agent: it makes the run's one call, and reports the answer."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from integrations.providers.base import BuiltRequest
from rensei.core.limits import limit
from rensei.dispatch import stored_bytes
from rensei.dispatch.execution import execute
from rensei.dispatch.execution.lease_renewal import LiveRun
from rensei.dispatch.execution.sandbox_work import Ended, Setup, error_of, other_of, read_line
from rensei.dispatch.models import Attempt, Run, RunChunk
from rensei.dispatch.pools import runner
from rensei.dispatch.pools.driver import Fault, SandboxFault
from rensei.dispatch.settlement import outcomes
from rensei.dispatch.settlement.settle import RunEnd
from rensei.orgs import storage

# An answer as pieces, then as blocks, each with the escapes of JSON.
JSON_FACTOR = limit(
    6,
    "times what is stored of its answer at most",
    what="Lines that the program in a sandbox writes",
    told="the run: it ends with `SANDBOX_LOST`",
)
PROGRAM = Path(runner.__file__).read_bytes()


class OneCall:
    """The request, and what the program has reported of its answer."""

    seconds_max: float | None = None
    stop_seconds = 0.0
    found_no_gateway = False

    def __init__(self, run: Run, request: bytes) -> None:
        self._request = request
        report_bytes_max = stored_bytes.of_report_at_most(run)
        self._lines_bytes_max = JSON_FACTOR * report_bytes_max
        self._bytes_left = report_bytes_max
        self._texts: list[str] = []
        self._message: dict[str, Any] | None = None
        self.other = ""

    @property
    def setup(self) -> Setup:
        return Setup(
            program="runner.py",
            files={"runner.py": PROGRAM, "request.json": self._request},
            request=self._request,
            request_bytes_max=len(self._request),
            lines_bytes_max=self._lines_bytes_max,
        )

    @property
    def streams(self) -> Sequence[tuple[RunChunk.Kind, list[str]]]:
        return [(RunChunk.Kind.DELTA, self._texts)]

    @property
    def text(self) -> str:
        return "".join(self._texts)

    def take(self, line: bytes) -> None:
        """:raises SandboxFault: if it is more than an answer can have"""
        match read_line(line):
            case {"text": str(text)}:
                self._make_room(len(text.encode()))
                self._texts.append(text)
            case {"message": {"content": list(content)} as message} if all(map(_is_block, content)):
                self._make_room(storage.size_of(content))
                self._message = message
            case {"error": {"code": "NO_GATEWAY"}}:
                self.found_no_gateway = True
            case _:
                self.other = other_of(line)

    def end(self, run: Run, attempts: Sequence[Attempt], ended: Ended) -> RunEnd:
        """Decide how the run ended. It succeeded only if the gateway has settled an answered call."""
        newest = attempts[0] if attempts else None
        is_answered = newest is not None and newest.state == Attempt.State.SETTLED and newest.error is None
        if is_answered and self._message is not None:
            content = self._message["content"]
            stop_reason = str(self._message.get("stop_reason") or "")[:40]
            text = "".join(block["text"] for block in content if block["type"] == "text")
            return RunEnd(state=Run.State.SUCCEEDED, text=text, content=content, stop_reason=stop_reason)
        stop = ended.stop_of(run)
        if stop is not None and (end := outcomes.stopped_end(stop, self.text)) is not None:
            return end
        has_reported = bool(self._texts) or self._message is not None
        error = error_of(newest, ended, has_reported=has_reported)
        return RunEnd(state=Run.State.FAILED, error=error, text=self.text)

    def _make_room(self, size: int) -> None:
        self._bytes_left -= size
        if self._bytes_left < 0:
            raise SandboxFault(Fault.DEAD, "Its program reported more than an answer can have.")


def prepare(run: Run, live: LiveRun) -> OneCall | None:
    """Build the request of a run. None if the run has ended here."""
    built = execute.build_for_sandbox(run, live)
    return OneCall(run, _request_of(built)) if built is not None else None


def _request_of(built: BuiltRequest) -> bytes:
    # A request that only fills the cache cannot be streamed.
    return json.dumps({**built.params, "stream": built.params["max_tokens"] > 0}).encode()


def _is_block(block: object) -> bool:
    match block:
        case {"type": "text", "text": str()}:
            return True
        case {"type": str(kind)}:
            return kind != "text"
    return False
