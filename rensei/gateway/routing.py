"""
Routes of calls: the decision for a profile and a model, and the keys that may sign.

A route is made by the same functions as the decision of a dispatch, and is cached while nothing changes.
"""

import copy
import random
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta

from django.utils.functional import cached_property

from catalog.pricing import UnitPrices
from catalog.services import ModelNotInCatalog, find_entry
from integrations.providers.anthropic.features import PriceFactors, factors_at_most
from integrations.providers.base import Credential
from integrations.vault.openings import Why
from profiles import services as profiles
from profiles.models import ModelProfile
from rensei.core.auth_modes import PLATFORM_MODES, AuthMode
from rensei.core.errors import FieldError, RenseiError
from rensei.core.unknown import note_unknown
from rensei.dispatch import context, pools
from rensei.dispatch.admission import admit, decide
from rensei.dispatch.admission.decide import DispatchDecision, ProfileRequired
from rensei.dispatch.admission.requests import DispatchRequest
from rensei.dispatch.models import Attempt, Run
from rensei.dispatch.modes import MODES
from rensei.dispatch.modes.base import Signer
from rensei.orgs.access import Access

PROVIDER = "claude"
PROFILE_PREFIX = "prof_"


@dataclass(frozen=True, kw_only=True, eq=False)
class Route:
    """A decision that several calls share. `run` and `attempt` are templates for their rows and are never saved."""

    judgement: DispatchDecision
    run: Run
    attempt: Attempt
    bands: list[UnitPrices]
    max_tokens_cap: int | None
    loaded_at: float
    _bands_for: dict[PriceFactors, list[UnitPrices]] = field(default_factory=dict, init=False)

    @cached_property
    def mode(self) -> AuthMode:
        assert self.judgement.decision.mode is not None
        return self.judgement.decision.mode

    @cached_property
    def is_by_platform_key(self) -> bool:
        return self.mode in PLATFORM_MODES

    @cached_property
    def is_judged(self) -> bool:
        """Whether a policy denies the mode to some models, so that each one that a call may reach must be known."""
        return any(policy.denies_some(self.mode) for policy in self.judgement.facts.policies)

    @property
    def profile(self) -> ModelProfile:
        return self.judgement.facts.profile

    @cached_property
    def signers(self) -> Sequence[Signer]:
        """
        The keys that may sign a call to its model.

        :raises RenseiError: if there is none
        """
        return MODES[self.mode].signers([self.judgement.facts])

    @cached_property
    def is_federated(self) -> bool:
        """Whether a key that may sign is none, but an identity, whose token may have to be waited for."""
        return any(signer.key.federation is not None for signer in self.signers)

    def signers_for(self, others: Sequence["Route"], *, rate_limit: str = "") -> Sequence[Signer]:
        """
        List the keys that may sign a call which names other models besides.

        :param rate_limit: the provider's limit that the call counts in, if it is not the model's usual one
        :raises RenseiError: if there is none
        """
        if not others and not rate_limit:
            return self.signers
        facts = [each.judgement.facts for each in (self, *others)]
        return MODES[self.mode].signers(facts, rate_limit=rate_limit)

    @cached_property
    def is_cost_held(self) -> bool:
        """Whether the cost of its calls is held before them, as `Run.is_cost_held` says."""
        return self.run.is_cost_held

    def bands_for(self, factors: PriceFactors) -> list[UnitPrices]:
        """Return the highest prices of a request with these factors. Most requests have the same ones."""
        bands = self._bands_for.get(factors)
        if bands is None:
            factor = factors_at_most(factors)
            bands = self._bands_for[factors] = [band.times(factor) for band in self.bands]
        return bands

    def now(self) -> datetime:
        """Return the database's time, extrapolated from the read of the route."""
        return self.judgement.facts.now + timedelta(seconds=time.monotonic() - self.loaded_at)

    def open_signer(self, signer: Signer, *, why: Why) -> Credential | RenseiError:
        """Return an opened key, or the refusal if it cannot be opened."""
        try:
            return MODES[self.mode].open_signer(signer, now=self.now(), why=why)
        except RenseiError as refusal:
            return refusal


