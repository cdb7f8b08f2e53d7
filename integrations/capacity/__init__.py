"""
Capacity providers, in whose cloud runs execute. An organization connects its account there with a key, as it connects a
provider of models; no model is called with that key.
"""

from collections.abc import Mapping
from typing import Protocol

from catalog.providers import PROVIDERS, ProviderSpec
from integrations.capacity import e2b
from integrations.providers.base import ADAPTERS, Credential, Verdict
from rensei.core.secret import Secret


class Connectable(Protocol):
    """What every provider has whose key can be connected."""

    def check_key(self, key: Secret, *, base_url: str = "") -> None: ...

    def default_base_url(self) -> str: ...

    def test_connection(self, *, credential: Credential) -> Verdict: ...


CAPACITY: Mapping[str, ProviderSpec] = {e2b.SPEC.id: e2b.SPEC}
_CONNECTIONS: Mapping[str, Connectable] = {e2b.SPEC.id: e2b.E2BAccount()}


def specs() -> dict[str, ProviderSpec]:
    """The providers whose keys can be connected: those of models, then those of capacity."""
    return {**PROVIDERS, **CAPACITY}


def connectable(provider: str) -> Connectable:
    return _CONNECTIONS[provider] if provider in _CONNECTIONS else ADAPTERS[provider]
