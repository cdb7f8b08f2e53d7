"""The networks from which a token may be used, in CIDR notation, where an empty list allows any; and this machine."""

from collections.abc import Sequence
from ipaddress import IPv4Network, IPv6Network, ip_address, ip_network

from rensei.core.errors import FieldError, RenseiError, Said
from rensei.core.limits import limit

NETWORKS_MAX = limit(20, "networks", what="Allowed networks of a token", told="the caller: 400 `VALIDATION_FAILED`")
Network = IPv4Network | IPv6Network
# The names of this machine in an address, to which nothing travels over a network.
LOOPBACK = frozenset({"127.0.0.1", "::1", "localhost"})


class NetworkNotAllowed(RenseiError):
    """The token may not be used from the caller's address."""

    code = "NETWORK_NOT_ALLOWED"
    status = 403
    title = "Not from this network"
    message = Said(
        "This token may not be used from {address}.", "Call from one of its allowed networks, or make another token."
    )


def clean(networks: Sequence[str], *, maker: Sequence[str]) -> list[str]:
    """
    Normalize networks. They must be within those of the token that makes the new one.

    :raises FieldError: if one is not a network, there are too many, or the maker may not be used from there
    """
    pointer = "/allowedNetworks"
    if len(networks) > NETWORKS_MAX:
        raise FieldError(pointer=pointer, reason=f"At most {NETWORKS_MAX} networks.")
    try:
        found = [ip_network(network.strip()) for network in networks]
    except ValueError as fault:
        reason = "Name networks such as 192.0.2.0/24 or 2001:db8::/32, with no bits set after the prefix."
        raise FieldError(pointer=pointer, reason=reason) from fault
    if maker and not found:
        return list(maker)
    if maker and not all(any(_within(one, ip_network(other)) for other in maker) for one in found):
        raise FieldError(pointer=pointer, reason=f"The token that asks may be used from {', '.join(maker)} only.")
    return [str(network) for network in found]


def counted_address(address: str | None) -> str:
    """
    Return the form of an address that rate limits count: IPv6 by its /64, all of which belongs to one connection.

    Callers over a socket file have no address, and are counted together.
    """
    if address is None:
        return "none"
    known = ip_address(address)
    if known.version == 6 and known.ipv4_mapped is not None:
        return str(known.ipv4_mapped)
    return str(ip_network((address, 64), strict=False)) if known.version == 6 else address


def require(networks: Sequence[str], address: str | None) -> None:
    """:raises NetworkNotAllowed: if a token may not be used from this address, or the address is unknown"""
    if not networks:
        return
    known = ip_address(address) if address else None
    if known is not None and known.version == 6 and known.ipv4_mapped is not None:
        known = known.ipv4_mapped
    if known is None or not any(known in ip_network(network) for network in networks):
        raise NetworkNotAllowed(address=address or "an unknown address")


def _within(inner: Network, outer: Network) -> bool:
    if isinstance(inner, IPv4Network):
        return isinstance(outer, IPv4Network) and inner.subnet_of(outer)
    return isinstance(outer, IPv6Network) and inner.subnet_of(outer)
