"""Bodies that do not end."""

import asyncio
import json
import os
import subprocess
import sys

import pytest

from rensei.core import asgi_limits
from rensei.core.api import ANONYMOUS_BODY_LIMIT, LARGE_BODY_LIMIT
from rensei.core.asgi_limits import limit_bodies, pace_bodies
from tests.architecture.routes import patterns

LOGIN = (b"authorization", b"Bearer rsk_live_x")
CHUNK = b"x" * 1024 * 1024
# Views refuse what is a little too large themselves.
BODY_LIMIT = LARGE_BODY_LIMIT + len(CHUNK)


async def read_everything(scope, receive, send):
    """An application that reads its whole body before it answers, as Django does."""
    more = True
    while more:
        message = await receive()
        more = message.get("more_body", False)
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"read"})


def ask(*, chunks, headers=(LOGIN,), path="/api/v1/runs"):
    """Send a body in chunks of a megabyte, and tell what came back and how many were taken."""
    sent, taken = [], 0

    async def receive():
        nonlocal taken
        taken += 1
        return {"type": "http.request", "body": CHUNK, "more_body": taken < chunks}

    async def send(message):
        sent.append(message)

    scope = {"type": "http", "method": "POST", "path": path, "headers": list(headers)}
    asyncio.run(limit_bodies(read_everything)(scope, receive, send))
    return sent[0]["status"], dict(sent[0]["headers"]), sent[1]["body"], taken


