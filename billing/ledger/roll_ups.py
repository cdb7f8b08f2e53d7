"""Roll-ups of the ledger, written together with its lines, so that reports never read the ledger itself."""

from collections.abc import Iterable
from datetime import UTC
from functools import cache
from operator import attrgetter
from typing import Any

from django.db import connection

from billing.models import CostEvent, UsageDaily
from rensei.core.token_classes import COUNTS
from rensei.core.whole_numbers import WholeNumberField

KEY = ("org_id", "day", "provider", "served_model_id", "auth_mode", "project_id", "profile_id")
SUMS = ("calls", "unpriced", *COUNTS, "amount_picodollars", "billed_picodollars")
_NOTHING = (0,) * len(SUMS)
# What a line has itself. Its day, its number and whether it has no price are computed.
_own_columns = attrgetter(*(name for name in KEY if name != "day"))
_own_counts = attrgetter(*SUMS[2:])
# These sums may exceed 2^63. Counts do not: a call has at most twenty million tokens of a class.
_WHOLE = frozenset(
    {name for name in SUMS if isinstance(UsageDaily._meta.get_field(name), WholeNumberField)}  # noqa: SLF001
)


def add(lines: Iterable[CostEvent]) -> None:
    """
    Add new ledger lines to the roll-ups of their UTC days, in the transaction that writes the lines.

    The keys are locked in sorted order, so that concurrent settlements wait for each other and never deadlock.
    """
    totals: dict[tuple[Any, ...], list[int]] = {}
    for line in lines:
        key = _key(line)
        totals[key] = [total + count for total, count in zip(totals.get(key, _NOTHING), _counts(line), strict=True)]
    for key in sorted(totals):
        _add(key=dict(zip(KEY, key, strict=True)), sums=dict(zip(SUMS, totals[key], strict=True)))


def _key(line: CostEvent) -> tuple[Any, ...]:
    org_id, *others = _own_columns(line)
    return org_id, line.occurred_at.astimezone(UTC).date(), *others


def _counts(line: CostEvent) -> tuple[int, ...]:
    """Return what a line adds, in the order of `SUMS`."""
    *counts, amount, billed = _own_counts(line)
    return int(line.kind == CostEvent.Kind.CHARGE), int(amount is None), *counts, amount or 0, billed


def _add(*, key: dict[str, Any], sums: dict[str, int]) -> None:
    """Add to a day's sums, in one statement valid on both databases. The text is built once, as every call runs it."""
    values = [str(count) if name in _WHOLE else count for name, count in sums.items()]
    with connection.cursor() as cursor:
        cursor.execute(_upsert(connection.vendor), [*({**key, "day": key["day"].isoformat()}.values()), *values])


@cache
def _upsert(vendor: str) -> str:
    table = connection.ops.quote_name(UsageDaily._meta.db_table)  # noqa: SLF001 - Django's way to a model's table
    columns = ", ".join([*KEY, *SUMS])
    plus = {name: "{} + {}" if vendor == "postgresql" or name not in _WHOLE else "whole_plus({}, {})" for name in SUMS}
    added = ", ".join(f"{name} = {plus[name].format(f'{table}.{name}', f'excluded.{name}')}" for name in SUMS)
    places = ", ".join(["%s"] * (len(KEY) + len(SUMS)))
    # The text contains only names of the model itself.
    return (
        f"INSERT INTO {table} ({columns}) VALUES ({places}) "  # noqa: S608
        f"ON CONFLICT ({', '.join(KEY)}) DO UPDATE SET {added}"
    )
