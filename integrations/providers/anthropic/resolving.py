"""
Resolves the names of the gateway's upstreams, so that a slow name server of one organization delays only its own calls.

A look-up occupies a thread until the system's resolver gives up, which can take longer than its caller waits.
"""

import asyncio
import socket
from concurrent.futures import ThreadPoolExecutor

from aiohttp.abc import AbstractResolver, ResolveResult

from integrations.outbound import http as outbound
from integrations.outbound.destinations import Destination
from rensei.core.limits import limit

RESOLVE_SECONDS = limit(
    outbound.CONNECT_SECONDS_MAX,
    "seconds",
    what="Time in which the name of an upstream of the gateway is resolved",
    told="the caller: 503 `PROVIDER_UNAVAILABLE`",
)
THREADS = limit(
    32,
    "at once",
    what="Names of organizations' own base URLs that the gateway resolves, each process, one of each organization",
    told="the caller: it waits for its turn, within the time of a name",
)

# Apart from the event loop's own threads, which also read the database for all organizations.
_threads = ThreadPoolExecutor(THREADS, thread_name_prefix="names")
_under_way: dict[str, asyncio.Future[list[str]]] = {}


class CheckedResolver(AbstractResolver):
    """Returns the addresses of one host, all of which may be called, so that no connection goes elsewhere."""

    def __init__(self, destination: Destination, *, org: str) -> None:
        """:param org: the organization whose own address it is; empty for the operator's"""
        self._destination = destination
        self._org = org

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        """:raises TimeoutError: if the name is not resolved in time"""
        if host != self._destination.host:
            raise outbound.AddressRefused("This client calls one host only.")
        async with asyncio.timeout(RESOLVE_SECONDS):
            found = await self._addresses()
        return [
            ResolveResult(
                hostname=host,
                host=address,
                port=port,
                family=socket.AF_INET6 if ":" in address else socket.AF_INET,
                proto=0,
                flags=socket.AI_NUMERICHOST,
            )
            for address in found
        ]

    async def _addresses(self) -> list[str]:
        loop = asyncio.get_running_loop()
        if not self._org:
            return await loop.run_in_executor(None, outbound.checked_addresses, self._destination)
        while (other := _under_way.get(self._org)) is not None:
            await asyncio.wait([other])
        look_up = loop.run_in_executor(_threads, outbound.checked_addresses, self._destination)
        _under_way[self._org] = look_up
        look_up.add_done_callback(self._end)
        # A caller that waits no longer does not end the look-up, which counts until its thread is free.
        return await asyncio.shield(look_up)

    def _end(self, look_up: "asyncio.Future[list[str]]") -> None:
        del _under_way[self._org]
        if not look_up.cancelled():
            # The failure of one that its caller has left is not reported as a fault.
            look_up.exception()

    async def close(self) -> None:
        """Do nothing: there is nothing to close."""
