"""
How many bytes a run stores: at its admission its input, while it is called its events, and at its end its answer.

A run that waits or is called holds what its answer may still come to, by its own output limit. A run of the gateway
keeps neither prompt nor answer, so it holds nothing, and its row is counted with its end.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from django.db.models import BigIntegerField, Case, Sum, When
from django.db.models.functions import Cast

from rensei.core.errors import StoredError
from rensei.core.limits import limit
from rensei.dispatch.models import Run, RunInput
from rensei.orgs import storage

EVENT_ROW_BYTES = 64
# The last two events of a run, which are written with its end.
LAST_EVENTS_BYTES = 512
ANSWER_BYTES_FIXED = 16 * 1024
ANSWER_BYTES_PER_TOKEN = limit(
    32,
    "bytes for each token of its output limit, and 16 KiB",
    what="Events of a run that are stored for those who watch it",
    told="the run: its events have no more pieces of the answer, and its end has the whole",
)
REPORTED_BYTES_FIXED = limit(
    1024 * 1024,
    "bytes",
    what="Answer that a machine reports, beside 64 bytes for each token of the run's output limit",
    told="the caller: 400 `VALIDATION_FAILED` with the field",
)
# An answer is stored as a text, as the blocks that it came in, and as the events of those who watch.
COPIES = 3


def at_admission(run: Run, given: RunInput | None) -> int:
    """Count what is written with a run: its rows, why it was decided so, and what it was asked."""
    told = storage.size_of(run.trace, run.metadata, run.prices, run.effort_applied)
    return storage.ROW_BYTES + told + (storage.size_of(given.body) if given is not None else 0)


def of_event(data: dict[str, Any]) -> int:
    return EVENT_ROW_BYTES + storage.size_of(data)


def of_end(run: Run, *, text: str, content: list[dict[str, Any]], error: StoredError | None) -> int:
    """Count what the end of a run adds, but for the events that it has written before."""
    if not run.has_events:
        return at_admission(run, None) + storage.size_of(error)
    return LAST_EVENTS_BYTES + storage.size_of(text, content, error)


def count_ends(runs: Sequence[Run], *, sizes: Mapping[str, int]) -> None:
    """Count what ended runs have written, their events included, and let go of what they have held."""
    watched = [run.id for run in runs if run.has_events]
    events = dict(Run.objects.filter(id__in=watched).values_list("id", "event_bytes")) if watched else {}
    used: Counter[str] = Counter()
    let_go: Counter[str] = Counter()
    for run in runs:
        used[run.org_id] += sizes[run.id] + events.get(run.id, 0)
        let_go[run.org_id] += held(run)
    storage.change({org_id: (used[org_id], -let_go[org_id]) for org_id in used})


def of_answer_at_most(run: Run) -> int:
    """The most that the text of a run's answer may take."""
    return ANSWER_BYTES_FIXED + ANSWER_BYTES_PER_TOKEN * run.max_tokens


def of_report_at_most(run: Run) -> int:
    """The most that a machine may report as a run's answer, which comes as a text and as blocks."""
    return REPORTED_BYTES_FIXED + 2 * ANSWER_BYTES_PER_TOKEN * run.max_tokens


def held(run: Run) -> int:
    """What a run may still write when it has been admitted."""
    return COPIES * of_answer_at_most(run) if run.has_events else 0


def by_org() -> Mapping[str, tuple[int, int]]:
    """Add up what each organization's runs store, and what those that have not ended may still write."""
    may_write = COPIES * (ANSWER_BYTES_FIXED + ANSWER_BYTES_PER_TOKEN * Cast("max_tokens", BigIntegerField()))
    is_live = When(state__in=[Run.State.QUEUED, Run.State.RUNNING], via=Run.Via.QUEUE, then=may_write)
    of_live = Sum(Case(is_live, default=0, output_field=BigIntegerField()))
    sums = Run.objects.values_list("org_id").annotate(used=Sum("stored_bytes"), held=of_live)
    return {org_id: (used, held) for org_id, used, held in sums}