def load(access: Access, model: str, *, turned_to: str = "", mode: AuthMode | None = None) -> Route | RenseiError:
    """
    Return the route of a call that names a profile's id or a model, or its refusal.

    :param turned_to: another model that may serve the call; the profile is copied with that model and `mode`
    """
    began = time.monotonic()
    try:
        profile = copy.copy(_profile(access, model))
        if mode is not None:
            profile = _turned(profile, turned_to)
            profile.auth_modes = [mode.value]
        if profile.provider != PROVIDER:
            said = f"The gateway speaks Anthropic's language, and '{model}' is of another provider."
            raise FieldError(pointer="/model", reason=said)
        return _load(access, profile, began=began)
    except ModelNotInCatalog as refusal:
        note_unknown("model", turned_to or model)
        return refusal
    except RenseiError as refusal:
        return refusal


def load_of_run(access: Access, run: Run) -> Route:
    """
    Return the route of a run's own call from its sandbox.

    The request was built for the run, so nothing of the profile is added to it, which may have changed or be deleted.
    Mode, model, prices and key are the run's.

    :raises RenseiError: if the call is refused by now
    """
    began = time.monotonic()
    mode = AuthMode(run.auth_mode)
    profile = ModelProfile(
        org=access.org,
        project=run.project,
        provider=run.provider,
        model_id=run.asked_name,
        auth_modes=[mode.value],
        prompt_caching=ModelProfile.PromptCaching.OFF,
        integration_id=run.credential_id if mode is AuthMode.BYOK else None,
    )
    route = _load(access, profile, began=began)
    # The model may have been retired since the dispatch. What the run holds, and its request, are for the former one.
    entry = find_entry(org=access.org, provider=run.provider, model_id=run.served_model_id)
    return replace(
        route,
        judgement=replace(route.judgement, entry=entry),
        run=run,
        attempt=Attempt(run_id=run.id, number=0, epoch=run.epoch),
        # The one request of a run was built under the cap. An agent writes its own, none longer than the run asks for.
        max_tokens_cap=min(route.max_tokens_cap or run.max_tokens, run.max_tokens) if run.is_agent else None,
    )


def open_key_of(run: Run) -> Credential:
    """
    Open the key of a run, as on a local pool.

    :raises RenseiError: if there is none by now, or it cannot be opened
    """
    return MODES[AuthMode(run.auth_mode)].open_credential(run)


def choose(signers: Sequence[Signer], *, former: Signer | None = None) -> Signer:
    """Choose one of the keys: the one that was chosen before, if it may still sign, or else one by weight."""
    if len(signers) == 1:
        return signers[0]
    if former is not None:
        for signer in signers:
            if signer.version == former.version:
                return signer
    return random.choices(signers, [one.weight for one in signers])[0]  # noqa: S311 - it spreads load, guards nothing


def _load(access: Access, profile: ModelProfile, *, began: float) -> Route:
    # A body has its own, so that of the profile is no part of the decision.
    profile.max_tokens = None
    pool = pools.find_pool(access.org, "local")
    (loaded,) = context.load(access, [profile], project=access.project, pool=pool)
    found = decide.require(loaded)
    judgement = decide.decide(found, DispatchRequest())
    if judgement.refusal is not None:
        raise judgement.refusal
    assert judgement.decision.mode is not None
    chosen = MODES[judgement.decision.mode]
    return Route(
        judgement=judgement,
        run=_run(access, judgement),
        attempt=Attempt(number=1, epoch=1),
        bands=found.prices_of(judgement.entry),
        max_tokens_cap=chosen.max_tokens_cap(found),
        loaded_at=began,
    )


def _run(access: Access, judgement: DispatchDecision) -> Run:
    return Run(
        **admit.common_run_fields(access, judgement),
        via=Run.Via.GATEWAY,
        context_window_tokens=judgement.request.context_window_tokens,
        state=Run.State.RUNNING,
        epoch=1,
        attempt_count=1,
    )


def _profile(access: Access, model: str) -> ModelProfile:
    """Return the named profile, or the default one with the named model: the default's modes and scope apply."""
    if model.startswith(PROFILE_PREFIX):
        return profiles.find_profile(access, model, project=access.project)
    default = profiles.default_profile(access.org, access.project)
    if default is None:
        raise ProfileRequired
    return _turned(default, model)


def _turned(profile: ModelProfile, model: str) -> ModelProfile:
    """Copy the profile for another model."""
    turned = copy.copy(profile)
    turned.model_id = model
    # These values were chosen for the profile's own model.
    turned.effort, turned.max_tokens, turned.provider_config = "", None, {}
    return turned
