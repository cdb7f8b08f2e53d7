"""
The only way out of a sandbox of this installation: HTTP over a UNIX socket, to the gateway of this server.

One address is served, for one request at a time. The relay adds the token of the run, so that the sandbox holds no
credential. What a program inside can make it hold is bounded: connections, and the bytes of a request.

The calls of an agent wait for one another. At a second address its runner waits for the order to stop the program.
"""

import asyncio
import json
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import aiohttp
from aiohttp import web

from rensei.core.ids import RUN_ID_HEADER
from rensei.core.limits import limit
from rensei.core.secret import Secret
from rensei.dispatch import agents
from rensei.dispatch.run_caps import RunCostExceeded

PATH = "/v1/messages"
CONNECTIONS_MAX = limit(
    8,
    "connections",
    what="Connections of a sandbox to the gateway at once",
    told="the run: its program finds further ones closed",
)
AGENT_CONNECTIONS_MAX = limit(
    64,
    "connections",
    what="Connections of an agent to the gateway at once",
    told="the run: its program finds further ones closed",
)
REACH_SECONDS_MAX = limit(
    60,
    "seconds",
    what="Wait of a sandbox for a gateway that is away or refuses for a moment",
    told="the run: it ends with `POOL_CANNOT_REACH_SERVER`, or the gateway's refusal",
)
# A call whose connection broke is under way in the gateway, settled, or died with the gateway.
SECONDS_AFTER_CUT = 10.0
RETRY_SECONDS, RETRY_SECONDS_MAX = 0.5, 30.0
_PASSING = frozenset({429, 502, 503, 504})
_OK = 200
_GONE = 499
_NOT_AGAIN = {"x-should-retry": "false"}
_PASSED_IN = ("content-type", "accept", "anthropic-version")
# The one request of a run was priced without betas.
_PASSED_IN_OF_AGENT = (*_PASSED_IN, "anthropic-beta", agents.AGENT_HEADER, agents.PARENT_HEADER)
STOP_PATH = "/stop"
# After an answer, the next call waits for its settlement.
_AGENT_RETRY_SECONDS = 0.1
_PASSED_OUT = ("content-type", "retry-after", "x-should-retry", "request-id")


