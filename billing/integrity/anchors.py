"""
Anchors sign the current end of each chain with a key that is not in the database.

Rewritten lines can get new digests, but not new signatures. All anchors form one chain: each has a number and
the digest of the previous anchor, so none can be removed from the middle. Witnesses are notified of the end: the
mark beside the key, the anchors' file, and the witnesses that an operator has configured.
"""

import hashlib
import hmac
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import structlog
from django.conf import settings
from django.core.exceptions import ValidationError
from django.db import IntegrityError
from django.db.models import F, OuterRef, Subquery
from django.db.models.functions import Coalesce

from billing.integrity import anchor_files, anchor_keys, digests, seals
from billing.integrity.anchor_keys import AnchorKeyUnavailable, Keys
from billing.integrity.digests import START
from billing.models import AuditSeal, LedgerAnchor, LedgerSeal
from rensei.audit.record import record_system
from rensei.core import jobs, private_files
from rensei.core.clock import database_now
from rensei.core.querysets import readable
from rensei.core.transactions import durable
from rensei.orgs.models import Org

JOB = "anchor-ledger"
KEY_ROTATED = "ledger.anchor_key_rotated"
TRIES = 3

logger = structlog.get_logger(__name__)


class AnchorsCut(Exception):
    """The database lacks anchors that the mark records. Signing more would hide the gap, so nothing is signed."""


@dataclass(frozen=True, kw_only=True)
class Mark:
    """The newest anchor that the mark beside the key records. If not `signed`, Rensei did not write it."""

    counter: int
    digest: str
    signed: bool


@dataclass(frozen=True, kw_only=True)
class KeyChange:
    """A hand-over from one key to another, by their ids. `known` says that others know the old one."""

    actor: str
    old: str
    new: str
    known: bool


def anchor() -> None:
    """
    Sign the end of every chain that has grown, and update the mark and the files.

    :raises AnchorsCut: if the newest anchors are missing from the database
    """
    heads = _grown_chains()
    if heads:
        _ensure_keys()
        _sign_heads(heads)
    newest = LedgerAnchor.objects.exclude(counter=None).order_by("-counter").first()
    if newest is not None:
        keys = anchor_keys.load()
        keys.require_all()
        require_mark(keys)
        _write_mark(newest, keys)
        anchor_keys.note_known(keys)
    anchor_files.add_new(settings.RENSEI_LEDGER_ANCHORS)
    if settings.RENSEI_LEDGER_WITNESS_FILE:
        anchor_files.add_new(Path(settings.RENSEI_LEDGER_WITNESS_FILE))


def hand_over(*, actor: str, known: bool = False) -> str:
    """
    Have the key that signs sign the id of the next one in its file, and sign by that one from now on. Returns its id.

    The hand-over is an anchor like the others: everything that the old key has signed is part of the chain that the new
    one continues, so a person who learns the old key later can change none of it.

    :param known: others know the old key. The hand-over says so, and no machine accepts its receipts any more
    :raises AnchorKeyUnavailable: if the file has no next key, or cannot be read, or another command did this meanwhile
    :raises AnchorsCut: if the newest anchors are missing from the database
    """
    keys = anchor_keys.load()
    if not keys.staged:
        raise AnchorKeyUnavailable("it has no next key")
    change = KeyChange(actor=actor, old=keys.active_id, new=keys.staged[-1], known=known)
    seals.seal()
    for left in reversed(range(TRIES)):
        try:
            _sign_heads(_grown_chains(), change)
            break
        except IntegrityError:
            # A worker has signed at the same moment.
            if not left:
                raise
    anchor()
    return change.new


def digest_of(anchor: LedgerAnchor) -> str:
    """Return the digest of an anchor, which the next anchor holds."""
    return digests.of_anchor(anchor_keys.content_of(anchor), anchor.signature)


def mark_path() -> Path:
    """The mark's path, beside the key: write access to the database and the anchors' file does not include it."""
    path: Path = settings.RENSEI_LEDGER_ANCHOR_KEY
    return path.with_name(f"{path.name}.mark")


