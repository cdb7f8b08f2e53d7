"""
The end of a call, and of a run: what is written, in one transaction, for a list of plans.

The epoch guards the run's state and its events. It does not guard the settlement of an attempt: a call
that was made is accounted for by whoever saw it, exactly once, as the attempt's own state judges.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

import structlog
from django.db import DatabaseError, IntegrityError, connection
from django.db.models import F

from billing import budget, quota
from billing import services as billing
from billing.models import CostEvent
from catalog import pricing
from catalog.pricing import UnitPrices
from catalog.providers import REGISTRY as PROVIDERS
from rensei.core.auth_modes import AuthMode, Payer
from rensei.core.bulk import Row, update_each
from rensei.core.errors import StoredError
from rensei.core.transactions import durable
from rensei.core.usage import Usage
from rensei.dispatch.models import Attempt, Run, RunChunk
from rensei.dispatch.modes import MODES
from rensei.dispatch.signals import run_ended

NOTHING = Usage()
TRIES = 8
_ALL = Run.objects.all()
_LIVE = Run.objects.exclude(state__in=Run.ENDED)
_STILL_OPEN = Attempt.objects.filter(state=Attempt.State.OPEN)

logger = structlog.get_logger(__name__)


@dataclass(frozen=True, kw_only=True)
class RunEnd:
    """How a run ends. `error` is `{code, detail, fix, retryable}`."""

    state: Run.State
    error: StoredError | None = None
    text: str = ""
    content: list[dict[str, Any]] = field(default_factory=list)
    stop_reason: str = ""


@dataclass(frozen=True, kw_only=True)
class SettlementPlan:
    """
    What one call, or one run, comes to.

    Without an attempt, a run ends that made no call. Without an end, a failed attempt is settled and the
    run goes on to its next one. `expired_before` is the reaper's guard: the plan is void if the lease
    was renewed since.
    """

    run: Run
    now: datetime
    attempt: Attempt | None = None
    attempt_state: Attempt.State = Attempt.State.SETTLED
    usage: Usage = NOTHING
    estimated: bool = False
    request_id: str = ""
    error: StoredError | None = None
    end: RunEnd | None = None
    expired_before: datetime | None = None


def plan_charge(settlement: SettlementPlan) -> billing.Charge | None:
    """Make the ledger line of a call. None for a call that was provably never sent."""
    run, attempt = settlement.run, settlement.attempt
    if attempt is None or settlement.attempt_state is Attempt.State.VOID:
        return None
    mode = MODES[AuthMode(run.auth_mode)]
    spec = PROVIDERS[run.provider]
    bands = [UnitPrices.from_dict(band) for band in run.prices or []]
    return billing.Charge(
        org_id=run.org_id,
        run_id=run.id,
        attempt_id=attempt.id,
        profile_id=run.profile_id,
        project_id=run.project.slug if run.project else "",
        auth_mode=AuthMode(run.auth_mode),
        payer=Payer(run.payer),
        billing_class=f"{run.auth_mode}.{spec.config_namespace}",
        pool_id=mode.pool_id(run.provider),
        credential_id=attempt.credential_id,
        provider=run.provider,
        model_id=run.model_id,
        served_model_id=run.served_model_id,
        provider_request_id=settlement.request_id,
        usage=settlement.usage,
        prices=pricing.band_for(bands, prompt_tokens=settlement.usage.prompt_tokens) if bands else None,
        billed=mode.billed and settlement.attempt_state is Attempt.State.SETTLED,
        estimated=settlement.estimated,
        occurred_at=settlement.now,
    )


def write(plans: Sequence[SettlementPlan]) -> list[Run]:
    """Write settlements in one transaction, and return the runs that ended with it."""
    with durable():
        ended = _end_runs([settlement for settlement in plans if settlement.end is not None])
        standing = [plan for plan in plans if plan.expired_before is None or plan.run.id in ended]
        charges = _settle_attempts([plan for plan in standing if plan.attempt is not None])
        _total([settlement.run for settlement in plans], new=billing.record_charges(charges))
        runs = [settlement.run for settlement in plans if settlement.end is not None and settlement.run.id in ended]
        called = {plan.run.id for plan in plans if plan.attempt and plan.attempt_state is not Attempt.State.VOID}
        _release_holds(runs, called=called)
        _tell(runs)
        return runs


def write_patiently(plan: Callable[[], Sequence[SettlementPlan]]) -> None:
    """
    Write settlements, waiting for a database that is away. What cannot be written is left to the reaper.

    `plan` is asked anew at each try, because it may read the database's clock.

    :raises Exception: a bug of ours, which no second try mends
    """
    for tries in range(TRIES):
        try:
            write(plan())
        except IntegrityError:
            raise
        except DatabaseError as fault:
            logger.warning("settlement_not_written", fault=type(fault).__name__, tries=tries + 1)
            connection.close()
            time.sleep(min(4.0, 0.1 * 2**tries))
        else:
            return
    logger.error("settlement_left_to_the_reaper")


def _end_runs(plans: Sequence[SettlementPlan]) -> set[str]:
    """End the runs that are still ours to end, and name them."""
    watched = [_end_of(plan, chunk_count=F("chunk_count") + 2) for plan in plans if plan.run.has_events]
    others = [_end_of(plan) for plan in plans if not plan.run.has_events]
    return {run_id for rows in (watched, others) if rows for run_id in update_each(_LIVE, rows)}


def _end_of(settlement: SettlementPlan, **more: Any) -> Row:
    run, end = settlement.run, settlement.end
    assert end is not None
    must_be = {"id": run.id, "epoch": run.epoch}
    if settlement.expired_before is not None:
        must_be |= {"state": run.state, "lease_until": run.lease_until}
        # Whoever held the run and comes late learns from the epoch that its end was not theirs to write.
        more["epoch"] = run.epoch + 1
    becomes = {
        "state": end.state,
        "error": end.error,
        "output_text": end.text,
        "output_content": end.content,
        "stop_reason": end.stop_reason,
        "finished_at": settlement.now,
        "lease_owner": "",
        "lease_until": None,
        **more,
    }
    return must_be, becomes


def _settle_attempts(plans: Sequence[SettlementPlan]) -> list[billing.Charge]:
    """Close the open attempts. One that the reaper gave up is settled late, by one adjustment."""
    outcomes = {plan.attempt.id: _outcome(plan) for plan in plans if plan.attempt is not None}
    if not outcomes:
        return []
    closed = update_each(_STILL_OPEN, [({"id": attempt_id}, outcome) for attempt_id, outcome in outcomes.items()])
    charges = []
    for plan in plans:
        assert plan.attempt is not None
        charge = plan_charge(plan)
        if charge is None:
            continue
        if plan.attempt.id in closed:
            charges.append(charge)
        elif plan.attempt_state is Attempt.State.SETTLED:
            _adjust(charge, outcomes[plan.attempt.id])
    return charges


def _outcome(settlement: SettlementPlan) -> dict[str, Any]:
    return {
        "state": settlement.attempt_state,
        "finished_at": settlement.now,
        "provider_request_id": settlement.request_id,
        "error": settlement.error,
    }


def _adjust(truth: billing.Charge, outcome: dict[str, Any]) -> None:
    """Correct the estimate of an attempt that was given up, unless somebody has done so."""
    given_up = Attempt.objects.filter(id=truth.attempt_id, state=Attempt.State.INDETERMINATE)
    if given_up.update(**outcome):
        billing.record_adjustment(
            charge=CostEvent.objects.get(attempt_id=truth.attempt_id, kind=CostEvent.Kind.CHARGE),
            usage=truth.usage,
            prices=truth.prices,
            estimated=truth.estimated,
            billed=truth.billed,
            occurred_at=truth.occurred_at,
        )


def _total(runs: Sequence[Run], *, new: Sequence[CostEvent]) -> None:
    """Write the runs' own figures from their ledger lines, which are few."""
    lines_of: dict[str, list[CostEvent]] = {run.id: [] for run in runs}
    # The new charge of a run's only attempt is all that there is of it.
    known = {run.id for run in runs if run.attempt_count == 1} & {line.run_id for line in new}
    others = lines_of.keys() - known
    for line in [line for line in new if line.run_id in known]:
        lines_of[line.run_id].append(line)
    for line in CostEvent.objects.filter(run_id__in=others) if others else ():
        lines_of[line.run_id].append(line)
    update_each(_ALL, [({"id": run_id}, _figures(lines)) for run_id, lines in lines_of.items()])


