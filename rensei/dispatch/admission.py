"""
The first half of a dispatch: load, judge, plan, write, ring the bell. A refused dispatch writes nothing.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import partial

from django.conf import settings
from django.db import IntegrityError, transaction

from profiles.models import ModelProfile
from rensei.core.auth_modes import PAYER_OF, AuthMode
from rensei.core.clock import database_now
from rensei.core.errors import RenseiError
from rensei.core.transactions import durable
from rensei.dispatch import doorbell, facts, judging, pools, retention
from rensei.dispatch.judging import Judgement, judge
from rensei.dispatch.models import IdempotencyKey, Run, RunInput
from rensei.dispatch.modes import MODES
from rensei.dispatch.requests import DispatchRequest
from rensei.orgs.access import Access

IDEMPOTENCY_KEPT = timedelta(hours=24)
HOST_SESSION_DEADLINE = timedelta(minutes=15)


class IdempotencyKeyReused(RenseiError):
    """The Idempotency-Key was used for another body within 24 hours."""

    code = "IDEMPOTENCY_KEY_REUSED"
    status = 422
    title = "Idempotency key reused"
    message = "This Idempotency-Key came with another body within 24 hours. Use a new key for a new request."


@dataclass(frozen=True, kw_only=True)
class AdmissionPlan:
    """The rows of one admitted run, ready to be written, and the most that its call can cost in picodollars."""

    run: Run
    input: RunInput
    at_most: int | None
    idempotency: IdempotencyKey | None = None


def dispatch(access: Access, request: DispatchRequest, *, idempotency_key: str = "", body_digest: str = "") -> Run:
    """
    Admit a run and queue it, or give back the run that the same Idempotency-Key made.

    :raises RenseiError: if the dispatch is refused; then nothing was written, called or spent
    """
    if idempotency_key:
        known = _known_run(access, idempotency_key, body_digest)
        if known is not None:
            return known
    judgement = judge(judging.load(access, request), request)
    if judgement.refusal is not None:
        raise judgement.refusal
    run = plan(access, judgement, request, idempotency_key=idempotency_key, body_digest=body_digest)
    try:
        write([run])
    except IntegrityError:
        # Two equal requests raced. The loser waited for the winner's commit, so its run can be read now.
        known = _known_run(access, idempotency_key, body_digest) if idempotency_key else None
        if known is None:
            raise
        return known
    return run.run


def dispatch_unsaved(access: Access, profile: ModelProfile, request: DispatchRequest) -> Run:
    """Admit a run of a profile that is not stored, such as a test message's."""
    (found,) = facts.load(access, [profile], project=None, pool=pools.find_pool(access.org, request.pool))
    judgement = judge(judging.or_refuse(found), request)
    if judgement.refusal is not None:
        raise judgement.refusal
    admitted = plan(access, judgement, request)
    write([admitted])
    return admitted.run


def plan(
    access: Access,
    judgement: Judgement,
    request: DispatchRequest,
    *,
    idempotency_key: str = "",
    body_digest: str = "",
) -> AdmissionPlan:
    """Make the rows of an admitted run. Everything that decides about money is frozen here."""
    found, mode, built = judgement.facts, judgement.decision.mode, judgement.built
    assert mode is not None
    assert built is not None
    prices = found.prices_of(judgement.entry)
    run = Run(
        org=access.org,
        project=found.project,
        created_by=access.user,
        profile_id=found.profile.public_id,
        profile_name=found.profile.name,
        provider=found.profile.provider,
        model_id=found.requested.model_id,
        served_model_id=judgement.entry.model_id,
        auth_mode=mode.value,
        payer=PAYER_OF[mode].value,
        credential_id=MODES[mode].credential_id(found),
        pool=found.pool.name,
        host=found.host if mode is AuthMode.HOST_SESSION else None,
        effort=built.effort or "",
        effort_applied=built.effort_applied,
        max_tokens=built.max_tokens,
        context_window_tokens=judgement.request.context_window_tokens,
        metadata=request.metadata,
        trace=judgement.decision.wire(),
        prices=[band.as_dict() for band in prices] or None,
        deadline_at=found.now + _deadline(mode),
        created_at=found.now,
    )
    asked = {
        "system": judgement.request.system,
        "messages": judgement.request.messages,
        "maxTokens": judgement.request.max_tokens,
        "promptCaching": judgement.request.prompt_caching,
    }
    idempotency = None
    if idempotency_key:
        idempotency = IdempotencyKey(
            org=access.org, key=idempotency_key, body_digest=body_digest, run_id=run.id, created_at=found.now
        )
    return AdmissionPlan(
        run=run,
        input=RunInput(run=run, body=asked, has_images=retention.holds_images(request.messages)),
        at_most=judging.most_of(found, mode, judgement.request, built),
        idempotency=idempotency,
    )


def write(plans: Sequence[AdmissionPlan]) -> None:
    """
    Save admitted runs with what they hold, in one transaction, and ring the bell after it.

    :raises RenseiError: if a hold is refused, as by the day's shared quota or the month's budget; then nothing is saved
    """
    with durable():
        for admitted in plans:
            if admitted.idempotency is not None:
                expired = admitted.run.created_at - IDEMPOTENCY_KEPT
                IdempotencyKey.objects.for_org(admitted.run.org).filter(
                    key=admitted.idempotency.key, created_at__lt=expired
                ).delete()
                admitted.idempotency.save(force_insert=True)
            MODES[AuthMode(admitted.run.auth_mode)].hold(
                admitted.run, at_most=admitted.at_most, now=admitted.run.created_at
            )
        Run.objects.bulk_create([admitted.run for admitted in plans])
        RunInput.objects.bulk_create([admitted.input for admitted in plans])
        for admitted in plans:
            transaction.on_commit(partial(doorbell.ring, admitted.run.id))


def _deadline(mode: AuthMode) -> timedelta:
    if mode is AuthMode.HOST_SESSION:
        return HOST_SESSION_DEADLINE
    return timedelta(seconds=settings.RENSEI_RUN_DEADLINE_SECONDS)


def _known_run(access: Access, key: str, body_digest: str) -> Run | None:
    """:raises IdempotencyKeyReused: if the key came with another body"""
    since: datetime = database_now() - IDEMPOTENCY_KEPT
    known = IdempotencyKey.objects.for_org(access.org).filter(key=key, created_at__gte=since).first()
    if known is None:
        return None
    if known.body_digest != body_digest:
        raise IdempotencyKeyReused
    run: Run = Run.objects.for_org(access.org).get(id=known.run_id)
    return run
