"""
Settlement: write the ends of calls and runs, in one transaction, for a list of plans.

The epoch guards the run's state and its events, but not the settlement of an attempt: the process that made
the call settles it even after it lost the lease. The attempt's state ensures that this happens exactly once.
"""

import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any

import structlog
from django.db import DatabaseError, IntegrityError
from django.db.models import F

from billing.ledger import charges as billing
from billing.ledger import roll_ups
from billing.limits import budget, caps, quota
from billing.models import CostEvent
from catalog.providers import PROVIDERS
from integrations.keys import leaks
from integrations.keys.leaks import Leaks
from rensei.core.auth_modes import AuthMode, Payer
from rensei.core.bulk import lock_each, update_each
from rensei.core.database_pool import check_connection
from rensei.core.errors import StoredError
from rensei.core.transactions import durable
from rensei.core.unknown import note_unknown
from rensei.core.usage import NOTHING, Usage, UsagePart
from rensei.dispatch import search, stored_bytes, token_rate
from rensei.dispatch.agents import AgentEnd, OutputFile
from rensei.dispatch.models import Attempt, Run, RunChunk, RunFile
from rensei.dispatch.modes import MODES
from rensei.dispatch.settlement import own_entries
from rensei.dispatch.settlement.own_entries import Told
from rensei.dispatch.settlement.served import Served, find_served, prices_for
from rensei.dispatch.settlement.unreported import read_holds, within_hold
from rensei.dispatch.signals import run_ended

TRIES = 8
_ALL = Run.objects.all()
_LIVE = Run.objects.exclude(state__in=Run.ENDED)
_STILL_OPEN = Attempt.objects.filter(state=Attempt.State.OPEN)

logger = structlog.get_logger(__name__)


@dataclass(frozen=True, kw_only=True)
class RunEnd:
    """The end of a run. `error` is `{code, detail, fix, retryable}`."""

    state: Run.State
    error: StoredError | None = None
    text: str = ""
    content: list[dict[str, Any]] = field(default_factory=list)
    stop_reason: str = ""
    agent: AgentEnd | None = None


@dataclass(frozen=True, kw_only=True)
class SettlementPlan:
    """
    The settlement of one call or the end of one run.

    `usage` is the total usage. `parts` divides it by model; if it is empty, the run's served model used all of it.
    `estimated` applies to the total and to each part.

    Without `attempt`, a run ends that made no call. Without `end`, a failed attempt is settled and the run
    continues with its next one. `expired_before` is the reaper's guard: the plan is void if the lease was
    renewed meanwhile.
    """

    run: Run
    now: datetime
    attempt: Attempt | None = None
    attempt_state: Attempt.State = Attempt.State.SETTLED
    usage: Usage = NOTHING
    parts: Sequence[UsagePart] = ()
    estimated: bool = False
    request_id: str = ""
    error: StoredError | None = None
    end: RunEnd | None = None
    expired_before: datetime | None = None
    # The models that the request names besides its own. Policies allowed them at its admission.
    named: Collection[str] = ()
    # The keys that were found in the output and the errors, which are without them then.
    leaks: Leaks = leaks.NOTHING


def plan_charges(settlement: SettlementPlan, *, hold: int | None = None) -> list[billing.Charge]:
    """
    Build the ledger lines of a call: one for each model that has a part in it. Empty if it was provably never sent.

    What the provider did not report costs at most the rest of the `hold`, if there is one.

    The catalog is read only if the answer names a model other than the run's served model.
    """
    if settlement.attempt is None or settlement.attempt_state is Attempt.State.VOID:
        return []
    found: dict[str, tuple[Served, UsagePart]] = {}
    for part in _parts(settlement):
        served = find_served(settlement.run, part.model_id)
        if not served.is_known:
            note_unknown("model", part.model_id)
        # Two names may refer to one model.
        _, before = found.get(served.model_id, (served, None))
        found[served.model_id] = served, (before + part if before is not None else part)
    parts = list(found.values()) if hold is None else within_hold(settlement.run, list(found.values()), hold=hold)
    return [_charge(settlement, settlement.attempt, served, part) for served, part in parts]


def _parts(settlement: SettlementPlan) -> Sequence[UsagePart]:
    """Return the parts of a call. If they are not told apart, the run's served model has the only one."""
    unreported = settlement.usage if settlement.estimated else NOTHING
    return settlement.parts or [UsagePart(usage=settlement.usage, unreported=unreported)]


