"""
Count the bytes that a run stores: its input at admission, its events during the call, its output at the end.

A queued or executing run holds the maximum size of its output, which follows from its output limit. A gateway run
stores neither prompt nor output, so it holds nothing, and its row is counted when it ends.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from django.db.models import BigIntegerField, Case, Sum, When
from django.db.models.functions import Cast

from rensei.core.errors import StoredError
from rensei.core.limits import limit
from rensei.dispatch import agents
from rensei.dispatch.models import Run, RunInput
from rensei.orgs import storage

EVENT_ROW_BYTES = 64
# The size of the last two events of a run, which are written with its end.
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
# An output is stored three times: as a text, as content blocks, and as events.
COPIES = 3
# The log of an agent, with the escapes of JSON and a row for each piece.
AGENT_EVENTS_BYTES = 2 * agents.LOG_BYTES_MAX
AGENT_BYTES = AGENT_EVENTS_BYTES + agents.OUTPUTS_BYTES_MAX + agents.OUTPUTS_MAX * agents.OUTPUT_ROW_BYTES


def at_admission(run: Run, given: RunInput | None) -> int:
    """Return the bytes written at the admission of a run: its rows, the trace of its decision, and its input."""
    told = storage.size_of(run.trace, run.metadata, run.prices, run.effort_applied)
    if given is None:
        return storage.ROW_BYTES + told
    return storage.ROW_BYTES + told + storage.size_of(given.body) + len(given.original or b"")


def of_event(data: dict[str, Any]) -> int:
    return EVENT_ROW_BYTES + storage.size_of(data)


def of_end(
    run: Run,
    *,
    text: str,
    content: list[dict[str, Any]],
    error: StoredError | None,
    files: Sequence[agents.OutputFile] = (),
) -> int:
    """Return the bytes that the end of a run adds, without the events that were written before."""
    if not run.has_events:
        return at_admission(run, None) + storage.size_of(error)
    of_files = sum(agents.OUTPUT_ROW_BYTES + len(file.content) for file in files)
    return LAST_EVENTS_BYTES + storage.size_of(text, content, error) + of_files


def count_ends(runs: Sequence[Run], *, sizes: Mapping[str, int]) -> None:
    """Count the bytes that ended runs have written, including their events, and release what they held."""
    watched = [run.id for run in runs if run.has_events]
    events = dict(Run.objects.filter(id__in=watched).values_list("id", "event_bytes")) if watched else {}
    used: Counter[str] = Counter()
    let_go: Counter[str] = Counter()
    for run in runs:
        used[run.org_id] += sizes[run.id] + events.get(run.id, 0)
        let_go[run.org_id] += held(run)
    storage.change({org_id: (used[org_id], -let_go[org_id]) for org_id in used})


def of_answer_at_most(run: Run) -> int:
    """Return the maximum size of the text of a run's output."""
    return ANSWER_BYTES_FIXED + ANSWER_BYTES_PER_TOKEN * run.max_tokens


def of_report_at_most(run: Run) -> int:
    """Return the maximum size of the output that a machine may report, as a text and as blocks together."""
    return REPORTED_BYTES_FIXED + 2 * ANSWER_BYTES_PER_TOKEN * run.max_tokens


def of_events_at_most(run: Run) -> int:
    """Return the maximum size of the events that are stored of a run before its end."""
    return of_answer_at_most(run) + (AGENT_EVENTS_BYTES if run.is_agent else 0)


def held(run: Run) -> int:
    """Return the bytes that a run may still write after its admission."""
    return COPIES * of_answer_at_most(run) + (AGENT_BYTES if run.is_agent else 0) if run.has_events else 0


def by_org() -> Mapping[str, tuple[int, int]]:
    """Sum for each organization what its runs store, and what its unfinished runs may still write."""
    may_write = COPIES * (ANSWER_BYTES_FIXED + ANSWER_BYTES_PER_TOKEN * Cast("max_tokens", BigIntegerField()))
    may_write += Case(When(is_agent=True, then=AGENT_BYTES), default=0, output_field=BigIntegerField())
    is_live = When(state__in=[Run.State.QUEUED, Run.State.RUNNING], via=Run.Via.QUEUE, then=may_write)
    of_live = Sum(Case(is_live, default=0, output_field=BigIntegerField()))
    sums = Run.objects.values_list("org_id").annotate(used=Sum("stored_bytes"), held=of_live)
    return {org_id: (used, held) for org_id, used, held in sums}
