"""What an operator can stop: how each is found, its name, and the effect of stopping it."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from django.db.models import Q
from django.urls import reverse
from django.utils.http import urlencode

from catalog.models import CatalogEntry
from catalog.providers import PROVIDERS
from integrations.models import Integration, PlatformKey
from rensei.core.auth_modes import AuthMode
from rensei.dispatch.models import Run
from rensei.orgs.models import KillSwitch, Org

Kind = KillSwitch.Kind


@dataclass(frozen=True, kw_only=True)
class Target:
    """One thing that can be stopped. `org` is set if the switch is for that organization only."""

    kind: Kind
    id: str
    name: str
    address: str = ""
    org: Org | None = None

    @property
    def verb(self) -> str:
        return "Suspend" if self.kind == Kind.ORGANIZATION else "Pause"

    @property
    def is_pool_key(self) -> bool:
        return self.kind == Kind.PLATFORM_KEY

    def stop_address(self) -> str:
        return reverse("admin:orgs_killswitch_stop", args=[self.kind.value, self.id])


def find(kind: str, target: str) -> Target | None:
    """Find the target of a kill switch. None if it does not exist, or no longer."""
    return _FINDERS[Kind(kind)](target) if kind in Kind.values else None


def of_object(thing: Any) -> Target | None:
    """Return what can be stopped of a row of the admin. None if nothing can."""
    for kind, model in ((Kind.ORGANIZATION, Org), (Kind.PLATFORM_KEY, PlatformKey), (Kind.INTEGRATION, Integration)):
        if isinstance(thing, model):
            return find(kind, str(thing.pk))
    return find(Kind.MODEL, thing.model_id) if isinstance(thing, CatalogEntry) else None


def choices() -> list[tuple[str, list[Target]]]:
    """List what can be stopped for all organizations, by its kind."""
    entries = CatalogEntry.objects.filter(org=None).order_by("provider", "display_name")
    return [
        ("Providers", [_provider_target(provider) for provider in PROVIDERS]),
        ("Auth modes", [_mode_target(mode) for mode in AuthMode if mode in _offered()]),
        ("Platform keys", [_key_target(key) for key in PlatformKey.objects.order_by("provider", "pool", "name")]),
        ("Models", [_model_target(entry) for entry in entries]),
    ]


def live_runs(target: Target) -> tuple[int, int]:
    """Count the affected runs: those that wait, which will be refused, and those under way, which continue."""
    about = {
        Kind.ORGANIZATION: Q(org_id=target.id),
        Kind.PROVIDER: Q(provider=target.id),
        Kind.MODEL: Q(model_id=target.id) | Q(served_model_id=target.id),
        Kind.AUTH_MODE: Q(auth_mode=target.id),
        Kind.PLATFORM_KEY: Q(credential_id=target.id),
        Kind.INTEGRATION: Q(credential_id=target.id),
    }[target.kind]
    states = list(
        Run.objects.filter(about, state__in=[Run.State.QUEUED, Run.State.RUNNING]).values_list("state", flat=True)
    )
    return states.count(Run.State.QUEUED), states.count(Run.State.RUNNING)


def _offered() -> set[AuthMode]:
    return {mode for spec in PROVIDERS.values() for mode in spec.auth_modes}


def _org(target: str) -> Target | None:
    org = Org.objects.filter(pk=target).first()
    if org is None:
        return None
    address = reverse("admin:orgs_org_change", args=[org.pk])
    return Target(kind=Kind.ORGANIZATION, id=org.pk, name=f"{org.name} ({org.slug})", address=address, org=org)


def _provider(target: str) -> Target | None:
    return _provider_target(target) if target in PROVIDERS else None


def _provider_target(provider: str) -> Target:
    return Target(kind=Kind.PROVIDER, id=provider, name=PROVIDERS[provider].display_name)


def _mode(target: str) -> Target | None:
    return _mode_target(AuthMode(target)) if target in AuthMode.values else None


def _mode_target(mode: AuthMode) -> Target:
    return Target(kind=Kind.AUTH_MODE, id=mode.value, name=mode.value)


def _model(target: str) -> Target | None:
    entry = CatalogEntry.objects.filter(model_id=target).order_by("org").first()
    return _model_target(entry) if entry else None


def _model_target(entry: CatalogEntry) -> Target:
    address = reverse("admin:catalog_catalogentry_changelist") + "?" + urlencode({"q": entry.model_id})
    return Target(kind=Kind.MODEL, id=entry.model_id, name=f"{entry.display_name} ({entry.model_id})", address=address)


def _key(target: str) -> Target | None:
    key = PlatformKey.objects.filter(pk=target).first()
    return _key_target(key) if key else None


def _key_target(key: PlatformKey) -> Target:
    address = reverse("admin:integrations_platformkey_change", args=[key.pk])
    return Target(kind=Kind.PLATFORM_KEY, id=key.pk, name=str(key), address=address)


def _integration(target: str) -> Target | None:
    integration = Integration.objects.select_related("org").filter(pk=target).first()
    if integration is None:
        return None
    return Target(
        kind=Kind.INTEGRATION,
        id=integration.pk,
        name=f"{integration.name} of {integration.org.name} ({integration.key_hint})",
        address=reverse("admin:integrations_integration_change", args=[integration.pk]),
        org=integration.org,
    )


_FINDERS: dict[Kind, Callable[[str], Target | None]] = {
    Kind.ORGANIZATION: _org,
    Kind.PROVIDER: _provider,
    Kind.MODEL: _model,
    Kind.AUTH_MODE: _mode,
    Kind.PLATFORM_KEY: _key,
    Kind.INTEGRATION: _integration,
}
