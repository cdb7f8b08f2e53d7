"""What a sandbox may be started for, how it ends, and the errors of runs whose sandbox failed."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from django.conf import settings

from rensei.core.errors import RenseiError, Said, StoredError
from rensei.core.texts import read_storable
from rensei.dispatch.models import Attempt, Run, RunChunk
from rensei.dispatch.pools import bubblewrap
from rensei.dispatch.pools.driver import Fault, GitLogin, SandboxFault
from rensei.dispatch.queue import claims
from rensei.dispatch.queue.claims import Stop
from rensei.dispatch.settlement import outcomes
from rensei.dispatch.settlement.settle import RunEnd

OTHER_CHARACTERS_MAX = 300
# The gateway's refusals of a call that only say that there was one.
_ABOUT_THE_TOKEN = frozenset({"NOT_PERMITTED", "RATE_LIMITED"})


class SandboxNotCreated(RenseiError):
    """The sandbox of the run could not be created."""

    code = "SANDBOX_NOT_CREATED"
    status = 502
    title = "Sandbox not created"
    message = Said("{reason}", "No call was made. Dispatch the run again, or to the pool 'local'; tell your operator.")
    retryable = True


class SandboxLost(RenseiError):
    """The sandbox ended before the run did."""

    code = "SANDBOX_LOST"
    status = 502
    title = "Sandbox lost"
    message = Said(
        "The sandbox ended before the run did: {reason}",
        "A call that it made is in the ledger, and is not repeated by itself. Dispatch the run again if it is needed.",
    )
    retryable = True


class PoolCredentialRefused(RenseiError):
    """The capacity provider does not accept the organization's key."""

    code = "POOL_CREDENTIAL_REFUSED"
    status = 502
    title = "The pool's key was refused"
    message = Said("{reason}", "No call was made. Test the key under Integrations, and rotate it.")


class PoolFull(RenseiError):
    """The capacity provider starts no further sandbox now, or no slot of the pool became free in time."""

    code = "POOL_FULL"
    status = 429
    title = "The pool is full"
    message = Said("{reason}", "No call was made. Dispatch the run again later, or to another pool.")
    retryable = True


class PoolCannotReachServer(RenseiError):
    """The sandbox could not reach the gateway of this server."""

    code = "POOL_CANNOT_REACH_SERVER"
    status = 409
    title = "The pool cannot reach this server"
    message = Said(
        "The sandbox could not reach this server at {url}.",
        "Ask your operator to set RENSEI_PUBLIC_URL to an address at which the workers reach the server.",
    )


@dataclass(frozen=True, kw_only=True)
class Ended:
    """
    How a sandbox ended: why it was stopped, what it failed with, and what its relay knows.

    `is_interrupted`: its program was stopped because the gateway has died with a call of it. `is_cut`: the connection
    of its last call broke.
    """

    stop: Stop | None
    fault: SandboxFault | None
    refusal: dict[str, Any] | None
    cap_refusal: dict[str, Any] | None
    is_unreachable: bool
    is_interrupted: bool = False
    is_cut: bool = False

    def stop_of(self, run: Run) -> Stop | None:
        """Return why the run was stopped. The gateway may have noticed its cancellation first."""
        if self.stop is None and claims.cancelled_among([run.id]):
            return Stop.CANCELLED
        return self.stop


@dataclass(frozen=True, kw_only=True)
class Setup:
    """
    What a sandbox is given: its files, the one that is its program, and what it may send and report.

    `request` is the only request that it may make; an agent writes its own. `with_claude_code` is whether it needs that
    of the worker, and `login` is with what it clones a repository.
    """

    program: str
    files: Mapping[str, bytes]
    request: bytes | None
    request_bytes_max: int
    lines_bytes_max: int
    with_claude_code: bool = False
    login: GitLogin | None = None


class Work(Protocol):
    """
    The work of one sandbox, and what it has reported so far. It is not trusted: only the ledger says what was called.

    `streams` are the texts that are written as events while they arrive.
    """

    @property
    def setup(self) -> Setup: ...

    @property
    def streams(self) -> Sequence[tuple[RunChunk.Kind, list[str]]]: ...

    @property
    def text(self) -> str: ...

    @property
    def other(self) -> str:
        """Anything else that it wrote, for the log."""

    @property
    def found_no_gateway(self) -> bool:
        """Whether it reports that the gateway cannot be reached. Of a sandbox with a relay, the relay knows."""

    @property
    def seconds_max(self) -> float | None:
        """How long it may take, if that is less than its run may."""

    @property
    def stop_seconds(self) -> float:
        """How long it may take to end after it was told to."""

    def take(self, line: bytes) -> None:
        """:raises SandboxFault: if it reports too much"""

    def end(self, run: Run, attempts: Sequence[Attempt], ended: Ended) -> RunEnd:
        """Decide how the run has ended."""


_OF_THE_POOL: Mapping[Fault, type[RenseiError]] = {Fault.REFUSED: PoolCredentialRefused, Fault.FULL: PoolFull}


def error_of(newest: Attempt | None, ended: Ended, *, has_reported: bool) -> StoredError:
    """Return the error of a run whose newest call failed, or that made none."""
    refusal = ended.refusal
    if refusal is not None and (newest is None or refusal["code"] not in _ABOUT_THE_TOKEN):
        # The gateway refused a call before it was made, as after a change of the policy.
        return error_of_refusal(refusal)
    if newest is not None and newest.state == Attempt.State.OPEN:
        return outcomes.refusal_error(outcomes.RunInterrupted())
    if newest is not None and newest.error is not None:
        return newest.error
    if newest is None and ended.is_unreachable:
        return outcomes.refusal_error(PoolCannotReachServer(url=settings.PUBLIC_URL))
    fault = ended.fault
    if newest is None and fault is not None and fault.fault in _OF_THE_POOL:
        return outcomes.refusal_error(_OF_THE_POOL[fault.fault](reason=fault.reason))
    if newest is None and not has_reported and (fault is None or fault.fault is Fault.NOT_CREATED):
        return outcomes.refusal_error(SandboxNotCreated(reason=fault.reason if fault else bubblewrap.NOT_STARTED))
    return outcomes.refusal_error(SandboxLost(reason=fault.reason if fault else "Its program gave no answer."))


def error_of_refusal(refusal: Mapping[str, Any]) -> StoredError:
    """Return the gateway's refusal as the error of a run."""
    code, said = str(refusal["code"]), str(refusal.get("message", ""))
    return {"code": code, "detail": said, "fix": "", "retryable": code in _ABOUT_THE_TOKEN}


def read_line(line: bytes) -> Any:
    """Read what a program in a sandbox has reported. None if it is no JSON that can be stored."""
    try:
        return read_storable(line)
    except (ValueError, RecursionError):
        return None


def other_of(line: bytes) -> str:
    return line.decode(errors="replace").replace("\0", "").strip()[:OTHER_CHARACTERS_MAX]
