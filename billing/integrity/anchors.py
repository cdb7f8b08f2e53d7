"""
Anchors sign the current end of each chain with a key that is not in the database.

Rewritten lines can get new digests, but not new signatures. All anchors form one chain: each has a number and
the digest of the previous anchor, so none can be removed from the middle. Witnesses are notified of the end: the
mark beside the key, the anchors' file, and the witnesses that an operator has configured.
"""

import hashlib
import hmac
import json
import os
import secrets
import stat
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import structlog
from django.conf import settings
from django.db.models import F, OuterRef, Subquery
from django.db.models.functions import Coalesce

from billing.integrity import anchor_files, digests
from billing.integrity.anchor_files import text_of
from billing.integrity.digests import START
from billing.models import AuditSeal, LedgerAnchor, LedgerSeal
from rensei.core import private_files
from rensei.core.clock import database_now
from rensei.core.transactions import durable
from rensei.orgs.models import Org

KEY_BYTES = 32

logger = structlog.get_logger(__name__)


class AnchorKeyUnavailable(Exception):
    """The key file is missing although anchors exist, or its content is not in Rensei's format."""


class AnchorsCut(Exception):
    """The database lacks anchors that the mark records. Signing more would hide the gap, so nothing is signed."""


@dataclass(frozen=True, kw_only=True)
class Mark:
    """The newest anchor that the mark beside the key records. If not `signed`, Rensei did not write it."""

    counter: int
    digest: str
    signed: bool


def anchor() -> None:
    """
    Sign the end of every chain that has grown, and update the mark and the files.

    :raises AnchorsCut: if the newest anchors are missing from the database
    """
    heads = _grown_chains()
    if heads:
        _sign_heads(heads, _ensure_key())
    newest = LedgerAnchor.objects.exclude(counter=None).order_by("-counter").first()
    if newest is not None:
        key = load_key()
        require_mark(key)
        _write_mark(newest, key)
    anchor_files.add_new(settings.RENSEI_LEDGER_ANCHORS)
    if settings.RENSEI_LEDGER_WITNESS_FILE:
        anchor_files.add_new(Path(settings.RENSEI_LEDGER_WITNESS_FILE))


def sign(anchor: LedgerAnchor, key: bytes) -> str:
    """Sign the content of an anchor."""
    return hmac.new(key, json.dumps(_said(anchor)).encode(), hashlib.sha256).hexdigest()


def is_signed(anchor: LedgerAnchor, key: bytes) -> bool:
    """Return whether the signature of an anchor was made with the key."""
    return hmac.compare_digest(sign(anchor, key).encode(), anchor.signature.encode())


def digest_of(anchor: LedgerAnchor) -> str:
    """Return the digest of an anchor, which the next anchor holds."""
    return digests.of_anchor(_said(anchor), anchor.signature)


def mark_path() -> Path:
    """The mark's path, beside the key: write access to the database and the anchors' file does not include it."""
    path: Path = settings.RENSEI_LEDGER_ANCHOR_KEY
    return path.with_name(f"{path.name}.mark")


def read_mark(key: bytes | None) -> Mark | None:
    """Read the mark. Return None if there is none yet."""
    try:
        content = json.loads(mark_path().read_text())
        counter, digest = int(content["counter"]), str(content["digest"])
        signed = key is not None and hmac.compare_digest(_sign_mark(counter, digest, key), str(content["signature"]))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError):
        return Mark(counter=0, digest="", signed=False)
    return Mark(counter=counter, digest=digest, signed=signed)


def require_mark(key: bytes) -> None:
    """:raises AnchorsCut: if the anchor that the mark records is missing or was replaced"""
    mark = read_mark(key)
    if mark is None:
        return
    marked = LedgerAnchor.objects.filter(counter=mark.counter).first()
    if not mark.signed or marked is None or digest_of(marked) != mark.digest:
        raise AnchorsCut(f"the mark {mark_path()} knows of anchor {mark.counter}, which is not in the database")


