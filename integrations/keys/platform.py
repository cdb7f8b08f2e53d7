"""The operators' keys for the metered and the shared key pool."""

import random
from collections.abc import Collection, Sequence
from datetime import datetime

from django.db import transaction
from django.db.models import OuterRef, Q, Subquery
from django.utils import timezone

from catalog.providers import PROVIDERS
from integrations.keys import default_address, shapes
from integrations.models import PlatformKey
from integrations.providers.base import ADAPTERS, Credential, Federation, Given, Verdict
from integrations.vault import sealed, vault
from integrations.vault.openings import UNEXPLAINED, Reason, Why
from integrations.vault.sealed import SealedColumn
from rensei.audit.record import record_operator, record_system
from rensei.core.errors import AlreadyExists, FieldError
from rensei.core.secret import Secret
from rensei.orgs import kill_switches
from rensei.orgs.models import KillSwitch, User
from rensei.orgs.shapes import clean_name


def add_platform_key(
    *,
    actor: User | None,
    provider: str,
    pool: str,
    name: str,
    api_key: Secret | None = None,
    federation: Federation | None = None,
    workspace_id: str = "",
    model_ids: Sequence[str] = (),
    max_tokens_cap: int | None = None,
    weight: int = 1,
    active: bool = True,
) -> PlatformKey:
    """
    Add a key to a pool. `actor` is the operator, or None for a command on the server itself.

    :raises FieldError: if a value has the wrong format, or a shared key names no models or no cap
    :raises KeyKindRefused: if it is a key of another kind
    :raises AlreadyExists: if the pool has a key with that name
    :raises CredentialUnreadable: if the vault cannot seal now
    """
    shapes.clean_provider(provider, known=PROVIDERS)
    check_pool(pool=pool, model_ids=model_ids, max_tokens_cap=max_tokens_cap)
    key = PlatformKey(
        provider=provider,
        pool=pool,
        name=clean_name(name),
        workspace_id=shapes.clean_workspace_id(workspace_id, provider=provider),
        model_ids=list(model_ids),
        max_tokens_cap=max_tokens_cap,
        weight=weight,
        active=active,
    )
    _require_unique(key)
    _seal(key, shapes.clean_given(shapes.one_given(api_key, federation), provider=provider))
    # Not durable: the admin calls this within a transaction of its own.
    with transaction.atomic():
        key.save(force_insert=True)
        _record(actor, "platform_key.added", key)
    return key


def update_platform_key(
    key: PlatformKey,
    *,
    actor: User | None,
    name: str,
    model_ids: Sequence[str],
    max_tokens_cap: int | None,
    weight: int,
    active: bool,
) -> PlatformKey:
    """
    Change the settings of a key. Its provider and pool are sealed with it and cannot change.

    :raises FieldError: if a value has the wrong format, or a shared key names no models or no cap
    :raises AlreadyExists: if the pool has a key with that name
    """
    check_pool(pool=key.pool, model_ids=model_ids, max_tokens_cap=max_tokens_cap)
    key.name = clean_name(name)
    key.model_ids, key.max_tokens_cap = list(model_ids), max_tokens_cap
    key.weight, key.active = weight, active
    _require_unique(key)
    with transaction.atomic():
        key.save(update_fields=["name", "model_ids", "max_tokens_cap", "weight", "active"])
        _record(actor, "platform_key.updated", key)
    return key


def replace_key(
    key: PlatformKey,
    *,
    actor: User | None,
    api_key: Secret | None = None,
    federation: Federation | None = None,
    workspace_id: str = "",
) -> PlatformKey:
    """
    Replace the sealed key, or the federation, by either, and treat it as healthy until a call fails.

    :raises FieldError: if it has the wrong format
    :raises KeyKindRefused: if it is a key of another kind
    :raises CredentialUnreadable: if the vault cannot seal now
    """
    key.secret_version += 1
    key.workspace_id = shapes.clean_workspace_id(workspace_id, provider=key.provider)
    _seal(key, shapes.clean_given(shapes.one_given(api_key, federation), provider=key.provider))
    key.key_created_at = timezone.now()
    key.health, key.cooling_until, key.last_error = PlatformKey.Health.HEALTHY, None, None
    key.cooling_models, key.refused = {}, {}
    with transaction.atomic():
        sealed_fields = ["sealed_key", "secret_version", "key_hint", "federation", "workspace_id", "key_created_at"]
        judged = ["health", "cooling_until", "cooling_models", "refused", "last_error"]
        key.save(update_fields=[*sealed_fields, *judged])
        _record(actor, "platform_key.replaced", key)
    return key


