"""
The audit: compare attempts with charges, lines with runs, holds with live runs, and sums with roll-ups.

It recomputes everything from the lines and compares exactly. It reads page by page in the order of primary keys, so
it needs little memory for any size of ledger. It reads a snapshot of one moment, so runs may continue meanwhile.
"""

import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, replace
from datetime import UTC, date
from itertools import chain
from typing import Any

from django.db.models import Exists, OuterRef

from billing.integrity import reconciliation, verification
from billing.integrity.differences import Difference, as_far_as_readable, unreadable
from billing.ledger import charges
from billing.models import (
    BudgetHold,
    BudgetUsage,
    CapHold,
    CostEvent,
    Hold,
    LedgerAnchor,
    LedgerSeal,
    SharedSpending,
    SharedUsage,
    Statement,
    UsageDaily,
)
from catalog import pricing
from catalog.pricing import UnitPrices
from rensei.core.auth_modes import PLATFORM_MODES, AuthMode
from rensei.core.clock import database_now
from rensei.core.querysets import pages, readable
from rensei.core.stored_types import wrongly_stored
from rensei.core.transactions import snapshot
from rensei.core.usage import Usage
from rensei.dispatch.models import Attempt, LedgerAudit, Run, Sandbox
from rensei.dispatch.settlement import capacity_use
from rensei.dispatch.settlement.served import find_served, with_search_price
from rensei.orgs.models import Org, SpendCap

PAGE = 500
# The maximum number of differences stored with the result. `manage.py audit_ledger` lists all of them.
KEPT = 100
CHARGED = frozenset({Attempt.State.SETTLED, Attempt.State.INDETERMINATE})
RUN_COLUMNS = (
    "org_id",
    "profile_id",
    "provider",
    "model_id",
    "served_model_id",
    "auth_mode",
    "payer",
    "prices",
    "state",
    "caps",
    "usage",
    "amount_picodollars",
    "attempt_count",
    "created_at",
)
# Tables whose integers are checked to be stored as integers.
COUNTED = (
    CostEvent,
    UsageDaily,
    BudgetUsage,
    BudgetHold,
    CapHold,
    SpendCap,
    SharedSpending,
    SharedUsage,
    Statement,
    LedgerSeal,
    LedgerAnchor,
    Run,
    Attempt,
)
# The fields of a run that each of its lines repeats. The payer and the mode never change after the dispatch.
REPEATED = ("org_id", "profile_id", "provider", "model_id", "auth_mode", "payer")


def audit(tell: Callable[[Difference], None] | None = None) -> LedgerAudit:
    """Check the ledger and its seals, report each difference as it is found, and store the result."""
    began = time.monotonic()
    count = 0
    first: list[dict[str, str]] = []
    found = (
        as_far_as_readable(each, org="", place="the rest of the audit")
        for each in (differences(), verification.differences())
    )
    for difference in chain.from_iterable(found):
        count += 1
        if len(first) < KEPT:
            first.append(asdict(difference))
        if tell is not None:
            tell(difference)
    return LedgerAudit.objects.create(
        ran_at=database_now(),
        seconds=round(time.monotonic() - began, 3),
        difference_count=count,
        first_differences=first,
    )


def audit_nightly() -> None:
    """Run the audit as a periodic job."""
    audit()


def last() -> LedgerAudit | None:
    """Return the result of the last audit of the ledger and its seals, or None before the first."""
    return LedgerAudit.objects.order_by("-ran_at").first()


