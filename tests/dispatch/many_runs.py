"""Any number of ended runs, written as fast as a database takes them, a tenth of them with an input and its words."""

from collections.abc import Iterator
from datetime import datetime, timedelta
from itertools import islice

from django.db import connection, transaction

from rensei.core.errors import StoredError
from rensei.core.ids import first_id_of
from rensei.dispatch import search
from rensei.dispatch.models import Run, RunInput, SearchEntry
from rensei.orgs.models import Org, User
from tests.billing.many_events import BATCH, MODELS, insert_rows

DAYS = 90
WITH_INPUT_EACH = 10
WORDS = ("sky", "sea", "river", "stone", "wind", "harbour", "lamp")


def fill_runs(org: Org, *, runs: int, until: datetime, user: User, token_id: str) -> None:
    """Write so many runs of the last 90 days, the newest at `until`."""
    step = timedelta(days=DAYS) / runs
    made = (_run(org, number, until - step * (runs - number), user, token_id) for number in range(runs))
    while batch := list(islice(made, BATCH)):
        with transaction.atomic():
            insert_rows(Run, batch)
            inputs = list(_inputs(batch))
            insert_rows(RunInput, inputs)
            SearchEntry.objects.bulk_create([search.entry_of(one.run, one) for one in inputs], batch_size=500)
    with connection.cursor() as cursor:
        cursor.execute("ANALYZE")


def _inputs(batch: list[Run]) -> Iterator[RunInput]:
    for place, run in enumerate(batch):
        if place % WITH_INPUT_EACH == 0:
            text = f"Tell me of the {WORDS[place % len(WORDS)]} and of number {run.id[-6:]}."
            message = {"role": "user", "content": [{"type": "text", "text": text}]}
            yield RunInput(run=run, body={"system": None, "messages": [message]})


def _run(org: Org, number: int, moment: datetime, user: User, token_id: str) -> Run:
    error: StoredError | None = None
    if number % 50 == 0:
        error = {"code": "RUN_TIMEOUT", "detail": "", "fix": "", "retryable": True}
    prefix = first_id_of("run", moment)
    return Run(
        # Two organizations have no run in common.
        id=f"{prefix[:-9]}{org.slug[:1]}{number:08d}",
        org=org,
        created_by=user,
        token_id=token_id if number % 3 else "",
        profile_id=f"prof_{number % 7}",
        profile_name=f"profile {number % 7}",
        provider="claude",
        model_id=MODELS[number % 3],
        served_model_id=MODELS[number % 3],
        auth_mode="byok",
        payer="organization",
        via=Run.Via.QUEUE if number % WITH_INPUT_EACH == 0 else Run.Via.GATEWAY,
        max_tokens=1000,
        state=Run.State.FAILED if error else Run.State.SUCCEEDED,
        error=error,
        usage={"input_tokens": 500, "output_tokens": 50},
        amount_picodollars=1_000_000 * (number % 997 + 1),
        attempt_count=1,
        created_at=moment,
        started_at=moment,
        finished_at=moment + timedelta(milliseconds=200 + number % 3000),
        deadline_at=moment + timedelta(minutes=10),
    )
