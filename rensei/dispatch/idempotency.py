"""Idempotency keys: the same key with the same body within 24 hours is answered with what the first request made."""

import hashlib
import json
from datetime import datetime, timedelta
from typing import Any

from rensei.core.clock import database_now
from rensei.core.errors import RenseiError, Said
from rensei.dispatch.models import IdempotencyKey
from rensei.orgs.access import Access

KEPT = timedelta(hours=24)


class IdempotencyKeyReused(RenseiError):
    """The Idempotency-Key was used for another body within 24 hours."""

    code = "IDEMPOTENCY_KEY_REUSED"
    status = 422
    title = "Idempotency key reused"
    message = Said("This Idempotency-Key came with another body within 24 hours.", "Use a new key for a new request.")


def digest_of(said: Any) -> str:
    """Hash a request as it was parsed, so that the order of a body's keys does not matter."""
    return hashlib.sha256(json.dumps(said, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def known_id(access: Access, key: str, *, digest: str) -> str | None:
    """
    Return the id of what the first request with this key made.

    :raises IdempotencyKeyReused: if the key came with another body
    """
    if not key:
        return None
    known = IdempotencyKey.objects.for_org(access.org).filter(key=key, created_at__gte=database_now() - KEPT).first()
    if known is not None and known.body_digest != digest:
        raise IdempotencyKeyReused
    return known.run_id if known else None


def new(access: Access, key: str, *, digest: str, run_id: str, now: datetime) -> IdempotencyKey | None:
    """Make the row of a key, to be inserted with what the request makes. None without a key."""
    return IdempotencyKey(org=access.org, key=key, body_digest=digest, run_id=run_id, created_at=now) if key else None


def insert(key: IdempotencyKey | None) -> None:
    """:raises IntegrityError: if an equal request was faster"""
    if key is not None:
        IdempotencyKey.objects.filter(org_id=key.org_id, key=key.key, created_at__lt=key.created_at - KEPT).delete()
        key.save(force_insert=True)


def forget_old() -> None:
    """Delete the keys that are older than `KEPT`."""
    IdempotencyKey.objects.filter(created_at__lt=database_now() - KEPT).delete()
