"""
Verification follows each chain with its anchors, and reports the first row that does not match.

The anchors are decisive: a truncated or recomputed chain is consistent in itself, but does not match them.
"""

from collections.abc import Iterator, Sequence
from datetime import datetime, timedelta
from itertools import chain, islice
from pathlib import Path
from typing import Any

from django.conf import settings
from django.db.models import Exists, OuterRef, Q

from billing.integrity import anchor_files, anchor_keys, anchors
from billing.integrity.anchor_files import named
from billing.integrity.anchor_keys import AnchorKeyUnavailable, Keys
from billing.integrity.chains import AUDIT, RECORDS, Record, chain_ids
from billing.integrity.differences import Difference, as_far_as_readable
from billing.integrity.digests import START
from billing.models import LedgerAnchor
from rensei.core.clock import database_now
from rensei.core.querysets import pages
from rensei.core.transactions import snapshot

BATCH = 500
# A row is sealed within seconds. A longer wait shows that no worker seals.
SEALED_WITHIN = timedelta(minutes=10)
# An audit event is sealed after earlier events, except for differences between the clocks of several machines.
OUT_OF_ORDER_MOST = timedelta(hours=1)


def differences(kept_elsewhere: Sequence[Path] = ()) -> Iterator[Difference]:
    """
    Verify all chains as of one moment, with at most one difference for each chain.

    `kept_elsewhere` are files of anchors held by witnesses.
    """
    # Anchors are written to the mark and files after the database, so the snapshot contains all that they hold now.
    sizes = {path: anchor_files.size_of(path) for path in [*files(), *kept_elsewhere]}
    has_mark = anchors.mark_path().exists()
    with snapshot():
        keys = None
        if any(sizes.values()) or has_mark or LedgerAnchor.objects.exists():
            try:
                found = anchor_keys.load()
                found.require_all()
                keys = found
            except AnchorKeyUnavailable as fault:
                yield Difference(kind="anchor-key", org="", object="", expected="a key", found=str(fault))
        if has_mark:
            yield from _mark(keys)
        for path, size in sizes.items():
            yield from _file(path, size, keys)
        yield from islice(_chain_of_anchors(), 1)
        for record in RECORDS:
            for org_id in chain_ids(record):
                checked = as_far_as_readable(
                    _chain(record, org_id, keys), org=org_id or "", place=f"seals of {record.noun}s"
                )
                yield from islice(checked, 1)
            yield from _unsealed(record)


def files() -> list[Path]:
    """The files of anchors that this installation writes."""
    witness = settings.RENSEI_LEDGER_WITNESS_FILE
    return [settings.RENSEI_LEDGER_ANCHORS, *([Path(witness)] if witness else [])]


def _mark(keys: Keys | None) -> Iterator[Difference]:
    """Check that the newest anchor in the mark exists: truncating everything else does not hide the loss."""
    mark = anchors.read_mark(keys)
    if mark is None or keys is None:
        return
    place = "the mark beside the key"
    if not mark.signed:
        yield Difference(kind="anchor", org="", object=place, expected="a mark by our key", found="something else")
        return
    marked = LedgerAnchor.objects.filter(counter=mark.counter).first()
    if marked is None or anchors.digest_of(marked) != mark.digest:
        newest = LedgerAnchor.objects.order_by("-counter").exclude(counter=None).first()
        found = "another one" if marked else f"the newest is {named(newest)}" if newest else "none"
        yield Difference(
            kind="anchor", org="", object=place, expected=f"anchor {mark.counter} in the database", found=found
        )


def _chain_of_anchors() -> Iterator[Difference]:
    """Check the chain of all anchors: no number is missing, and each holds the digest of the previous one."""
    legacy = LedgerAnchor.objects.filter(counter=None).order_by("-pk").first()
    previous = anchors.digest_of(legacy) if legacy else START
    chained = LedgerAnchor.objects.exclude(counter=None).order_by("counter")
    for counter, each in enumerate(chained.iterator(chunk_size=BATCH), start=1):
        place = f"anchor {counter}"
        if each.counter != counter:
            yield Difference(kind="anchor", org="", object=place, expected="an anchor", found="none")
        if each.previous != previous:
            expected = f"{previous[:12]}…, of the anchor before"
            yield Difference(
                kind="anchor", org=each.org_id or "", object=place, expected=expected, found=f"{each.previous[:12]}…"
            )
        previous = anchors.digest_of(each)


def _file(path: Path, size: int, keys: Keys | None) -> Iterator[Difference]:
    """Check that each anchor of a file is signed, and is the same in the database."""
    name = "the anchors' file" if path == settings.RENSEI_LEDGER_ANCHORS else str(path)
    lines = anchor_files.read(path, size)
    while batch := list(islice(lines, BATCH)):
        stored = LedgerAnchor.objects.in_bulk([line.anchor.pk for line in batch if line.anchor is not None])
        for line in batch:
            place = f"line {line.number} of {name}"
            if line.anchor is None:
                yield Difference(kind="anchor", org="", object=place, expected="an anchor", found="something else")
                continue
            if keys is not None and not anchor_keys.is_signed(line.anchor, keys):
                yield _forged(line.anchor, place)
                continue
            twin = stored.get(line.anchor.pk)
            if twin is None or _said(twin) != _said(line.anchor):
                expected = f"anchor {line.anchor.pk} in the database, over {line.anchor.seq} row(s)"
                found = "nothing" if twin is None else "another one"
                yield Difference(
                    kind="anchor", org=line.anchor.org_id or "", object=place, expected=expected, found=found
                )


