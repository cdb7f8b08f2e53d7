"""Seal and open credentials, recognise a key without opening it, and report the vault's health."""

import hashlib
import hmac
from collections.abc import Sequence
from dataclasses import dataclass

from integrations.models import DataKey, Integration, KeyCheck, PlatformKey
from integrations.vault import data_keys, envelope, kek_providers, openings
from integrations.vault.errors import CredentialUnreadable, KeyServiceSilent, VaultFault
from integrations.vault.framing import length_prefixed
from integrations.vault.openings import UNEXPLAINED, Why
from rensei.core.secret import Secret
from rensei.orgs.models import Org

PLATFORM = "platform"
DEFAULT_DESTINATION = "default"
REMEDY = (
    "Look at what RENSEI_KEK_URL names, by default the file of RENSEI_VAULT_KEYRING, and put the right key back: "
    "nothing was overwritten."
)


@dataclass(frozen=True, kw_only=True)
class SealContext:
    """
    The place of a sealed credential. It does not open anywhere else.

    Without an organization it is the platform's, and names its pool. `destination` is the integration's own
    base URL, or `default`, so that a changed address cannot redirect a key to another server. `workspace` is the
    provider's workspace in which the key is used, if one is named.
    """

    org: Org | None
    record_id: str
    field: str
    version: int
    provider: str
    destination: str
    pool: str = ""
    workspace: str = ""

    def parts(self) -> tuple[str, ...]:
        """List what the record is bound to. The parts are framed by length, so an additional one is never ambiguous."""
        owner = self.org.id if self.org is not None else PLATFORM
        bound = (owner, self.pool, self.record_id, self.field, str(self.version), self.provider, self.destination)
        return (*bound, self.workspace) if self.workspace else bound


@dataclass(frozen=True, kw_only=True)
class VaultHealth:
    """
    The vault's health, described for the operator.

    `kek_id` is the current key-encryption key, or the first one that is missing or wrong; empty if there is
    none. `sealed_count` is the number of stored credentials, or, when not ok, of those that cannot be opened.
    It is `silent` if nothing is wrong but that a key service does not answer, which may pass in a moment.
    """

    ok: bool
    kek_id: str
    detail: str
    sealed_count: int
    silent: bool = False


def seal(secret: Secret, *, context: SealContext) -> bytes:
    """
    Seal a credential for one place.

    :raises CredentialUnreadable: if the data key of its owner is not available
    """
    try:
        key_id, key = data_keys.current_key(org=context.org)
    except VaultFault as fault:
        raise CredentialUnreadable(reason=fault) from None
    return envelope.seal(secret.reveal().encode(), key=key, key_id=key_id, context=context.parts())


def fetch_key(*, org: Org | None) -> None:
    """
    Unwrap the newest data key of an owner into memory, before a transaction in which it is used.

    :raises CredentialUnreadable: if it is not available
    """
    try:
        data_keys.current_key(org=org)
    except VaultFault as fault:
        raise CredentialUnreadable(reason=fault) from None


def open_sealed(sealed: bytes | memoryview, *, context: SealContext, why: Why = UNEXPLAINED) -> Secret:
    """
    Open a credential. It must have been sealed for exactly this place. The opening is recorded with its cause.

    :raises CredentialUnreadable: if the key is missing or wrong, or the record was altered or moved
    """
    record = bytes(sealed)  # PostgreSQL returns a memoryview.
    try:
        key = data_keys.key_by_id(envelope.key_id_of(record), org=context.org)
        opened = Secret(envelope.open_sealed(record, key=key, context=context.parts()).decode())
    except VaultFault as fault:
        raise CredentialUnreadable(reason=fault) from None
    org_id = context.org.id if context.org is not None else None
    openings.note(record_id=context.record_id, version=context.version, org_id=org_id, why=why)
    return opened


def fingerprints(secret: Secret, *, org_id: str, provider: str) -> dict[int, str]:
    """
    Return a value that is equal for the same key in the same organization, and reveals nothing else about it.

    There is one for each version of its key, the newest first: while that key is replaced, stored ones are of either.
    Its key is wrapped like a data key but is not one, so fingerprints stay valid when data keys change.

    :raises CredentialUnreadable: if that key is not available
    """
    return fingerprints_of_each([secret], org_id=org_id, provider=provider)[0]


def fingerprints_of_each(texts: Sequence[Secret], *, org_id: str, provider: str) -> list[dict[int, str]]:
    """
    Return the `fingerprints` of each of many texts. Their key is read once.

    :raises CredentialUnreadable: if that key is not available
    """
    try:
        peppers = data_keys.versions_of(org=None, purpose=DataKey.Purpose.FINGERPRINT)
    except VaultFault as fault:
        raise CredentialUnreadable(reason=fault) from None
    framed = [length_prefixed(org_id, provider, text.reveal()) for text in texts]
    return [
        {version: hmac.new(pepper, text, hashlib.sha256).hexdigest() for version, pepper in peppers.items()}
        for text in framed
    ]


def health() -> VaultHealth:
    """Check every key-encryption key that sealed data depends on."""
    unusable: dict[str, VaultFault] = {}
    # Each key has a check value from its first use, so that the data keys need not be gone through.
    for kek_id in list(KeyCheck.objects.order_by("kek_id").values_list("kek_id", flat=True)):
        if DataKey.objects.filter(kek_id=kek_id).exists():
            try:
                data_keys.check_kek(kek_id)
            except VaultFault as fault:
                unusable[kek_id] = fault
    if unusable:
        count = _sealed_under(list(unusable))
        reasons = "; ".join(_named(kek_id, fault) for kek_id, fault in unusable.items())
        detail = f"{reasons}. {count} stored credential(s) need it. {REMEDY}"
        is_silent = all(isinstance(fault, KeyServiceSilent) for fault in unusable.values())
        return VaultHealth(ok=False, kek_id=next(iter(unusable)), detail=detail, sealed_count=count, silent=is_silent)

    try:
        provider = kek_providers.current()
        current = provider.current_id()
    except VaultFault as fault:
        return VaultHealth(ok=False, kek_id="", detail=f"{fault}. {REMEDY}", sealed_count=0)
    count = Integration.objects.count() + PlatformKey.objects.count()
    return VaultHealth(ok=True, kek_id=current, detail=provider.describe(), sealed_count=count)


def _named(kek_id: str, fault: VaultFault) -> str:
    return str(fault) if kek_id in str(fault) else f"{kek_id}: {fault}"


def _sealed_under(kek_ids: list[str]) -> int:
    keys = DataKey.objects.filter(kek_id__in=kek_ids, purpose=DataKey.Purpose.SEAL)
    orgs = keys.filter(org__isnull=False).values("org")
    count = Integration.objects.filter(org__in=orgs).count()
    if keys.filter(org=None).exists():
        count += PlatformKey.objects.count()
    return count
