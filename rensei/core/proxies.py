"""Which peers are proxies of the operator's, whose word on the caller's address and scheme is believed."""

from functools import lru_cache
from ipaddress import ip_address, ip_network

from django.conf import settings


def is_trusted_proxy(peer: str | None) -> bool:
    """Tell whether an operator listed this peer, by its address or by a network that it is in."""
    return peer is not None and _is_listed(peer, tuple(settings.RENSEI_TRUSTED_PROXIES))


@lru_cache(maxsize=1024)
def _is_listed(peer: str, listed: tuple[str, ...]) -> bool:
    if peer in listed:
        return True
    try:
        address = ip_address(peer)
        return any(address in ip_network(one, strict=False) for one in listed if "/" in one)
    except ValueError:
        # A peer without an address, such as one on a socket file, or an entry that is no network.
        return False