def remove_platform_key(key: PlatformKey, *, actor: User | None) -> None:
    """Delete a key of a pool. Runs that were admitted for the pool continue with its other keys."""
    with transaction.atomic():
        _record(actor, "platform_key.removed", key)
        key.delete()


def check_platform_key(key: PlatformKey, *, actor: User) -> Verdict:
    """
    Test a key of a pool, and store the result for the operators.

    :raises CredentialUnreadable: if the vault cannot open the key now
    """
    opened = open_platform_key(key, why=Why(reason=Reason.TEST, actor=actor.email))
    verdict = ADAPTERS[key.provider].test_connection(credential=opened)
    key.last_error = None if verdict.ok else verdict.as_error()
    # The result does not apply to a key that was replaced during the test.
    tested = PlatformKey.objects.filter(pk=key.pk, secret_version=key.secret_version)
    tested.update(last_error=key.last_error)
    return verdict


def check_new_key(
    *,
    provider: str,
    pool: str,
    api_key: Secret | None = None,
    federation: Federation | None = None,
    workspace_id: str = "",
) -> Verdict:
    """
    Test what is not saved. The caller holds no transaction, because this is a call.

    :raises FieldError: if the provider is unknown or the key has the wrong format
    :raises KeyKindRefused: if it is a key of another kind
    """
    shapes.clean_provider(provider, known=PROVIDERS)
    given = shapes.clean_given(shapes.one_given(api_key, federation), provider=provider)
    unsaved = PlatformKey(
        provider=provider, pool=pool, workspace_id=shapes.clean_workspace_id(workspace_id, provider=provider)
    )
    unsaved.id = ""
    return ADAPTERS[provider].test_connection(credential=_credential(unsaved, given))


def healthy_key(
    *, provider: str, pool: str, model_id: str, now: datetime, rate_limit: str = "", besides: Collection[str] = ()
) -> PlatformKey | None:
    """
    Choose a healthy key of a pool that serves a model, by weight. None if there is none except the excluded ones.

    :param rate_limit: the provider's limit that the call counts in, if it is not the model's usual one
    :raises PausedByOperator: if there are some, and an operator has paused all of them
    """
    serving = [
        key
        for key in healthy_keys(now=now, provider=provider, pool=pool)
        if serves(key, model_id) and key.cools_until(rate_limit or model_id, now) is None and key.id not in besides
    ]
    keys = running(serving)
    if not keys:
        return None
    weights = [max(1, key.weight) for key in keys]
    return random.choices(keys, weights)[0]  # noqa: S311 - it spreads load and guards nothing


def healthy_keys(*, now: datetime, **filters: str) -> list[PlatformKey]:
    """
    List the healthy keys, and those that have cooled down. One of them may be cooling for some models.

    `paused_because` is set on keys that may not sign.
    """
    switches = KillSwitch.objects.filter(kind=KillSwitch.Kind.PLATFORM_KEY, target=OuterRef("pk"))
    healthy = Q(health=PlatformKey.Health.HEALTHY)
    cooled = Q(health=PlatformKey.Health.COOLING, cooling_until__lte=now)
    keys = PlatformKey.objects.filter(healthy | cooled, active=True, **filters)
    found = keys.annotate(paused_because=Subquery(switches.values("reason")))  # type: ignore[no-redef] # declared there
    return list(found.order_by("id"))


