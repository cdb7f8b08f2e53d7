"""What metered and shared have in common: a key of the platform's pool signs."""

from typing import ClassVar

from integrations import platform_keys
from integrations.models import PlatformKey
from integrations.providers.base import Credential
from rensei.core.auth_modes import AuthMode
from rensei.core.errors import RenseiError
from rensei.dispatch.facts import Facts
from rensei.dispatch.models import Run


class PlatformPool:
    """A mode whose calls are signed by the platform. The pool is fixed at dispatch; the key may change."""

    mode: ClassVar[AuthMode]
    pool: ClassVar[PlatformKey.Pool]
    no_key: ClassVar[type[RenseiError]]

    def credential_id(self, facts: Facts) -> str:
        key = facts.platform_key(self.pool, self.mode)
        return key.id if key else ""

    def max_tokens_cap(self, facts: Facts) -> int | None:
        key = facts.platform_key(self.pool, self.mode)
        return key.max_tokens_cap if key else None

    def require_key(self, facts: Facts) -> None:
        if facts.platform_key(self.pool, self.mode) is None:
            raise self.no_key(provider=facts.profile.provider, model_id=facts.profile.model_id)

    def open_credential(self, run: Run) -> Credential:
        """
        Open a healthy key of the pool: the one that the run was admitted with, if it still is.

        :raises RenseiError: if the pool has no key for the model any more
        :raises CredentialUnreadable: if the vault cannot open it
        """
        key = platform_keys.healthy_key(provider=run.provider, pool=self.pool, model_id=run.served_model_id)
        if key is None:
            raise self.no_key(provider=run.provider, model_id=run.model_id)
        return platform_keys.open_platform_key(key)

    def pool_id(self, provider: str) -> str:
        return f"{self.pool}_pool_{provider}"
