"""Which peers are proxies of the operator's, and which address a request comes from."""

from collections.abc import Mapping
from functools import lru_cache
from ipaddress import ip_address, ip_network
from typing import Any

from django.conf import settings
from django.http import HttpRequest
from rest_framework.request import Request


def is_trusted_proxy(peer: str | None) -> bool:
    """Check whether an operator listed this peer, by its address or by a network."""
    return peer is not None and _is_listed(peer, tuple(settings.RENSEI_TRUSTED_PROXIES))


def client_address(request: Request | HttpRequest) -> str | None:
    """Read the caller's address, using `X-Forwarded-For` only from a proxy that the operator listed."""
    return address_behind_proxies(
        request.META.get("REMOTE_ADDR") or None, forwarded=str(request.META.get("HTTP_X_FORWARDED_FOR", ""))
    )


def address_of(scope: Mapping[str, Any], *, forwarded: str) -> str | None:
    """
    Read the caller's address from an ASGI scope, as `client_address` does from a request.

    :param forwarded: all lines of `X-Forwarded-For`, joined by commas
    """
    peer = scope.get("client")
    return address_behind_proxies((peer[0] or None) if peer else None, forwarded=forwarded)


def address_behind_proxies(peer: str | None, *, forwarded: str) -> str | None:
    """Choose between the peer and the address it forwards for, which is trusted from a listed proxy only."""
    if not is_trusted_proxy(peer):
        return peer
    forwarded = forwarded.rpartition(",")[2].strip()
    try:
        return str(ip_address(forwarded))
    except ValueError:
        return peer


@lru_cache(maxsize=1024)
def _is_listed(peer: str, listed: tuple[str, ...]) -> bool:
    if peer in listed:
        return True
    try:
        address = ip_address(peer)
        return any(address in ip_network(one, strict=False) for one in listed if "/" in one)
    except ValueError:
        # A peer without an address, such as one on a socket file, or an entry that is not a network.
        return False
