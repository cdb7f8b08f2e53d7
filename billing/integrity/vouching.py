"""Which witness vouches up to where, for the ledger and the audit log alike."""

from collections.abc import Iterator, Sequence
from pathlib import Path

from django.db.models import Max, QuerySet, Sum

from billing.integrity import anchor_files, anchors
from billing.integrity.anchor_files import named
from billing.integrity.verification import files
from billing.models import AuditSeal, LedgerAnchor, LedgerSeal, LedgerWitness


def sentences(kept_elsewhere: Sequence[Path] = ()) -> Iterator[str]:
    """Say of each witness up to which anchor it vouches, after a comparison that found no difference."""
    newest = LedgerAnchor.objects.exclude(counter=None).order_by("-counter").first()
    if newest is not None:
        yield f"The newest anchor is {named(newest)}: {_covered(newest.counter)}."
        yield from _not_signed()
    try:
        mark = anchors.read_mark(anchors.load_key())
    except anchors.AnchorKeyUnavailable:
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
    """Say what an anchor stands for, with those before it."""
    lines, events = _signed(LedgerAnchor.objects.filter(counter__lte=counter or 0))
    return f"{lines} line(s) and {events} audit event(s)"


def _not_signed() -> Iterator[str]:
    """Say what was sealed after the newest anchors, which no witness knows of."""
    signed_lines, signed_events = _signed(LedgerAnchor.objects.all())
    lines, events = LedgerSeal.objects.count() - signed_lines, AuditSeal.objects.count() - signed_events
    if lines or events:
        yield f"Nothing vouches yet for {lines} line(s) and {events} audit event(s) that were sealed after it."


def _signed(anchors: QuerySet[LedgerAnchor]) -> tuple[int, int]:
    """Count the lines of all ledgers and the audit events up to the last of some anchors of each chain."""
    heads = anchors.exclude(org=None).order_by().values("org").annotate(head=Max("seq"))
    lines = heads.aggregate(total=Sum("head"))["total"] or 0
    return lines, anchors.filter(org=None).aggregate(head=Max("seq"))["head"] or 0
