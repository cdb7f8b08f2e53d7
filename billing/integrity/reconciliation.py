"""Consistency checks of the money: each line and each call, the sums over them, and the holds."""

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from datetime import date
from itertools import groupby
from typing import Any

from billing.integrity.differences import Difference, as_far_as_readable
from billing.ledger.roll_ups import KEY, SUMS
from billing.limits.shared_spending import PLATFORM
from billing.models import BudgetHold, BudgetUsage, CostEvent, Hold, SharedSpending, SharedUsage, Statement, UsageDaily
from billing.statements import statements
from rensei.core.token_classes import COUNTS, PRICE_COLUMNS
from rensei.core.usage import Usage
from rensei.orgs.models import Org, SpendCap

BATCH = 1000
COUNTED = tuple(name for name in SUMS if name not in {"calls", "unpriced"})


def line_differences(line: CostEvent) -> Iterator[Difference]:
    """Recompute a line's amount from its own counts and prices. Unknown is never 0."""
    prices = {count: getattr(line, price) for count, price in zip(COUNTS, PRICE_COLUMNS, strict=True)}
    expected = None
    if prices["input_tokens"] is not None:
        expected = sum(getattr(line, count) * (price or 0) for count, price in prices.items())
    if line.amount_picodollars != expected:
        yield _difference("line-amount", line.org_id, line.id, expected, line.amount_picodollars)


def capacity_differences(line: CostEvent) -> Iterator[Difference]:
    """Recompute the amount of a line of capacity. Unknown is never 0."""
    price, seconds = line.sandbox_second_picodollars, line.sandbox_seconds
    expected = None if price is None or seconds is None else seconds * price
    if line.amount_picodollars != expected:
        yield _difference("line-amount", line.org_id, line.id, expected, line.amount_picodollars)


def call_differences(lines: Sequence[CostEvent]) -> Iterator[Difference]:
    """
    Check what the lines of one call bill. After each line, the sum billed is the whole amount, or 0.

    Lines with the same time are one correction. Their order among themselves has no meaning.
    """
    amount = billed = 0
    for _, together in groupby(in_order(lines), key=lambda line: (line.kind, line.occurred_at)):
        group = list(together)
        amount += sum(line.amount_picodollars or 0 for line in group)
        billed += sum(line.billed_picodollars for line in group)
        allowed = {amount if line.billed else 0 for line in group}
        if billed not in allowed:
            expected = " or ".join(str(each) for each in sorted(allowed))
            yield _difference("billed", group[-1].org_id, group[-1].id, expected, billed)


def in_order(lines: Sequence[CostEvent]) -> list[CostEvent]:
    """Sort the lines of one call in the order of writing: the charge, then its corrections."""
    return sorted(lines, key=lambda line: (line.kind != CostEvent.Kind.CHARGE, line.occurred_at, line.id))


def usage_of(lines: Sequence[CostEvent]) -> Usage:
    """Add up the counts of lines."""
    return sum((Usage.of(line) for line in lines), start=Usage())


def sum_differences() -> Iterator[Difference]:
    """Sum every organization's ledger again, and compare it with its roll-ups, budget and statements."""
    for org_id in Org.objects.order_by("pk").values_list("pk", flat=True):
        yield from as_far_as_readable(_sums_of(org_id), org=org_id, place="the sums")


def _sums_of(org_id: str) -> Iterator[Difference]:
    by_key = _ledger_by_key(org_id)
    yield from _roll_ups(org_id, by_key)
    billed: Counter[date] = Counter()
    for (_, day, *_), sums in by_key.items():
        billed[day.replace(day=1)] += sums["billed_picodollars"]
    yield from _months(org_id, billed)


def shared_differences(used: Counter[tuple[str, date]]) -> Iterator[Difference]:
    """Compare each day's shared runs with the holds, and with `used`: the ended runs that reached the provider."""
    held = Counter(Hold.objects.values_list("org_id", "day"))
    days = {(row.org_id, row.day): row for row in SharedUsage.objects.all()}
    for key in sorted({*days, *held, *used}):
        row = days.get(key, SharedUsage())
        org_id, day = key
        if row.held != held[key]:
            yield _difference("shared-held", org_id, str(day), held[key], row.held)
        if row.used != used[key]:
            yield _difference("shared-used", org_id, str(day), used[key], row.used)


def spending_differences() -> Iterator[Difference]:
    """Compare what is held for shared runs with the holds, for each organization and for the platform."""
    held: Counter[str] = Counter()
    for org_id, picodollars in Hold.objects.values_list("org_id", "picodollars"):
        held[org_id] += picodollars
        held[PLATFORM] += picodollars
    found = dict(SharedSpending.objects.values_list("account", "held"))
    for account in sorted({*held, *found}):
        if found.get(account, 0) != held[account]:
            yield _difference("shared-spending-held", account, "today", held[account], found.get(account, 0))