class Relay:
    """
    The relay of one sandbox.

    `is_unreachable`: the gateway did not answer to the last. `is_cut`: a connection to it broke, so that a call may
    have died with it; `cuts` counts how often that happened. `is_asking`: a request waits for the gateway's answer.
    `refusal` is the gateway's error, if it refused the last request before a call.
    `cap_refusal` is the first of an agent's that said that the run may cost no further call.
    """

    def __init__(
        self,
        session: aiohttp.ClientSession,
        *,
        server_url: str,
        token: Secret,
        request_bytes_max: int,
        for_agent: bool = False,
    ) -> None:
        self.is_unreachable = self.is_cut = self.is_asking = False
        self.cuts = 0
        self.refusal: dict[str, Any] | None = None
        self.cap_refusal: dict[str, Any] | None = None
        self._session = session
        self._url = server_url + PATH
        self._token = token
        self._for_agent = for_agent
        self._connections_max = AGENT_CONNECTIONS_MAX if for_agent else CONNECTIONS_MAX
        self._turn = asyncio.Lock()
        self._stop = asyncio.Event()
        application = web.Application(client_max_size=request_bytes_max)
        application.router.add_post(PATH, self._pass_on)
        if for_agent:
            application.router.add_get(STOP_PATH, self._wait_for_stop)
        self._runner = web.AppRunner(application, access_log=None, shutdown_timeout=0.1)
        self._listener: asyncio.Server | None = None

    async def open(self, path: Path) -> None:
        """Listen on a socket."""
        await self._runner.setup()
        loop = asyncio.get_running_loop()
        self._listener = await loop.create_unix_server(self._connected, str(path), backlog=self._connections_max)

    def order_stop(self) -> None:
        """Let the runner of an agent stop its program."""
        self._stop.set()

    async def close(self) -> None:
        # What waits for it must not outlive the loop.
        self._stop.set()
        if self._listener is not None:
            self._listener.close()
        await self._runner.cleanup()

    def _connected(self) -> asyncio.Protocol:
        server = self._runner.server
        assert server is not None, "It was set up before"
        return server() if len(server.connections) < self._connections_max else _Refused()

    async def _pass_on(self, request: web.Request) -> web.StreamResponse:
        if self._turn.locked() and not self._for_agent:
            return _error(429, "rate_limit_error", "A sandbox makes one call at a time.")
        async with self._turn:
            body = await request.read()
            if _is_gone(request):
                return web.Response(status=_GONE)
            if self._stop.is_set():
                return _error(503, "api_error", "The program is being stopped.", _NOT_AGAIN)
            passed = _PASSED_IN_OF_AGENT if self._for_agent else _PASSED_IN
            headers = {name: ",".join(request.headers.getall(name)) for name in passed if name in request.headers}
            headers["authorization"] = f"Bearer {self._token.reveal()}"
            # A proxy may compress, and the program inside does not decompress.
            headers["accept-encoding"] = "identity"
            answer = await self._call(request, body, headers)
            return await self._answer(request, answer)

    async def _wait_for_stop(self, request: web.Request) -> web.Response:
        await self._stop.wait()
        return web.Response(text="stop")

    async def _call(self, request: web.Request, body: bytes, headers: dict[str, str]) -> aiohttp.ClientResponse | None:
        """
        Send the request until the gateway has an answer to it. None if there is none in time.

        A request whose connection broke is repeated too: the gateway refuses it if it makes the call already, or has
        answered it. To the gateway each request of an agent is another one, so of those only that is repeated of which
        it is certain that no call was made.
        """
        until = time.monotonic() + REACH_SECONDS_MAX
        soon = _AGENT_RETRY_SECONDS if self._for_agent else RETRY_SECONDS_MAX
        while True:
            answer, seconds = None, RETRY_SECONDS
            self.is_asking = True
            try:
                answer = await self._session.post(self._url, data=body, headers=headers, allow_redirects=False)
            except aiohttp.ClientConnectorError:
                self.is_unreachable = True
            except (aiohttp.ClientError, TimeoutError, OSError):
                self.is_unreachable = True
                self._note_cut()
                until = min(until, time.monotonic() + SECONDS_AFTER_CUT)
                if self._for_agent:
                    return None
            finally:
                self.is_asking = False
            if answer is not None:
                self.is_unreachable = False
                if RUN_ID_HEADER in answer.headers:
                    # The gateway makes this call, so the one before is settled.
                    self.is_cut = False
                if not _is_passing(answer):
                    return answer
                if self._for_agent and _refusal(await _whole(answer)) is None:
                    # Of a proxy, which may have passed the request on.
                    answer.close()
                    self.is_unreachable = True
                    return None
                seconds = min(_seconds_asked(answer), soon)
                soon *= 2
            if time.monotonic() + seconds > until or self._stop.is_set() or _is_gone(request):
                return answer
            if answer is not None:
                answer.close()
            await asyncio.sleep(seconds)

    async def _answer(self, request: web.Request, answer: aiohttp.ClientResponse | None) -> web.StreamResponse:
        if answer is None:
            # Clients repeat a 503 by themselves, and each repetition may be a second call.
            told = _NOT_AGAIN if self._for_agent else None
            return _error(503, "api_error", "The gateway does not answer.", told)
        async with answer:
            passed = {name: answer.headers[name] for name in _PASSED_OUT if name in answer.headers}
            self.refusal = None
            if answer.status != _OK:
                body = await _whole(answer)
                if RUN_ID_HEADER not in answer.headers:
                    self.refusal = _refusal(body)
                    if self.refusal is not None and self.refusal["code"] == RunCostExceeded.code:
                        self.cap_refusal = self.cap_refusal or self.refusal
                        # The cap of a run does not reset, and clients repeat a 429.
                        return web.Response(status=RunCostExceeded.status, headers=passed, body=body)
                    self.is_unreachable = self.refusal is None
                return web.Response(status=answer.status, headers=passed, body=body)
            response = web.StreamResponse(status=answer.status, headers=passed)
            # The program may leave after what it wants, or be killed. The gateway reads the answer to its end.
            with suppress(ConnectionResetError):
                await response.prepare(request)
                while piece := await self._next(answer):
                    await response.write(piece)
                await response.write_eof()
            return response

    async def _next(self, answer: aiohttp.ClientResponse) -> bytes:
        """Read the next piece of an answer; empty at its end, or where it breaks off."""
        try:
            return await answer.content.readany()
        except aiohttp.ClientError:
            self._note_cut()
            return b""

    def _note_cut(self) -> None:
        self.is_cut = True
        self.cuts += 1


class _Refused(asyncio.Protocol):
    """A connection too many."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.WriteTransport)
        transport.abort()


def _is_passing(answer: aiohttp.ClientResponse) -> bool:
    """
    Return whether the gateway refused for a moment and has made no call.

    Without the id of a run, an answer is from before the call: of a busy gateway, or of a proxy before it.
    """
    told = answer.headers.get("x-should-retry") != "false"
    return answer.status in _PASSING and RUN_ID_HEADER not in answer.headers and told


def _seconds_asked(answer: aiohttp.ClientResponse) -> float:
    asked = answer.headers.get("retry-after", "")
    return min(float(asked) if asked.isdigit() else RETRY_SECONDS, RETRY_SECONDS_MAX)


async def _whole(answer: aiohttp.ClientResponse) -> bytes:
    try:
        return await answer.read()
    except aiohttp.ClientError:
        return b""


def _refusal(body: bytes) -> dict[str, Any] | None:
    """Return the gateway's own error, or None for an answer of something else."""
    try:
        error = json.loads(body)["error"]
    except (ValueError, KeyError, TypeError):
        return None
    return error if isinstance(error, dict) and isinstance(error.get("code"), str) else None


def _is_gone(request: web.Request) -> bool:
    """Return whether the program no longer waits for an answer. Nothing is paid for that was not sent before."""
    return request.transport is None or request.transport.is_closing()


def _error(status: int, kind: str, message: str, headers: Mapping[str, str] | None = None) -> web.Response:
    error = {"type": "error", "error": {"type": kind, "message": message}}
    return web.Response(status=status, text=json.dumps(error), content_type="application/json", headers=headers)
