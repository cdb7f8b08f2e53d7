"""
The first half of a dispatch: load, judge, plan, write, ring the bell.

`judge` and `plan` are pure over loaded facts, and the dry run uses the same `judge`, so what it says is
what a dispatch would do. A refused dispatch writes nothing.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import partial
from typing import Any

from django.conf import settings
from django.db import IntegrityError, transaction

from catalog import pricing
from catalog import services as catalog
from catalog.models import CatalogEntry
from catalog.provider_config import context_window_of, validate_provider_config
from integrations.providers.base import BuiltRequest, ModelRequest
from profiles import services as profiles
from profiles.models import ModelProfile
from rensei.core.auth_modes import PAYER_OF, AuthMode
from rensei.core.clock import database_now
from rensei.core.errors import NotFound, RenseiError
from rensei.core.money import dollars
from rensei.core.transactions import durable
from rensei.core.usage import Usage
from rensei.dispatch import doorbell, facts, pools, retention
from rensei.dispatch.facts import Facts
from rensei.dispatch.models import IdempotencyKey, Run, RunInput
from rensei.dispatch.modes import MODES
from rensei.dispatch.requests import DispatchRequest
from rensei.dispatch.resolver import Decision, resolve
from rensei.orgs.access import Access
from rensei.orgs.models import Project

IDEMPOTENCY_KEPT = timedelta(hours=24)
HOST_SESSION_DEADLINE = timedelta(minutes=15)
EXPECTED_OUTPUT_TOKENS = 500


class ProfileRequired(RenseiError):
    """The dispatch names no profile, and neither the project nor the organization has a default."""

    code = "PROFILE_REQUIRED"
    status = 422
    title = "No profile named"
    message = "Name a profile in profileId, or make one the default in Settings → Model Profiles."


class IdempotencyKeyReused(RenseiError):
    """The Idempotency-Key was used for another body within 24 hours."""

    code = "IDEMPOTENCY_KEY_REUSED"
    status = 422
    title = "Idempotency key reused"
    message = "This Idempotency-Key came with another body within 24 hours. Use a new key for a new request."


@dataclass(frozen=True, kw_only=True)
class Judgement:
    """What a dispatch would do: the decision, the request it would send, or the refusal."""

    facts: Facts
    decision: Decision
    entry: CatalogEntry
    request: ModelRequest
    built: BuiltRequest | None
    refusal: RenseiError | None


@dataclass(frozen=True, kw_only=True)
class AdmissionPlan:
    """The rows of one admitted run, ready to be written."""

    run: Run
    input: RunInput
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
    judgement = judge(_load(access, request), request)
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
    judgement = judge(_or_refuse(found), request)
    if judgement.refusal is not None:
        raise judgement.refusal
    admitted = plan(access, judgement, request)
    write([admitted])
    return admitted.run


def preview(access: Access, request: DispatchRequest) -> dict[str, Any]:
    """
    Say what a dispatch would do, without doing it: the dry-run answer of the contract.

    :raises RenseiError: only for what has no answer: an unknown profile, project or pool
    """
    try:
        found = _load(access, request, with_quota=True)
    except (catalog.ModelNotInCatalog, catalog.ModelRetired) as refusal:
        return _unanswerable(refusal)
    return _preview_body(judge(found, request), request)


def previews(access: Access, stored: Sequence[ModelProfile]) -> dict[str, dict[str, Any]]:
    """Say what a dispatch of each profile would do now, in a fixed number of queries."""
    pool = pools.find_pool(access.org, "local")
    request = DispatchRequest()
    answers = {}
    for profile, found in zip(
        stored, facts.load(access, stored, project=None, pool=pool, with_quota=True), strict=True
    ):
        answers[profile.public_id] = (
            _unanswerable(found) if isinstance(found, RenseiError) else _preview_body(judge(found, request), request)
        )
    return answers


def judge(found: Facts, request: DispatchRequest) -> Judgement:
    """
    Decide, without touching anything. Refusals come in a fixed order: effort, images, window, policy, gates.

    :raises FieldError: if a value of the request does not fit the model
    """
    profile = found.profile
    decision = resolve(
        profile_modes=profile.auth_modes,
        provider=profile.provider,
        provider_modes=found.spec.auth_modes,
        requested=facts.offered_model(found.requested),
        served=found.offered(),
        policies=found.policies,
    )
    entry = _served_entry(found, decision)
    window = context_window_of(found.spec, _provider_config(found, entry, request))
    model_request = ModelRequest(
        system=request.system if request.system is not None else (profile.system or None),
        messages=request.messages,
        effort=request.effort or profile.effort or None,
        max_tokens=_max_tokens(found, decision, request),
        prompt_caching=profile.prompt_caching,
        context_window_tokens=_window(found, entry, window),
    )
    built, refusal = None, None
    try:
        if request.messages:
            found.adapter.check_input(messages=request.messages, entry=entry)
        built = found.adapter.build(model_request, entry=entry)
        if decision.mode is None:
            raise decision.refusal()
        _gate(found, decision.mode)
    except RenseiError as caught:
        refusal = caught
        if decision.mode is not None and built is not None:
            decision = decision.gate_failed(caught)
            refusal.extra.setdefault("trace", decision.wire())
    return Judgement(
        facts=found,
        decision=decision,
        entry=entry,
        request=model_request,
        built=built,
        refusal=refusal,
    )


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
        idempotency=idempotency,
    )


def write(plans: Sequence[AdmissionPlan]) -> None:
    """
    Save admitted runs with what they hold, in one transaction, and ring the bell after it.

    :raises RenseiError: if a hold is refused, such as the day's shared quota; then nothing is saved
    """
    with durable():
        for admitted in plans:
            if admitted.idempotency is not None:
                expired = admitted.run.created_at - IDEMPOTENCY_KEPT
                IdempotencyKey.objects.for_org(admitted.run.org).filter(
                    key=admitted.idempotency.key, created_at__lt=expired
                ).delete()
                admitted.idempotency.save(force_insert=True)
            MODES[AuthMode(admitted.run.auth_mode)].hold(admitted.run, now=admitted.run.created_at)
        Run.objects.bulk_create([admitted.run for admitted in plans])
        RunInput.objects.bulk_create([admitted.input for admitted in plans])
        for admitted in plans:
            transaction.on_commit(partial(doorbell.ring, admitted.run.id))


def _load(access: Access, request: DispatchRequest, *, with_quota: bool = False) -> Facts:
    """
    Load the facts of a request, refusing in the order profile, project, pool, model.

    :raises RenseiError: naming the first that is missing
    """
    profile = profiles.find_profile(access, request.profile_id) if request.profile_id else None
    project = _project(access, request)
    if profile is None:
        profile = profiles.default_profile(access.org, project)
        if profile is None:
            raise ProfileRequired
    if profile.project_id is not None:
        if project is not None and project.pk != profile.project_id:
            raise NotFound
        project = profile.project
    pool = pools.find_pool(access.org, request.pool)
    (found,) = facts.load(access, [profile], project=project, pool=pool, host_id=request.host_id, with_quota=with_quota)
    return _or_refuse(found)


def _project(access: Access, request: DispatchRequest) -> Project | None:
    """The project that the request names, or that the token is bound to; another's is not found."""
    if access.project is not None:
        if request.project_id not in {None, access.project.slug}:
            raise NotFound
        return access.project
    if request.project_id is None:
        return None
    project: Project | None = Project.objects.for_org(access.org).filter(slug=request.project_id).first()
    if project is None:
        raise NotFound
    return project


