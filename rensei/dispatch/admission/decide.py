"""
Decide what a dispatch does: load the dispatch context, then return the decision, the provider request or the refusal.

Nothing here writes. A dispatch and a dry run call the same function, so a dry run predicts the dispatch exactly.
"""

from dataclasses import dataclass, replace
from functools import cache, partial
from typing import Any

from billing.limits import caps
from billing.limits.caps import CostNotBounded
from catalog import pricing
from catalog.models import CatalogEntry
from catalog.provider_config import context_window_of, validate_provider_config
from integrations.providers.base import BuiltRequest, ModelRequest
from profiles import services as profiles
from profiles.models import ModelProfile
from rensei.core.auth_modes import AuthMode
from rensei.core.errors import FieldError, NotFound, RenseiError, named_in
from rensei.dispatch import context, pools, run_caps
from rensei.dispatch.admission import unknown_parts
from rensei.dispatch.admission.requests import DispatchRequest
from rensei.dispatch.agents import CLAUDE_CODE, git_host
from rensei.dispatch.context import DispatchContext, Known
from rensei.dispatch.models import Run
from rensei.dispatch.modes import MODES
from rensei.dispatch.modes.base import Gate
from rensei.orgs import kill_switches
from rensei.orgs.access import Access
from rensei.orgs.models import Project
from rensei.policies.resolver import Decision, resolve


class ProfileRequired(RenseiError):
    """The dispatch names no profile, and neither the project nor the organization has a default."""

    code = "PROFILE_REQUIRED"
    status = 422
    title = "No profile named"
    message = "Name a profile in profileId, or make one the default in Settings → Model Profiles."
    gateway_message = (
        "A model is named, and there is no default profile that says how it may be called. Name a profile's id as "
        "the model, or make a profile the default in Settings → Model Profiles."
    )


@dataclass(frozen=True, kw_only=True)
class DispatchDecision:
    """The result of `decide`: the decision, the request to the provider, or the refusal."""

    facts: DispatchContext
    decision: Decision
    entry: CatalogEntry
    request: ModelRequest
    built: BuiltRequest | None
    refusal: RenseiError | None


def load(
    access: Access, request: DispatchRequest, *, with_quota: bool = False, known: Known | None = None
) -> DispatchContext:
    """
    Load the dispatch context of a request, checking profile, project, pool and model in this order.

    :raises RenseiError: for the first of them that is not found
    """
    profile = known.profile if known else None
    if profile is None and request.profile_id:
        with named_in("/profileId"):
            profile = profiles.find_profile(access, request.profile_id)
    project = _project(access, request)
    if profile is None:
        profile = profiles.default_profile(access.org, project)
        if profile is None:
            raise ProfileRequired
    if profile.project_id is not None:
        if project is not None and project.pk != profile.project_id:
            raise NotFound(pointer="/profileId")
        project = profile.project
    pool = pools.find_pool(access.org, pools.name_for(request.pool, project))
    (found,) = context.load(
        access, [profile], project=project, pool=pool, host_id=request.host_id, with_quota=with_quota, known=known
    )
    return require(found)


def require(found: DispatchContext | RenseiError) -> DispatchContext:
    if isinstance(found, RenseiError):
        raise found
    return found