def budget_differences() -> Iterator[Difference]:
    """Compare the amount that each budget records as held with the holds."""
    held: Counter[str] = Counter()
    for org_id, picodollars in BudgetHold.objects.values_list("org_id", "picodollars"):
        held[org_id] += picodollars
    found = dict(BudgetUsage.objects.values_list("org_id", "held"))
    for org_id in sorted({*held, *found}):
        if found.get(org_id, 0) != held[org_id]:
            yield _difference("budget-held", org_id, "budget", held[org_id], found.get(org_id, 0))


def cap_differences(held: Mapping[str, int]) -> Iterator[Difference]:
    """Compare what each cap records as held with the holds of live runs, in picodollars by the cap's id."""
    for cap in SpendCap.objects.order_by("pk"):
        if cap.held != held.get(cap.pk, 0):
            yield _difference("cap-held", cap.org_id, cap.pk, held.get(cap.pk, 0), cap.held)


def _roll_ups(org_id: str, by_key: dict[tuple[Any, ...], dict[str, int]]) -> Iterator[Difference]:
    rows = UsageDaily.objects.filter(org_id=org_id)
    rolled_up = {tuple(getattr(row, name) for name in KEY): row for row in rows.iterator(chunk_size=BATCH)}
    for key in sorted({*by_key, *rolled_up}):
        for name in SUMS:
            expected = by_key[key][name] if key in by_key else 0
            found = getattr(rolled_up[key], name) if key in rolled_up else 0
            if found != expected:
                place = " ".join(str(part) or "-" for part in key[1:])
                yield _difference("roll-up", org_id, f"{name} of {place}", expected, found)


def _months(org_id: str, billed: Counter[date]) -> Iterator[Difference]:
    """Compare what was billed in a month with the use that its budget counts and with its closed statement."""
    for usage in BudgetUsage.objects.filter(org_id=org_id):
        if usage.used != billed[usage.month]:
            yield _difference("budget-used", org_id, f"{usage.month:%Y-%m}", billed[usage.month], usage.used)
    for statement in Statement.objects.filter(org_id=org_id).select_related("org").order_by("month"):
        parts = sum(line["count"] * line["unit_picodollars"] for line in statement.lines)
        parts += sum(adjustment["amount_picodollars"] for adjustment in statement.adjustments)
        for found in {statement.total_picodollars, parts} - {billed[statement.month]}:
            yield _difference("statement", org_id, f"{statement.month:%Y-%m}", billed[statement.month], found)
        yield from _digests(statement)


def _digests(statement: Statement) -> Iterator[Difference]:
    """Compare the digest of a closed statement with its content, and with the month's lines in the ledger."""
    said = (statement.lines, statement.adjustments, statement.total_picodollars)
    read = statements.read_ledger(statement.org, statement.month).content
    for whose, content in (("what it says", said), ("the lines of the ledger", read)):
        digest = statements.digest_of(statement.org_id, statement.month, *content)
        if digest != statement.digest:
            expected = f"{digest[:12]}…, the digest of {whose}"
            found = f"{statement.digest[:12]}…"
            yield _difference("statement-digest", statement.org_id, f"{statement.month:%Y-%m}", expected, found)


def _ledger_by_key(org_id: str) -> dict[tuple[Any, ...], dict[str, int]]:
    """Sum an organization's lines, one in memory at a time, in integers of unlimited size."""
    totals: dict[tuple[Any, ...], dict[str, int]] = defaultdict(lambda: dict.fromkeys(SUMS, 0))
    names = ["occurred_at" if name == "day" else name for name in KEY]
    lines = CostEvent.objects.filter(org_id=org_id).order_by().values_list(*names, "kind", *COUNTED)
    for line in lines.iterator(chunk_size=BATCH):
        key = tuple(part.date() if name == "day" else part for name, part in zip(KEY, line, strict=False))
        kind, counts = line[len(KEY)], dict(zip(COUNTED, line[len(KEY) + 1 :], strict=True))
        sums = totals[key]
        sums["calls"] += kind == CostEvent.Kind.CHARGE
        sums["unpriced"] += counts["amount_picodollars"] is None
        for name, count in counts.items():
            sums[name] += count or 0
    return totals


def _difference(kind: str, org_id: str, place: str, expected: object, found: object) -> Difference:
    return Difference(kind=kind, org=org_id, object=place, expected=str(expected), found=str(found))
