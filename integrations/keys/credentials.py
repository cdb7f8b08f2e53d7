"""An integration's key: sealing it, opening it for a call, and its test results. Nothing here saves to the database."""

from datetime import timedelta

from django.utils import timezone

from integrations.keys import default_address, shapes
from integrations.models import Integration
from integrations.providers.base import Credential, Federation, Given, Verdict
from integrations.vault import sealed, vault
from integrations.vault.openings import UNEXPLAINED, Reason, Why
from integrations.vault.sealed import SealedColumn
from rensei.core.secret import Secret
from rensei.orgs.models import Org

AGE_FIELDS = ("key_created_at", "remind_at", "reminded_at", "leaked_at")
SEALED_FIELDS = ("sealed_key", "secret_version", "key_hint", "federation", "fingerprint", "fingerprint_version")
VERDICT_FIELDS = ("status", "tested_at", "last_error", "model_list")


def seal_key(integration: Integration, given: Given) -> None:
    """
    Seal a key into its integration, or the ids of its federation. The version, base URL, workspace and id must already
    be set.
    """
    integration.federation = given.wire() if isinstance(given, Federation) else None
    text = given.sealable() if isinstance(given, Federation) else given
    integration.sealed_key = vault.seal(text, context=_context(integration))
    integration.key_hint = shapes.hint_of(given)
    prints = fingerprints_of(integration, text)
    integration.fingerprint_version, integration.fingerprint = next(iter(prints.items()))
    integration.fingerprints = prints.values()


def fingerprints_of(integration: Integration, text: Secret) -> dict[int, str]:
    """
    Return the fingerprints of an integration's sealed text by the version of their key, the newest first.

    :raises CredentialUnreadable: if the vault has no key for them now
    """
    # One rule of a federation may be used in several workspaces.
    known = text if integration.federation is None else Secret(f"{text.reveal()} {integration.workspace_id}")
    return vault.fingerprints(known, org_id=integration.org_id, provider=integration.provider)


def replace_key(integration: Integration, given: Given) -> None:
    """Seal another key, as a new version. Its age begins now, and it has not been tested."""
    integration.secret_version += 1
    seal_key(integration, given)
    integration.key_created_at, integration.leaked_at = timezone.now(), None
    remind_after(integration, days=integration.remind_after_days)
    forget_verdict(integration)


def remind_after(integration: Integration, *, days: int | None) -> None:
    """Set the age of the key at which its owners are reminded; None: never."""
    integration.remind_after_days = days
    integration.remind_at = None if days is None else integration.key_created_at + timedelta(days=days)
    integration.reminded_at = None


def change_workspace(integration: Integration, *, workspace_id: str, actor: str) -> None:
    """
    Change a key's workspace. The key is sealed again, because a sealed key opens for one workspace only.

    :raises CredentialUnreadable: if the vault cannot open or seal it now
    """
    opened = open_key(integration, why=Why(reason=Reason.CHANGE, actor=actor))
    integration.workspace_id = workspace_id
    integration.secret_version += 1
    seal_key(integration, opened.federation or opened.secret)
    forget_verdict(integration)


def open_key(integration: Integration, *, why: Why = UNEXPLAINED) -> Credential:
    """
    Open a key for one call.

    :raises CredentialUnreadable: if the vault cannot open it now
    """
    text = open_text(integration, why=why)
    return credential(integration, text if integration.federation is None else Federation.of_sealed(text))


def open_text(integration: Integration, *, why: Why) -> Secret:
    """
    Open what is sealed: a key, or the ids of a federation.

    :raises CredentialUnreadable: if the vault cannot open it now
    """
    return vault.open_sealed(integration.sealed_key, context=_context(integration), why=why)


def credential(integration: Integration, given: Given) -> Credential:
    """
    Return what signs, with its destination: the integration's own address, else the provider's.

    :raises CredentialUnreadable: if the provider's was changed, and no second operator has approved that
    """
    federation = given if isinstance(given, Federation) else None
    return Credential(
        id=integration.id,
        version=integration.secret_version,
        secret=given if isinstance(given, Secret) else Secret(""),
        federation=federation,
        subject=subject_of(integration.org) if federation else "",
        base_url=integration.base_url or default_address.require_approved(integration.provider),
        workspace_id=integration.workspace_id,
        org_slug=integration.org.slug if integration.base_url else "",
    )


def subject_of(org: Org) -> str:
    """Name an organization in the identity tokens that are signed for it. A rule at the provider matches this."""
    return f"rensei:organization:{org.id}"


def take_verdict(integration: Integration, verdict: Verdict) -> None:
    """Record the result of a test. An inconclusive one leaves the status unchanged."""
    integration.tested_at = timezone.now()
    if verdict.ok:
        integration.status = Integration.Status.OK
        integration.last_error = None
        integration.model_list = verdict.models
    else:
        if verdict.conclusive:
            integration.status = Integration.Status.FAILING
        integration.last_error = verdict.as_error()


def forget_verdict(integration: Integration) -> None:
    """Reset the test result, because the new key or destination has not been tested."""
    integration.status = Integration.Status.UNTESTED
    integration.tested_at = None
    integration.last_error = None
    integration.model_list = []


def _context(integration: Integration) -> vault.SealContext:
    return vault.SealContext(
        org=integration.org,
        record_id=integration.id,
        # The kind is bound too, so that neither can be taken for the other.
        field="api_key" if integration.federation is None else "federation",
        version=integration.secret_version,
        provider=integration.provider,
        destination=integration.base_url or vault.DEFAULT_DESTINATION,
        workspace=integration.workspace_id,
    )


sealed.register(SealedColumn(Integration, "sealed_key", _context))