def decide(found: DispatchContext, request: DispatchRequest) -> DispatchDecision:
    """
    Decide without side effects. Refusals come in a fixed order: effort, images, window, policy, gates.

    :raises FieldError: if a value of the request does not fit the model
    """
    profile = found.profile
    if request.max_cost_picodollars is not None:
        found = replace(found, run_cap=request.max_cost_picodollars)
    if request.agent is not None:
        is_claude_code = request.agent["program"] == CLAUDE_CODE
        host = git_host(request.agent)
        found = replace(found, is_agent=True, is_claude_code=is_claude_code, git_host=host)
    decision = resolve(
        profile_modes=profile.auth_modes,
        provider=profile.provider,
        provider_modes=found.spec.auth_modes,
        requested=found.offered_model(found.requested),
        served=found.offered(),
        policies=found.policies,
    )
    entry = _served_entry(found, decision)
    asked = _with_profile(request, profile)
    window = context_window_of(found.spec, _provider_config(found, entry, asked))
    model_request = ModelRequest(
        system=asked.system,
        messages=asked.messages,
        effort=asked.effort,
        effort_is_asked=request.effort_is_asked and bool(request.effort),
        max_tokens=_max_tokens(decision, asked),
        max_tokens_is_asked=request.max_tokens_is_asked and request.max_tokens is not None,
        max_tokens_cap=MODES[decision.mode].max_tokens_cap(found) if decision.mode else None,
        prompt_caching=asked.prompt_caching or profile.prompt_caching,
        context_window_tokens=_window(found, entry, window),
    )
    built, refusal = None, None
    try:
        if request.messages:
            found.adapter.check_input(messages=request.messages, entry=entry)
        built = found.adapter.build(model_request, entry=entry)
        decision = decision.noted(built.effort_left_out)
        if decision.mode is None:
            raise decision.refusal()
        _require_known(found, decision.mode, built)
        gate(found, decision.mode, at_most=max_cost(found, decision.mode, built))
    except RenseiError as caught:
        refusal = caught
        if decision.mode is not None and built is not None:
            decision = decision.gate_failed(caught)
            refusal.extra.setdefault("trace", decision.wire())
    return DispatchDecision(
        facts=found,
        decision=decision,
        entry=entry,
        request=model_request,
        built=built,
        refusal=refusal,
    )


def _require_known(found: DispatchContext, mode: AuthMode, built: BuiltRequest) -> None:
    """
    Check what the request holds that is not known, as the gateway does.

    :raises ModelNotAllowedByPolicy: if it may run a model that a policy denies
    :raises ModelUnpriced, CostNotBounded: if it may cost more than is held
    """
    unknown_parts.require_judged(found.policies, mode, provider_chooses=built.provider_chooses)
    if found.is_cost_held(mode):
        unknown_parts.require_known(built.unknown, mode=mode)


def gate(found: DispatchContext, mode: AuthMode, *, at_most: int | None) -> None:
    """
    Check the gates of a mode in order.

    :raises RenseiError: the refusal of the first one that refuses
    """
    for each in gates_of(mode):
        each.check(found, at_most)


@cache
def gates_of(mode: AuthMode) -> tuple[Gate, ...]:
    """
    List the gates of a mode: kill switches, the mode's own, the pool, the storage limit, caps, and the mode's limits.

    This is the order in which a dispatch meets them: the limits are decided last, in the transaction that saves it.
    """
    return (
        Gate("paused", partial(_require_not_paused, mode)),
        *MODES[mode].gates,
        Gate("driver", _require_driver),
        Gate("storage", _require_storage),
        Gate("cap", partial(_require_cap, mode)),
        *MODES[mode].limits,
    )


def stopped(found: DispatchContext, mode: AuthMode) -> list[tuple[str, str, str]]:
    """List what operators have stopped of that which the call depends on: its kind, its target and the reason."""
    return [(kind.label, target, reason) for kind, target, reason in found.stopped.concerning(**_uses(found, mode))]


def _require_not_paused(mode: AuthMode, found: DispatchContext, at_most: int | None) -> None:
    """:raises OrgSuspended, PausedByOperator: if an operator has stopped something that the call depends on"""
    found.stopped.require_running(**_uses(found, mode))


def _uses(found: DispatchContext, mode: AuthMode) -> dict[str, Any]:
    """What the kill switches compare."""
    served = found.served(mode)
    answered_by = found.answered_by.get(served.pk, ()) if served else ()
    return {
        "org_id": found.org.id,
        "provider": found.profile.provider,
        "model_ids": {
            found.profile.model_id,
            found.requested.model_id,
            *({served.model_id} if served else ()),
            *(entry.model_id for entry in answered_by),
        },
        "mode": mode,
        "integration_id": MODES[mode].credential_id(found),
    }


def _require_driver(found: DispatchContext, at_most: int | None) -> None:
    found.pool.require_driver()
    if found.is_agent:
        found.pool.require_agents()
    if found.is_claude_code:
        found.pool.require_claude_code()
    if found.git_host:
        found.pool.require_git(found.git_host)


def _require_storage(found: DispatchContext, at_most: int | None) -> None:
    found.storage.require_room(found.bytes_to_store)


