"""
The address to which keys without a base URL of their own are sent, which only two operators together may change.

The setting names it, and the first one that is used is noted. With another one, nothing is signed until that was
approved; otherwise, one line in one operator's environment would redirect the keys of all organizations.
"""

from django.conf import settings

from integrations import capacity
from integrations.models import DefaultAddress
from integrations.vault.errors import AddressChanged, CredentialUnreadable
from rensei.audit.record import record_system
from rensei.core.clock import database_now

CHANGED = "default_address.changed"
# What this process has found approved. It is asked for once, so a call costs no query.
_approved: set[tuple[str, str]] = set()


def require_approved(provider: str) -> str:
    """
    Return the default address of a provider.

    :raises CredentialUnreadable: if it was changed, and the change was not approved
    """
    address = capacity.connectable(provider).default_base_url()
    if (provider, address) not in _approved and not settings.RENSEI_SIMULATED:
        if not _is_noted(provider, address):
            raise CredentialUnreadable(
                reason=AddressChanged("the provider's address was changed on this server without an approval")
            )
        _approved.add((provider, address))
    return address


def unapproved() -> list[tuple[str, str]]:
    """List the providers with the address that this process has and that was not approved."""
    noted = dict(DefaultAddress.objects.values_list("provider", "base_url"))
    found = [(provider, capacity.connectable(provider).default_base_url()) for provider in capacity.specs()]
    return [
        (provider, address)
        for provider, address in found
        if not settings.RENSEI_SIMULATED and noted.get(provider, address) != address
    ]


def forget() -> None:
    """Ask the database again."""
    _approved.clear()


def _is_noted(provider: str, address: str) -> bool:
    noted = DefaultAddress.objects.filter(provider=provider).values_list("base_url", flat=True).first()
    if noted is None:
        DefaultAddress.objects.bulk_create([DefaultAddress(provider=provider, base_url=address)], ignore_conflicts=True)
        noted = DefaultAddress.objects.values_list("base_url", flat=True).get(provider=provider)
    if noted != address and settings.RENSEI_SINGLE_OPERATOR:
        # There is no other operator to ask. The change is in the audit log all the same.
        DefaultAddress.objects.filter(provider=provider).update(base_url=address, approved_at=database_now())
        record_system("setting", CHANGED, object_id=provider, before=noted, after=address)
        return True
    return bool(noted == address)