def _charge(settlement: SettlementPlan, attempt: Attempt, served: Served, part: UsagePart) -> billing.Charge:
    run = settlement.run
    mode = MODES[AuthMode(run.auth_mode)]
    spec = PROVIDERS[run.provider]
    prices, is_sure = prices_for(run, served, part)
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
        served_model_id=served.model_id,
        provider_request_id=settlement.request_id,
        usage=part.usage,
        prices=prices,
        billed=mode.billed and settlement.attempt_state is Attempt.State.SETTLED,
        estimated=settlement.estimated or not is_sure,
        occurred_at=settlement.now,
    )


def write(plans: Sequence[SettlementPlan]) -> list[Run]:
    """
    Write settlements in one transaction, and return the runs that ended with it.

    Known keys are replaced by a mark in the outputs and the errors, and their owners are told.
    """
    plans = [_without_keys(plan) for plan in plans]
    with durable():
        ended = _lock_runs(plans)
        standing = [plan for plan in plans if plan.expired_before is None or plan.run.id in ended]
        charges, adjusted, late = _settle_attempts([plan for plan in standing if plan.attempt is not None])
        own_entries.note_answers(
            Told(run=plan.run, names=[part.model_id for part in plan.parts], named=plan.named)
            for plan in standing
            if plan.attempt is not None
        )
        lines = [*adjusted, *billing.write_charges(charges)]
        ends = {plan.run.id: plan for plan in plans if plan.end is not None and plan.run.id in ended}
        runs = [plan.run for plan in ends.values()]
        search.add_errors(
            (plan.run, plan.end.error)
            for plan in ends.values()
            if plan.end is not None and plan.end.error and plan.run.has_events
        )
        sizes = _write_runs([plan.run for plan in plans], ends=ends, new=lines, late=late)
        _tell(runs)
        # Each organization has one row of these, so its other settlements wait from here to the commit, and from the
        # roll-ups on its admissions. The order is that of admission, to prevent deadlocks: stored bytes, caps, budgets,
        # and last the shared limits, where all organizations wait for the platform's row.
        roll_ups.add(lines)
        stored_bytes.count_ends(runs, sizes=sizes)
        _settle_caps(plans, runs, lines=lines)
        budget.add_billed(lines)
        called = {plan.run.id for plan in plans if plan.attempt and plan.attempt_state is not Attempt.State.VOID}
        _release_holds(runs, called=called, lines=lines, now=max(plan.now for plan in plans))
        for plan in standing:
            if plan.leaks and (plan.end is None or plan.run.id in ended):
                leaks.note(plan.leaks, place="output")
    token_rate.note((plan.run.org_id, plan.run.auth_mode, plan.usage) for plan in standing if plan.attempt is not None)
    return runs


def _without_keys(plan: SettlementPlan) -> SettlementPlan:
    """Blot out known keys in the output, and in the errors: a provider's message may quote the prompt."""
    end = plan.end
    stored: list[Any] = [plan.error] if end is None else [plan.error, end.error, end.text, end.content]
    files = end.agent.files if end is not None and end.agent is not None else ()
    stored += [text for file in files for text in (file.path, file.text)]
    if not any(stored):
        return plan
    found = leaks.find_or_blot([each for each in stored if each], org=plan.run.org)
    if not found:
        return plan
    if end is not None:
        text, content = found.blot(end.text), found.blot(end.content)
        end = replace(end, error=found.blot(end.error), text=text, content=content)
        if end.agent is not None:
            kept: dict[str, OutputFile] = {}
            for file in files:
                path = found.blot(file.path)
                # Two names may be the same without the key in one of them.
                kept.setdefault(path, OutputFile.of_text(path, found.blot(file.text)))
            left_out = dict(end.agent.left_out)
            if same := len(files) - len(kept):
                left_out["NAME"] = left_out.get("NAME", 0) + same
            end = replace(end, agent=replace(end.agent, files=list(kept.values()), left_out=left_out))
    return replace(plan, error=found.blot(plan.error), end=end, leaks=found)


def write_patiently(plan: Callable[[], Sequence[SettlementPlan]]) -> None:
    """
    Write settlements, with retries while the database is unavailable. What cannot be written is left to the reaper.

    `plan` is called again at each try, because it may read the database's clock.

    :raises Exception: for a defect in this code, which a retry does not fix
    """
    for tries in range(TRIES):
        try:
            write(plan())
        except IntegrityError:
            raise
        except DatabaseError as fault:
            logger.warning("settlement_not_written", fault=type(fault).__name__, tries=tries + 1)
            check_connection()
            time.sleep(min(4.0, 0.1 * 2**tries))
        else:
            return
    logger.error("settlement_left_to_the_reaper")


