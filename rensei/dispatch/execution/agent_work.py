"""The work of the sandbox of an agent: its program calls the model by itself, and leaves a text, a log and files."""

import base64
import binascii
import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from rensei.core.api import LARGE_BODY_LIMIT
from rensei.core.errors import RenseiError, Said, StoredError
from rensei.core.limits import MIB, limit
from rensei.core.secret import Secret
from rensei.dispatch import agents, stored_bytes, withheld
from rensei.dispatch.agents import AgentEnd, OutputFile
from rensei.dispatch.execution import execute
from rensei.dispatch.execution.lease_renewal import LiveRun
from rensei.dispatch.execution.sandbox_work import Ended, Setup, error_of, error_of_refusal, other_of, read_line
from rensei.dispatch.models import Attempt, Run, RunChunk
from rensei.dispatch.pools import AgentProgramUnavailable, agent_runner, bubblewrap, claude_code
from rensei.dispatch.pools.driver import Fault, GitLogin, SandboxFault
from rensei.dispatch.settlement import outcomes
from rensei.dispatch.settlement.settle import RunEnd

# Text, log and files, each with the escapes of JSON.
LINES_BYTES_MAX = limit(
    64 * MIB, "bytes", what="Lines that the runner of an agent writes", told="the run: it ends with `SANDBOX_LOST`"
)
# The program, then what it has left: a member waits for both after a cancellation.
STOP_SECONDS = 3.5
TAIL_LINES, TAIL_CHARACTERS = 5, 500
PROGRAM = Path(agent_runner.__file__).read_bytes()


class AgentFailed(RenseiError):
    """The program of an agent failed."""

    code = "AGENT_FAILED"
    status = 422
    title = "The agent failed"
    message = Said("{reason}", "Read the log of the run, mend the program, and dispatch it again.")


class GitCloneFailed(RenseiError):
    """The repository of an agent could not be cloned, so that its program was not started."""

    code = "GIT_CLONE_FAILED"
    status = 422
    title = "The repository could not be cloned"
    message = Said(
        "The repository could not be cloned: {reason}",
        "No call was made. Mend what it says, and dispatch the run again.",
    )


# What the runner says of a clone that failed.
_NOT_CLONED = {
    "NO_GIT": "the image of the sandbox has no git, or not on its path. Add it to the image or template of the pool.",
    "REFUSED": "{host} does not accept the token, or asks for one that was not given.",
    "NO_REF": "it has no ref '{ref}'.",
    "NOT_FOUND": "{host} knows no such repository, or shows it to no one without another token.",
    "FAILED": "git says: {said}",
}


