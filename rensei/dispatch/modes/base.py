"""The interface of an auth mode. One file implements each mode."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import ClassVar, Protocol

from django.db.models import Model

from integrations.models import Integration, PlatformKey
from integrations.providers.base import Credential, ProviderFailure
from integrations.vault.openings import Reason, Why
from integrations.vault.vault import PLATFORM
from rensei.core.auth_modes import AuthMode
from rensei.core.errors import RenseiError, Said, StoredError
from rensei.dispatch.context import DispatchContext
from rensei.dispatch.models import Run

# The rows of what is held for runs, to be saved with them, and the refused runs by their ids.
Holds = tuple[Sequence[Model], Mapping[str, RenseiError]]


class ModelUnpriced(RenseiError):
    """The platform would have to charge for a model, or a feature, that has no price."""

    code = "MODEL_UNPRICED"
    status = 409
    title = "No price for this model"
    message = Said(
        "{what} has no price in the catalog, so auth mode '{mode}' cannot account for it.",
        "Use byok, choose a priced model, or ask your operator to add a price.",
    )


@dataclass(frozen=True, slots=True)
class Gate:
    """
    One check of a dispatch, before anything is written. `check` raises the refusal.

    It receives the maximum cost of the call in picodollars (None: unknown).
    """

    name: str
    check: Callable[[DispatchContext, int | None], None]


@dataclass(frozen=True, kw_only=True, slots=True)
class Signer:
    """A stored key that may sign a call, and how often it is to be chosen. It is not opened."""

    key: Integration | PlatformKey
    weight: int = 1

    @property
    def version(self) -> tuple[str, str, int]:
        """Name the key's owner, the key and its version, which is all that an opened key depends on."""
        owner = self.key.org_id if isinstance(self.key, Integration) else PLATFORM
        return (owner, self.key.id, self.key.secret_version)


class OneKey:
    """A mode with one credential: there is no other to try, and its failures are shown to the organization."""

    def next_credential(
        self, run: Run, failed: Credential, failure: ProviderFailure, *, rate_limit: str = ""
    ) -> Credential | None:
        return None

    def error_of(self, run: Run, failure: ProviderFailure) -> StoredError:
        return failure.as_error()


class Mode(Protocol):
    """
    `refusals` are the mode's own refusals of a dispatch. `gates` refuse before anything is written. `limits` predict
    what `hold` decides, from the balances that a preview has loaded, in the same order; without balances they pass.
    `hold` places the holds of runs of one organization, in the transaction that saves them, and returns the refusals
    by run id. It receives the maximum cost of a call in picodollars (None: unknown). `signers` lists the keys that may
    sign for the models of all the contexts, of which the first is the call's. `rate_limit` names the provider's limit
    that the call counts in, if it is not the served model's usual one. `open_signer` opens one of them for a call that
    follows immediately. `open_credential` runs in the worker, after the claim. `next_credential` runs after a failed
    call and returns another key of the same payer, if any. `error_of` is the error shown to the organization.
    `billed`: whether it owes the charge to the platform.
    """

    mode: ClassVar[AuthMode]
    billed: ClassVar[bool]
    refusals: ClassVar[tuple[type[RenseiError], ...]]

    @property
    def gates(self) -> tuple[Gate, ...]: ...

    @property
    def limits(self) -> tuple[Gate, ...]: ...

    def credential_id(self, facts: DispatchContext) -> str: ...

    def max_tokens_cap(self, facts: DispatchContext) -> int | None: ...

    def hold(self, *, org_id: str, at_most: Mapping[str, int | None], now: datetime) -> Holds: ...

    def signers(self, facts: Sequence[DispatchContext], *, rate_limit: str = "") -> Sequence[Signer]: ...

    def open_signer(self, signer: Signer, *, now: datetime, why: Why) -> Credential: ...

    def open_credential(self, run: Run) -> Credential: ...

    def next_credential(
        self, run: Run, failed: Credential, failure: ProviderFailure, *, rate_limit: str = ""
    ) -> Credential | None: ...

    def error_of(self, run: Run, failure: ProviderFailure) -> StoredError: ...

    def pool_id(self, provider: str) -> str: ...


def why_of(run: Run) -> Why:
    """State for the record of openings that a run opens a key."""
    reason = Reason.GATEWAY if run.via == Run.Via.GATEWAY else Reason.DISPATCH
    return Why(reason=reason, run_id=run.id, token_id=run.token_id, org_id=run.org_id)


def require_price(facts: DispatchContext, mode: AuthMode) -> None:
    """:raises ModelUnpriced: if the served model has no platform price"""
    entry = facts.served(mode)
    if entry is None or not facts.prices_of(entry) or entry.org_id is not None:
        raise ModelUnpriced(what=f"Model '{facts.requested.model_id}'", mode=mode.value)
