"""What a driver of a capacity provider does and raises. An event loop calls it, so nothing in one may block."""

import base64
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Protocol

from integrations.capacity.prices import Size
from rensei.core.secret import Secret
from rensei.dispatch.pools.relay import Relay

# A line of an agent's runner; it divides what is longer. Each counts as so many bytes at least, because each is parsed.
AGENT_LINE_BYTES_MAX, LINE_BYTES_MIN = 256 * 1024, 64


class Fault(StrEnum):
    """What went wrong with a sandbox, as far as the run's error differs."""

    NOT_CREATED = "not-created"
    # The capacity provider refused the key, or has no room for another sandbox of it.
    REFUSED = "refused"
    FULL = "full"
    DEAD = "dead"


class SandboxFault(Exception):
    """
    A sandbox failed. `reason` is a sentence for the organization; `detail` is for the operators' log, and names places
    on the worker's machine.
    """

    def __init__(self, fault: Fault, reason: str, detail: str = "") -> None:
        super().__init__(detail or reason)
        self.fault = fault
        self.reason = reason
        self.detail = detail


@dataclass(frozen=True, kw_only=True)
class GitLogin:
    """With what the repository of an agent is cloned."""

    host: str
    username: str
    token: Secret

    @property
    def header(self) -> str:
        """As a header `Authorization`, for a provider that adds one outside of the sandbox."""
        return f"Basic {base64.b64encode(f'{self.username}:{self.token.reveal()}'.encode()).decode()}"

    @property
    def file(self) -> bytes:
        """As what a credential helper of git tells, for a file that is read once."""
        return f"username={self.username}\npassword={self.token.reveal()}\n".encode()


@dataclass(frozen=True, kw_only=True)
class Heard:
    """
    What is known of a sandbox's requests to the gateway beside its attempts.

    `is_unreachable`: the gateway did not answer to the last. `is_cut`: a connection to it broke, so that a call may
    have died with it. `refusal` is the gateway's error, if it refused the last request before a call. `cap_refusal` is
    the first of an agent's that said that the run may cost no further call.
    """

    refusal: dict[str, Any] | None = None
    cap_refusal: dict[str, Any] | None = None
    is_unreachable: bool = False
    is_cut: bool = False


@dataclass(frozen=True, kw_only=True)
class Made:
    """That a capacity provider has created a sandbox, which it charges for, and its size if that is known."""

    size: Size | None = None


class Box(Protocol):
    """
    One sandbox. `follow` yields the lines that its program writes until it ends; `destroy` may be called at any time.

    `heard` is empty where the sandbox calls the gateway without a relay of the worker. `made` is None on the worker's
    own machine, and where none was created.
    """

    @property
    def relay(self) -> Relay | None: ...

    @property
    def heard(self) -> Heard: ...

    @property
    def made(self) -> Made | None: ...

    async def start(self, arguments: Sequence[str], *, files: Mapping[str, bytes]) -> None:
        """:raises SandboxFault: if it cannot be created, or its program cannot be started"""

    def follow(self) -> AsyncIterator[bytes]:
        """:raises SandboxFault: if it ended before its program did, or the program writes too much"""

    def require_memory(self) -> None:
        """:raises SandboxFault: if its processes use more than all of them together may"""

    async def order_stop(self) -> None:
        """Let the runner of an agent stop its program. It is not known whether it will."""

    async def destroy(self) -> bool:
        """End everything in it. False if it may be left; it is swept later."""


class Driver(Protocol):
    """
    The sandboxes of one capacity provider, by the ids of their rows.

    `create` makes the object only; `Box.start` creates the sandbox. `list` returns those of this installation that
    exist, with the sizes that are charged for, and `destroy` removes one, if it exists. Both raise `SandboxFault`.
    """

    def program_of(self, file: str) -> Sequence[str]:
        """The command that starts one of the files of a sandbox as a Python program."""

    async def create(
        self,
        box_id: str,
        *,
        token: Secret,
        request_bytes_max: int,
        lines_bytes_max: int,
        for_agent: bool = False,
        with_claude_code: bool = False,
        login: GitLogin | None = None,
    ) -> Box: ...

    async def list(self) -> Mapping[str, Size | None]: ...

    async def destroy(self, box_id: str) -> None: ...