def differences() -> Iterator[Difference]:
    """Yield all differences between runs, attempts, lines, holds and sums, as of one moment."""
    with snapshot():
        yield from _stored_types()
        shared_holds = {hold.run_id: hold for hold in Hold.objects.all()}
        budget_holds = {hold.run_id: hold for hold in BudgetHold.objects.all()}
        cap_holds = {hold.run_id: hold for hold in CapHold.objects.all()}
        deleted = set(Org.objects.exclude(deleting_at=None).values_list("pk", flat=True))
        held_of_caps: Counter[str] = Counter()
        shared_runs_used: Counter[tuple[str, date]] = Counter()
        unread: list[Difference] = []
        for page in _pages(unread):
            for run, attempts, lines, sandboxes in page:
                of_calls = [line for line in lines if line.kind != CostEvent.Kind.CAPACITY]
                of_capacity = [line for line in lines if line.kind == CostEvent.Kind.CAPACITY]
                yield from as_far_as_readable(_run(run, attempts, of_calls), org=run.org_id, place=run.id)
                # The sandboxes of an organization that is deleted go, and its lines stay.
                if run.org_id not in deleted:
                    yield from as_far_as_readable(_sandboxes(run, sandboxes, of_capacity), org=run.org_id, place=run.id)
                for line in of_capacity:
                    yield from as_far_as_readable(
                        reconciliation.capacity_differences(line), org=run.org_id, place=line.id
                    )
                yield from _shared_hold(run, shared_holds.pop(run.id, None))
                yield from _budget_hold(run, budget_holds.pop(run.id, None))
                cap_hold = cap_holds.pop(run.id, None)
                yield from _cap_hold(run, cap_hold)
                if cap_hold is not None:
                    held_of_caps.update(dict.fromkeys(run.caps, cap_hold.picodollars))
                if run.auth_mode == AuthMode.SHARED and run.state in Run.ENDED and _reached(attempts):
                    shared_runs_used[run.org_id, _day(run)] += 1
        yield from unread
        strays: list[Any] = [*shared_holds.values(), *budget_holds.values(), *cap_holds.values()]
        for stray in strays:
            yield _difference("hold", stray.org_id, stray.run_id, "a run", "none")
        yield from _lines_without_run()
        yield from reconciliation.shared_differences(shared_runs_used)
        yield from reconciliation.budget_differences()
        yield from reconciliation.spending_differences()
        yield from reconciliation.cap_differences(held_of_caps)
        yield from reconciliation.sum_differences()


def _pages(unread: list[Difference]) -> Iterator[list[tuple[Run, list[Attempt], list[CostEvent], list[Sandbox]]]]:
    """
    Yield all runs in the order of their ids, each with its attempts, its lines and its sandboxes.

    :param unread: gets a difference for each row that cannot be read, and is passed over
    """

    def skip(key: str, fault: Exception) -> None:
        unread.append(unreadable(org="", place=key, fault=fault))

    for page in pages(Run.objects.only("id"), size=PAGE):
        ids = [run.id for run in page]
        runs = readable(Run.objects.only(*RUN_COLUMNS).filter(id__in=ids).order_by("id"), skip=skip)
        attempts = Attempt.objects.defer("error").filter(run_id__in=ids).order_by("number")
        attempts_of = _by_run(readable(attempts, skip=skip))
        lines_of = _by_run(readable(CostEvent.objects.filter(run_id__in=ids), skip=skip))
        sandboxes_of = _by_run(readable(Sandbox.objects.filter(run_id__in=ids).order_by("epoch"), skip=skip))
        yield [(run, attempts_of[run.id], lines_of[run.id], sandboxes_of[run.id]) for run in runs]


def _by_run(rows: Iterable[Any]) -> dict[str, list[Any]]:
    by_run: dict[str, list[Any]] = defaultdict(list)
    for row in rows:
        by_run[row.run_id].append(row)
    return by_run


def _stored_types() -> Iterator[Difference]:
    for model in COUNTED:
        for wrong in wrongly_stored(model):
            place = f"{wrong.column} of {wrong.key or 'each row'} in {wrong.table}"
            yield _difference("stored-type", wrong.org_id, place, wrong.expected, wrong.found)