def _lock_runs(plans: Sequence[SettlementPlan]) -> set[str]:
    """
    Lock the runs of these plans in the order of their ids, before their attempts, to prevent deadlocks.

    Returns the ids of those that the plans may still end.
    """
    ends = [plan for plan in plans if plan.end is not None]
    by_lease = [_must_be(plan) for plan in ends if plan.expired_before is not None]
    others = [_must_be(plan) for plan in ends if plan.expired_before is None]
    if len(others) < len(plans):
        lock_each(_ALL, [{"id": plan.run.id} for plan in plans])
    return lock_each(_LIVE, by_lease) | lock_each(_LIVE, others)


def _must_be(plan: SettlementPlan) -> dict[str, Any]:
    run = plan.run
    read: dict[str, Any] = {"id": run.id, "epoch": run.epoch}
    return read if plan.expired_before is None else {**read, "state": run.state, "lease_until": run.lease_until}


def _keep_files(run: Run, end: AgentEnd) -> None:
    """Write what an agent has left, with its end."""
    rows = [RunFile(run=run, path=file.path, content=file.content) for file in end.files]
    RunFile.objects.bulk_create(rows)
    Run.objects.filter(id=run.id).update(agent_result=end.result(row.id for row in rows))


def _settle_attempts(
    plans: Sequence[SettlementPlan],
) -> tuple[list[billing.Charge], list[CostEvent], set[str]]:
    """
    Close the open attempts. An attempt that the reaper has closed is settled late, by adjustments.

    Returns the charges to write, the adjustments, and the runs whose attempts were settled late.
    """
    outcomes = {plan.attempt.id: _outcome(plan) for plan in plans if plan.attempt is not None}
    if not outcomes:
        return [], [], set()
    closed = update_each(_STILL_OPEN, [({"id": attempt_id}, outcome) for attempt_id, outcome in outcomes.items()])
    charges, adjusted, late = [], [], set()
    holds = read_holds((plan.attempt, plan.run, _parts(plan)) for plan in plans if plan.attempt is not None)
    for plan in plans:
        assert plan.attempt is not None
        if plan.attempt.id in closed:
            charges += plan_charges(plan, hold=holds.get(plan.run.id))
        elif plan.attempt_state is Attempt.State.SETTLED:
            missing, lines = _adjust(
                plan.attempt.id, plan_charges(plan, hold=holds.get(plan.run.id)), outcomes[plan.attempt.id]
            )
            charges += missing
            adjusted += lines
            late.add(plan.run.id)
    return charges, adjusted, late


def _outcome(settlement: SettlementPlan) -> dict[str, Any]:
    return {
        "state": settlement.attempt_state,
        "finished_at": settlement.now,
        "provider_request_id": settlement.request_id,
        "error": settlement.error,
    }


def _adjust(
    attempt_id: str, truth: Sequence[billing.Charge], outcome: dict[str, Any]
) -> tuple[list[billing.Charge], list[CostEvent]]:
    """
    Correct the estimate of an attempt that the reaper closed, model by model, unless that was done before.

    The estimate for a model that had no part in it is reversed. Returns the charges of models without an estimate, and
    the adjustments.
    """
    given_up = Attempt.objects.filter(id=attempt_id, state=Attempt.State.INDETERMINATE)
    if not given_up.update(**outcome):
        return [], []
    adjusted = []
    real = {charge.served_model_id: charge for charge in truth}
    for estimate in CostEvent.objects.filter(attempt_id=attempt_id, kind=CostEvent.Kind.CHARGE).order_by("id"):
        charge = real.pop(estimate.served_model_id, None)
        adjusted += billing.write_adjustment(
            charge=estimate,
            usage=charge.usage if charge else NOTHING,
            prices=charge.prices if charge else None,
            estimated=charge.estimated if charge else False,
            billed=truth[0].billed,
            occurred_at=truth[0].occurred_at,
        )
    return list(real.values()), adjusted


def _write_runs(
    runs: Sequence[Run], *, ends: Mapping[str, SettlementPlan], new: Sequence[CostEvent], late: Collection[str]
) -> dict[str, int]:
    """
    Write the totals of runs, and with the same UPDATE the ends of those that end.

    Returns the bytes that each end adds, by run id.
    """
    lines_of = _lines_of(runs, new=new, late=late)
    totals = {run_id: _figures(lines) for run_id, lines in lines_of.items()}
    sizes = {run_id: _size_of(plan) for run_id, plan in ends.items()}
    rows = {
        run_id: {**figures, **(_end_of(ends[run_id], size=sizes[run_id]) if run_id in ends else {})}
        for run_id, figures in totals.items()
    }
    # The rows of one statement name the same fields.
    for names in {tuple(values) for values in rows.values()}:
        update_each(_ALL, [({"id": run_id}, values) for run_id, values in rows.items() if tuple(values) == names])
    for plan in ends.values():
        if plan.end is not None and plan.end.agent is not None:
            _keep_files(plan.run, plan.end.agent)
    return sizes