def _require_cap(mode: AuthMode, found: DispatchContext, at_most: int | None) -> None:
    """:raises CostNotBounded, RunCostExceeded, SpendCapExceeded: if the run may cost more than a cap on it"""
    if not found.is_capped and found.run_cap is None:
        return
    entry = found.served(mode)
    # What answers for an organization's own entry may cost more than the entry says.
    if at_most is None or entry is None or entry.org_id is not None:
        raise CostNotBounded(what=f"Model '{found.requested.model_id}'")
    if found.run_cap is not None:
        run_caps.require_room(found.run_cap, spent=0, at_most=at_most)
    caps.require_room(found.caps, picodollars=at_most, now=found.now)


def require_running(run: Run) -> None:
    """
    Check the kill switches again before the call of a run that was queued.

    :raises OrgSuspended, PausedByOperator: if an operator has stopped something that the call depends on
    """
    kill_switches.stopped_for(run.org).require_running(
        org_id=run.org_id,
        provider=run.provider,
        model_ids={run.asked_model_id, run.model_id, run.served_model_id},
        mode=run.auth_mode,
        integration_id=run.credential_id,
    )


def max_cost(found: DispatchContext, mode: AuthMode, built: BuiltRequest | None) -> int | None:
    """Return the maximum cost of the call under a mode, or of an agent, in picodollars, or None if it is unknown."""
    entry = found.served(mode)
    prices = found.prices_of(entry) if entry else []
    if built is None or not prices:
        return None
    if found.is_agent:
        return found.run_cap
    return pricing.worst_case(
        [band.times(built.price_factor_at_most) for band in prices],
        prompt_tokens=built.input_tokens_at_most,
        max_tokens=built.max_tokens,
        prompt_caching=built.cache_writes,
    )


def _project(access: Access, request: DispatchRequest) -> Project | None:
    """Return the project of the request or of the API token. Another organization's project is not found."""
    if access.project is not None:
        if request.project_id not in {None, access.project.slug}:
            raise NotFound(pointer="/projectId")
        return access.project
    if request.project_id is None:
        return None
    project: Project | None = Project.objects.for_org(access.org).filter(slug=request.project_id).first()
    if project is None:
        raise NotFound(pointer="/projectId")
    return project


def _served_entry(found: DispatchContext, decision: Decision) -> CatalogEntry:
    """Return the entry of the selected mode or, if none is selected, of the profile's first mode that has one."""
    modes = [decision.mode] if decision.mode else [AuthMode(mode) for mode in found.profile.auth_modes]
    return next(entry for mode in modes if (entry := found.served(mode)) is not None)


def _with_profile(request: DispatchRequest, profile: ModelProfile) -> DispatchRequest:
    """Fill missing values of the request from the profile. A complete request is returned unchanged."""
    if request.is_complete:
        return request
    return replace(
        request,
        system=request.system if request.system is not None else (profile.system or None),
        effort=request.effort or profile.effort or None,
        max_tokens=profile.max_tokens if request.max_tokens is None else request.max_tokens,
        prompt_caching=request.prompt_caching or profile.prompt_caching,
    )


def _provider_config(found: DispatchContext, entry: CatalogEntry, request: DispatchRequest) -> dict[str, Any]:
    """Merge the request's config over the profile's, key by key."""
    asked = validate_provider_config(found.spec, found.requested, request.provider_config, served=entry)
    stored: dict[str, Any] = {} if request.is_complete else found.profile.provider_config
    return {name: {**stored.get(name, {}), **asked.get(name, {})} for name in {*stored, *asked}}


def _window(found: DispatchContext, entry: CatalogEntry, override: int | None) -> int | None:
    """Return the smallest of three windows: the override, the requested model's and the served model's."""
    known = [size for size in (override, found.requested.context_window_tokens, entry.context_window_tokens) if size]
    return min(known) if known else None


def _max_tokens(decision: Decision, request: DispatchRequest) -> int | None:
    """:raises FieldError: if a machine is to only fill the cache; its programs support only streaming"""
    asked = request.max_tokens
    if asked == 0 and decision.mode is AuthMode.HOST_SESSION:
        raise FieldError(pointer="/maxTokens", reason="A machine's login takes no request that only fills the cache.")
    return asked
