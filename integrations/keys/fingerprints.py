"""
Replacing the key of the fingerprints, by which an organization's own keys are recognised when they are connected again.

Each integration names the version that its fingerprint was made with. So the rows of older versions are the work that
is left, and a killed job resumes by starting again.
"""

import secrets
from collections.abc import Collection

from django.db import IntegrityError, transaction
from django.db.models import Max, QuerySet

from integrations.keys import credentials
from integrations.models import DataKey, Integration
from integrations.vault import data_keys, sealed
from integrations.vault.errors import CredentialUnreadable, VaultFault
from integrations.vault.openings import Reason, Why
from integrations.vault.rotation import Batch, next_rows
from rensei.core.clock import database_now

PURPOSE = DataKey.Purpose.FINGERPRINT
FINGERPRINT_BYTES = 32
TWICE = "the same key is connected twice in its organization: remove one of them"


def add_key() -> None:
    """
    Make another key, by which new fingerprints are made from now on.

    :raises CredentialUnreadable: if the outer key is not available
    """
    try:
        data_keys.add_version(org=None, purpose=PURPOSE)
    except VaultFault as fault:
        raise CredentialUnreadable(reason=fault) from None


def version() -> int:
    """Return the version of the newest key; 0 if there is none yet."""
    keys = DataKey.objects.filter(org=None, purpose=PURPOSE)
    return keys.aggregate(newest=Max("version"))["newest"] or 0


def outdated() -> "QuerySet[Integration]":
    """Find the integrations whose fingerprint is of an older key."""
    return Integration.objects.filter(fingerprint_version__lt=version()).select_related("org")


def recompute_batch(after: str = "", skipped: Collection[str] = ()) -> Batch:
    """
    Make some of the fingerprints of an older key anew, and then those before the position.

    :param after: the id of the last integration of the batch before
    :param skipped: the ids of the integrations that could not be recomputed before
    :raises CredentialUnreadable: if a key service does not answer. What is done stays done
    """
    rows = next_rows(outdated().exclude(pk__in=list(skipped)), after)
    count, failed = 0, {}
    for integration in rows:
        try:
            count += _recompute_one(integration)
        except CredentialUnreadable as fault:
            if fault.retryable:
                raise
            failed[integration.pk] = str(fault)
        except IntegrityError:
            failed[integration.pk] = TWICE
    return Batch(done=count, failed=failed, is_last=not rows, position=rows[-1].pk if rows else after)


def delete_unneeded_keys() -> int:
    """Delete older keys when no fingerprint names them, and none that is being stored now can."""
    newest = DataKey.objects.filter(org=None, purpose=PURPOSE).order_by("-version").first()
    if newest is None or newest.created_at > database_now() - sealed.OLD_KEYS_FOR or outdated().exists():
        return 0
    count, _ = DataKey.objects.filter(org=None, purpose=PURPOSE, version__lt=newest.version).delete()
    return count


def _recompute_one(integration: Integration) -> bool:
    """Replace a fingerprint, unless the key was replaced meanwhile. A key that was destroyed is recognised no more."""
    try:
        why = Why(reason=Reason.FINGERPRINT, actor="rotate-fingerprint-key")
        text = credentials.open_text(integration, why=why)
    except CredentialUnreadable as fault:
        if not fault.is_gone:
            raise
        newest, fingerprint = version(), secrets.token_hex(FINGERPRINT_BYTES)
    else:
        newest, fingerprint = next(iter(credentials.fingerprints_of(integration, text).items()))
    same = Integration.objects.filter(pk=integration.pk, secret_version=integration.secret_version)
    # Inside a caller's transaction, as in tests, a refused row must not end it.
    with transaction.atomic():
        return bool(same.update(fingerprint=fingerprint, fingerprint_version=newest))