def _or_refuse(found: Facts | RenseiError) -> Facts:
    if isinstance(found, RenseiError):
        raise found
    return found


def _served_entry(found: Facts, decision: Decision) -> CatalogEntry:
    """The entry of the picked mode; where none was picked, what the profile's first served mode would call."""
    modes = [decision.mode] if decision.mode else [AuthMode(mode) for mode in found.profile.auth_modes]
    return next(entry for mode in modes if (entry := found.served(mode)) is not None)


def _provider_config(found: Facts, entry: CatalogEntry, request: DispatchRequest) -> dict[str, Any]:
    """The profile's config with the request's over it, key by key."""
    asked = validate_provider_config(found.spec, found.requested, request.provider_config, served=entry)
    stored: dict[str, Any] = found.profile.provider_config
    return {name: {**stored.get(name, {}), **asked.get(name, {})} for name in {*stored, *asked}}


def _window(found: Facts, entry: CatalogEntry, override: int | None) -> int | None:
    """The smallest of the window that was asked for, the requested model's and the served model's."""
    known = [size for size in (override, found.requested.context_window_tokens, entry.context_window_tokens) if size]
    return min(known) if known else None


def _max_tokens(found: Facts, decision: Decision, request: DispatchRequest) -> int | None:
    asked = request.max_tokens or found.profile.max_tokens
    cap = MODES[decision.mode].max_tokens_cap(found) if decision.mode else None
    if cap is None:
        return asked
    return min(asked, cap) if asked else cap