def _size_of(plan: SettlementPlan) -> int:
    end = plan.end
    assert end is not None
    files = end.agent.files if end.agent is not None else ()
    return stored_bytes.of_end(plan.run, text=end.text, content=end.content, error=end.error, files=files)


def _end_of(plan: SettlementPlan, *, size: int) -> dict[str, Any]:
    end = plan.end
    assert end is not None
    becomes: dict[str, Any] = {
        "state": end.state,
        "error": end.error,
        "output_text": end.text,
        "output_content": end.content,
        "stop_reason": end.stop_reason,
        "finished_at": plan.now,
        "lease_owner": "",
        "lease_until": None,
        "stored_bytes": size,
    }
    if plan.run.has_events:
        becomes["stored_bytes"] = F("stored_bytes") + F("event_bytes") + size
        becomes["chunk_count"] = F("chunk_count") + 2
    if plan.expired_before is not None:
        # The new epoch prevents the previous lease holder from writing its own end later.
        becomes["epoch"] = plan.run.epoch + 1
    return becomes


def _lines_of(runs: Sequence[Run], *, new: Sequence[CostEvent], late: Collection[str]) -> dict[str, list[CostEvent]]:
    """Find the ledger lines of runs. A run has only a few."""
    lines_of: dict[str, list[CostEvent]] = {run.id: [] for run in runs}
    # If a run has one attempt, its new charges are all of its lines.
    known = ({run.id for run in runs if run.attempt_count == 1} & {line.run_id for line in new}) - set(late)
    others = lines_of.keys() - known
    for line in [line for line in new if line.run_id in known]:
        lines_of[line.run_id].append(line)
    for line in CostEvent.objects.of_calls().filter(run_id__in=others) if others else ():
        lines_of[line.run_id].append(line)
    return lines_of


def _figures(lines: Sequence[CostEvent]) -> dict[str, Any]:
    used = [Usage.of(line) for line in lines]
    amounts = [line.amount_picodollars for line in lines]
    known = [amount for amount in amounts if amount is not None]
    # The newest line of a model's part in an attempt determines whether its amount is still an estimate.
    in_order = sorted(lines, key=lambda line: (line.kind == CostEvent.Kind.ADJUSTMENT, line.occurred_at))
    newest = {(line.attempt_id, line.served_model_id): line.estimated for line in in_order}
    return {
        "usage": sum(used, start=NOTHING).as_dict(),
        "amount_picodollars": sum(known) if lines and len(known) == len(lines) else None,
        "estimated": any(newest.values()),
        "billed": any(line.billed for line in lines),
    }


def _settle_caps(plans: Sequence[SettlementPlan], runs: Sequence[Run], *, lines: Sequence[CostEvent]) -> None:
    """Count the new lines of runs for which caps hold, and release what those that ended have held."""
    caps_of = {plan.run.id: plan.run.caps for plan in plans if plan.run.caps}
    if caps_of:
        caps.settle(
            ended={run.id: run.caps for run in runs if run.caps},
            lines=[(line, caps_of[line.run_id]) for line in lines if line.run_id in caps_of],
        )


def _release_holds(runs: Sequence[Run], *, called: set[str], lines: Sequence[CostEvent], now: datetime) -> None:
    """
    Release the holds of the runs.

    A shared run that reached the provider, in a call settled here or earlier, counts against the quota; otherwise its
    hold is returned. The actual cost of a metered run is counted with its ledger lines, that of a shared run here.
    Budgets come first, as at admission, to prevent deadlocks.
    """
    if metered := [run.id for run in runs if run.auth_mode == AuthMode.METERED]:
        budget.release_holds(run_ids=metered)
    shared = {run.id for run in runs if run.auth_mode == AuthMode.SHARED}
    if shared or any(line.auth_mode == AuthMode.SHARED for line in lines):
        reached = called & shared
        if others := shared - called:
            before = Attempt.objects.filter(run__in=others).exclude(state=Attempt.State.VOID)
            reached |= set(before.values_list("run_id", flat=True))
        quota.release_holds(spent={run_id: run_id in reached for run_id in shared}, lines=lines, now=now)


def _tell(runs: Sequence[Run]) -> None:
    """Append the last two events of each run, and send `run_ended` to the packages above this one."""
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