def load_key() -> bytes:
    """
    Read the signing key.

    :raises AnchorKeyUnavailable: if it is missing, readable by others, or damaged
    """
    path: Path = settings.RENSEI_LEDGER_ANCHOR_KEY
    try:
        with path.open() as file:
            mode = os.fstat(file.fileno()).st_mode
            key = bytes.fromhex(file.read().strip())
    except OSError as fault:
        raise AnchorKeyUnavailable(f"it cannot be read ({fault.strerror})") from None
    except ValueError:
        # The cause would contain the text of the file, so it is dropped.
        raise AnchorKeyUnavailable("it is damaged") from None
    if stat.S_IMODE(mode) & 0o077:
        raise AnchorKeyUnavailable("it is open to other users of the machine: run `chmod 600` on it")
    if len(key) != KEY_BYTES:
        raise AnchorKeyUnavailable("it is damaged")
    return key


def _said(anchor: LedgerAnchor) -> Sequence[object]:
    return digests.said_by_anchor(
        counter=anchor.counter,
        previous=anchor.previous,
        org=anchor.org_id,
        seq=anchor.seq,
        digest=anchor.digest,
        anchored_at=text_of(anchor.anchored_at),
    )


def _sign_heads(heads: list[tuple[str | None, int, str]], key: bytes) -> None:
    with durable():
        require_mark(key)
        now = database_now()
        before = LedgerAnchor.objects.order_by(F("counter").desc(nulls_last=True), "-pk").first()
        counter = (before.counter or 0) if before else 0
        previous = digest_of(before) if before else START
        new = []
        for org_id, seq, digest in heads:
            counter += 1
            each = LedgerAnchor(
                counter=counter, previous=previous, org_id=org_id, seq=seq, digest=digest, anchored_at=now
            )
            each.signature = sign(each, key)
            previous = digest_of(each)
            new.append(each)
        # Two concurrent runs would use the same numbers. The unique constraint rejects the second.
        LedgerAnchor.objects.bulk_create(new)


def _write_mark(newest: LedgerAnchor, key: bytes) -> None:
    """Replace the mark. If the key's folder is not writable, there is no mark, and that is logged."""
    path, digest = mark_path(), digest_of(newest)
    assert newest.counter is not None
    content = {"counter": newest.counter, "digest": digest, "signature": _sign_mark(newest.counter, digest, key)}
    try:
        private_files.replace(path, json.dumps(content) + "\n")
    except OSError as fault:
        logger.warning("ledger_mark_not_written", path=str(path), fault=type(fault).__name__)


def _sign_mark(counter: int, digest: str, key: bytes) -> str:
    return hmac.new(key, json.dumps(["mark", counter, digest]).encode(), hashlib.sha256).hexdigest()


def _grown_chains() -> list[tuple[str | None, int, str]]:
    """The chains whose newest seal has no anchor, with its place and digest. Takes two index reads for each chain."""
    head = LedgerSeal.objects.filter(org=OuterRef("pk")).order_by("-seq")
    anchored = LedgerAnchor.objects.filter(org=OuterRef("pk")).order_by("-seq")
    orgs = Org.objects.annotate(
        head_seq=Subquery(head.values("seq")[:1]),
        head_digest=Subquery(head.values("digest")[:1]),
        anchored_seq=Coalesce(Subquery(anchored.values("seq")[:1]), 0),
    )
    grown = orgs.filter(head_seq__gt=F("anchored_seq")).order_by("pk")
    heads: list[tuple[str | None, int, str]] = list(grown.values_list("pk", "head_seq", "head_digest"))
    audited = AuditSeal.objects.order_by("-seq").values_list("seq", "digest").first()
    last = LedgerAnchor.objects.filter(org=None).order_by("-seq").values_list("seq", flat=True).first()
    if audited and audited[0] > (last or 0):
        heads.append((None, *audited))
    return heads


def _ensure_key() -> bytes:
    """Read the key. Create it if nothing has been signed yet: a new key would not match older anchors."""
    path: Path = settings.RENSEI_LEDGER_ANCHOR_KEY
    signed_before = LedgerAnchor.objects.exists() or anchor_files.size_of(settings.RENSEI_LEDGER_ANCHORS)
    if not path.exists() and not signed_before and not mark_path().exists():
        create_key(path)
    return load_key()


def create_key(path: Path) -> None:
    """Write a random key. The file is written atomically and never replaces an existing one."""
    private_files.create(path, secrets.token_hex(KEY_BYTES) + "\n")
