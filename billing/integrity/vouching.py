"""Up to which anchor each witness confirms the ledger and the audit log."""

from collections.abc import Iterator, Sequence
from pathlib import Path

from django.db.models import Max, QuerySet, Sum

from billing.integrity import anchor_files, anchor_keys, anchors
from billing.integrity.anchor_files import named
from billing.integrity.verification import files
from billing.models import AuditSeal, LedgerAnchor, LedgerSeal, LedgerWitness


def sentences(kept_elsewhere: Sequence[Path] = ()) -> Iterator[str]:
    """State up to which anchor each witness confirms, after a comparison without differences."""
    newest = LedgerAnchor.objects.exclude(counter=None).order_by("-counter").first()
    if newest is not None:
        yield f"The newest anchor is {named(newest)}: {_covered(newest.counter)}."
        yield from _not_signed()
    try:
        mark = anchors.read_mark(anchor_keys.load())
    except anchor_keys.AnchorKeyUnavailable:
        mark = None
    yield (
        f"The mark beside the key vouches up to anchor {mark.counter}: {_covered(mark.counter)}."
        if mark
        else "There is no mark."
    )
    for path in [*files(), *kept_elsewhere]:
        last = anchor_files.last_of(path)
        if last is None:
            yield f"{path} holds no anchor."
        else:
            yield f"{path} vouches up to anchor {named(last)}: {_covered(last.counter)}."
    for witness in LedgerWitness.objects.order_by("name"):
        error = f" It could not be told lately: {witness.last_error}." if witness.last_error else ""
        yield f"{witness.name} was told up to anchor {witness.counter}; compare with --witness.{error}"


def _covered(counter: int | None) -> str:
    """State what an anchor covers together with the earlier ones."""
    lines, events = _signed(LedgerAnchor.objects.filter(counter__lte=counter or 0))
    return f"{lines} line(s) and {events} audit event(s)"


def _not_signed() -> Iterator[str]:
    """State what was sealed after the newest anchors and is unknown to every witness."""
    signed_lines, signed_events = _signed(LedgerAnchor.objects.all())
    lines, events = LedgerSeal.objects.count() - signed_lines, AuditSeal.objects.count() - signed_events
    if lines or events:
        yield f"Nothing vouches yet for {lines} line(s) and {events} audit event(s) that were sealed after it."


def _signed(anchors: QuerySet[LedgerAnchor]) -> tuple[int, int]:
    """Count the ledger lines and audit events up to the last of the given anchors in each chain."""
    heads = anchors.exclude(org=None).order_by().values("org").annotate(head=Max("seq"))
    lines = heads.aggregate(total=Sum("head"))["total"] or 0
    return lines, anchors.filter(org=None).aggregate(head=Max("seq"))["head"] or 0
