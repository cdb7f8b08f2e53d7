"""
The end of a call, and of a run: what is written, in one transaction, for a list of plans.

The epoch guards the run's state and its events. It does not guard the settlement of an attempt: a call
that was made is accounted for by whoever saw it, exactly once, as the attempt's own state judges.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from django.db.models import F

from billing import budget, quota
from billing import services as billing
from billing.models import CostEvent
from catalog import pricing
from catalog.pricing import UnitPrices
from catalog.providers import REGISTRY as PROVIDERS
from rensei.core.auth_modes import AuthMode, Payer
from rensei.core.transactions import durable
from rensei.core.usage import Usage
from rensei.dispatch.models import Attempt, Run, RunChunk
from rensei.dispatch.modes import MODES
from rensei.dispatch.signals import run_ended

NOTHING = Usage()


@dataclass(frozen=True, kw_only=True)
class RunEnd:
    """How a run ends. `error` is `{code, detail, fix, retryable}`."""

    state: Run.State
    error: dict[str, Any] | None = None
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
    error: dict[str, Any] | None = None
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
        ended = [settlement for settlement in plans if settlement.end is not None and _end_run(settlement)]
        charges = []
        for settlement in plans:
            if settlement.expired_before is not None and settlement not in ended:
                continue
            charge = _settle_attempt(settlement)
            if charge is not None:
                charges.append(charge)
        billing.record_charges(charges)
        for settlement in plans:
            _total(settlement.run)
        _release_holds([settlement.run for settlement in ended])
        for settlement in ended:
            _tell(settlement.run)
        return [settlement.run for settlement in ended]


def _end_run(settlement: SettlementPlan) -> bool:
    """End the run if it is still ours to end."""
    run, end = settlement.run, settlement.end
    assert end is not None
    guarded = Run.objects.filter(id=run.id, epoch=run.epoch).exclude(state__in=Run.ENDED)
    taken_away = {}
    if settlement.expired_before is not None:
        guarded = guarded.filter(state=run.state, lease_until=run.lease_until)
        # Whoever held the run and comes late learns from the epoch that its end was not theirs to write.
        taken_away = {"epoch": F("epoch") + 1}
    return bool(
        guarded.update(
            **taken_away,
            state=end.state,
            error=end.error,
            output_text=end.text,
            output_content=end.content,
            stop_reason=end.stop_reason,
            finished_at=settlement.now,
            lease_owner="",
            lease_until=None,
            chunk_count=F("chunk_count") + 2,
        )
    )


def _settle_attempt(settlement: SettlementPlan) -> billing.Charge | None:
    """Close the open attempt. One that the reaper gave up is settled late, by one adjustment."""
    attempt = settlement.attempt
    if attempt is None:
        return None
    outcome = {
        "state": settlement.attempt_state,
        "finished_at": settlement.now,
        "provider_request_id": settlement.request_id,
        "error": settlement.error,
    }
    if Attempt.objects.filter(id=attempt.id, state=Attempt.State.OPEN).update(**outcome):
        return plan_charge(settlement)
    if settlement.attempt_state is Attempt.State.SETTLED:
        given_up = Attempt.objects.filter(id=attempt.id, state=Attempt.State.INDETERMINATE)
        truth = plan_charge(settlement)
        if truth is not None and given_up.update(**outcome):
            billing.record_adjustment(
                charge=CostEvent.objects.get(attempt_id=attempt.id, kind=CostEvent.Kind.CHARGE),
                usage=truth.usage,
                prices=truth.prices,
                estimated=truth.estimated,
                billed=truth.billed,
                occurred_at=truth.occurred_at,
            )
    return None


def _total(run: Run) -> None:
    """Write the run's own figures from its ledger lines, which are few."""
    lines = list(CostEvent.objects.filter(run_id=run.id))
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
    Run.objects.filter(id=run.id).update(
        usage=usage.as_dict(),
        amount_picodollars=sum(known) if lines and len(known) == len(lines) else None,
        estimated=any(newest.values()),
        billed=any(line.billed for line in lines),
    )


def _release_holds(runs: Sequence[Run]) -> None:
    """
    Let go of what the runs have held.

    A shared run that reached the provider is spent; one that never did gives its slot back. What a metered run
    really cost is counted with its ledger lines.
    """
    reached = set(
        Attempt.objects.filter(run__in=runs).exclude(state=Attempt.State.VOID).values_list("run_id", flat=True)
    )
    quota.release_holds(spent={run.id: run.id in reached for run in runs})
    budget.release_holds(run_ids=[run.id for run in runs if run.auth_mode == AuthMode.METERED])


def _tell(run: Run) -> None:
    """Append the last two events and tell the rooms above that the run has ended."""
    run.refresh_from_db()
    RunChunk.objects.bulk_create(
        [
            RunChunk(run=run, seq=run.chunk_count - 1, kind=RunChunk.Kind.USAGE, data=run.usage),
            RunChunk(run=run, seq=run.chunk_count, kind=RunChunk.Kind.DONE, data={"state": run.state}),
        ]
    )
    run_ended.send(sender=Run, run=run)