def running(keys: Sequence[PlatformKey]) -> list[PlatformKey]:
    """
    Filter out the keys that an operator has paused, from a list made by `healthy_keys`.

    :raises PausedByOperator: if there are some, and all of them are paused
    """
    found = [key for key in keys if key.paused_because is None]
    if keys and not found:
        reason = keys[0].paused_because or ""
        raise kill_switches.paused(KillSwitch.Kind.PLATFORM_KEY, keys[0].id, reason=reason)
    return found


def serves(key: PlatformKey, model_id: str) -> bool:
    """Return whether a key may call a model: one it names, or any model for a metered key that names none."""
    return model_id in key.model_ids or (not key.model_ids and key.pool == PlatformKey.Pool.METERED)


def open_platform_key(key: PlatformKey, *, why: Why = UNEXPLAINED) -> Credential:
    """
    Open a key of a pool for one call. It is sent only to the provider's own address.

    :raises CredentialUnreadable: if the vault cannot open it now
    """
    text = vault.open_sealed(key.sealed_key, context=_seal_context(key), why=why)
    return _credential(key, text if key.federation is None else Federation.of_sealed(text))


def subject_of(pool: str) -> str:
    """Name a pool in the identity tokens that are signed for it. A rule at the provider matches this."""
    return f"rensei:platform:{pool}"


def check_pool(*, pool: str, model_ids: Sequence[str], max_tokens_cap: int | None) -> None:
    """:raises FieldError: if the pool is unknown, or a shared key names no models or no cap"""
    if pool not in PlatformKey.Pool.values:
        raise FieldError(pointer="/pool", reason=f"A pool is one of {', '.join(PlatformKey.Pool.values)}.")
    if pool == PlatformKey.Pool.SHARED and not model_ids:
        raise FieldError(pointer="/modelIds", reason="A shared key names the models that it gives away.")
    if pool == PlatformKey.Pool.SHARED and not max_tokens_cap:
        raise FieldError(pointer="/maxTokensCap", reason="A shared key caps the tokens of one answer.")


def _require_unique(key: PlatformKey) -> None:
    twins = PlatformKey.objects.filter(provider=key.provider, pool=key.pool, name=key.name).exclude(pk=key.pk)
    if twins.exists():
        raise AlreadyExists(what=f"A {key.pool} key named '{key.name}'")


def _credential(key: PlatformKey, given: Given) -> Credential:
    federation = given if isinstance(given, Federation) else None
    return Credential(
        id=key.id,
        version=key.secret_version,
        secret=given if isinstance(given, Secret) else Secret(""),
        federation=federation,
        subject=subject_of(key.pool) if federation else "",
        base_url=default_address.require_approved(key.provider),
        workspace_id=key.workspace_id,
    )


def _seal(key: PlatformKey, given: Given) -> None:
    key.federation = given.wire() if isinstance(given, Federation) else None
    text = given.sealable() if isinstance(given, Federation) else given
    key.sealed_key = vault.seal(text, context=_seal_context(key))
    key.key_hint = shapes.hint_of(given)


def _seal_context(key: PlatformKey) -> vault.SealContext:
    return vault.SealContext(
        org=None,
        record_id=key.id,
        field="api_key" if key.federation is None else "federation",
        version=key.secret_version,
        provider=key.provider,
        destination=vault.DEFAULT_DESTINATION,
        pool=key.pool,
        workspace=key.workspace_id,
    )


def _record(actor: User | None, action: str, key: PlatformKey) -> None:
    detail = {
        "provider": key.provider,
        "pool": key.pool,
        "name": key.name,
        "keyHint": key.key_hint,
        "federation": key.federation,
        "workspaceId": key.workspace_id,
        "modelIds": key.model_ids,
        "maxTokensCap": key.max_tokens_cap,
        "weight": key.weight,
        "active": key.active,
    }
    if actor is None:
        record_system("command", action, object_id=key.id, **detail)
    else:
        record_operator(actor, action, object_id=key.id, **detail)


sealed.register(SealedColumn(PlatformKey, "sealed_key", _seal_context))
