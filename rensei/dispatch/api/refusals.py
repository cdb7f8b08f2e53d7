"""What a dispatch may be refused with, besides what every request may be. The OpenAPI document lists it."""

from catalog.services import ModelNotInCatalog, ModelRetired
from integrations.providers.base import ADAPTERS
from integrations.vault.errors import CredentialUnreadable
from rensei.core.errors import NotFound, RenseiError
from rensei.dispatch.admission.admit import IdempotencyKeyReused
from rensei.dispatch.admission.decide import ProfileRequired
from rensei.dispatch.modes import MODES
from rensei.dispatch.pools import NoEligiblePool
from rensei.orgs.kill_switches import OrgSuspended, PausedByOperator
from rensei.orgs.storage import StorageLimitReached
from rensei.policies.resolver import AuthModesUnsatisfiable, ModelNotAllowedByPolicy

# What has no answer, in a dry run either: something that the body names is not there.
OF_DRY_RUN: tuple[type[RenseiError], ...] = (NotFound, NoEligiblePool)
OF_DISPATCH: tuple[type[RenseiError], ...] = (
    *OF_DRY_RUN,
    ProfileRequired,
    ModelNotInCatalog,
    ModelRetired,
    AuthModesUnsatisfiable,
    ModelNotAllowedByPolicy,
    OrgSuspended,
    PausedByOperator,
    StorageLimitReached,
    CredentialUnreadable,
    IdempotencyKeyReused,
    *(refusal for mode in MODES.values() for refusal in mode.refusals),
    *(refusal for adapter in ADAPTERS.values() for refusal in adapter.refusals),
)
