"""A ledger of any size, written as fast as a database takes it, with the roll-ups that belong to it."""

from collections import defaultdict
from collections.abc import Sequence
from datetime import datetime, timedelta
from itertools import islice
from typing import Any

from django.db import connection, transaction
from django.db.models import Model

from billing.ledger.roll_ups import KEY, SUMS
from billing.models import CostEvent, UsageDaily
from rensei.core.auth_modes import PAYER_OF, AuthMode
from rensei.orgs.models import Org
from tests.billing.conftest import PRICES

DAYS = 90
MODELS = ("claude-opus-5-5", "claude-sonnet-4-6", "claude-haiku-4-5")
MODES = (AuthMode.METERED, AuthMode.BYOK, AuthMode.METERED, AuthMode.SHARED)
BATCH = 5000


def fill_ledger(org: Org, *, lines: int, until: datetime) -> None:
    """Write so many charges of the last 90 days, the newest at `until`, with their roll-ups."""
    totals: dict[tuple[Any, ...], dict[str, int]] = defaultdict(lambda: dict.fromkeys(SUMS, 0))
    step = timedelta(days=DAYS) / lines
    events = (_event(org, number, until - step * (lines - 1 - number)) for number in range(lines))
    while batch := list(islice(events, BATCH)):
        with transaction.atomic():
            insert_rows(CostEvent, batch)
        for event in batch:
            key = tuple(event.occurred_at.date() if name == "day" else getattr(event, name) for name in KEY)
            for name in SUMS:
                totals[key][name] += {"calls": 1, "unpriced": 0}.get(name, getattr(event, name, 0))
    UsageDaily.objects.bulk_create(
        [UsageDaily(**dict(zip(KEY, key, strict=True)), **sums) for key, sums in totals.items()], batch_size=500
    )
    with connection.cursor() as cursor:
        cursor.execute("ANALYZE")


def insert_rows(model: type[Model], instances: Sequence[Model]) -> None:
    """Insert row by row in one call, which is many times faster on SQLite than the statements of a bulk insert."""
    fields = model._meta.concrete_fields
    columns, places = ", ".join(str(field.column) for field in fields), ", ".join(["%s"] * len(fields))
    with connection.cursor() as cursor:
        cursor.executemany(
            f"INSERT INTO {model._meta.db_table} ({columns}) VALUES ({places})",
            [
                [field.get_db_prep_save(getattr(one, field.attname), connection) for field in fields]
                for one in instances
            ],
        )


def _event(org: Org, number: int, moment: datetime) -> CostEvent:
    mode = MODES[number % len(MODES)]
    tokens, output = 500 + number % 1000, 50 + number % 100
    amount = tokens * PRICES.input + output * PRICES.output
    return CostEvent(
        id=f"cost_{org.slug}_{number:012d}",
        org=org,
        kind=CostEvent.Kind.CHARGE,
        run_id=f"run_{org.slug}_{number:012d}",
        attempt_id=f"att_{org.slug}_{number:012d}",
        profile_id=f"prof_{number % 7}",
        project_id=f"project-{number % 3}",
        auth_mode=mode,
        payer=PAYER_OF[mode],
        billing_class=f"{mode}.anthropic",
        provider="claude",
        model_id=MODELS[number % 3],
        served_model_id=MODELS[number % 3],
        input_tokens=tokens,
        output_tokens=output,
        input_picodollars=PRICES.input,
        output_picodollars=PRICES.output,
        cache_read_picodollars=PRICES.cache_read,
        cache_write_5m_picodollars=PRICES.cache_write_5m,
        cache_write_1h_picodollars=PRICES.cache_write_1h,
        amount_picodollars=amount,
        billed=mode is AuthMode.METERED,
        billed_picodollars=amount if mode is AuthMode.METERED else 0,
        occurred_at=moment,
    )
