"""The clouds in which runs execute: whether an organization can use one, and its account there, for one sandbox."""

import ipaddress
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit

from django.conf import settings

from integrations import capacity
from integrations.keys import services as integrations
from integrations.models import Integration
from integrations.providers.base import Credential
from integrations.vault.openings import Why
from rensei.core.errors import RenseiError, Said
from rensei.dispatch.models import Sandbox
from rensei.dispatch.pools.cloud import Account, Cloud
from rensei.dispatch.pools.e2b import E2B
from rensei.dispatch.pools.modal import Modal
from rensei.dispatch.pools.vercel import Vercel
from rensei.orgs.models import Org

# The capacity providers with a driver that starts sandboxes in their cloud.
DRIVERS: Mapping[str, type[Cloud]] = {driver.provider_id: driver for driver in (E2B, Modal, Vercel)}
CLOUDS = frozenset(DRIVERS)
# Names that no cloud resolves.
_INNER_NAMES = ("localhost", ".localhost", ".local", ".internal", ".lan", ".home.arpa", ".test", ".invalid")
_HTTPS_PORT = 443


class CloudCannotReachServer(RenseiError):
    """A sandbox in a cloud could not reach the address of this server, so none is created there."""

    code = "POOL_CANNOT_REACH_SERVER"
    status = 409
    title = "The pool cannot reach this server"
    message = Said(
        "A sandbox at {provider} cannot reach this server at {url}: {reason}.",
        "Ask your operator to set RENSEI_PUBLIC_URL to a public address, as https://rensei.example.com.",
    )


def require_reachable(provider_id: str) -> None:
    """
    Check the address of this server for a cloud, as far as its form tells.

    :raises CloudCannotReachServer: if no cloud can reach it
    """
    if reason := _fault_of(settings.PUBLIC_URL):
        name = capacity.CAPACITY[provider_id].display_name
        raise CloudCannotReachServer(provider=name, url=settings.PUBLIC_URL, reason=reason)


def _fault_of(url: str) -> str:
    """Return why a cloud cannot reach an address, or cannot do so safely, or ""."""
    parts = urlsplit(url)
    host = (parts.hostname or "").rstrip(".")
    try:
        ipaddress.ip_address(host)
    except ValueError:
        pass
    else:
        # Rules for a sandbox's requests are by name, and so are certificates.
        return "it is an IP address, and a sandbox is given one name that it may call"
    if "." not in host or f".{host}".endswith(_INNER_NAMES):
        return "its name is known on its own network only"
    if parts.scheme != "https":
        return "it has no TLS, and the run's token would be sent in the clear"
    if parts.port not in {None, _HTTPS_PORT}:
        return f"a sandbox calls the port {_HTTPS_PORT} only"
    return ""


def connected(org: Org) -> frozenset[str]:
    """Return the clouds in which an organization has connected an account."""
    found = Integration.objects.for_org(org).filter(provider__in=CLOUDS, is_default=True)
    return frozenset(found.values_list("provider", flat=True))


def in_use(org: Org) -> dict[str, Integration]:
    """Return the accounts that an organization uses by their cloud, with what is said of their keys."""
    found = Integration.objects.for_org(org).filter(provider__in=CLOUDS, is_default=True)
    return {each.provider: each for each in found.only("provider", "name", "status", "last_error")}


def open_key(org: Org, provider_id: str, *, why: Why) -> Credential | None:
    """
    Open the key of the organization's account. None if none is connected.

    :raises CredentialUnreadable: if the vault cannot open it now
    """
    integration = _connected(org, provider_id)
    return None if integration is None else integrations.open_integration(integration, why=why)


def open_key_of(sandbox: Sandbox, *, why: Why) -> Credential | None:
    """
    Open the key that made a sandbox. None if it is no longer connected, or for another workspace by now.

    :raises CredentialUnreadable: if the vault cannot open it now
    """
    found = Integration.objects.for_org(sandbox.org).filter(
        id=sandbox.credential_id, provider=sandbox.provider_id, workspace_id=sandbox.workspace_id
    )
    integration = found.select_related("org").first()
    return None if integration is None else integrations.open_integration(integration, why=why)


def account(org: Org, key: Credential, *, provider_id: str, config: Mapping[str, Any]) -> Account:
    """Return the account of an organization, as a pool of it uses it."""
    return Account(
        key=key.secret,
        api_url=key.base_url,
        server_url=settings.PUBLIC_URL,
        tags={"rensei-installation": urlsplit(settings.PUBLIC_URL).hostname or "", "rensei-organization": org.id},
        config=DRIVERS[provider_id].complete(config),
        workspace_id=key.workspace_id,
    )


def _connected(org: Org, provider_id: str) -> Integration | None:
    found = Integration.objects.for_org(org).filter(provider=provider_id, is_default=True)
    return found.select_related("org").first()
