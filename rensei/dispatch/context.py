"""The dispatch context: the inputs of a decision, loaded together for any number of profiles."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

from django.db.models import Q, prefetch_related_objects

from billing.limits.budget import Budget
from billing.limits.quota import SharedQuota
from billing.limits.shared_spending import Spending
from billing.limits.snapshot import BillingSnapshot, snapshot_of
from billing.models import Entitlement
from catalog import identities, pricing
from catalog import services as catalog
from catalog.lookup import find_named, names_of
from catalog.models import CatalogEntry
from catalog.pricing import PriceList, UnitPrices
from catalog.providers import PROVIDERS, ProviderSpec
from integrations.keys import platform
from integrations.models import Integration, PlatformKey
from integrations.providers.base import ADAPTERS, Adapter
from profiles.models import ModelProfile
from rensei.core.auth_modes import PLATFORM_MODES, AuthMode
from rensei.core.errors import RenseiError
from rensei.dispatch.pools import Pool
from rensei.orgs.access import Access
from rensei.orgs.kill_switches import Stopped
from rensei.orgs.models import Host, Org, Project, SpendCap
from rensei.orgs.storage import Storage
from rensei.policies import services as policies
from rensei.policies.resolver import OfferedModel, Policy


@dataclass(frozen=True, kw_only=True)
class DispatchContext:
    """
    The state of one profile at one moment: the model, the policies, the keys, the prices.

    The last five are what a preview compares with. A dispatch checks them in conditional UPDATEs when it writes.
    """

    org: Org
    now: datetime
    stopped: Stopped
    profile: ModelProfile
    project: Project | None
    pool: Pool
    host: Host | None
    host_missing: str
    spec: ProviderSpec
    adapter: Adapter
    requested: CatalogEntry
    replacement: CatalogEntry | None
    answered_by: Mapping[int, Sequence[CatalogEntry]]
    integration: Integration | None
    entitlement: Entitlement | None
    platform_keys: Sequence[PlatformKey]
    prices: dict[int, list[UnitPrices]]
    policies: Sequence[Policy]
    storage: Storage
    shared_quota: SharedQuota | None
    budget: Budget | None
    shared_spending: Sequence[Spending] = ()
    # Whether a cap holds for the caller's token. The preview has loaded them.
    is_capped: bool = False
    # What the caller lets the run cost, in picodollars.
    run_cap: int | None = None
    # Whether a program calls, as often as it needs: the run holds all that it may cost.
    is_agent: bool = False
    # Whether that program is the Claude Code of the workers.
    is_claude_code: bool = False
    # The host of the repository that is cloned for it.
    git_host: str = ""
    caps: Sequence[SpendCap] = ()
    bytes_to_store: int = 0

    def is_cost_held(self, mode: AuthMode) -> bool:
        """Whether the cost of a run under this mode would be held, as `Run.is_cost_held` says of one that exists."""
        return mode in PLATFORM_MODES or self.is_capped or self.run_cap is not None

    def served(self, mode: AuthMode) -> CatalogEntry | None:
        """
        Return the catalog entry that a mode would call.

        A retired model is served by its replacement, unless the organization's own key still lists it.
        """
        if self.requested.lifecycle_on(self.now.date()) != CatalogEntry.Lifecycle.RETIRED:
            return self.requested
        if mode is AuthMode.BYOK and self.integration is not None and _lists(self.integration, self.requested):
            return self.requested
        return self.replacement

    def offered(self) -> dict[AuthMode, OfferedModel | None]:
        """Return the served model of each mode, in the resolver's form."""
        served = {mode: self.served(mode) for mode in AuthMode}
        return {mode: self.offered_model(entry) if entry else None for mode, entry in served.items()}

    def offered_model(self, entry: CatalogEntry) -> OfferedModel:
        """Convert a catalog entry for the resolver. The profile's name of the requested entry is one of its names."""
        return offered_model(
            entry,
            asked_as=self.profile.model_id if entry == self.requested else "",
            answered_by=self.answered_by.get(entry.pk, ()),
        )

    def prices_of(self, entry: CatalogEntry) -> list[UnitPrices]:
        return self.prices.get(entry.pk, [])

    def pool_keys(self, pool: PlatformKey.Pool, mode: AuthMode, *, rate_limit: str = "") -> list[PlatformKey]:
        """
        Return the keys of a pool that may sign for the mode's model now, including paused keys.

        :param rate_limit: the provider's limit that a call counts in, if it is not the model's usual one
        """
        entry = self.served(mode)
        if entry is None:
            return []
        return [
            key
            for key in self.platform_keys
            if (key.pool, key.provider) == (pool, entry.provider)
            and platform.serves(key, entry.model_id)
            and key.cools_until(rate_limit or entry.model_id, self.now) is None
        ]


@dataclass(frozen=True, kw_only=True)
class Known:
    """Data that a page has already loaded, so that a dry run does not load it again."""

    standing: BillingSnapshot
    entries: Sequence[CatalogEntry]
    integrations: Sequence[Integration] | None = None
    price_lists: Mapping[int, PriceList] | None = None
    profile: ModelProfile | None = None