def _run(run: Run, attempts: list[Attempt], lines: list[CostEvent]) -> Iterator[Difference]:
    if run.attempt_count != len(attempts):
        yield _difference("attempt-count", run.org_id, run.id, len(attempts), run.attempt_count)
    of_attempt: dict[str, list[CostEvent]] = defaultdict(list)
    for line in lines:
        of_attempt[line.attempt_id].append(line)
    for attempt in attempts:
        yield from _attempt(run, attempt, of_attempt.pop(attempt.id, []))
    for stray in chain.from_iterable(of_attempt.values()):
        yield _difference("stray-line", stray.org_id, stray.id, f"an attempt of {run.id}", stray.attempt_id)
    for line in lines:
        yield from _line(run, line)
    yield from _totals(run, lines)


def _attempt(run: Run, attempt: Attempt, lines: list[CostEvent]) -> Iterator[Difference]:
    by_model: dict[str, list[CostEvent]] = defaultdict(list)
    for line in lines:
        by_model[line.served_model_id].append(line)
    charges = Counter(line.served_model_id for line in lines if line.kind == CostEvent.Kind.CHARGE)
    if attempt.state not in CHARGED and charges:
        yield _difference(
            "unexpected-charge", run.org_id, attempt.id, f"0 charge(s) of {attempt.state}", charges.total()
        )
    # The served model has a charge of its own only if it produced a part of the output.
    for model in by_model or {run.served_model_id: []}:
        expected = int(attempt.state in CHARGED)
        if charges[model] != expected and expected:
            kind = "missing-charge" if charges[model] < expected else "double-charge"
            place = f"1 charge of {attempt.state} for {model}"
            yield _difference(kind, run.org_id, attempt.id, place, charges[model])
    if attempt.state == Attempt.State.OPEN and run.state in Run.ENDED:
        yield _difference("open-attempt", run.org_id, attempt.id, f"an end, as its run is {run.state}", attempt.state)
    owed = sum(line.billed_picodollars for line in lines)
    if attempt.state == Attempt.State.INDETERMINATE and owed:
        yield _difference("billed", run.org_id, attempt.id, "0, as its end is not known", owed)
    for of_model in by_model.values():
        yield from reconciliation.call_differences(of_model)


def _line(run: Run, line: CostEvent) -> Iterator[Difference]:
    for name in REPEATED:
        if getattr(line, name) != getattr(run, name):
            kind = f"line-{name.removesuffix('_id').replace('_', '-')}"
            yield _difference(kind, line.org_id, line.id, getattr(run, name), getattr(line, name))
    yield from reconciliation.line_differences(line)
    found = charges.prices_of(line)
    if found not in _prices_allowed(run, line):
        expected = f"those of {line.served_model_id} when {run.id} was made"
        yield _difference("line-prices", line.org_id, line.id, expected, found)


def _prices_allowed(run: Run, line: CostEvent) -> Iterator[UnitPrices | None]:
    """
    Yield the prices that a line may have: for a charge those of its prompt's band, for an adjustment those of any band,
    unchanged or multiplied by one of the provider's factors. The factor itself is not stored.

    A line whose searches have no price has no prices, or in a platform mode a substitute for that one. A model that was
    added to the catalog later had no prices, or those of the admitted model.
    """
    served = find_served(run, line.served_model_id)
    yield from _with_factors(run, served.bands, line)
    if line.served_model_id != run.served_model_id:
        yield from _with_factors(run, find_served(run, "").bands if run.auth_mode in PLATFORM_MODES else [], line)


def _with_factors(run: Run, bands: Sequence[UnitPrices], line: CostEvent) -> Iterator[UnitPrices | None]:
    if not bands:
        yield None
        return
    if line.kind == CostEvent.Kind.CHARGE:
        bands = [pricing.band_for(bands, prompt_tokens=reconciliation.usage_of([line]).prompt_tokens)]
    for factor in sorted(pricing.factors_of(line.provider), key=lambda factor: factor != 1):
        for band in bands:
            has_none = band.web_search is None and line.web_search_requests
            prices = replace(band.times(factor), above_prompt_tokens=0)
            yield None if has_none else prices
            if has_none:
                yield with_search_price(run, prices)


