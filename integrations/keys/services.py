"""Services for an organization's own keys: connect, test, change, rotate and remove them."""

from collections.abc import Sequence
from datetime import datetime, timedelta

from django.db.models import ProtectedError, Q

from integrations import capacity
from integrations.keys import credentials, shapes, tests_at_once
from integrations.models import Integration
from integrations.providers.base import Credential, Federation, Given, Verdict
from integrations.vault.openings import UNEXPLAINED, Reason, Why
from rensei.audit.record import record
from rensei.core.errors import AlreadyExists, FieldError, InUse, NotFound, RenseiError, Said
from rensei.core.secret import Secret
from rensei.core.transactions import durable
from rensei.orgs import kill_switches, locks, row_limits
from rensei.orgs.access import Access
from rensei.orgs.models import OrgScopedQuerySet
from rensei.orgs.services import require_own
from rensei.orgs.shapes import clean_name
from rensei.tokens.throttling import spend_sensitive

# A reminder may be removed, which is None.
UNCHANGED = -1
REPLACED_FIELDS = (*credentials.SEALED_FIELDS, *credentials.VERDICT_FIELDS, *credentials.AGE_FIELDS)
LAST_USED_EVERY = timedelta(minutes=1)


class KeyNotAccepted(RenseiError):
    """The new key failed its test, so the current one is kept."""

    code = "VALIDATION_FAILED"
    status = 400
    title = "The new key was not accepted"
    message = Said(
        "{verdict} {fix} The key in use was kept.", "To store the new one all the same, skip the test with force."
    )

    def __init__(self, verdict: Verdict) -> None:
        super().__init__(verdict=verdict.message, fix=verdict.fix)
        self.errors = [{"pointer": "/apiKey", "code": verdict.code, "detail": verdict.message}]


class ChangedMeanwhile(RenseiError):
    """Two members replaced one key at the same moment. The first change is kept."""

    code = "IN_USE"
    status = 409
    title = "Changed meanwhile"
    message = Said(
        "Another person replaced the key of '{name}' at the same moment.", "Look at it again, then repeat your change."
    )


# Changing


def add_integration(
    access: Access,
    *,
    provider: str,
    api_key: Secret | None = None,
    federation: Federation | None = None,
    name: str = "",
    base_url: str = "",
    workspace_id: str = "",
    is_default: bool | None = None,
    remind_after_days: int | None = None,
    verdict: Verdict | None = None,
) -> Integration:
    """
    Connect a provider with the organization's own key, or with an identity. The first one of a provider is its default.

    `verdict` is the result of a test of this key made just before.

    :raises FieldError: if a value has the wrong format
    :raises KeyKindRefused: if it is a key of another kind
    :raises BaseUrlRefused: if keys must not be sent to that address
    :raises AlreadyExists: if the name is in use, or the key is already connected
    :raises LimitReached: if the organization has as many integrations as it may
    :raises CredentialUnreadable: if the vault cannot seal now
    """
    access.require_org_manager()
    shapes.clean_provider(provider)
    base_url = shapes.clean_base_url(base_url, provider=provider, org_slug=access.org.slug)
    given = shapes.one_given(api_key, federation)
    given = shapes.clean_given(given, provider=provider, base_url=base_url)
    integration = Integration(
        org=access.org,
        provider=provider,
        name=clean_name(name) if name.strip() else "",
        base_url=base_url,
        workspace_id=shapes.clean_workspace_id(workspace_id, provider=provider),
        created_by=access.user,
    )
    credentials.seal_key(integration, given)
    credentials.remind_after(integration, days=shapes.clean_reminder(remind_after_days))
    if verdict is not None:
        credentials.take_verdict(integration, verdict)

    with durable():
        row_limits.require_room(access.org, Integration.objects.for_org(access.org), row_limits.INTEGRATIONS)
        others = _lock_others(access, integration)
        integration.name = integration.name or _free_name(others, provider=provider)
        _require_unique(integration, others)
        integration.is_default = bool(is_default) or not others
        if integration.is_default:
            _clear_default(integration)
        integration.save(force_insert=True)
        record(access, "integration.added", object_id=integration.id, **_public_facts(integration))
    return integration


