"""The relay of a sandbox, between a program and a stand-in of the gateway whose connections break."""

import asyncio
import gzip
import socket
from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import web

from rensei.core.secret import Secret
from rensei.dispatch.pools import relay
from rensei.dispatch.pools.relay import Relay

Handle = Callable[[web.Request], Awaitable[web.StreamResponse]]
CALLED = {"x-rensei-run-id": "run_1"}


@pytest.fixture(autouse=True)
def _soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(relay, "RETRY_SECONDS", 0.01)
    monkeypatch.setattr(relay, "REACH_SECONDS_MAX", 5.0)


class Between:
    """A relay, its program, and what the gateway answers, one after the other; the last one again and again."""

    def __init__(self, tmp_path: Path, *answers: Handle, request_bytes_max: int = 100, for_agent: bool = False) -> None:
        self.given: list[web.Request] = []
        self._answers = list(answers)
        self._path = tmp_path / "relay.sock"
        self._most = request_bytes_max
        self._for_agent = for_agent

    async def __aenter__(self) -> "Between":
        application = web.Application()
        application.router.add_post("/v1/messages", self._handle)
        self._gateway = web.AppRunner(application)
        await self._gateway.setup()
        site = web.TCPSite(self._gateway, "127.0.0.1", 0)
        await site.start()
        host, port = self._gateway.addresses[0][:2]
        self._session = aiohttp.ClientSession(auto_decompress=False)
        self.relay = Relay(
            self._session,
            server_url=f"http://{host}:{port}",
            token=Secret("rsr_x"),
            request_bytes_max=self._most,
            for_agent=self._for_agent,
        )
        await self.relay.open(self._path)
        self.program = aiohttp.ClientSession(connector=aiohttp.UnixConnector(str(self._path), limit=0))
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.program.close()
        await self.relay.close()
        await self._session.close()
        await self._gateway.cleanup()

    async def call(self, body: bytes = b"{}") -> tuple[int, bytes]:
        async with self.program.post("http://relay/v1/messages", data=body) as answer:
            return answer.status, await answer.read()

    async def until(self, condition: Callable[[], object]) -> None:
        for _ in range(500):
            if condition():
                return
            await asyncio.sleep(0.01)
        raise AssertionError("It did not come true")

    async def _handle(self, request: web.Request) -> web.StreamResponse:
        self.given.append(request)
        answer = self._answers.pop(0) if len(self._answers) > 1 else self._answers[0]
        return await answer(request)


def says(status: int = 200, text: str = "yes", **headers: str) -> Handle:
    async def answer(request: web.Request) -> web.StreamResponse:
        return web.Response(status=status, text=text, headers={k.replace("_", "-"): v for k, v in headers.items()})

    return answer


async def drops(request: web.Request) -> web.StreamResponse:
    assert request.transport is not None
    request.transport.abort()
    return web.Response()


async def breaks_off(request: web.Request) -> web.StreamResponse:
    response = web.StreamResponse(headers=CALLED)
    await response.prepare(request)
    await response.write(b"begun")
    return await drops(request)


async def compresses(request: web.Request) -> web.StreamResponse:
    if "gzip" not in request.headers.get("accept-encoding", ""):
        return web.Response(body=b"plain")
    return web.Response(body=gzip.compress(b"plain"), headers={"content-encoding": "gzip"})


