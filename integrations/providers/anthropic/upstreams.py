"""
The gateway's connections to its upstreams, kept open between calls.

Those to the operator's address are shared by all organizations. An organization's own address has connections of its
own, so that a server run by an organization never affects another organization's call.
"""

import asyncio
from typing import Any
from weakref import WeakSet

import aiohttp
from django.conf import settings
from yarl import URL

from integrations.outbound import http as outbound
from integrations.outbound.destinations import Destination, parse_url
from integrations.providers.anthropic import diagnoses as d
from integrations.providers.anthropic.connection import is_operators
from integrations.providers.anthropic.errors import make_failure
from integrations.providers.anthropic.resolving import CheckedResolver
from integrations.providers.base import Credential
from rensei.core.limits import limit

_URL_CHARACTERS_MAX = 300
CONNECTIONS_MAX = limit(
    2_000,
    "connections",
    what="Gateway connections to one upstream, each process",
    told="the caller: it waits until a call has ended",
)
ADDRESSES_OF_ORG_MAX = limit(
    20,
    "addresses",
    what="Base URLs of one organization to which the gateway keeps connections, each process",
    told="the caller: 503 `PROVIDER_UNAVAILABLE` if calls to all of them are under way",
)
ADDRESSES_MAX = limit(
    2_000,
    "addresses",
    what="Base URLs of all organizations to which the gateway keeps connections while none is used, each process",
    told="the caller: its next call to the address connects again",
)


class Upstream:
    """The connections to an organization's own address, and whether calls use them."""

    def __init__(self, session: aiohttp.ClientSession) -> None:
        self.session = session
        self._waiting = 0
        self._answers: WeakSet[aiohttp.ClientResponse] = WeakSet()

    @property
    def is_used(self) -> bool:
        return self._waiting > 0 or any(not answer.closed for answer in self._answers)

    async def post(self, url: URL, **options: Any) -> aiohttp.ClientResponse:
        self._waiting += 1
        try:
            answer = await self.session.post(url, **options)
        finally:
            self._waiting -= 1
        self._answers.add(answer)
        return answer


class Upstreams:
    """The connections of one event loop."""

    def __init__(self, *, idle_seconds: float) -> None:
        self._timeout = aiohttp.ClientTimeout(
            total=None, sock_connect=outbound.CONNECT_SECONDS_MAX, sock_read=idle_seconds
        )
        self._operators: dict[str, aiohttp.ClientSession] = {}
        # The least recently used first.
        self._own: dict[tuple[str, str], Upstream] = {}

    def of(self, credential: Credential) -> aiohttp.ClientSession | Upstream:
        """
        Return the connections to where a credential's calls go.

        :raises BaseUrlRefused, AddressRefused: if this server may not call the address
        :raises ProviderFailure: if the organization uses too many addresses at the same time
        """
        base_url = credential.base_url or settings.RENSEI_ANTHROPIC_BASE_URL
        if is_operators(credential, base_url):
            return self._operators.get(base_url) or self._open_operators(base_url)
        name = (credential.org_slug, base_url)
        upstream = self._own.pop(name, None) or self._open(*name)
        self._own[name] = upstream
        return upstream

    async def close(self) -> None:
        for session in (*self._operators.values(), *(upstream.session for upstream in self._own.values())):
            await session.close()
        self._operators.clear()
        self._own.clear()

    def _open_operators(self, base_url: str) -> aiohttp.ClientSession:
        destination = parse_url(base_url, characters_max=_URL_CHARACTERS_MAX, org_slug="", is_operators=True)
        session = self._operators[base_url] = self._session(destination, org="")
        return session

    def _open(self, org_slug: str, base_url: str) -> Upstream:
        destination = parse_url(base_url, characters_max=_URL_CHARACTERS_MAX, org_slug=org_slug, is_operators=False)
        of_org = [name for name in self._own if name[0] == org_slug]
        if len(of_org) >= ADDRESSES_OF_ORG_MAX and not self._drop_one_of(of_org):
            raise make_failure(d.TOO_MANY_ADDRESSES, sent=False)
        if len(self._own) >= ADDRESSES_MAX:
            self._drop_one_of(list(self._own))
        return Upstream(self._session(destination, org=org_slug))

    def _drop_one_of(self, names: list[tuple[str, str]]) -> bool:
        """Close the connections to the least recently used address, except one in use: its calls would never end."""
        for name in names:
            if not self._own[name].is_used:
                _close(self._own.pop(name).session)
                return True
        return False

    def _session(self, destination: Destination, *, org: str) -> aiohttp.ClientSession:
        if _is_number(destination.host):
            # A host that is an IP address is not resolved, so it is checked here.
            outbound.checked_addresses(destination)
        return aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(
                resolver=CheckedResolver(destination, org=org),
                limit=CONNECTIONS_MAX,
                ssl=outbound.ssl_context(),
                keepalive_timeout=30,
            ),
            cookie_jar=aiohttp.DummyCookieJar(),
            timeout=self._timeout,
            trust_env=False,
            auto_decompress=False,
            skip_auto_headers=("user-agent", "accept", "accept-encoding", "content-type"),
        )


def _is_number(host: str) -> bool:
    return ":" in host or host.replace(".", "").isdigit()


def _close(session: aiohttp.ClientSession) -> None:
    task = asyncio.get_running_loop().create_task(session.close())
    _closing.add(task)
    task.add_done_callback(_closing.discard)


# A task without a reference may be garbage-collected before it has run.
_closing: set[asyncio.Task[None]] = set()