def _sandboxes(run: Run, sandboxes: list[Sandbox], lines: list[CostEvent]) -> Iterator[Difference]:
    """Compare the sandboxes of a run that a capacity provider charges for with their lines."""
    by_sandbox = {line.attempt_id: line for line in lines}
    for sandbox in sandboxes:
        line = by_sandbox.pop(sandbox.id, None)
        if sandbox.ended_at is None or line is None:
            is_charged = sandbox.ended_at is not None and capacity_use.size_of(sandbox) is not None
            if is_charged or line is not None:
                expected = "1 line" if is_charged else "none before its end"
                yield _difference(
                    "capacity-line", run.org_id, sandbox.id, expected, "none" if line is None else line.id
                )
            continue
        facts: list[tuple[str, object, object]] = [
            ("organization", run.org_id, line.org_id),
            ("seconds", capacity_use.seconds_of(sandbox, ended_at=sandbox.ended_at), line.sandbox_seconds),
            ("price", sandbox.second_picodollars, line.sandbox_second_picodollars),
        ]
        for name, right, found in facts:
            if found != right:
                yield _difference(f"capacity-{name}", run.org_id, line.id, right, found)
    for stray in by_sandbox.values():
        yield _difference("stray-line", stray.org_id, stray.id, f"a sandbox of {run.id}", stray.attempt_id)


def _totals(run: Run, lines: list[CostEvent]) -> Iterator[Difference]:
    """Compare the run's usage and amount with the sums of its lines."""
    expected, found = reconciliation.usage_of(lines), Usage.from_dict(run.usage)
    if expected != found:
        for (name, count), other in zip(expected.as_dict().items(), found.as_dict().values(), strict=True):
            if count != other:
                yield _difference("run-usage", run.org_id, f"{name} of {run.id}", count, other)
    amounts = [line.amount_picodollars for line in lines]
    known = [amount for amount in amounts if amount is not None]
    amount = sum(known) if lines and len(known) == len(lines) else None
    if run.amount_picodollars != amount:
        yield _difference("run-amount", run.org_id, run.id, amount, run.amount_picodollars)


def _shared_hold(run: Run, hold: Hold | None) -> Iterator[Difference]:
    """Check that a live shared run, and no other, holds one run of the quota of its dispatch day."""
    expected = f"a shared run of {_day(run)}" if _is_live(run, AuthMode.SHARED) else "none"
    found = f"a shared run of {hold.day}" if hold else "none"
    if found != expected:
        yield _difference("hold", run.org_id, run.id, expected, found)


def _budget_hold(run: Run, hold: BudgetHold | None) -> Iterator[Difference]:
    """Check that a live metered run, and no other, holds its maximum cost."""
    expected = _is_live(run, AuthMode.METERED)
    if (hold is not None) != expected:
        yield _difference("hold", run.org_id, run.id, "a part of the budget" if expected else "none", hold or "none")


def _cap_hold(run: Run, hold: CapHold | None) -> Iterator[Difference]:
    """Check that a live run for which caps hold, and no other, holds its maximum cost."""
    expected = bool(run.caps) and run.state not in Run.ENDED
    if (hold is not None) != expected:
        yield _difference("hold", run.org_id, run.id, "a part of its caps" if expected else "none", hold or "none")


def _is_live(run: Run, mode: AuthMode) -> bool:
    return run.auth_mode == mode and run.state not in Run.ENDED


def _lines_without_run() -> Iterator[Difference]:
    has_run = Exists(Run.objects.filter(id=OuterRef("run_id")))
    strays = CostEvent.objects.filter(~has_run).order_by("id").values_list("id", "org_id", "run_id")
    for event_id, org_id, run_id in strays.iterator(chunk_size=PAGE):
        yield _difference("stray-line", org_id, event_id, "a run", f"none with the id {run_id}")


def _reached(attempts: Iterable[Attempt]) -> bool:
    return any(attempt.state != Attempt.State.VOID for attempt in attempts)


def _day(run: Run) -> date:
    return run.created_at.astimezone(UTC).date()


def _difference(kind: str, org_id: str, place: str, expected: object, found: object) -> Difference:
    return Difference(kind=kind, org=org_id, object=place, expected=str(expected), found=str(found))
