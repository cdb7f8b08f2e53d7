"""Bring your own key: the organization's own key signs, and the provider bills it directly."""

from collections.abc import Mapping, Sequence
from datetime import datetime
from functools import cached_property
from typing import ClassVar

from integrations.keys import health
from integrations.keys import services as integrations
from integrations.models import Integration
from integrations.providers.base import Credential, ProviderFailure
from integrations.vault.openings import Why
from rensei.core.auth_modes import AuthMode
from rensei.core.clock import database_now
from rensei.core.errors import RenseiError, Said
from rensei.dispatch.context import DispatchContext
from rensei.dispatch.models import Run
from rensei.dispatch.modes.base import Gate, Holds, OneKey, Signer, why_of


class ByokNotConfigured(RenseiError):
    """The organization has connected no key for the provider."""

    code = "BYOK_NOT_CONFIGURED"
    status = 409
    title = "No key connected"
    message = Said(
        "No key is connected for provider '{provider}'.",
        "Connect one in Settings → Integrations → Add Provider, or ask an owner or admin to.",
    )


class Byok(OneKey):
    mode: ClassVar[AuthMode] = AuthMode.BYOK
    billed: ClassVar[bool] = False
    refusals: ClassVar[tuple[type[RenseiError], ...]] = (ByokNotConfigured,)

    @cached_property
    def gates(self) -> tuple[Gate, ...]:
        return (Gate("key", self._require_key),)

    @property
    def limits(self) -> tuple[Gate, ...]:
        return ()

    def credential_id(self, facts: DispatchContext) -> str:
        return facts.integration.id if facts.integration else ""

    def max_tokens_cap(self, facts: DispatchContext) -> int | None:
        return None

    def hold(self, *, org_id: str, at_most: Mapping[str, int | None], now: datetime) -> Holds:
        """Place no hold: the organization pays the provider directly."""
        return [], {}

    def signers(self, facts: Sequence[DispatchContext], *, rate_limit: str = "") -> Sequence[Signer]:
        """The organization's key signs for every model."""
        integration = facts[0].integration
        assert integration is not None, "The gate has refused it"
        return [Signer(key=integration)]

    def open_signer(self, signer: Signer, *, now: datetime, why: Why) -> Credential:
        assert isinstance(signer.key, Integration)
        integrations.note_used(signer.key.id, now)
        return integrations.open_integration(signer.key, why=why)

    def open_credential(self, run: Run) -> Credential:
        """
        Open the integration that the run was admitted with.

        :raises ByokNotConfigured: if the integration was removed after the dispatch
        :raises CredentialUnreadable: if the vault cannot open it
        """
        integration = Integration.objects.for_org(run.org).filter(id=run.credential_id).first()
        if integration is None:
            raise ByokNotConfigured(provider=run.provider)
        return integrations.open_integration(integration, why=why_of(run))

    def next_credential(
        self, run: Run, failed: Credential, failure: ProviderFailure, *, rate_limit: str = ""
    ) -> Credential | None:
        """Record that the key was refused. There is no other key to try."""
        health.note_refused(failed, failure, now=database_now())
        return None

    def pool_id(self, provider: str) -> str:
        return ""

    def _require_key(self, facts: DispatchContext, at_most: int | None) -> None:
        if facts.integration is None:
            raise ByokNotConfigured(provider=facts.profile.provider)
