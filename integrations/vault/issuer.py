"""
This server as an OIDC issuer: its signing keys, and the identity tokens that it signs.

A provider that trusts the issuer exchanges such a token for a short access token of its own, so that no key of the
provider has to be stored. https://openid.net/specs/openid-connect-discovery-1_0.html, RFC 7517, RFC 7519
"""

import json
import secrets
import time
from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import Any

from django.conf import settings
from django.db.models.functions import Now

from integrations.models import IssuerKey
from integrations.vault import sealed, signing, vault
from integrations.vault.openings import Reason, Why
from integrations.vault.sealed import SealedColumn
from rensei.audit.record import record_system
from rensei.core.clock import database_now
from rensei.core.secret import Secret
from rensei.core.transactions import durable

ALGORITHM = "ES256"
IDENTITY_SECONDS = 300
# Verifiers cache the published keys. Anthropic asks for 15 minutes before a new key signs.
VERIFIERS_CACHE = timedelta(minutes=15)
PUBLISHED_BEFORE_USE = timedelta(hours=1)
PUBLISHED_AFTER_USE = timedelta(hours=1)
DISCOVERY_PATH = "/.well-known/openid-configuration"
KEYS_PATH = "/.well-known/jwks.json"
ROTATED = "issuer_key.rotated"


def issuer_url() -> str:
    return str(settings.PUBLIC_URL)


def discovery() -> dict[str, Any]:
    """Return the discovery document. Nothing signs in with this issuer, so it has no other endpoint."""
    return {
        "issuer": issuer_url(),
        "jwks_uri": f"{issuer_url()}{KEYS_PATH}",
        "response_types_supported": ["id_token"],
        "subject_types_supported": ["public"],
        "id_token_signing_alg_values_supported": [ALGORITHM],
        "claims_supported": ["iss", "sub", "aud", "iat", "exp", "jti"],
    }


def key_ids() -> list[str]:
    """List the ids of the published keys, newest first."""
    return list(IssuerKey.objects.order_by("-version").values_list("id", flat=True))


def public_key(key_id: str) -> dict[str, str]:
    """
    Derive a public key from the sealed private one, to be published.

    :raises CredentialUnreadable: if the vault cannot open it now
    """
    why = Why(reason=Reason.PUBLISHING, actor=KEYS_PATH)
    return signing.es256_public(_open(IssuerKey.objects.get(pk=key_id), why).reveal())


def require_key() -> None:
    """
    Make the first signing key, if there is none. It signs at once.

    :raises CredentialUnreadable: if the vault cannot seal now
    """
    if not IssuerKey.objects.exists():
        # Of two simultaneous first uses, the unique version accepts one.
        IssuerKey.objects.bulk_create([_make(version=1, signs_from=database_now())], ignore_conflicts=True)


def identity_token(*, subject: str, audience: str, claims: Mapping[str, str]) -> Secret:
    """
    Sign a short token that states who a caller is. Each has an id of its own, because it can be used only once.

    :raises CredentialUnreadable: if the vault cannot open the signing key now
    """
    row = _signing_key()
    if row is None:
        require_key()
        row = _signing_key()
        assert row is not None, "The first key signs at once"
    issued = int(time.time())
    content = {
        **claims,
        "iss": issuer_url(),
        "sub": subject,
        "aud": audience,
        "iat": issued,
        "exp": issued + IDENTITY_SECONDS,
        "jti": secrets.token_urlsafe(16),
    }
    signed = f"{_encoded({'alg': ALGORITHM, 'kid': row.id, 'typ': 'JWT'})}.{_encoded(content)}"
    why = Why(reason=Reason.IDENTITY, actor=subject)
    signature = signing.es256_sign(signed.encode(), _open(row, why).reveal())
    return Secret(f"{signed}.{signing.base64url(signature)}")


def signs_by_a_new_key() -> bool:
    """Return whether another key was replaced at once, so lately that verifiers may not have fetched the new one."""
    row = _signing_key()
    return row is not None and row.version > 1 and row.created_at > database_now() - VERIFIERS_CACHE


def rotate(*, actor: str, now: datetime | None = None, at_once: bool = False) -> IssuerKey:
    """
    Make another signing key. It is published now and signs in an hour, or at once, which removes all older ones.

    :param at_once: for a key that others know. Exchanges may be refused until verifiers have fetched the new one
    :raises CredentialUnreadable: if the vault cannot seal now
    """
    now = now or database_now()
    newest = IssuerKey.objects.order_by("-version").first()
    version = newest.version + 1 if newest else 1
    row = _make(version=version, signs_from=now if at_once or newest is None else now + PUBLISHED_BEFORE_USE)
    with durable():
        row.save(force_insert=True)
        if at_once:
            IssuerKey.objects.filter(version__lt=version).delete()
        record_system(actor, ROTATED, object_id=row.id, atOnce=at_once, signsFrom=row.signs_from.isoformat())
    return row


def keep_fresh() -> None:
    """Rotate a signing key that is old, where the operator wants that, and remove those that are no longer needed."""
    now = database_now()
    newest = IssuerKey.objects.order_by("-version").first()
    days = settings.RENSEI_ISSUER_KEY_DAYS
    if newest is not None and days and newest.signs_from < now - timedelta(days=days):
        rotate(actor="job", now=now)
    signs = IssuerKey.objects.filter(signs_from__lte=now - PUBLISHED_AFTER_USE).order_by("-version").first()
    if signs is not None:
        IssuerKey.objects.filter(version__lt=signs.version).delete()


def _signing_key() -> IssuerKey | None:
    return IssuerKey.objects.filter(signs_from__lte=Now()).order_by("-version").first()


def _make(*, version: int, signs_from: datetime) -> IssuerKey:
    private = Secret(signing.new_es256_key())
    row = IssuerKey(id=signing.es256_public(private.reveal())["kid"], version=version, signs_from=signs_from)
    row.sealed_key = vault.seal(private, context=_context(row))
    return row


def _open(row: IssuerKey, why: Why) -> Secret:
    return vault.open_sealed(row.sealed_key, context=_context(row), why=why)


def _context(row: IssuerKey) -> vault.SealContext:
    return vault.SealContext(
        org=None,
        record_id=row.id,
        field="issuer_key",
        version=row.version,
        provider="",
        destination=vault.DEFAULT_DESTINATION,
    )


def _encoded(content: Mapping[str, Any]) -> str:
    return signing.base64url(json.dumps(content, separators=(",", ":")).encode())


sealed.register(SealedColumn(IssuerKey, "sealed_key", _context))
