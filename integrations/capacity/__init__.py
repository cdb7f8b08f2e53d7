"""
Capacity providers, in whose cloud runs execute. An organization connects its account there with a key, as it connects a
provider of models; no model is called with that key.
"""

from collections.abc import Mapping
from typing import Protocol

from catalog.providers import PROVIDERS, ProviderSpec
from integrations.capacity import e2b, modal, vercel
from integrations.capacity.account import CapacityAccount
from integrations.providers.base import ADAPTERS, Credential, Verdict
from rensei.core.secret import Secret


class Connectable(Protocol):
    """What every provider has whose key can be connected."""

    def check_key(self, key: Secret, *, base_url: str = "") -> None: ...

    def default_base_url(self) -> str: ...

    def test_connection(self, *, credential: Credential) -> Verdict: ...


ACCOUNTS: Mapping[str, CapacityAccount] = {
    account.spec.id: account for account in (e2b.E2BAccount(), modal.ModalAccount(), vercel.VercelAccount())
}
CAPACITY: Mapping[str, ProviderSpec] = {provider: account.spec for provider, account in ACCOUNTS.items()}


def specs() -> dict[str, ProviderSpec]:
    """The providers whose keys can be connected: those of models, then those of capacity."""
    return {**PROVIDERS, **CAPACITY}


def connectable(provider: str) -> Connectable:
    return ACCOUNTS[provider] if provider in ACCOUNTS else ADAPTERS[provider]