def update_integration(
    access: Access,
    integration: Integration,
    *,
    name: str | None = None,
    base_url: str | None = None,
    api_key: Secret | None = None,
    workspace_id: str | None = None,
    is_default: bool | None = None,
    remind_after_days: int | None = UNCHANGED,
) -> Integration:
    """
    Change the given values. A new base URL requires the key again, because the sealed one is bound to the old URL.

    :raises FieldError: if a value has the wrong format, or only one of the key and the base URL is given
    :raises BaseUrlRefused: if keys must not be sent to that address
    :raises AlreadyExists: if the name is in use, or the key is already connected
    :raises CredentialUnreadable: if the vault cannot seal now
    """
    access.require_org_manager()
    require_own(access, integration)
    before = _public_facts(integration)
    version = integration.secret_version
    changed = {"name"}

    if name is not None:
        integration.name = clean_name(name)
    if _move(integration, base_url=base_url, api_key=api_key):
        changed.update({"base_url"}, REPLACED_FIELDS)
    if workspace_id is not None and workspace_id != integration.workspace_id:
        workspace_id = shapes.clean_workspace_id(workspace_id, provider=integration.provider)
        credentials.change_workspace(integration, workspace_id=workspace_id, actor=access.user.email)
        changed.update({"workspace_id"}, credentials.SEALED_FIELDS, credentials.VERDICT_FIELDS)
    if remind_after_days != UNCHANGED:
        credentials.remind_after(integration, days=shapes.clean_reminder(remind_after_days))
        changed.update({"remind_after_days"}, credentials.AGE_FIELDS)

    with durable():
        others = _lock_others(access, integration)
        _require_unchanged(integration, version)
        _require_unique(integration, others)
        if is_default:
            _clear_default(integration)
            integration.is_default = True
            changed.add("is_default")
        elif is_default is False and not any(other.is_default for other in others):
            raise FieldError(pointer="/isDefault", reason="One must be the default. Make another one the default.")
        integration.save(update_fields=changed)
        record(access, "integration.updated", object_id=integration.id, old=before, new=_public_facts(integration))
    return integration


def rotate_integration(
    access: Access,
    integration: Integration,
    *,
    api_key: Secret | None = None,
    federation: Federation | None = None,
    force: bool = False,
) -> Integration:
    """
    Replace the key, or a federation, by either, after the new one has passed its test. `force` skips the test.

    :raises FieldError: if the key has the wrong format
    :raises KeyKindRefused: if it is a key of another kind
    :raises RateLimited: if the caller has tested too many keys
    :raises KeyNotAccepted: if the new key failed its test
    :raises AlreadyExists: if the key is already connected
    :raises CredentialUnreadable: if the vault cannot seal now
    """
    access.require_org_manager()
    require_own(access, integration)
    version = integration.secret_version
    given = shapes.one_given(api_key, federation)
    given = shapes.clean_given(given, provider=integration.provider, base_url=integration.base_url)
    verdict = None if force else _test(access, integration, given)
    if verdict is not None and not verdict.ok:
        raise KeyNotAccepted(verdict)

    credentials.replace_key(integration, given)
    if verdict is not None:
        credentials.take_verdict(integration, verdict)
    with durable():
        others = _lock_others(access, integration)
        _require_unchanged(integration, version)
        _require_unique(integration, others)
        integration.save(update_fields=REPLACED_FIELDS)
        record(access, "integration.rotated", object_id=integration.id, tested=not force, keyHint=integration.key_hint)
    return integration


def remove_integration(access: Access, integration: Integration) -> None:
    """
    Delete a key. If it was the default, the oldest remaining key of the provider becomes the default.

    :raises InUse: if a profile names it
    """
    access.require_org_manager()
    require_own(access, integration)
    with durable():
        others = _lock_others(access, integration)
        if not Integration.objects.filter(pk=integration.pk).exists():
            raise NotFound
        record(access, "integration.removed", object_id=integration.id, **_public_facts(integration))
        try:
            integration.delete()
        except ProtectedError as fault:
            users = ", ".join(sorted(str(user) for user in fault.protected_objects))
            raise InUse(what=f"The integration '{integration.name}'", users=users) from fault
        if others and not any(other.is_default for other in others):
            Integration.objects.filter(pk=successor_of(others).pk).update(is_default=True)


def successor_of(others: Sequence[Integration]) -> Integration:
    """Return the key that becomes the default when the default key is removed: the oldest of the others."""
    return min(others, key=lambda other: (other.created_at, other.id))


# Testing


def check_connection(
    access: Access,
    *,
    provider: str,
    api_key: Secret | None = None,
    federation: Federation | None = None,
    base_url: str = "",
    workspace_id: str = "",
) -> Verdict:
    """
    Test a key without storing anything.

    :raises OrgSuspended: if the operators have suspended the organization
    :raises FieldError: if a value has the wrong format
    :raises KeyKindRefused: if it is a key of another kind
    :raises BaseUrlRefused: if keys must not be sent to that address
    :raises RateLimited: if the caller has tested too many keys
    """
    access.require_org_manager()
    kill_switches.require_not_suspended(access.org)
    shapes.clean_provider(provider)
    base_url = shapes.clean_base_url(base_url, provider=provider, org_slug=access.org.slug)
    given = shapes.one_given(api_key, federation)
    given = shapes.clean_given(given, provider=provider, base_url=base_url)
    candidate = Integration(
        org=access.org,
        provider=provider,
        base_url=base_url,
        workspace_id=shapes.clean_workspace_id(workspace_id, provider=provider),
    )
    return _test(access, candidate, given)