def read_mark(keys: Keys | None) -> Mark | None:
    """Read the mark. Return None if there is none yet."""
    try:
        content = json.loads(mark_path().read_text())
        counter, digest = int(content["counter"]), str(content["digest"])
        signature = str(content["signature"]).encode()
        # A replaced key, which others may know, has signed no mark of a later anchor.
        signed = keys is not None and any(
            hmac.compare_digest(_sign_mark(counter, digest, key).encode(), signature)
            for key in (*keys.of(counter), *keys.of(counter + 1))
        )
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError):
        return Mark(counter=0, digest="", signed=False)
    return Mark(counter=counter, digest=digest, signed=signed)


def require_mark(keys: Keys) -> None:
    """:raises AnchorsCut: if the anchor that the mark records is missing or was replaced"""
    mark = read_mark(keys)
    if mark is None:
        return
    marked = LedgerAnchor.objects.filter(counter=mark.counter).first()
    if not mark.signed or marked is None or digest_of(marked) != mark.digest:
        raise AnchorsCut(f"the mark {mark_path()} knows of anchor {mark.counter}, which is not in the database")


def _sign_heads(heads: list[tuple[str | None, int, str]], change: KeyChange | None = None) -> None:
    """
    Sign the ends of chains. A hand-over is one more anchor, at the end of the audit log.

    :raises AnchorKeyUnavailable: if the file cannot be read, or the key that hands over does not sign any more
    :raises AnchorsCut: if the newest anchors are missing from the database
    """
    with durable():
        now = database_now()
        before = LedgerAnchor.objects.order_by(F("counter").desc(nulls_last=True), "-pk").first()
        # The keys are read after it: a hand-over that is committed later has the number of the first anchor below.
        keys = anchor_keys.load()
        key = keys.active
        require_mark(keys)
        if change is not None and keys.active_id != change.old:
            raise AnchorKeyUnavailable("another command has replaced it at the same moment")
        first = ((before.counter or 0) if before else 0) + 1
        previous = digest_of(before) if before else START
        places: list[tuple[str | None, int, str, KeyChange | None]] = [(*head, None) for head in heads]
        if change is not None:
            last = AuditSeal.objects.order_by("-seq").values_list("seq", "digest").first()
            if last is None:
                raise AnchorKeyUnavailable("nothing is sealed yet: repeat this when a worker runs")
            places.append((None, *last, change))
            record_system(change.actor, KEY_ROTATED, object_id=change.new, before=change.old, known=change.known)
        new: list[LedgerAnchor] = []
        for org_id, seq, digest, change_here in places:
            each = LedgerAnchor(
                counter=first + len(new),
                previous=previous,
                org_id=org_id,
                seq=seq,
                digest=digest,
                anchored_at=now,
                next_key=change_here.new if change_here else "",
                old_key_known=change_here is not None and change_here.known,
            )
            try:
                # The end of one chain that is not what a seal holds does not stop the signing of the others.
                each.clean_fields(exclude={"org", "signature"})
            except ValidationError:
                if change_here is not None:
                    raise
                jobs.report_row(org_id or "audit log", job=JOB)
                continue
            each.signature = anchor_keys.sign(each, key)
            previous = digest_of(each)
            new.append(each)
        # Two concurrent runs would use the same numbers. The unique constraint rejects the second.
        LedgerAnchor.objects.bulk_create(new)


def _write_mark(newest: LedgerAnchor, keys: Keys) -> None:
    """Replace the mark. If the key's folder is not writable, there is no mark, and that is logged."""
    path, digest = mark_path(), digest_of(newest)
    assert newest.counter is not None
    # That of the next anchor. The keys were read later, and may have been replaced again since.
    key = next(iter(keys.of(newest.counter + 1)))
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
    found: list[Any] = readable(grown.only("pk"), skip=lambda org_id, _: jobs.report_row(org_id, job=JOB))
    heads: list[tuple[str | None, int, str]] = [(org.pk, org.head_seq, org.head_digest) for org in found]
    audited = AuditSeal.objects.order_by("-seq").values_list("seq", "digest").first()
    last = LedgerAnchor.objects.filter(org=None).order_by("-seq").values_list("seq", flat=True).first()
    if audited and audited[0] > (last or 0):
        heads.append((None, *audited))
    return heads


def _ensure_keys() -> None:
    """Create a key if nothing has been signed yet: a new one would not match older anchors."""
    path: Path = settings.RENSEI_LEDGER_ANCHOR_KEY
    signed_before = LedgerAnchor.objects.exists() or anchor_files.size_of(settings.RENSEI_LEDGER_ANCHORS)
    if not path.exists() and not signed_before and not mark_path().exists():
        anchor_keys.create(path)