def _chain(record: Record, org_id: str | None, keys: Keys | None) -> Iterator[Difference]:
    """Check the seals of one chain against its rows and its anchors."""
    signed = iter(LedgerAnchor.objects.filter(org_id=org_id).order_by("seq", "pk").iterator(chunk_size=BATCH))
    anchor = next(signed, None)
    seq, signed_seq, previous = 0, 0, START
    latest: datetime | None = None
    for seal, row in sealed_rows(record, org_id):
        seq += 1
        if seal.seq != seq:
            yield _difference(record, org_id, f"seal {seq}", "a seal", "none")
        yield from _row(record, seal, row, org_id=org_id, previous=previous)
        if row is not None and record is AUDIT:
            yield from _out_of_order(row, latest)
            latest = max(filter(None, [latest, row.occurred_at]))
        while anchor is not None and anchor.seq <= seq:
            if keys is not None and not anchor_keys.is_signed(anchor, keys):
                yield _forged(anchor, f"anchor {anchor.pk}")
            if anchor.digest != seal.digest:
                # The chain is consistent in itself: it was recomputed, starting after the last signed end.
                place = f"seals {signed_seq + 1} to {seq}"
                yield _difference(
                    record, org_id, place, f"digest {anchor.digest[:12]}…, as signed", f"{seal.digest[:12]}…"
                )
            signed_seq = anchor.seq
            anchor = next(signed, None)
        previous = seal.digest
    for late in chain(filter(None, [anchor]), signed):
        if keys is not None and not anchor_keys.is_signed(late, keys):
            yield _forged(late, f"anchor {late.pk}")
        when = f"{late.anchored_at:%Y-%m-%d %H:%M:%S}"
        expected = f"{late.seq} {record.noun}(s), as signed at {when}"
        yield _difference(record, org_id, f"seal {seq + 1}", expected, f"{seq} {record.noun}(s)")


def _row(record: Record, seal: Any, row: Any, *, org_id: str | None, previous: str) -> Iterator[Difference]:
    if row is None:
        expected = f"{record.noun} {seal.seq} of the chain"
        yield _difference(record, org_id, seal.event_id, expected, f"no such {record.noun}")
    elif record.chain_of(row) != org_id:
        yield _difference(record, org_id, row.pk, f"organization {org_id}", f"organization {row.org_id}")
    elif (found := record.digest(row, seq=seal.seq, previous=previous)) != seal.digest:
        yield _difference(record, org_id, row.pk, f"digest {seal.digest[:12]}…, as sealed", f"{found[:12]}…")


def _out_of_order(event: Any, latest: datetime | None) -> Iterator[Difference]:
    """Report an event that is dated earlier than events sealed before it."""
    if latest is not None and event.occurred_at < latest - OUT_OF_ORDER_MOST:
        expected = f"a time near {latest:%Y-%m-%d %H:%M:%S}, as the events before it"
        yield _difference(AUDIT, None, event.pk, expected, f"{event.occurred_at:%Y-%m-%d %H:%M:%S}")


def sealed_rows(record: Record, org_id: str | None) -> Iterator[tuple[Any, Any]]:
    """The seals of a chain in order, each with its row or None, read page by page."""
    for page in pages(record.chain(org_id), size=BATCH, by="seq"):
        rows = record.rows.objects.in_bulk([seal.event_id for seal in page])
        yield from ((seal, rows.get(seal.event_id)) for seal in page)


def _unsealed(record: Record) -> Iterator[Difference]:
    """Report rows whose seal is overdue, and rows that were deleted before they were sealed."""
    rows, seals, waits = (model.objects for model in (record.rows, record.seals, record.waiting))
    is_sealed = Exists(seals.filter(event_id=OuterRef("id")))
    is_waiting = Exists(waits.filter(event_id=OuterRef("id")))
    late = Q(occurred_at__lt=database_now() - SEALED_WITHIN)
    unsealed = rows.filter(~is_sealed).filter(~is_waiting | late).order_by("id")
    for event_id, org_id in unsealed.values_list("id", "org_id").iterator(chunk_size=BATCH):
        yield _difference(record, org_id, event_id, "a seal", "none")
    gone = waits.filter(~Exists(rows.filter(id=OuterRef("event_id")))).order_by("event_id")
    for event_id in gone.values_list("event_id", flat=True).iterator(chunk_size=BATCH):
        yield _difference(record, "", event_id, f"the {record.noun} that waits for its seal", f"no such {record.noun}")


def _said(anchor: LedgerAnchor) -> tuple[object, ...]:
    return (
        *(anchor.counter, anchor.previous),
        *(anchor.org_id, anchor.seq, anchor.digest, anchor.anchored_at, anchor.next_key, anchor.old_key_known),
        anchor.signature,
    )


def _forged(anchor: LedgerAnchor, place: str) -> Difference:
    return Difference(
        kind="anchor",
        org=anchor.org_id or "",
        object=place,
        expected="a signature by our key",
        found="another signature",
    )


def _difference(record: Record, org_id: str | None, place: object, expected: str, found: str) -> Difference:
    return Difference(kind=record.kind, org=org_id or "", object=str(place), expected=expected, found=found)