class TestARelay:
    def test_repeats_a_call_that_a_gateway_did_not_answer(self, tmp_path: Path) -> None:
        async def check() -> None:
            async with Between(tmp_path, drops, says(200)) as between:
                assert await between.call() == (200, b"yes")
                assert (between.relay.is_unreachable, between.relay.is_cut) == (False, True)

        asyncio.run(check())

    def test_forgets_a_broken_connection_where_the_call_is_made_after_it(self, tmp_path: Path) -> None:
        async def answers(request: web.Request) -> web.StreamResponse:
            return web.Response(body=b"yes", headers=CALLED)

        async def check() -> None:
            async with Between(tmp_path, drops, answers) as between:
                assert await between.call() == (200, b"yes")
                assert not between.relay.is_cut

        asyncio.run(check())

    def test_waits_for_a_gateway_that_starts_again(self, tmp_path: Path) -> None:
        async def check() -> None:
            async with Between(tmp_path, says(200)) as between:
                good = between.relay._url
                with socket.create_server(("127.0.0.1", 0)) as closed:
                    between.relay._url = f"http://127.0.0.1:{closed.getsockname()[1]}/v1/messages"
                calling = asyncio.ensure_future(between.call())
                await between.until(lambda: between.relay.is_unreachable)
                between.relay._url = good

                assert await calling == (200, b"yes")
                assert not between.relay.is_unreachable

        asyncio.run(check())

    def test_says_when_there_is_none(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(relay, "REACH_SECONDS_MAX", 0.0)

        async def check() -> None:
            async with Between(tmp_path, drops) as between:
                assert (await between.call())[0] == 503
                assert between.relay.is_unreachable

        asyncio.run(check())

    @pytest.mark.parametrize("status", [429, 503, 502])
    def test_waits_where_a_gateway_refuses_for_a_moment(self, tmp_path: Path, status: int) -> None:
        async def check() -> None:
            async with Between(tmp_path, says(status, retry_after="0"), says(200)) as between:
                assert await between.call() == (200, b"yes")
                assert between.relay.refusal is None

        asyncio.run(check())

    def test_passes_the_error_of_a_call_on(self, tmp_path: Path) -> None:
        async def check() -> None:
            async with Between(tmp_path, says(529, "busy", **CALLED)) as between:
                assert await between.call() == (529, b"busy")
                assert len(between.given) == 1
                assert between.relay.refusal is None

        asyncio.run(check())

    def test_keeps_the_refusal_of_a_call_that_was_not_made(self, tmp_path: Path) -> None:
        async def check() -> None:
            said = '{"error": {"code": "ORG_SUSPENDED", "message": "No."}}'
            async with Between(tmp_path, says(403, said)) as between:
                assert (await between.call())[0] == 403
                assert between.relay.refusal == {"code": "ORG_SUSPENDED", "message": "No."}

        asyncio.run(check())

    def test_knows_an_answer_that_is_not_the_gateways(self, tmp_path: Path) -> None:
        async def check() -> None:
            async with Between(tmp_path, says(404, "<h1>Not here</h1>")) as between:
                await between.call()
                assert between.relay.is_unreachable

        asyncio.run(check())

    def test_notices_an_answer_that_breaks_off(self, tmp_path: Path) -> None:
        async def check() -> None:
            async with Between(tmp_path, breaks_off) as between:
                assert await between.call() == (200, b"begun")
                assert between.relay.is_cut

        asyncio.run(check())

    def test_asks_for_an_answer_that_is_not_compressed(self, tmp_path: Path) -> None:
        async def check() -> None:
            async with Between(tmp_path, compresses) as between:
                assert await between.call() == (200, b"plain")

        asyncio.run(check())

    def test_takes_one_request_at_a_time(self, tmp_path: Path) -> None:
        async def check() -> None:
            goes_on = asyncio.Event()

            async def waits(request: web.Request) -> web.StreamResponse:
                await goes_on.wait()
                return web.Response(text="yes")

            async with Between(tmp_path, waits) as between:
                first = asyncio.ensure_future(between.call())
                await between.until(lambda: between.given)
                assert (await between.call())[0] == 429
                goes_on.set()
                assert (await first)[0] == 200
                assert len(between.given) == 1

        asyncio.run(check())

    def test_takes_no_larger_request(self, tmp_path: Path) -> None:
        async def check() -> None:
            async with Between(tmp_path, says(200)) as between:
                assert (await between.call(b"x" * 101))[0] == 413
                assert (await between.call(b"x" * 100))[0] == 200

        asyncio.run(check())

    def test_keeps_a_few_connections(self, tmp_path: Path) -> None:
        async def check() -> None:
            async with Between(tmp_path, says(200)) as between:
                opened: list[Any] = []
                for _ in range(5 * relay.CONNECTIONS_MAX):
                    with suppress(BlockingIOError):
                        opened.append(await asyncio.open_unix_connection(str(between._path)))
                    await asyncio.sleep(0)
                kept = [reader for reader, _ in opened if not await _is_closed(reader)]
                for _, writer in opened:
                    writer.close()
                assert len(kept) <= 2 * relay.CONNECTIONS_MAX

        asyncio.run(check())


class TestThatOfAnAgent:
    """To the gateway each request of an agent is another one, and each is paid for."""

    @pytest.mark.parametrize(
        "first", [drops, says(502, "<h1>Bad gateway</h1>"), says(504, "")], ids=["dropped", "bad", "late"]
    )
    def test_repeats_nothing_that_may_have_been_made(self, tmp_path: Path, first: Handle) -> None:
        async def check() -> None:
            async with (
                Between(tmp_path, first, says(200), for_agent=True) as between,
                between.program.post("http://relay/v1/messages", data=b"{}") as answer,
            ):
                assert (answer.status, answer.headers["x-should-retry"]) == (503, "false")
                assert len(between.given) == 1
                assert between.relay.is_unreachable

        asyncio.run(check())

    def test_repeats_what_the_gateway_itself_refused_for_a_moment(self, tmp_path: Path) -> None:
        async def check() -> None:
            said = '{"error": {"code": "RATE_LIMITED", "message": "Wait."}}'
            busy = says(429, said, retry_after="0")
            async with Between(tmp_path, busy, says(200), for_agent=True) as between:
                assert await between.call() == (200, b"yes")

        asyncio.run(check())

    def test_makes_no_call_whose_program_has_gone(self, tmp_path: Path) -> None:
        async def check() -> None:
            goes_on = asyncio.Event()

            async def waits(request: web.Request) -> web.StreamResponse:
                await goes_on.wait()
                return web.Response(text="yes")

            async with Between(tmp_path, waits, for_agent=True) as between:
                first = asyncio.ensure_future(between.call())
                await between.until(lambda: between.given)
                server = between.relay._runner.server
                assert server is not None
                second = asyncio.ensure_future(between.call())
                await between.until(lambda: len(server.connections) == 2)
                second.cancel()
                await between.until(lambda: any(each.transport is None for each in server.connections))
                goes_on.set()
                assert (await first)[0] == 200
                assert (await between.call())[0] == 200
                assert len(between.given) == 2

        asyncio.run(check())

    def test_makes_no_call_after_the_order_to_stop(self, tmp_path: Path) -> None:
        async def check() -> None:
            async with Between(tmp_path, says(200), for_agent=True) as between:
                between.relay.order_stop()
                assert (await between.call())[0] == 503
                assert not between.given

        asyncio.run(check())


async def _is_closed(reader: asyncio.StreamReader) -> bool:
    try:
        return await asyncio.wait_for(reader.read(1), 0.02) == b""
    except TimeoutError:
        return False
    except ConnectionError:
        return True
