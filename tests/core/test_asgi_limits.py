"""Bodies that do not end."""

import asyncio
import gc
import json
import os
import subprocess
import sys
import weakref

import pytest
from django.db import OperationalError

from rensei.core import asgi_limits
from rensei.core.api import ANONYMOUS_BODY_LIMIT, LARGE_BODY_LIMIT
from rensei.core.asgi_limits import COLLECTED_BYTES, limit_bodies, pace_bodies
from rensei.core.problems import NotAuthenticated
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


def sender_in(scope):
    """Take a header for the organization that a token belongs to."""
    return dict(scope["headers"]).get(b"x-org", b"acme").decode()


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
    asyncio.run(limit_bodies(read_everything, sender_of=sender_in)(scope, receive, send))
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

    def test_frees_what_large_bodies_leave_before_it_adds_up(self):
        class Kept:
            """Something that refers to itself, as a request of REST and its view do."""

            def __init__(self, body):
                self.body, self.own = body, self

        kept = []

        async def application(scope, receive, send):
            body, more = b"", True
            while more:
                message = await receive()
                body, more = body + message["body"], message.get("more_body", False)
            kept.append(weakref.ref(Kept(body)))

        async def run():
            served = limit_bodies(application, sender_of=sender_in)
            for _ in range(8):
                parts = iter([CHUNK] * 30)

                async def receive(parts=parts):
                    return {"type": "http.request", "body": next(parts), "more_body": parts.__length_hint__() > 0}

                scope = {"type": "http", "method": "POST", "path": "/api/v1/runs", "headers": [LOGIN]}
                await served(scope, receive, None)

        gc.collect()
        gc.disable()
        try:
            asyncio.run(run())
            alive = sum(each() is not None for each in kept)
        finally:
            gc.enable()

        assert alive * 30 * len(CHUNK) <= COLLECTED_BYTES + 30 * len(CHUNK)

    @pytest.mark.parametrize("kind", ["lifespan", "websocket"])
    def test_leaves_other_connections_alone(self, kind):
        seen = []

        async def application(scope, receive, send):
            seen.append(scope["type"])

        asyncio.run(limit_bodies(application, sender_of=sender_in)({"type": kind}, None, None))

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


class TestAllBodiesOfAnOrganization:
    @pytest.fixture(autouse=True)
    def _few(self, monkeypatch):
        monkeypatch.setattr(asgi_limits, "BODIES_OF_ORG", 3)
        monkeypatch.setattr(asgi_limits, "BODIES", 12)

    def play(self, callers, *, piece=CHUNK, sender_of=sender_in):
        """Have several send two pieces each, and wait with the rest; tell the status that each got, and then end."""

        async def story():
            application = limit_bodies(read_everything, sender_of=sender_of)
            may_end = asyncio.Event()
            statuses = []
            waiting = 0

            async def call(org, piece=piece):
                taken, sent = 0, []

                async def receive():
                    nonlocal taken, waiting
                    taken += 1
                    if taken > 2:
                        waiting += 1
                        await may_end.wait()
                    return {"type": "http.request", "body": piece if taken <= 2 else b"", "more_body": taken <= 2}

                async def send(message):
                    sent.append(message)

                headers = [LOGIN, (b"x-org", org.encode())]
                to = {"type": "http", "method": "POST", "path": "/api/v1/runs", "headers": headers}
                await application(to, receive, send)
                statuses.append((org, sent[0]["status"], dict(sent[0]["headers"]).get(b"retry-after")))

            tasks = [asyncio.ensure_future(call(org)) for org in callers]
            # Each looks its sender up in a thread.
            while waiting + len(statuses) < len(tasks):  # noqa: ASYNC110 - these are two counts
                await asyncio.sleep(0.001)
            refused = list(statuses)
            small = asyncio.ensure_future(call("small", piece=b"x" * 200))
            may_end.set()
            await asyncio.gather(small, *tasks)
            assert ("small", 200, None) in statuses
            if sender_of is sender_in:
                # What they held is free again.
                await call("acme", piece=CHUNK)
                assert statuses[-1][1] == 200
            return refused

        return asyncio.run(story())

    def test_are_limited_together(self):
        assert self.play(["acme", "acme"]) == [("acme", 429, b"1")]

    def test_leave_room_for_others(self):
        assert self.play(["acme", "evil"]) == []

    def test_are_looked_up_before_they_hold_anything(self):
        asked = []

        def unknown(scope):
            asked.append(scope)
            raise NotAuthenticated

        refused = self.play(["nobody"] * 40, piece=b"x" * 17 * 1024, sender_of=unknown)

        assert {status for _, status, _ in refused} == {401}
        assert len(refused) == len(asked) == 40

    def test_that_are_small_are_not_looked_up(self):
        def never(scope):
            raise AssertionError

        assert self.play(["nobody"] * 40, piece=b"x" * 8 * 1024, sender_of=never) == []

    def test_answer_that_the_database_is_away(self):
        def away(scope):
            raise OperationalError

        assert {status for _, status, _ in self.play(["acme"], sender_of=away)} == {503}


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

    def test_ends_a_large_body_of_which_nothing_more_comes(self):
        most = [{"type": "http.request", "body": CHUNK, "more_body": True}] * 32

        assert self.ask(most)[0] == 408

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