class TestLimitBodies:
    def test_lets_a_large_body_through(self):
        status, _, body, _ = ask(chunks=BODY_LIMIT // len(CHUNK))

        assert (status, body) == (200, b"read")

    def test_stops_reading_a_body_that_does_not_say_its_length(self):
        status, headers, body, taken = ask(chunks=10_000)

        assert status == 413
        assert headers[b"content-type"] == b"application/problem+json"
        assert json.loads(body)["code"] == "REQUEST_TOO_LARGE"
        assert json.loads(body)["requestId"] == headers[b"x-request-id"].decode()
        assert taken == BODY_LIMIT // len(CHUNK) + 1

    def test_reads_nothing_of_a_body_that_announces_too_much(self):
        status, _, _, taken = ask(chunks=10_000, headers=[LOGIN, (b"Content-Length", str(BODY_LIMIT + 1).encode())])

        assert (status, taken) == (413, 0)

    @pytest.mark.parametrize("kind", ["lifespan", "websocket"])
    def test_leaves_other_connections_alone(self, kind):
        seen = []

        async def application(scope, receive, send):
            seen.append(scope["type"])

        asyncio.run(limit_bodies(application)({"type": kind}, None, None))

        assert seen == [kind]


SESSION = (b"Cookie", b"a=b; session=made-up")
OPEN = (
    "/accounts/login/",
    "/accounts/password/reset/",
    "/accounts/2fa/authenticate/",
    "/api/v1/device-codes",
    "/api/v1/device-codes/token",
    "/nothing/is/here",
)


class TestTheLimitWithoutALogin:
    @pytest.mark.parametrize("login", [LOGIN, SESSION], ids=["token", "session"])
    @pytest.mark.parametrize("path", OPEN)
    def test_holds_where_none_is_needed_whatever_is_sent(self, login, path):
        status, _, body, taken = ask(chunks=100, headers=[login], path=path)

        assert (status, taken) == (413, 1)
        assert b"larger than 16 kB" in body

    @pytest.mark.parametrize("length", [ANONYMOUS_BODY_LIMIT + 1, None])
    def test_holds_everywhere_for_who_sends_none(self, length):
        headers = [(b"content-length", str(length).encode())] if length else []
        for route, _ in patterns():
            assert ask(chunks=100, headers=headers, path=f"/{route}")[0] == 413

    @pytest.mark.parametrize("login", [LOGIN, SESSION], ids=["token", "session"])
    def test_is_not_that_of_others(self, login):
        for path in ("/api/v1/runs", "/o/acme/playground"):
            assert ask(chunks=30, headers=[login], path=path)[0] == 200

    @pytest.mark.parametrize("login", [LOGIN, SESSION], ids=["token", "session"])
    def test_is_that_of_the_view(self, login):
        status, _, body, taken = ask(chunks=30, headers=[login], path="/api/v1/profiles")

        assert (status, taken) == (413, 3)
        assert b"REQUEST_TOO_LARGE" in body


class TestAllBodiesOfAnAddress:
    @pytest.fixture(autouse=True)
    def _few(self, monkeypatch):
        monkeypatch.setattr(asgi_limits, "BODIES_OF_ADDRESS", 3)
        monkeypatch.setattr(asgi_limits, "BODIES", 5)

    def play(self, callers, *, lines=lambda place: []):
        """Have several send two megabytes each, and wait with the rest; tell the status that each got, and then end."""

        async def story():
            application = limit_bodies(read_everything)
            may_end = asyncio.Event()
            statuses = []

            async def call(address, place=-1):
                taken, sent = 0, []

                async def receive():
                    nonlocal taken
                    taken += 1
                    if taken > 2:
                        await may_end.wait()
                    return {"type": "http.request", "body": CHUNK if taken <= 2 else b"", "more_body": taken <= 2}

                async def send(message):
                    sent.append(message)

                to = {"type": "http", "method": "POST", "path": "/api/v1/runs", "headers": [LOGIN, *lines(place)]}
                await application({**to, "client": (address, 1)}, receive, send)
                statuses.append((address, sent[0]["status"], dict(sent[0]["headers"]).get(b"retry-after")))

            tasks = [asyncio.ensure_future(call(address, place)) for place, address in enumerate(callers)]
            for _ in range(20):
                await asyncio.sleep(0)
            refused = list(statuses)
            may_end.set()
            await asyncio.gather(*tasks)
            assert [status for _, status, _ in statuses[len(refused) :]] == [200] * (len(callers) - len(refused))
            # What they held is free again.
            await call("10.0.0.1")
            assert statuses[-1][1] == 200
            return refused

        return asyncio.run(story())

    def test_are_limited_together(self):
        assert self.play(["10.0.0.1", "10.0.0.1"]) == [("10.0.0.1", 429, b"1")]

    def test_of_one_network_count_as_one(self):
        assert self.play(["2001:db8::1", "2001:db8::2"]) == [("2001:db8::2", 429, b"1")]

    def test_are_those_of_the_line_that_the_proxy_has_added(self, settings):
        settings.RENSEI_TRUSTED_PROXIES = ["10.9.9.9"]

        def lines(place):
            made_up = f"10.0.1.{place + 10}".encode()
            return [(b"X-Forwarded-For", made_up), (b"x-forwarded-for", b"10.0.0.7")]

        assert self.play(["10.9.9.9", "10.9.9.9"], lines=lines) == [("10.9.9.9", 429, b"1")]

    def test_leave_room_for_others(self):
        assert self.play(["10.0.0.1", "10.0.0.2"]) == []

    def test_of_all_addresses_are_limited_too(self):
        assert self.play(["10.0.0.1", "10.0.0.2", "10.0.0.3"]) == [("10.0.0.3", 429, b"1")]


class TestPaceBodies:
    @pytest.fixture(autouse=True)
    def _short(self, monkeypatch):
        monkeypatch.setattr(asgi_limits, "BODY_SECONDS", 0.2)

    @staticmethod
    def ask(messages):
        """Send these messages, and then nothing more."""
        sent, waiting = [], list(messages)

        async def receive():
            if not waiting:
                await asyncio.Event().wait()
            return waiting.pop(0)

        async def send(message):
            sent.append(message)

        asyncio.run(pace_bodies(read_everything)({"type": "http", "method": "POST", "headers": []}, receive, send))
        return sent[0]["status"], sent[1]["body"]

    @pytest.mark.parametrize("come", [0, 1, 3])
    def test_ends_a_body_of_which_nothing_more_comes(self, come):
        status, body = self.ask([{"type": "http.request", "body": b"x", "more_body": True}] * come)

        assert status == 408
        assert json.loads(body)["code"] == "REQUEST_TOO_SLOW"

    def test_lets_a_whole_body_through(self):
        assert self.ask([{"type": "http.request", "body": b"x", "more_body": False}]) == (200, b"read")

    def test_does_not_time_what_comes_after_the_body(self):
        async def waits_for_the_caller_to_leave(scope, receive, send):
            await receive()
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(2 * asgi_limits.BODY_SECONDS):
                    await receive()

        async def receive(calls=iter([{"type": "http.request", "body": b""}])):  # noqa: B008
            return next(calls, None) or await asyncio.Event().wait()

        asyncio.run(pace_bodies(waits_for_the_caller_to_leave)({"type": "http"}, receive, None))


class TestApplication:
    def test_is_made_in_a_fresh_process_and_starts_no_thread_by_being_imported(self, tmp_path):
        """Nothing has read the settings there yet, other than here. A thread would outlive the import in every test."""
        environment = {"PATH": os.environ["PATH"], "SECRET_KEY": "x", "RENSEI_DATA_DIR": str(tmp_path)}
        look = (
            "import threading; import rensei.asgi as asgi; print(callable(asgi.application), threading.active_count())"
        )

        started = subprocess.run(
            [sys.executable, "-c", look],
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )

        assert started.stdout.strip() == "True 1", started.stderr
