"""
Caps: the most that the runs of an API token may cost in one UTC month, in all auth modes and for every payer.

A cap is held and settled as a monthly budget is. All caps that hold for a run hold its maximum cost. The rows of caps
are locked in the order of their ids, after that of stored bytes and before those of budgets and shared limits.
"""

from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import date, datetime
from functools import cache
from typing import NamedTuple

from django.db import connection

from billing.models import CapHold, CostEvent
from rensei.core.bulk import delete_all, insert_all
from rensei.core.errors import RenseiError, Said
from rensei.core.money import dollars
from rensei.core.periods import end_of, month_of, written
from rensei.core.transactions import assert_open
from rensei.core.whole_numbers import at_most, plus
from rensei.orgs.models import SpendCap

_Row = dict[str, str | int]


class SpendCapExceeded(RenseiError):
    """The most that the run may cost exceeds the remainder of a cap that holds for it."""

    code = "SPEND_CAP_EXCEEDED"
    status = 402
    title = "Spending cap exceeded"
    message = Said(
        (
            "This run may cost up to ${amount}, which no longer fits: of the cap of ${limit} for this month on the "
            "API token '{token}', ${used} are used and ${held} are held by runs that have not ended."
        ),
        (
            "Lower maxTokens, wait for those runs to end, raise the cap in Settings → API Tokens, or use another "
            "token. The cap resets at {resets_at}."
        ),
    )
    gateway_message = message.replace("maxTokens", "max_tokens")


class CostNotBounded(RenseiError):
    """A cap holds for the run, and what the run may cost is not known."""

    code = "MODEL_UNPRICED"
    status = 409
    title = "No price for this model"
    message = Said(
        "{what} has no price in the catalog, so what the run may cost cannot be held of its cap.",
        "Choose a priced model, ask your operator to add a price, or use a token without a cap and no maxCostUsd.",
    )
    gateway_message = message.replace(" and no maxCostUsd", "")


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """What is to be held for one run, of each of its caps."""

    org_id: str
    caps: Sequence[str]
    picodollars: int


def hold(wanted: Mapping[str, Wanted], *, now: datetime) -> dict[str, SpendCapExceeded]:
    """
    Hold the most that runs may cost, by run id, in the transaction that saves them, and refuse what exceeds a cap.

    A conditional UPDATE of each cap decides, so concurrent dispatches never exceed it. Returns the refused runs.
    """
    assert_open()
    month = month_of(now)
    _lock(cap_id for each in wanted.values() for cap_id in each.caps)
    together = _together(wanted)
    held, full = dict(wanted), dict[str, SpendCap]()
    if _take_all(together, month=month) is not None:
        held = {}
        for run_id, each in wanted.items():
            met = _take_all(dict.fromkeys(each.caps, each.picodollars), month=month)
            if met is None:
                held[run_id] = each
            else:
                full[run_id] = met
    holds = [
        CapHold(run_id=run_id, org_id=each.org_id, picodollars=each.picodollars, created_at=now)
        for run_id, each in held.items()
    ]
    insert_all(CapHold, holds)
    return {run_id: _exceeded(cap, picodollars=wanted[run_id].picodollars, now=now) for run_id, cap in full.items()}


def settle(*, ended: Mapping[str, Sequence[str]], lines: Iterable[tuple[CostEvent, Sequence[str]]]) -> None:
    """
    Count what runs cost, and release what ended runs have held, in the transaction that ends them.

    `ended` names the caps of each run, `lines` those of each new ledger line. For a call with an unknown price, the
    held amount counts. Runs already released change nothing, and neither does a line of a past month.
    """
    assert_open()
    lines = list(lines)
    _lock(cap_id for cap_ids in (*ended.values(), *(cap_ids for _, cap_ids in lines)) for cap_id in cap_ids)
    # A second release of the same run waits for the first, and then finds no hold.
    held = {run_id: int(amount) for run_id, amount in delete_all(CapHold, ended, returning=("run_id", "picodollars"))}
    changes: dict[tuple[str, date], Counter[str]] = defaultdict(Counter)
    unpriced = {}
    for line, cap_ids in lines:
        month = month_of(line.occurred_at)
        if line.amount_picodollars is None:
            unpriced[line.run_id] = month
        for cap_id in cap_ids:
            changes[cap_id, month]["used"] += line.amount_picodollars or 0
    for run_id, amount in held.items():
        for cap_id in ended[run_id]:
            changes[cap_id, date.min]["held"] -= amount
            if run_id in unpriced:
                changes[cap_id, unpriced[run_id]]["used"] += amount
    rows: list[_Row] = [
        {"cap": cap_id, "month": month.isoformat(), "used": change["used"], "held": change["held"]}
        for (cap_id, month), change in sorted(changes.items())
    ]
    _change(rows)