def _figures(lines: Sequence[CostEvent]) -> dict[str, Any]:
    usage = Usage()
    for line in lines:
        usage = usage + Usage(
            input_tokens=line.input_tokens,
            output_tokens=line.output_tokens,
            cache_read_tokens=line.cache_read_tokens,
            cache_write_5m_tokens=line.cache_write_5m_tokens,
            cache_write_1h_tokens=line.cache_write_1h_tokens,
            thinking_tokens=line.thinking_tokens,
            web_search_requests=line.web_search_requests,
        )
    amounts = [line.amount_picodollars for line in lines]
    known = [amount for amount in amounts if amount is not None]
    # The newest line of an attempt says whether its figure is still an estimate.
    in_order = sorted(lines, key=lambda line: (line.kind == CostEvent.Kind.ADJUSTMENT, line.occurred_at))
    newest = {line.attempt_id: line.estimated for line in in_order}
    return {
        "usage": usage.as_dict(),
        "amount_picodollars": sum(known) if lines and len(known) == len(lines) else None,
        "estimated": any(newest.values()),
        "billed": any(line.billed for line in lines),
    }


def _release_holds(runs: Sequence[Run], *, called: set[str]) -> None:
    """
    Let go of what the runs have held.

    A shared run that reached the provider, by one of the calls that are settled here or by one before, is spent; one
    that never did gives its slot back. What a metered run really cost is counted with its ledger lines.
    """
    shared = {run.id for run in runs if run.auth_mode == AuthMode.SHARED}
    if shared:
        reached = called & shared
        if others := shared - called:
            before = Attempt.objects.filter(run__in=others).exclude(state=Attempt.State.VOID)
            reached |= set(before.values_list("run_id", flat=True))
        quota.release_holds(spent={run_id: run_id in reached for run_id in shared})
    if metered := [run.id for run in runs if run.auth_mode == AuthMode.METERED]:
        budget.release_holds(run_ids=metered)


def _tell(runs: Sequence[Run]) -> None:
    """Append the last two events of each run, and tell the rooms above that it has ended."""
    fresh = Run.objects.in_bulk([run.id for run in runs if run.has_events])
    chunks = []
    for run in fresh.values():
        chunks += [
            RunChunk(run=run, seq=run.chunk_count - 1, kind=RunChunk.Kind.USAGE, data=run.usage),
            RunChunk(run=run, seq=run.chunk_count, kind=RunChunk.Kind.DONE, data={"state": run.state}),
        ]
    RunChunk.objects.bulk_create(chunks)
    for run in runs:
        run_ended.send(sender=Run, run=fresh.get(run.id, run))