def offered_model(entry: CatalogEntry, *, asked_as: str = "", answered_by: Sequence[CatalogEntry] = ()) -> OfferedModel:
    """Convert a catalog entry for the resolver, with the models that have answered requests for it."""
    return OfferedModel(
        model_id=entry.model_id,
        auth_modes=entry.auth_modes,
        names=(names_of(entry) | {asked_as}) - {entry.model_id, ""},
        answered_by=[offered_model(other) for other in answered_by],
    )


def load(
    access: Access,
    profiles: Sequence[ModelProfile],
    *,
    project: Project | None,
    pool: Pool,
    host_id: str | None = None,
    with_quota: bool = False,
    known: Known | None = None,
) -> list[DispatchContext | RenseiError]:
    """
    Load the dispatch context of each profile, in a number of queries that is independent of the number of profiles.

    A profile whose model is not available gets a refusal in place of a context. `with_quota` includes the shared
    quota and the budget, for a preview; a dispatch checks them in its conditional UPDATE.
    """
    org = access.org
    standing = known.standing if known else snapshot_of(org)
    now = standing.now
    modes = {AuthMode(mode) for profile in profiles for mode in profile.auth_modes}
    named = {(profile.provider, profile.model_id) for profile in profiles}
    requested = find_named(named, org=org, among=known.entries if known else None)
    replacements = catalog.served_entries(requested.values(), org=org, today=now.date())
    called = {entry for entry in [*requested.values(), *replacements.values()] if entry is not None}
    prefetch_related_objects(list(called), "aliases")
    known_prices = known.price_lists if known else None
    prices = pricing.price_lists(called, moment=now) if known_prices is None else known_prices
    project_ids = {profile.project_id for profile in profiles if profile.project_id is not None}
    stored = policies.applying_policies(org, project_ids=project_ids | ({project.pk} if project else set()))
    # A platform entry is looked up only where a policy may deny what has answered for it.
    answered_by = identities.answered_by(called, org=org if stored else None)
    integrations = _integrations(org, profiles, known) if AuthMode.BYOK in modes else []
    keys = platform.healthy_keys(now=now) if modes & PLATFORM_MODES else []
    caps = list(SpendCap.objects.filter(pk__in=access.caps).order_by("pk")) if with_quota and access.caps else []
    host, host_missing = _host(access, host_id) if AuthMode.HOST_SESSION in modes else (None, "")

    def facts_of(profile: ModelProfile) -> "DispatchContext | RenseiError":
        entry = requested.get((profile.provider, profile.model_id))
        if entry is None:
            integration = _integration_of(profile, integrations)
            return catalog.not_in_catalog(
                provider=profile.provider,
                model_id=profile.model_id,
                may_create=catalog.may_create(access),
                listed=integration.listed_ids if integration else (),
            )
        its_project = profile.project or project
        facts = DispatchContext(
            org=org,
            now=now,
            stopped=standing.stopped,
            profile=profile,
            project=its_project,
            pool=pool,
            host=host,
            host_missing=host_missing,
            spec=PROVIDERS[profile.provider],
            adapter=ADAPTERS[profile.provider],
            requested=entry,
            replacement=replacements[entry.pk],
            answered_by=answered_by,
            integration=_integration_of(profile, integrations),
            entitlement=standing.entitlement,
            platform_keys=keys,
            prices={pk: found.bands for pk, found in prices.items()},
            policies=[
                Policy(scope=policy.scope, matrix=policy.matrix)
                for policy in stored
                if policy.project_id is None or (its_project is not None and policy.project_id == its_project.pk)
            ],
            shared_quota=standing.shared_quota if with_quota else None,
            budget=standing.budget if with_quota else None,
            storage=standing.storage,
            is_capped=bool(access.caps),
            caps=caps,
        )
        if all(facts.served(AuthMode(mode)) is None for mode in profile.auth_modes):
            return catalog.retired(entry)
        return facts

    return [facts_of(profile) for profile in profiles]


def _lists(integration: Integration, entry: CatalogEntry) -> bool:
    return entry.model_id in integration.listed_ids


def _integrations(org: Org, profiles: Iterable[ModelProfile], known: Known | None) -> Sequence[Integration]:
    if known is not None and known.integrations is not None:
        return known.integrations
    profiles = list(profiles)
    # An organization may have many keys, each with its list of models: only those that may sign are read.
    named = Q(pk__in={profile.integration_id for profile in profiles} - {None})
    defaults = Q(is_default=True, provider__in={profile.provider for profile in profiles})
    return list(Integration.objects.for_org(org).filter(named | defaults))


def _integration_of(profile: ModelProfile, integrations: Iterable[Integration]) -> Integration | None:
    """Return the integration that the profile names, else the organization's default for the provider."""
    for integration in integrations:
        if integration.provider != profile.provider:
            continue
        if profile.integration_id is not None:
            if integration.pk == profile.integration_id:
                return integration
        elif integration.is_default:
            return integration
    return None


def _host(access: Access, host_id: str | None) -> tuple[Host | None, str]:
    """Return the machine of a host session: the named one, else the API token's, else the caller's only one."""
    own = Host.objects.for_org(access.org).filter(owner=access.user, revoked_at=None)
    if host_id is not None:
        return own.filter(pk=host_id).first(), f"'{host_id}' is not a machine of yours."
    if access.host is not None:
        return own.filter(pk=access.host.pk).first(), "The token's machine is no longer registered."
    found = list(own[:2])
    if len(found) == 1:
        return found[0], ""
    return None, "No machine of yours is registered." if not found else "You have several machines."