def release(held: Mapping[str, Sequence[str]]) -> None:
    """Release what was held for runs that are not saved."""
    if held:
        settle(ended=held, lines=[])


def require_room(found: Iterable[SpendCap], *, picodollars: int, now: datetime) -> None:
    """
    Check caps that were read, for a preview. A dispatch is decided by `hold`.

    :raises SpendCapExceeded: if the amount exceeds the remainder of one of them
    """
    for cap in found:
        if cap.used_in(month_of(now)) + cap.held + picodollars > cap.picodollars:
            raise _exceeded(cap, picodollars=picodollars, now=now)


def require_another_attempt(cap_ids: Collection[str], *, now: datetime) -> None:
    """
    Check the caps of a run whose failed call may have been billed, before the run makes its next one.

    :raises SpendCapExceeded: if what the run holds no longer covers both
    """
    if cap_ids:
        require_room(SpendCap.objects.filter(pk__in=cap_ids).order_by("pk"), picodollars=0, now=now)


def _exceeded(cap: SpendCap, *, picodollars: int, now: datetime) -> SpendCapExceeded:
    """Build the refusal of a run that does not fit into a cap."""
    month = month_of(now)
    resets_at = written(end_of(month), timespec="seconds")
    used, held, limit = (dollars(amount) for amount in (cap.used_in(month), cap.held, cap.picodollars))
    figures = {"used": used, "held": held, "limit": limit}
    return SpendCapExceeded(
        amount=dollars(picodollars),
        token=cap.scope_id,
        **figures,
        resets_at=resets_at,
        extra={**figures, "resetsAt": resets_at},
    )


def _lock(cap_ids: Iterable[str]) -> None:
    """Lock rows in the order of their ids. SQLite has one writer, and ignores it."""
    wanted = SpendCap.objects.select_for_update(no_key=True).filter(pk__in=set(cap_ids)).order_by("pk")
    list(wanted.values_list("pk"))


def _together(wanted: Mapping[str, Wanted]) -> dict[str, int]:
    sums: Counter[str] = Counter()
    for each in wanted.values():
        sums.update(dict.fromkeys(each.caps, each.picodollars))
    return dict(sums)


def _take_all(amounts: Mapping[str, int], *, month: date) -> SpendCap | None:
    """Hold an amount of each cap, or of none. Returns the first one with too little left."""
    taken: list[str] = []
    for cap_id, amount in sorted(amounts.items()):
        row: _Row = {"cap": cap_id, "month": month.isoformat(), "amount": amount}
        with connection.cursor() as cursor:
            cursor.execute(_statements().take, row)
            if cursor.rowcount:
                taken.append(cap_id)
                continue
        full = SpendCap.objects.filter(pk=cap_id).first()
        # A cap that was removed since the token was read holds for nothing.
        if full is not None:
            _change([{"cap": each, "month": month.isoformat(), "used": 0, "held": -amounts[each]} for each in taken])
            return full
    return None


def _change(rows: list[_Row]) -> None:
    """Add to what is used and held. Use in a past month changes nothing."""
    if rows:
        with connection.cursor() as cursor:
            cursor.executemany(_statements().change, rows)


class _Statements(NamedTuple):
    take: str
    change: str


@cache
def _statements() -> _Statements:
    """Build the two statements. A row of an older month counts as unused, and becomes one of the newest month seen."""
    used = "CASE WHEN period < %(month)s THEN 0 ELSE used END"
    period = "period = CASE WHEN period < %(month)s THEN %(month)s ELSE period END"
    held = plus("held", "%(amount)s")
    return _Statements(
        take=f"UPDATE orgs_spendcap SET used = {used}, held = {held}, {period} "  # noqa: S608 - text of ours
        f"WHERE id = %(cap)s AND {at_most(plus(used, held), 'picodollars')}",
        change=f"UPDATE orgs_spendcap SET "  # noqa: S608 - text of ours
        f"used = CASE WHEN period > %(month)s THEN used ELSE {plus(used, '%(used)s')} END, "
        f"held = {plus('held', '%(held)s')}, {period} WHERE id = %(cap)s",
    )
