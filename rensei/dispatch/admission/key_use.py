"""How an organization's own keys are used: which profiles would call with each, and what a test message costs."""

from collections.abc import Sequence
from dataclasses import dataclass

from billing.limits.snapshot import snapshot_of
from catalog.lookup import find_named
from catalog.providers import PROVIDERS
from integrations.models import Integration
from profiles.models import ModelProfile
from rensei.core.auth_modes import AuthMode
from rensei.core.errors import RenseiError
from rensei.dispatch import context, pools
from rensei.dispatch.admission import decide, test_message
from rensei.dispatch.admission.requests import DispatchRequest
from rensei.dispatch.context import DispatchContext, Known
from rensei.orgs.access import Access


@dataclass(frozen=True, kw_only=True)
class KeyUse:
    """
    The profiles whose dispatches would be signed by a key now, outside of projects other than their own.

    `test_costs_at_most` is the maximum cost of a test message in picodollars, or None if its model has no price. No
    profile uses the key of a capacity provider, and no test message is sent with it.
    """

    profiles: Sequence[ModelProfile]
    test_costs_at_most: int | None


def of_keys(
    access: Access, integrations: Sequence[Integration], profiles: Sequence[ModelProfile], *, are_all: bool = False
) -> dict[str, KeyUse]:
    """
    Return the use of each integration, by its id, in a fixed number of queries.

    :param are_all: whether these are all integrations of the organization, so that none is loaded again
    """
    of_models = [integration for integration in integrations if integration.provider in PROVIDERS]
    unused = {one.pk: KeyUse(profiles=[], test_costs_at_most=None) for one in integrations if one not in of_models}
    if not of_models:
        return unused
    tests = [test_message.profile_of(access, integration) for integration in of_models]
    pool = pools.find_pool(access.org, "local")
    judged = [*profiles, *tests]
    known = Known(
        standing=snapshot_of(access.org),
        entries=list(find_named([(one.provider, one.model_id) for one in judged], org=access.org).values()),
        integrations=integrations if are_all else None,
    )
    loaded = context.load(access, judged, project=None, pool=pool, known=known)
    signing: dict[str, list[ModelProfile]] = {}
    for profile, found in zip(profiles, loaded, strict=False):
        if (key := _signing_key(found)) is not None:
            signing.setdefault(key.pk, []).append(profile)
    costs = [_test_cost(found) for found in loaded[len(profiles) :]]
    return unused | {
        integration.pk: KeyUse(profiles=signing.get(integration.pk, []), test_costs_at_most=cost)
        for integration, cost in zip(of_models, costs, strict=True)
    }


def _signing_key(found: DispatchContext | RenseiError) -> Integration | None:
    """Return the key that would sign a dispatch, or None if another mode is picked, or none."""
    if isinstance(found, RenseiError):
        return None
    mode = decide.decide(found, DispatchRequest()).decision.mode
    return found.integration if mode is AuthMode.BYOK else None


def _test_cost(found: DispatchContext | RenseiError) -> int | None:
    if isinstance(found, RenseiError):
        return None
    judged = decide.decide(found, test_message.REQUEST)
    return decide.max_cost(found, AuthMode.BYOK, judged.built)
