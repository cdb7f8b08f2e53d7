"""Which addresses this server may call: their format, the forbidden networks, and the operator's allow-list."""

import ipaddress
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

from django.conf import settings

from catalog.providers import PROVIDERS
from rensei.core.errors import RenseiError

PORT_MAX = 65535
_PORTS = (443, 8443)

# The complete grammar of an address that we call. It is stricter than any client's parser, so parsers cannot disagree.
_URL = re.compile(
    r"(?P<scheme>https?)://(?P<host>[a-z0-9.-]+|\[[0-9a-f:.]+\])(?::(?P<port>[0-9]{1,5}))?"
    r"(?P<path>/[A-Za-z0-9._~!$&'()*+,;=:@%/-]*)?(?P<query>\?[A-Za-z0-9._~!$&'()*+,;=:@%/?-]*)?",
    re.IGNORECASE,
)
_HOST_NAME = re.compile(r"(?=.{1,253}$)([a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?)(\.[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?)*")
# What a resolver may interpret as a number: 127.1, 2130706433, 0x7f.1.
_ENDS_LIKE_A_NUMBER = re.compile(r"(^|\.)([0-9]+|0x[0-9a-f]*)$")

# IANA's special-purpose registries, and the address from which Azure serves virtual machines' secrets. The flags of
# `ipaddress` are not used: they allow 192.88.99.1, 64:ff9b::/96, 2002::/16 and others, depending on the version.
# https://www.iana.org/assignments/iana-ipv4-special-registry and …/iana-ipv6-special-registry
_FORBIDDEN = [
    ipaddress.ip_network(cidr)
    for cidr in (
        "0.0.0.0/8",
        "10.0.0.0/8",
        "100.64.0.0/10",
        "127.0.0.0/8",
        "168.63.129.16/32",
        "169.254.0.0/16",
        "172.16.0.0/12",
        "192.0.0.0/24",
        "192.0.2.0/24",
        "192.31.196.0/24",
        "192.52.193.0/24",
        "192.88.99.0/24",
        "192.168.0.0/16",
        "192.175.48.0/24",
        "198.18.0.0/15",
        "198.51.100.0/24",
        "203.0.113.0/24",
        "224.0.0.0/4",
        "240.0.0.0/4",
        "::/128",
        "::1/128",
        "::/96",
        "::ffff:0:0/96",
        "64:ff9b::/96",
        "64:ff9b:1::/48",
        "100::/64",
        "2001::/23",
        "2001:db8::/32",
        "2002::/16",
        "2620:4f:8000::/48",
        "3fff::/20",
        "5f00::/16",
        "fc00::/7",
        "fe80::/10",
        "fec0::/10",
        "ff00::/8",
    )
]
_GLOBAL_UNICAST_V6 = ipaddress.ip_network("2000::/3")

Address = ipaddress.IPv4Address | ipaddress.IPv6Address


class BaseUrlRefused(RenseiError):
    """This server may not send a key to the address."""

    code = "BASE_URL_REFUSED"
    status = 422
    title = "Base URL refused"
    message = "{reason}"


