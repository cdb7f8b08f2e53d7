"""Host session: the login on the developer's machine signs, on that machine only."""

from collections.abc import Mapping, Sequence
from datetime import datetime
from functools import cached_property
from typing import ClassVar

from integrations.providers.base import Credential
from integrations.vault.openings import Why
from rensei.core.auth_modes import AuthMode
from rensei.core.errors import RenseiError, Said
from rensei.dispatch.context import DispatchContext
from rensei.dispatch.models import Run
from rensei.dispatch.modes.base import Gate, Holds, OneKey, Signer


class RequiresLocalCapacity(RenseiError):
    """A host session exists on one machine only, so a sandbox cannot use it."""

    code = "AUTH_MODE_REQUIRES_LOCAL_CAPACITY"
    status = 409
    title = "Auth mode requires local capacity"
    message = Said(
        "Auth mode 'host-session' cannot run on '{pool}': the login is on the developer's machine.",
        "Use a cloud-compatible auth mode (byok, metered, shared), or dispatch to a local pool.",
    )


class WrongMachine(RenseiError):
    """The run names no machine, or a machine that is not the caller's."""

    code = "HOST_SESSION_WRONG_MACHINE"
    status = 409
    title = "Wrong machine"
    message = Said(
        "{reason}",
        (
            "A host-session run goes to the machine where you ran rensei setup: dispatch from there, or name "
            "one of your own machines in hostId."
        ),
    )
    gateway_message = (
        "Auth mode 'host-session' uses the login on a developer's machine, and the gateway calls from the server. Name "
        "a profile with another auth mode, or dispatch the run with the rensei command on that machine."
    )


class HostSession(OneKey):
    mode: ClassVar[AuthMode] = AuthMode.HOST_SESSION
    billed: ClassVar[bool] = False
    refusals: ClassVar[tuple[type[RenseiError], ...]] = (RequiresLocalCapacity, WrongMachine)

    @cached_property
    def gates(self) -> tuple[Gate, ...]:
        return Gate("capacity", self._require_local), Gate("machine", self._require_machine)

    @property
    def limits(self) -> tuple[Gate, ...]:
        return ()

    def credential_id(self, facts: DispatchContext) -> str:
        return ""

    def max_tokens_cap(self, facts: DispatchContext) -> int | None:
        return None

    def hold(self, *, org_id: str, at_most: Mapping[str, int | None], now: datetime) -> Holds:
        """Place no hold: the account on the machine pays."""
        return [], {}

    def signers(self, facts: Sequence[DispatchContext], *, rate_limit: str = "") -> Sequence[Signer]:
        """:raises WrongMachine: always, because the gateway calls from the server and the login is on the machine"""
        raise WrongMachine(reason="The gateway calls from the server.")

    def open_signer(self, signer: Signer, *, now: datetime, why: Why) -> Credential:
        raise AssertionError("No stored key signs")

    def open_credential(self, run: Run) -> Credential:
        """Refuse: a worker of the server must never open a host session."""
        raise WrongMachine(reason="This run belongs to a developer's machine.")

    def pool_id(self, provider: str) -> str:
        return ""

    def _require_local(self, facts: DispatchContext, at_most: int | None) -> None:
        if not facts.pool.is_local:
            raise RequiresLocalCapacity(pool=facts.pool.name)

    def _require_machine(self, facts: DispatchContext, at_most: int | None) -> None:
        """:raises WrongMachine: unless a registered machine of the caller was found"""
        if facts.host is None:
            raise WrongMachine(reason=facts.host_missing)
