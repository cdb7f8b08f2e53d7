"""
What a request holds that is not known, judged by the same rules wherever it comes from.

It is counted by its name, refused where the cost of a call is held before it, and refused where it could reach a model
that a policy denies.
"""

from collections.abc import Iterable, Sequence

from billing.limits.caps import CostNotBounded
from rensei.core.auth_modes import PLATFORM_MODES, AuthMode
from rensei.core.errors import RenseiError
from rensei.core.unknown import NAME_CHARACTERS_MAX
from rensei.dispatch.modes.base import ModelUnpriced
from rensei.policies.resolver import ModelNotAllowedByPolicy, Policy

# A kind, such as `block_type`, and a name as it was received.
Names = Iterable[tuple[str, str]]


def require_known(names: Names, *, mode: AuthMode) -> None:
    """
    Refuse what is not known, in a call whose cost is held before it.

    :raises ModelUnpriced, CostNotBounded: naming one part, because it may cost more than is held
    """
    first = min(names, default=None)
    if first is not None:
        raise unpriced(f"'{printable(first[1])}', which this version of Rensei does not know,", mode=mode)


def require_judged(
    policies: Iterable[Policy], mode: AuthMode, *, own_models: Sequence[str] = (), provider_chooses: bool
) -> None:
    """
    Refuse models that policies cannot be applied to, if any policy denies some models.

    An organization's own entry (`own_models`, besides the requested one) can be served by any model, and in a call with
    several models the answer does not show by which one. A model that the provider chooses is unknown before the call.

    :raises ModelNotAllowedByPolicy: with the model and the scope of the policy
    """
    if not own_models and not provider_chooses:
        return
    scopes = [policy.scope for policy in policies if policy.denies_some(mode)]
    if scopes:
        what = f"'{own_models[0]}' is an entry of the organization's own" if own_models else "the provider would choose"
        reason = (
            f"the {scopes[0]}'s access policy denies {mode.value} to some models, and whether the request's "
            f"fallbacks or tools would run one of these cannot be known, because {what}"
        )
        raise ModelNotAllowedByPolicy(reasons=reason)


def unpriced(what: str, *, mode: AuthMode) -> RenseiError:
    """Build the refusal of something without a price, in a platform mode or under a cap."""
    if mode in PLATFORM_MODES:
        return ModelUnpriced(what=what, mode=mode.value)
    return CostNotBounded(what=what)


def printable(name: str) -> str:
    return name.encode(errors="replace").decode()[:NAME_CHARACTERS_MAX]
