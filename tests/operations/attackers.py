"""
`python -m tests.operations.attackers`: several organizations that attack one server at the same time, from loopback.

It reads one order, a JSON object, from standard input, opens the event streams, says so, attacks until it is told to
stop by the end of standard input, and writes what was answered. It computes next to nothing while it attacks: bodies
are made before, and answers are not read but for their status.

Each organization keeps up to four Test Connections waiting, and sends a hostile body of 284 kB to the gateway and to
REST, and one of 16 kB without a login, each of them once in three seconds and the time of the answer. So the 15 of the
whole attack send at most 15 bodies a second, and 20 tests a second beyond the 60 that wait, which are refused.

The process has the lowest priority: attackers compute on machines of their own, not on the server's.
"""

import asyncio
import json
import os
import random
import resource
import sys
from collections import Counter
from collections.abc import Awaitable
from typing import Any
from urllib.parse import urlsplit

from tests.hostile_json import WORST, hostile_body

# Of each kind of body that is sent, this many different ones.
BODIES = 40
TESTS_AT_ONCE = 4
LARGE_BYTES = 284_000
ANONYMOUS_BYTES = 16 * 1024
# Between an answer and the next request of its kind, for each organization.
PAUSE_SECONDS = 3.0
# Streams that are opened at once. Opening them is no part of what is measured.
OPENING = asyncio.Semaphore(20)


class Attackers:
    """All connections of the attack to one server, and a count of what was answered."""

    def __init__(self, order: dict[str, Any]) -> None:
        address = urlsplit(order["url"])
        self._host, self._port = address.hostname, address.port
        self._order = order
        self._open: list[asyncio.StreamWriter] = []
        self._large, self._small = _bodies(LARGE_BYTES), _bodies(ANONYMOUS_BYTES)
        self.answered: Counter[str] = Counter()

    async def open_streams(self) -> None:
        """Open the idle event streams, and wait until each has told how its run stands."""
        await asyncio.gather(
            *(
                self._open_stream(f"/api/v1/runs/{org['run']}/events", org["token"])
                for org in self._order["orgs"]
                for _ in range(org["streams"] if "stream" in self._order["kinds"] else 0)
            )
        )

    async def _open_stream(self, path: str, token: str) -> None:
        async with OPENING:
            reader, writer = await asyncio.open_connection(self._host, self._port)
            writer.write(self._head("GET", path, token) + b"\r\n")
            told = await reader.readuntil(b"event: state")
        assert b" 200 " in told.split(b"\r\n", 1)[0], told
        self._open.append(writer)
        self.answered["stream 200"] += 1

    async def attack(self) -> None:
        """Do everything else at the same time, without end."""
        work: list[Awaitable[object]] = []
        for org in self._order["orgs"]:
            asked = [json.dumps({"provider": "claude", "apiKey": org["silentKey"]}).encode()]
            kinds = [
                *(("test", "/api/v1/integrations/test", org["token"], asked) for _ in range(TESTS_AT_ONCE)),
                ("gateway JSON", "/v1/messages", org["token"], self._large),
                ("REST JSON", "/api/v1/runs", org["token"], self._large),
                ("anonymous JSON", "/api/v1/device-codes", "", self._small),
            ]
            work += [self._repeat(*kind) for kind in kinds if kind[0] in self._order["kinds"]]
        await asyncio.gather(*work, asyncio.Event().wait())

    async def _repeat(self, kind: str, path: str, token: str, bodies: list[bytes]) -> None:
        """Send one request after another, each on a connection of its own, as one may be hung up on."""
        await asyncio.sleep(random.random() * PAUSE_SECONDS)
        while True:
            self.answered[f"{kind} {await self._send(path, token, random.choice(bodies))}"] += 1
            await asyncio.sleep(PAUSE_SECONDS)

    async def _send(self, path: str, token: str, body: bytes) -> str:
        reader, writer = await asyncio.open_connection(self._host, self._port)
        try:
            writer.write(self._head("POST", path, token))
            writer.write(b"connection: close\r\ncontent-type: application/json\r\n")
            writer.write(b"content-length: %d\r\n\r\n" % len(body))
            writer.write(body)
            status = (await reader.readline()).split(b" ")[1:2]
            await reader.read()
            return status[0].decode() if status else "closed"
        except ConnectionError:
            return "closed"
        finally:
            writer.close()

    def _head(self, method: str, path: str, token: str) -> bytes:
        head = f"{method} {path} HTTP/1.1\r\nhost: {self._host}:{self._port}\r\n"
        return (head + (f"authorization: Bearer {token}\r\n" if token else "")).encode()


def _bodies(size: int) -> list[bytes]:
    worst = [make(size) for make in WORST.values()]
    generated = [hostile_body(seed)(size) for seed in range(BODIES - len(worst))]
    return [body[:size] for body in worst + generated]


async def _main() -> None:
    order = json.loads(sys.stdin.readline())
    attackers = Attackers(order)
    await attackers.open_streams()
    print(json.dumps({"streams": attackers.answered["stream 200"]}), flush=True)
    attack = asyncio.create_task(attackers.attack())
    stopped = asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)
    await asyncio.wait([attack, asyncio.ensure_future(stopped)], return_when=asyncio.FIRST_COMPLETED)
    if attack.done():
        attack.result()
    attack.cancel()
    used = resource.getrusage(resource.RUSAGE_SELF)
    told = {"answered": dict(sorted(attackers.answered.items())), "cpuSeconds": used.ru_utime + used.ru_stime}
    print(json.dumps(told), flush=True)


if __name__ == "__main__":
    os.nice(19)
    resource.setrlimit(resource.RLIMIT_NOFILE, (resource.getrlimit(resource.RLIMIT_NOFILE)[1],) * 2)
    asyncio.run(_main())