def _gate(found: Facts, mode: AuthMode) -> None:
    """Capacity first, then the mode's own gates. A host session says itself that it needs a local pool."""
    MODES[mode].gate(found)
    found.pool.require_driver()


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


def _preview_body(judgement: Judgement, request: DispatchRequest) -> dict[str, Any]:
    decision, refusal, found = judgement.decision, judgement.refusal, judgement.facts
    return {
        "authMode": decision.mode.value if decision.mode else None,
        "payer": PAYER_OF[decision.mode].value if decision.mode else None,
        "wouldRun": refusal is None,
        "code": refusal.code if refusal else None,
        "detail": refusal.detail if refusal else None,
        "model": found.requested.model_id,
        "servedModel": judgement.entry.model_id,
        "trace": decision.wire(),
        "quotes": [_quote(judgement, mode, request) for mode in _candidates(judgement)],
    }


def _candidates(judgement: Judgement) -> list[AuthMode]:
    gated = [judgement.decision.mode] if judgement.decision.mode else []
    return sorted({*judgement.decision.candidates, *gated}, key=list(AuthMode).index)


def _quote(judgement: Judgement, mode: AuthMode, request: DispatchRequest) -> dict[str, Any]:
    """What a candidate would cost: a typical answer for `expectedUsd`, the longest possible for `maxUsd`."""
    found = judgement.facts
    refusal: RenseiError | None = None
    try:
        _gate(found, mode)
    except RenseiError as caught:
        refusal = caught
    entry = found.served(mode)
    built = judgement.built
    prices = found.prices_of(entry) if entry else []
    expected = maximum = None
    if built is not None and prices:
        output = min(EXPECTED_OUTPUT_TOKENS, built.max_tokens)
        usual = Usage(input_tokens=built.input_tokens_about, output_tokens=output)
        expected = pricing.cost(usual, pricing.band_for(prices, prompt_tokens=usual.prompt_tokens))
        maximum = pricing.worst_case(
            prices,
            prompt_tokens=built.input_tokens_at_most,
            max_tokens=built.max_tokens,
            prompt_caching=judgement.request.prompt_caching,
        )
    return {
        "mode": mode.value,
        "wouldRun": refusal is None,
        "code": refusal.code if refusal else None,
        "payer": PAYER_OF[mode].value,
        "expectedUsd": dollars(expected),
        "maxUsd": dollars(maximum),
    }


def _unanswerable(refusal: RenseiError) -> dict[str, Any]:
    """The dry-run answer where the model itself is gone, so that no mode could be judged."""
    return {
        "authMode": None,
        "payer": None,
        "wouldRun": False,
        "code": refusal.code,
        "detail": refusal.detail,
        "model": None,
        "servedModel": None,
        "trace": [],
        "quotes": [],
    }