def check_integration(access: Access, integration: Integration) -> Verdict:
    """
    Test a stored key, and store the result.

    :raises OrgSuspended: if the operators have suspended the organization
    :raises CredentialUnreadable: if the vault cannot open the key now
    :raises RateLimited: if the caller has tested too many keys
    """
    access.require_org_manager()
    require_own(access, integration)
    kill_switches.require_not_suspended(access.org)
    version = integration.secret_version
    token_id = access.token.id if access.token else ""
    why = Why(reason=Reason.TEST, actor=access.user.email, token_id=token_id)
    verdict = _call(access, integration, open_integration(integration, why=why))
    credentials.take_verdict(integration, verdict)
    with durable():
        # The result does not apply to a key that was replaced during the test.
        fields = {name: getattr(integration, name) for name in credentials.VERDICT_FIELDS}
        Integration.objects.filter(pk=integration.pk, secret_version=version).update(**fields)
        record(access, "integration.tested", object_id=integration.id, code=verdict.code)
    return verdict


# Using


def visible_integrations(access: Access) -> OrgScopedQuerySet[Integration]:
    """List the keys of the caller's organization."""
    return Integration.objects.for_org(access.org).select_related("org")


def open_integration(integration: Integration, *, why: Why = UNEXPLAINED) -> Credential:
    """
    Open a key for one call.

    :raises CredentialUnreadable: if the vault cannot open it now
    """
    return credentials.open_key(integration, why=why)


def note_used(integration_id: str, when: datetime) -> None:
    """Record the time at which a key was used, to the minute."""
    Integration.objects.filter(pk=integration_id).filter(
        Q(last_used_at=None) | Q(last_used_at__lt=when - LAST_USED_EVERY)
    ).update(last_used_at=when)


# Internal steps


def _move(integration: Integration, *, base_url: str | None, api_key: Secret | None) -> bool:
    """Change the base URL of an integration together with its key. Returns whether it changed."""
    provider = integration.provider
    target = (
        integration.base_url
        if base_url is None
        else shapes.clean_base_url(base_url, provider=provider, org_slug=integration.org.slug)
    )
    if target == integration.base_url:
        if api_key is not None:
            raise FieldError(
                pointer="/apiKey", reason="To replace only the key, rotate it: the new one is then tested."
            )
        return False
    if integration.federation is not None:
        shapes.require_no_base_url(target)
    if api_key is None:
        raise FieldError(pointer="/apiKey", reason="A new base URL needs the key again. Send both together.")
    integration.base_url = target
    credentials.replace_key(integration, shapes.clean_key(api_key, provider=provider, base_url=target))
    return True


def _lock_others(access: Access, integration: Integration) -> list[Integration]:
    """
    Read the organization's other integrations of that provider, locked against other changes until commit.

    The organization's row is the lock. Runs that refer to it are not blocked.

    :raises NotFound: if the organization is being deleted
    """
    locks.lock(access.org.pk)
    others = Integration.objects.for_org(access.org).filter(provider=integration.provider)
    return list(others.exclude(pk=integration.pk))


def _require_unchanged(integration: Integration, version: int) -> None:
    stored = Integration.objects.filter(pk=integration.pk).values_list("secret_version", flat=True).first()
    if stored is None:
        raise NotFound
    if stored != version:
        raise ChangedMeanwhile(name=integration.name)


def _require_unique(integration: Integration, others: list[Integration]) -> None:
    for other in others:
        if other.fingerprint in (integration.fingerprint, *integration.fingerprints):
            raise AlreadyExists(what=f"An integration with this key, '{other.name}' ({other.id}),")
        if other.name == integration.name:
            raise AlreadyExists(what=f"An integration named '{other.name}'")


def _free_name(others: list[Integration], *, provider: str) -> str:
    name = capacity.specs()[provider].display_name
    taken = {other.name for other in others}
    numbered = (f"{name} {number}" for number in range(2, len(taken) + 3))
    return next(candidate for candidate in (name, *numbered) if candidate not in taken)


def _clear_default(integration: Integration) -> None:
    others = Integration.objects.filter(org=integration.org, provider=integration.provider, is_default=True)
    others.exclude(pk=integration.pk).update(is_default=False)


def _public_facts(integration: Integration) -> dict[str, object]:
    return {
        "provider": integration.provider,
        "name": integration.name,
        "keyHint": integration.key_hint,
        "federation": integration.federation,
        "baseUrl": integration.base_url,
        "workspaceId": integration.workspace_id,
        "isDefault": integration.is_default,
        "remindAfterDays": integration.remind_after_days,
    }


def _test(access: Access, integration: Integration, given: Given) -> Verdict:
    return _call(access, integration, credentials.credential(integration, given))


def _call(access: Access, integration: Integration, credential: Credential) -> Verdict:
    """:raises RateLimited: if the caller tests too often, or too many tests of the organization are in progress"""
    with tests_at_once.under_way(integration.org_id):
        spend_sensitive(access)
        return capacity.connectable(integration.provider).test_connection(credential=credential)