class AgentWork:
    """The definition of an agent, and what its runner has reported."""

    stop_seconds = STOP_SECONDS
    # Its program calls, and says in its own words what came of it.
    found_no_gateway = False

    def __init__(self, run: Run, body: Mapping[str, Any]) -> None:
        self._agent: Mapping[str, Any] = body["agent"]
        self._git: Mapping[str, str] | None = self._agent.get("git")
        self._input = "".join(block["text"] for block in body["messages"][0]["content"])
        self._in_cloud = run.in_cloud
        self._model, self._max_tokens = run.served_model_id, run.max_tokens
        self._text_bytes_max = self._text_bytes_left = stored_bytes.of_answer_at_most(run)
        # The runner adds where it was cut.
        self._log_bytes_left = agents.LOG_BYTES_MAX + len(agent_runner.CUT)
        self._outputs_bytes_left = agents.OUTPUTS_BYTES_MAX
        self._texts: list[str] = []
        self._log: list[str] = []
        self._pieces: dict[str, list[bytes]] = {}
        self._is_whole: set[str] = set()
        self._end: AgentEnd | None = None
        self._failure = self._not_started = self._not_cloned = ""
        self.other = ""

    @property
    def seconds_max(self) -> float | None:
        return float(self._agent["timeoutSeconds"])

    @property
    def setup(self) -> Setup:
        is_claude_code = self._agent["program"] == agents.CLAUDE_CODE
        job = {
            **(self._claude_code() if is_claude_code else self._own_program()),
            "input": self._input,
            "git": self._git and {"url": self._git["url"], "ref": self._git["ref"]},
            "files": self._agent["files"],
            "outputs": self._agent["outputs"],
            "model": self._model,
            "textBytesMax": self._text_bytes_max,
            "logBytesMax": agents.LOG_BYTES_MAX,
            "outputsMax": agents.OUTPUTS_MAX,
            "outputsBytesMax": agents.OUTPUTS_BYTES_MAX,
            "pathBytesMax": agents.PATH_BYTES_MAX,
            "processesMax": bubblewrap.AGENT_PROCESSES_MAX,
        }
        return Setup(
            program="agent_runner.py",
            files={"agent_runner.py": PROGRAM, "job.json": json.dumps(job).encode()},
            request=None,
            request_bytes_max=LARGE_BODY_LIMIT,
            lines_bytes_max=LINES_BYTES_MAX,
            with_claude_code=is_claude_code and not self._in_cloud,
            login=self._login,
        )

    @property
    def _login(self) -> GitLogin | None:
        if self._git is None or not self._git.get("token"):
            return None
        host, token = agents.git_host(self._agent), Secret(self._git["token"])
        return GitLogin(host=host, username=self._git["username"], token=token)

    def _own_program(self) -> Mapping[str, Any]:
        return {"program": self._agent["program"], "env": self._agent["env"], "hasTranscript": False}

    def _claude_code(self) -> Mapping[str, Any]:
        environment = claude_code.environment(
            model=self._model, max_tokens=self._max_tokens, seconds=self._agent["timeoutSeconds"]
        )
        return {
            "program": claude_code.command(
                program=claude_code.IN_IMAGE if self._in_cloud else claude_code.INSIDE,
                model=self._model,
                max_turns=self._agent.get("maxTurns"),
            ),
            "env": {**self._agent["env"], **environment},
            "hasTranscript": True,
        }

    @property
    def streams(self) -> Sequence[tuple[RunChunk.Kind, list[str]]]:
        return [(RunChunk.Kind.DELTA, self._texts), (RunChunk.Kind.LOG, self._log)]

    @property
    def text(self) -> str:
        return "".join(self._texts)

    def take(self, line: bytes) -> None:
        """:raises SandboxFault: if it is more than its runner reports"""
        match read_line(line):
            case {"text": str(text)}:
                self._text_bytes_left -= len(text.encode())
                self._require(self._text_bytes_left >= 0)
                self._texts.append(text)
            case {"log": str(text)}:
                self._log_bytes_left -= len(text.encode())
                self._require(self._log_bytes_left >= 0)
                self._log.append(text)
            case {"file": {"path": str(path), "data": str(data), "more": bool(more)}}:
                self._take_piece(path, data, is_last=not more)
            case {"end": {"exitCode": int(code), "leftOut": dict(left_out), "turns": turns, "failure": str(failure)}}:
                self._end = AgentEnd(exit_code=code, turns=_count(turns), left_out=_counts(left_out))
                self._failure = failure[:TAIL_CHARACTERS]
            case {"git": {"failure": str(kind), "said": str(said)}} if self._git is not None and kind in _NOT_CLONED:
                self._not_cloned = _NOT_CLONED[kind].format(
                    host=agents.git_host(self._agent), ref=self._git["ref"], said=said[:TAIL_CHARACTERS]
                )
            case {"error": str(reason)}:
                self._not_started = reason[:TAIL_CHARACTERS]
            case _:
                self.other = other_of(line)

    def end(self, run: Run, attempts: Sequence[Attempt], ended: Ended) -> RunEnd:
        """Decide how the run ended. What was produced is kept, however it ended."""
        left = replace(self._end or AgentEnd(), files=self._files())
        stop = ended.stop_of(run)
        if stop is not None and (end := outcomes.stopped_end(stop, self.text)) is not None:
            return replace(end, agent=left)
        error = self._error(attempts, ended)
        if error is not None:
            return RunEnd(state=Run.State.FAILED, error=error, text=self.text, agent=left)
        content = [{"type": "text", "text": self.text}] if self.text else []
        return RunEnd(state=Run.State.SUCCEEDED, text=self.text, content=content, agent=left)

    def _error(self, attempts: Sequence[Attempt], ended: Ended) -> StoredError | None:
        newest = attempts[0] if attempts else None
        if ended.is_interrupted:
            return outcomes.refusal_error(outcomes.RunInterrupted())
        if ended.cap_refusal is not None:
            return error_of_refusal(ended.cap_refusal)
        if self._not_cloned:
            return outcomes.refusal_error(GitCloneFailed(reason=self._not_cloned))
        if self._not_started and self._in_cloud and self._agent["program"] == agents.CLAUDE_CODE:
            reason = f"the image of the sandbox has no `{claude_code.IN_IMAGE}` on its path that starts."
            return outcomes.refusal_error(AgentProgramUnavailable(reason=reason))
        if self._not_started:
            return outcomes.refusal_error(AgentFailed(reason=self._not_started))
        code = self._end.exit_code if self._end is not None else None
        if code is None or ended.fault is not None:
            return error_of(newest, ended, has_reported=bool(self._texts or self._log or self._end))
        if code == 0 and not self._failure:
            return None
        if ended.is_cut and newest is not None and newest.state == Attempt.State.OPEN:
            # It was told that the gateway does not answer, or got a part of an answer.
            return outcomes.refusal_error(outcomes.RunInterrupted())
        said = f": {self._failure}" if self._failure else self._tail()
        reason = f"The program ended with exit code {code}{_after(ended)}{said}"
        return outcomes.refusal_error(AgentFailed(reason=reason))

    def _tail(self) -> str:
        """Return the last lines of the log or, if there are none, of the text."""
        written = "".join(self._log).strip() or self.text.strip()
        tail = " / ".join(written[-2 * TAIL_CHARACTERS :].splitlines()[-TAIL_LINES:])[-TAIL_CHARACTERS:]
        return f": {tail}" if tail else "."

    def _take_piece(self, path: str, data: str, *, is_last: bool) -> None:
        try:
            piece = base64.b64decode(data, validate=True)
        except (binascii.Error, ValueError):
            return
        self._outputs_bytes_left -= len(piece)
        self._require(
            self._outputs_bytes_left >= 0
            and not agents.path_fault(path)
            and not agents.is_of_git(path)
            and path not in self._is_whole
            and len(self._pieces) < agents.OUTPUTS_MAX + (path in self._pieces)
        )
        self._pieces.setdefault(path, []).append(piece)
        if is_last:
            self._is_whole.add(path)

    def _files(self) -> Sequence[OutputFile]:
        whole = ((path, pieces) for path, pieces in self._pieces.items() if path in self._is_whole)
        return [OutputFile(path=path, content=b"".join(pieces)) for path, pieces in whole]

    def _require(self, is_so: bool) -> None:
        if not is_so:
            raise SandboxFault(Fault.DEAD, "Its program reported more than an agent can leave.")


def prepare(run: Run, live: LiveRun) -> AgentWork | None:
    """Read the definition of an agent. None if the run has ended here."""
    return execute.until_refused(run, live, lambda mode: AgentWork(run, withheld.body_of(run)))


def _after(ended: Ended) -> str:
    """Return what became of the program's last request, if it was no call."""
    if ended.refusal is not None:
        said = error_of_refusal(ended.refusal)
        return f", after its last request was refused ({said['code']}: {said['detail']})"
    return ", after its last request did not reach this server" if ended.is_unreachable else ""


def _counts(left_out: Mapping[str, Any]) -> dict[str, int]:
    counts = ((reason, _count(value)) for reason, value in left_out.items() if reason in agents.REASONS)
    return {reason: count for reason, count in counts if count}


def _count(value: Any) -> int | None:
    return value if type(value) is int and 0 <= value < 2**31 else None
