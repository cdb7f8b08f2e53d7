"""The common base of metered and shared: a key of the platform's key pool signs."""

from collections.abc import Collection, Iterable, Sequence
from datetime import datetime
from functools import partial
from typing import ClassVar

from integrations.keys import health, platform
from integrations.models import PlatformKey
from integrations.providers.base import Credential, ProviderFailure
from integrations.vault.openings import Why
from rensei.core.auth_modes import AuthMode
from rensei.core.clock import database_now
from rensei.core.errors import RenseiError, StoredError
from rensei.core.ids import first_id_of
from rensei.dispatch.context import DispatchContext
from rensei.dispatch.models import Attempt, Run
from rensei.dispatch.modes.base import Signer, require_price, why_of

# Errors about a platform key are not shown to the organization.
ABOUT_THE_KEY = frozenset({"PROVIDER_AUTH_FAILED", "PROVIDER_UNFUNDED"})
ABOUT_ITS_LIMITS = frozenset({"PROVIDER_RATE_LIMITED"})


class PlatformPool:
    """A mode in which a platform key signs. The key pool is fixed at dispatch; the key may change."""

    mode: ClassVar[AuthMode]
    pool: ClassVar[PlatformKey.Pool]
    no_key: ClassVar[type[RenseiError]]

    def credential_id(self, facts: DispatchContext) -> str:
        """Return no id: the worker selects the key when it makes the call."""
        return ""

    def max_tokens_cap(self, facts: DispatchContext) -> int | None:
        """Return the lowest cap of the keys that may sign, so that each of them can."""
        keys = facts.pool_keys(self.pool, self.mode)
        caps = [key.max_tokens_cap for key in keys if key.max_tokens_cap and key.paused_because is None]
        return min(caps, default=None)

    def require_key(self, facts: DispatchContext, at_most: int | None) -> None:
        if not platform.running(facts.pool_keys(self.pool, self.mode)):
            raise self._no_key(facts.profile.provider, facts.requested.model_id, facts.platform_keys, now=facts.now)

    def require_price(self, facts: DispatchContext, at_most: int | None) -> None:
        require_price(facts, self.mode)

    def signers(self, facts: Sequence[DispatchContext], *, rate_limit: str = "") -> Sequence[Signer]:
        """:raises RenseiError: if no key serves all of the models, or an operator has paused those that do"""
        its, *others = facts
        keys = platform.running(its.pool_keys(self.pool, self.mode, rate_limit=rate_limit))
        for each in others:
            ids = {key.id for key in platform.running(each.pool_keys(self.pool, self.mode))}
            keys = [key for key in keys if key.id in ids]
        if not keys:
            models = " and ".join(each.requested.model_id for each in facts)
            raise self._no_key(its.profile.provider, models, its.platform_keys, now=its.now)
        return [Signer(key=key, weight=max(1, key.weight)) for key in keys]

    def open_signer(self, signer: Signer, *, now: datetime, why: Why) -> Credential:
        assert isinstance(signer.key, PlatformKey)
        return platform.open_platform_key(signer.key, why=why)

    def open_credential(self, run: Run) -> Credential:
        """
        Open a healthy key of the key pool.

        :raises RenseiError: if the key pool has no key left for the model, or an operator has paused all of them
        :raises CredentialUnreadable: if the vault cannot open the key
        """
        credential = self._open(run)
        if credential is None:
            raise self._no_key_for(run)
        return credential

    def next_credential(
        self, run: Run, failed: Credential, failure: ProviderFailure, *, rate_limit: str = ""
    ) -> Credential | None:
        """Record the failure for its key. If the key caused it, open a key that this run has not tried yet."""
        call = health.FailedCall(
            credential=failed,
            org_id=run.org_id,
            rate_limit=rate_limit or run.served_model_id,
            succeeded_at=partial(_succeeded_at, failed, run.served_model_id),
        )
        health.note_failure(call, failure, now=database_now())
        if failure.output_seen or failure.code not in ABOUT_THE_KEY | ABOUT_ITS_LIMITS:
            return None
        besides = set(Attempt.objects.filter(run=run).values_list("credential_id", flat=True))
        if failure.status == health.FORBIDDEN:
            # Others that refused the organization the same are not asked for it again. They serve its other calls.
            besides |= self._refused_to(run, call.rate_limit)
        return self._open(run, rate_limit=rate_limit, besides=besides)

    def error_of(self, run: Run, failure: ProviderFailure) -> StoredError:
        if failure.code not in ABOUT_THE_KEY:
            return failure.as_error()
        refusal = self._no_key_for(run)
        return {"code": refusal.code, "detail": refusal.cause, "fix": refusal.fix, "retryable": True}

    def pool_id(self, provider: str) -> str:
        return f"{self.pool}_pool_{provider}"

    def _no_key(self, provider: str, model_id: str, keys: Iterable[PlatformKey], *, now: datetime) -> RenseiError:
        """Build the refusal that no key serves a model. It lists the models that the key pool serves now."""
        running = [
            key for key in keys if (key.pool, key.provider) == (self.pool, provider) and key.paused_because is None
        ]
        served = sorted({model for key in running for model in key.model_ids if key.cools_until(model, now) is None})
        return self.no_key(provider=provider, model_id=model_id, served=", ".join(served) or "none now")

    def _no_key_for(self, run: Run) -> RenseiError:
        now = database_now()
        keys = platform.healthy_keys(now=now, provider=run.provider, pool=self.pool)
        return self._no_key(run.provider, run.model_id, keys, now=now)

    def _refused_to(self, run: Run, rate_limit: str) -> set[str]:
        """List the keys that would refuse the call as they have refused others of the organization a moment ago."""
        now = database_now()
        keys = platform.healthy_keys(now=now, provider=run.provider, pool=self.pool)
        return {key.id for key in keys if health.has_refused(key, org_id=run.org_id, rate_limit=rate_limit, now=now)}

    def _open(self, run: Run, *, rate_limit: str = "", besides: Collection[str] = ()) -> Credential | None:
        key = platform.healthy_key(
            provider=run.provider,
            pool=self.pool,
            model_id=run.served_model_id,
            now=database_now(),
            rate_limit=rate_limit,
            besides=besides,
        )
        return platform.open_platform_key(key, why=why_of(run)) if key else None


def _succeeded_at(credential: Credential, model_id: str, since: datetime) -> datetime | None:
    """Return when the newest call of a model that began since a moment succeeded under a key. Ids sort by time."""
    succeeded = Attempt.objects.filter(
        id__gte=first_id_of("att", since),
        credential_id=credential.id,
        credential_version=credential.version,
        state=Attempt.State.SETTLED,
        error__isnull=True,
        run__served_model_id=model_id,
    )
    return succeeded.order_by("-id").values_list("finished_at", flat=True).first()
