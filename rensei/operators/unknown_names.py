"""Names that this version does not support, for operators: their occurrences, and what to do about them."""

from dataclasses import dataclass

from django.utils import timezone

from rensei.audit.record import record_operator
from rensei.core.models import UnknownName
from rensei.core.transactions import durable
from rensei.orgs.models import User

# What an operator does about each kind. Other kinds get the last sentence.
ADVICE = {
    "usage_field": "The provider counts something that has no price here. Compare its invoice, and update Rensei.",
    "iteration_type": "A call has a part of an unknown kind. Its run is charged and flagged. Update Rensei.",
    "block_type": "Callers send content of an unknown kind. Keys of the platform refuse it. Update Rensei.",
    "model": "A model that the catalog lacks was named or answered. Load a newer catalog, or add its entry.",
    "header": "Callers send a header or beta that is not known. Keys of the platform refuse it. Update Rensei.",
    "member": "Callers send a part of a known block or tool that is not known. Keys of the platform refuse it. Update "
    "Rensei.",
    "failed_row": "A periodic job passes over this row each time. Look for row_passed_over in the worker's log.",
    "failed_job": "A periodic job failed. Look for job_failed in the worker's log.",
}
OTHER_ADVICE = "Look for it in the release notes of a newer version, and update Rensei."
SHOWN = 8


@dataclass(frozen=True, kw_only=True)
class Unmarked:
    """The names that no operator has marked as seen: the newest of them, and how many there are."""

    names: list[UnknownName]
    count: int


def advice_for(kind: str) -> str:
    """Return what an operator does about a name of this kind."""
    return ADVICE.get(kind, OTHER_ADVICE)


def unmarked() -> Unmarked:
    """Read the names that no operator has marked as seen, most recent occurrence first."""
    waiting = UnknownName.objects.filter(marked_at=None)
    names = list(waiting.order_by("-last_seen_at", "-pk")[: SHOWN + 1])
    return Unmarked(names=names[:SHOWN], count=len(names) if len(names) <= SHOWN else waiting.count())


def mark(*, keys: list[int], operator: User) -> int:
    """Mark names as seen, with each in the audit log, and return how many were unmarked before."""
    with durable():
        names = list(UnknownName.objects.select_for_update().filter(pk__in=keys, marked_at=None).order_by("pk"))
        now = timezone.now()
        for name in names:
            UnknownName.objects.filter(pk=name.pk).update(marked_at=now, marked_by=operator.email)
            record_operator(operator, "unknown-name.marked", object_id=str(name), count=name.count)
    return len(names)
