"""The first half of a dispatch: load, decide, plan, write, notify workers. A refused dispatch writes nothing."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, date, timedelta
from functools import partial
from typing import Any

from django.conf import settings
from django.db import IntegrityError, transaction
from django.db.models import Model

from billing.limits import caps
from integrations.keys import leaks
from integrations.keys.leaks import Leaks
from profiles.models import ModelProfile
from rensei.core.auth_modes import PAYER_OF, PREFERENCE, AuthMode
from rensei.core.bulk import insert_together
from rensei.core.errors import RenseiError
from rensei.core.transactions import durable
from rensei.core.unknown import note_unknown
from rensei.dispatch import (
    context,
    idempotency,
    pools,
    retention,
    run_tokens,
    search,
    stored_bytes,
    token_rate,
    withheld,
)
from rensei.dispatch.admission import decide
from rensei.dispatch.admission.decide import DispatchDecision
from rensei.dispatch.admission.requests import DispatchRequest
from rensei.dispatch.context import DispatchContext
from rensei.dispatch.models import Attempt, IdempotencyKey, Run, RunInput, SearchEntry
from rensei.dispatch.modes import MODES
from rensei.dispatch.queue import wake_up
from rensei.orgs import storage
from rensei.orgs.access import Access

HOST_SESSION_DEADLINE = timedelta(minutes=15)


@dataclass(frozen=True, kw_only=True)
class AdmissionPlan:
    """
    The rows to write for one admitted run, and the maximum cost of its call in picodollars (`at_most`).

    A queued run has `input`. A run whose call follows immediately has `attempt`. With `sandbox_id`, the run exists and
    holds what the call may cost: a sandbox makes the call for it.
    """

    run: Run
    at_most: int | None
    input: RunInput | None = None
    attempt: Attempt | None = None
    sandbox_id: str = ""
    idempotency: IdempotencyKey | None = None
    leaks: Leaks = leaks.NOTHING

    @property
    def id(self) -> str:
        """The id by which it is refused. Sandboxes may make several calls for one run."""
        named: Run | Attempt = self.attempt if self.sandbox_id and self.attempt is not None else self.run
        return str(named.id)


def dispatch(access: Access, request: DispatchRequest, *, idempotency_key: str = "", body_digest: str = "") -> Run:
    """
    Admit a run and queue it, or return the existing run of the same Idempotency-Key.

    :raises RenseiError: if the dispatch is refused, as over the rate of tokens; nothing is written, called or spent
    """
    if known := _known_run(access, idempotency_key, body_digest):
        return known
    token_rate.require_left(access.org.id)
    judgement = _judge(decide.load(access, request), request)
    run = plan(access, judgement, request, idempotency_key=idempotency_key, body_digest=body_digest)
    try:
        refused = write([run])
    except IntegrityError:
        # Two requests with one key raced. This insert waited for the other's commit, so that run is readable now.
        if known := _known_run(access, idempotency_key, body_digest):
            return known
        raise
    _raise_of(refused)
    return run.run


def dispatch_unsaved(access: Access, profile: ModelProfile, request: DispatchRequest) -> Run:
    """Admit a run with a profile that is not stored, such as for a test message."""
    token_rate.require_left(access.org.id)
    (found,) = context.load(
        access, [profile], project=None, pool=pools.find_pool(access.org, request.pool or pools.LOCAL)
    )
    judgement = _judge(decide.require(found), request)
    admitted = plan(access, judgement, request)
    _raise_of(write([admitted]))
    return admitted.run


def _judge(found: DispatchContext, request: DispatchRequest) -> DispatchDecision:
    """Decide a dispatch, and count what is not known in it, whether it is refused or not."""
    judgement = decide.decide(found, request)
    for kind, name in judgement.built.unknown if judgement.built else ():
        note_unknown(kind, name)
    token_rate.require_left(found.org.id, judgement.decision.mode)
    if judgement.refusal is not None:
        raise judgement.refusal
    return judgement


def plan(
    access: Access,
    judgement: DispatchDecision,
    request: DispatchRequest,
    *,
    idempotency_key: str = "",
    body_digest: str = "",
) -> AdmissionPlan:
    """Build the rows of an admitted run. Everything that determines its price and payer is frozen here."""
    found, mode, built = judgement.facts, judgement.decision.mode, judgement.built
    assert mode is not None
    assert built is not None
    at_most = decide.max_cost(found, mode, built)
    run = Run(
        **common_run_fields(access, judgement),
        credential_id=MODES[mode].credential_id(found),
        host=found.host if mode is AuthMode.HOST_SESSION else None,
        effort=built.effort or "",
        effort_applied=built.effort_applied,
        max_tokens=built.max_tokens,
        context_window_tokens=judgement.request.context_window_tokens,
        metadata=request.metadata,
        in_sandbox=found.pool.is_sandbox,
        in_cloud=found.pool.is_cloud,
        is_agent=found.is_agent,
        max_cost_picodollars=found.run_cap,
        call_picodollars_at_most=None if found.run_cap is None else at_most,
        deadline_at=found.now + _deadline(mode) + timedelta(seconds=(request.agent or {}).get("timeoutSeconds", 0)),
        created_at=found.now,
    )
    asked = {
        "system": judgement.request.system,
        "messages": judgement.request.messages,
        "effort": judgement.request.effort,
        "effortIsAsked": judgement.request.effort_is_asked,
        "maxTokens": judgement.request.max_tokens,
        "maxTokensIsAsked": judgement.request.max_tokens_is_asked,
        "maxTokensCap": judgement.request.max_tokens_cap,
        "promptCaching": judgement.request.prompt_caching,
        **({"agent": request.agent} if request.agent is not None else {}),
    }
    given, leaked = withheld.without_keys(run, asked)
    given.has_images = retention.holds_images(request.messages)
    return AdmissionPlan(
        run=run,
        input=given,
        leaks=leaked,
        at_most=at_most,
        idempotency=idempotency.new(access, idempotency_key, digest=body_digest, run_id=run.id, now=found.now),
    )


def common_run_fields(access: Access, judgement: DispatchDecision) -> dict[str, Any]:
    """Return the fields that all runs of one decision share: caller, payer, model, prices and trace."""
    found, mode = judgement.facts, judgement.decision.mode
    assert mode is not None
    return {
        "org": access.org,
        "project": found.project,
        "created_by": access.user,
        "token_id": access.token.id if access.token else "",
        "caps": list(access.caps),
        "profile_id": found.profile.public_id,
        "profile_name": found.profile.name,
        "provider": found.profile.provider,
        "asked_model_id": found.profile.model_id,
        "model_id": found.requested.model_id,
        "served_model_id": judgement.entry.model_id,
        "auth_mode": mode.value,
        "payer": PAYER_OF[mode].value,
        "pool": found.pool.name,
        "trace": judgement.decision.wire(),
        "prices": [band.as_dict() for band in found.prices_of(judgement.entry)] or None,
    }


def write(plans: Sequence[AdmissionPlan]) -> dict[str, RenseiError]:
    """
    Save admitted runs and their holds in one transaction, and notify workers after the commit.

    Returns the refusals by the ids of the plans, for example for the day's shared quota, the month's budget or the
    storage limit. Nothing of a refused run is saved. The other runs are not affected.
    """
    with durable():
        # Settlements lock the rows of runs before those of limits.
        refused = run_tokens.count_calls(
            (plan.sandbox_id, plan.attempt) for plan in plans if plan.sandbox_id and plan.attempt is not None
        )
        new = [plan for plan in plans if not plan.sandbox_id]
        refused |= _take_room(new)
        refused |= _hold_of_caps([plan for plan in new if plan.id not in refused])
        holds, over = _hold([plan for plan in new if plan.id not in refused])
        refused |= over
        admitted = [plan for plan in plans if plan.id not in refused]
        if not admitted:
            # A hold may have created a row for its counter.
            transaction.set_rollback(True)
            return refused
        _give_back([plan.run for plan in new if plan.id in refused])
        for plan in admitted:
            idempotency.insert(plan.idempotency)
        inputs = [(plan.run, plan.input) for plan in admitted if plan.input is not None]
        insert_together(
            {
                Run: [plan.run for plan in admitted if not plan.sandbox_id],
                RunInput: [given for _, given in inputs],
                SearchEntry: [search.entry_of(run, given) for run, given in inputs],
                Attempt: [plan.attempt for plan in admitted if plan.attempt is not None],
                **holds,
            }
        )
        for plan in admitted:
            if plan.leaks:
                leaks.note(plan.leaks, place="input")
            if plan.run.state == Run.State.QUEUED:
                transaction.on_commit(partial(wake_up.notify_workers, plan.run.id))
    return refused


def _take_room(plans: Sequence[AdmissionPlan]) -> dict[str, RenseiError]:
    """Count the bytes that queued runs store and may still write. A gateway run is counted when it ends."""
    refused: dict[str, RenseiError] = {}
    for plan in sorted(plans, key=lambda plan: plan.run.org_id):
        if plan.input is None:
            continue
        plan.run.stored_bytes = stored_bytes.at_admission(plan.run, plan.input)
        try:
            storage.take(plan.run.org_id, stored=plan.run.stored_bytes, held=stored_bytes.held(plan.run))
        except storage.StorageLimitReached as refusal:
            plan.run.stored_bytes = 0
            refused[plan.run.id] = refusal
    return refused


def _give_back(refused: Sequence[Run]) -> None:
    """Release what was counted and held for runs that were refused while others in the batch were admitted."""
    for run in refused:
        if run.stored_bytes:
            storage.change({run.org_id: (-run.stored_bytes, -stored_bytes.held(run))})
    caps.release({run.id: run.caps for run in refused if run.caps})


def _hold_of_caps(plans: Sequence[AdmissionPlan]) -> Mapping[str, RenseiError]:
    """Hold the maximum costs of the runs for which caps hold."""
    wanted = {}
    for plan in plans:
        if plan.run.caps:
            assert plan.at_most is not None, "A run whose cost is not known was refused by the gate"
            wanted[plan.run.id] = caps.Wanted(org_id=plan.run.org_id, caps=plan.run.caps, picodollars=plan.at_most)
    return caps.hold(wanted, now=max(plan.run.created_at for plan in plans)) if wanted else {}


def _hold(plans: Sequence[AdmissionPlan]) -> tuple[dict[type[Model], list[Model]], dict[str, RenseiError]]:
    """
    Hold what the runs may use of their modes' limits, always in the same order to prevent deadlocks.

    Returns the rows of the holds, to be saved with the runs, and the refused runs by their ids.
    """
    held: dict[tuple[int, str, date], dict[str, int | None]] = defaultdict(dict)
    for plan in plans:
        run = plan.run
        place = PREFERENCE[AuthMode(run.auth_mode)]
        held[place, run.org_id, run.created_at.astimezone(UTC).date()][run.id] = plan.at_most
    rows: dict[type[Model], list[Model]] = defaultdict(list)
    refused: dict[str, RenseiError] = {}
    moments = {plan.run.id: plan.run.created_at for plan in plans}
    for place, org_id, day in sorted(held):
        at_most = held[place, org_id, day]
        mode = MODES[list(AuthMode)[place]]
        holds, over = mode.hold(org_id=org_id, at_most=at_most, now=max(moments[run_id] for run_id in at_most))
        refused |= over
        for hold in holds:
            rows[type(hold)].append(hold)
    return rows, refused


def _raise_of(refused: Mapping[str, RenseiError]) -> None:
    for refusal in refused.values():
        raise refusal


def _deadline(mode: AuthMode) -> timedelta:
    if mode is AuthMode.HOST_SESSION:
        return HOST_SESSION_DEADLINE
    return timedelta(seconds=settings.RENSEI_RUN_DEADLINE_SECONDS)


def _known_run(access: Access, key: str, body_digest: str) -> Run | None:
    run_id = idempotency.known_id(access, key, digest=body_digest)
    return Run.objects.for_org(access.org).get(id=run_id) if run_id else None
