"""The refusals of a dispatch, besides those of every request. The OpenAPI document lists them."""

from billing.limits.caps import CostNotBounded, SpendCapExceeded
from catalog.services import ModelNotInCatalog, ModelRetired
from integrations.providers.base import ADAPTERS
from integrations.vault.errors import CredentialUnreadable
from rensei.core.errors import NotFound, RenseiError
from rensei.dispatch.admission.decide import ProfileRequired
from rensei.dispatch.idempotency import IdempotencyKeyReused
from rensei.dispatch.modes import MODES
from rensei.dispatch.pools import AgentProgramUnavailable, GitHostNotAllowed, NoEligiblePool
from rensei.dispatch.pools.accounts import CloudCannotReachServer
from rensei.dispatch.run_caps import RunCostExceeded
from rensei.orgs.kill_switches import OrgSuspended, PausedByOperator
from rensei.orgs.storage import StorageLimitReached
from rensei.policies.resolver import AuthModesUnsatisfiable, ModelNotAllowedByPolicy

# Refusals of a dry run too: something that the body names does not exist.
OF_DRY_RUN: tuple[type[RenseiError], ...] = (NotFound, NoEligiblePool)
OF_DISPATCH: tuple[type[RenseiError], ...] = (
    *OF_DRY_RUN,
    CloudCannotReachServer,
    ProfileRequired,
    ModelNotInCatalog,
    ModelRetired,
    AuthModesUnsatisfiable,
    ModelNotAllowedByPolicy,
    OrgSuspended,
    PausedByOperator,
    StorageLimitReached,
    SpendCapExceeded,
    CostNotBounded,
    RunCostExceeded,
    AgentProgramUnavailable,
    GitHostNotAllowed,
    CredentialUnreadable,
    IdempotencyKeyReused,
    *(refusal for mode in MODES.values() for refusal in mode.refusals),
    *(refusal for adapter in ADAPTERS.values() for refusal in adapter.refusals),
)