@dataclass(frozen=True, kw_only=True)
class Destination:
    """A parsed address. `trusted` means that the operator of this server chose it, or put it on the allow-list."""

    scheme: str
    host: str
    port: int
    path: str
    trusted: bool

    @property
    def origin(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        standard = {"https": 443, "http": 80}[self.scheme]
        return f"{self.scheme}://{host}" + ("" if self.port == standard else f":{self.port}")


def parse_url(url: str, *, characters_max: int, org_slug: str = "", is_operators: bool = False) -> Destination:
    """
    Parse an address, if its format allows calling it.

    :param org_slug: the organization that gave the address, which an entry of the allow-list may name
    :param is_operators: whether the operator gave it; any network is then allowed
    :raises BaseUrlRefused: with a reason that does not repeat the address
    """
    found = _URL.fullmatch(url) if len(url) <= characters_max else None
    if found is None:
        raise BaseUrlRefused(
            reason="The address must look like https://host/path: with a scheme and a host, and without user name, "
            "password, spaces, fragment or characters outside of ASCII."
        )
    scheme, host = found["scheme"].lower(), found["host"].lower().strip("[]")
    port = int(found["port"] or {"https": 443, "http": 80}[scheme])
    if not _is_host(host, in_brackets=found["host"].startswith("[")):
        raise BaseUrlRefused(reason="The host of the address is neither a host name nor an IP address in full form.")
    if not 0 < port <= PORT_MAX:
        raise BaseUrlRefused(reason="The port of the address is not between 1 and 65535.")
    if ".." in (found["path"] or ""):
        raise BaseUrlRefused(reason="The path of the address must not contain '..'.")
    plain = Destination(scheme=scheme, host=host, port=port, path=found["path"] or "", trusted=False)
    if is_operators or _is_listed(plain.origin, org_slug):
        return Destination(scheme=scheme, host=host, port=port, path=plain.path, trusted=True)
    if scheme != "https":
        raise BaseUrlRefused(reason="The address must begin with https://, so that the key travels encrypted.")
    if port not in _PORTS:
        ports = " or ".join(str(port) for port in _PORTS)
        raise BaseUrlRefused(
            reason=f"The port of the address must be {ports}. For another one, ask the operator of this server "
            "to list the address in RENSEI_OUTBOUND_ALLOWLIST."
        )
    return plain


def is_forbidden(address: Address) -> bool:
    """Return whether an address is in a private, local or special network."""
    if isinstance(address, ipaddress.IPv6Address) and address not in _GLOBAL_UNICAST_V6:
        return True
    return any(address.version == network.version and address in network for network in _FORBIDDEN)


def is_operators_upstream(destination: Destination) -> bool:
    """Return whether the operator of this server configured this address for a provider's calls."""
    urls = [str(getattr(settings, spec.default_base_url_setting, "")) for spec in PROVIDERS.values()]
    return destination.origin in {_origin_of(url) for url in urls}


def faulty_entries(entries: Sequence[str]) -> list[str]:
    """List the entries of an allow-list that cannot be read."""
    return [entry for entry in entries if entry.strip() and not _read_allowlist((entry,))]


def _is_host(host: str, *, in_brackets: bool) -> bool:
    if in_brackets or _ENDS_LIKE_A_NUMBER.search(host):
        kind = ipaddress.IPv6Address if in_brackets else ipaddress.IPv4Address
        try:
            kind(host)
        except ValueError:
            return False
        return True
    return _HOST_NAME.fullmatch(host) is not None


def _is_listed(origin: str, org_slug: str) -> bool:
    orgs = _read_allowlist(tuple(settings.RENSEI_OUTBOUND_ALLOWLIST)).get(origin)
    return orgs is not None and (not orgs or org_slug in orgs)


@lru_cache(maxsize=16)
def _read_allowlist(entries: tuple[str, ...]) -> dict[str, frozenset[str]]:
    """Read which organizations may use each listed origin. An empty set means all organizations."""
    listed: dict[str, frozenset[str]] = {}
    for entry in entries:
        url, *orgs = entry.split() or [""]
        origin = _origin_of(url)
        # An entry allows a whole origin, so an entry with a path would allow more than it states.
        if origin is not None and url.removesuffix("/").count("/") == 2:
            listed[origin] = frozenset(orgs)
    return listed


def _origin_of(url: str) -> str | None:
    """Return the scheme, host and port of an address, or None if it is invalid."""
    found = _URL.fullmatch(url)
    if found is None:
        return None
    scheme, host = found["scheme"].lower(), found["host"].lower().strip("[]")
    port = int(found["port"] or {"https": 443, "http": 80}[scheme])
    if not 0 < port <= PORT_MAX or not _is_host(host, in_brackets=found["host"].startswith("[")):
        return None
    return Destination(scheme=scheme, host=host, port=port, path="", trusted=True).origin
