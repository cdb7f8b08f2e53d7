"""Bodies that do not end."""

import asyncio
import json
import os
import subprocess
import sys

import pytest

from rensei.core.asgi_limits import BODY_LIMIT, limit_bodies

CHUNK = b"x" * 1024 * 1024


async def read_everything(scope, receive, send):
    """An application that reads its whole body before it answers, as Django does."""
    more = True
    while more:
        message = await receive()
        more = message.get("more_body", False)
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"read"})


def ask(*, chunks, headers=()):
    """Send a body in chunks of a megabyte, and tell what came back and how many were taken."""
    sent, taken = [], 0

    async def receive():
        nonlocal taken
        taken += 1
        return {"type": "http.request", "body": CHUNK, "more_body": taken < chunks}

    async def send(message):
        sent.append(message)

    asyncio.run(limit_bodies(read_everything)({"type": "http", "headers": list(headers)}, receive, send))
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
        status, _, _, taken = ask(chunks=10_000, headers=[(b"Content-Length", str(BODY_LIMIT + 1).encode())])

        assert (status, taken) == (413, 0)

    @pytest.mark.parametrize("kind", ["lifespan", "websocket"])
    def test_leaves_other_connections_alone(self, kind):
        seen = []

        async def application(scope, receive, send):
            seen.append(scope["type"])

        asyncio.run(limit_bodies(application)({"type": kind}, None, None))

        assert seen == [kind]


class TestApplication:
    def test_starts_in_a_fresh_process(self, tmp_path):
        """Nothing has read the settings there yet, other than here."""
        environment = {"PATH": os.environ["PATH"], "SECRET_KEY": "x", "RENSEI_DATA_DIR": str(tmp_path)}

        started = subprocess.run(
            [sys.executable, "-c", "import rensei.asgi; print(callable(rensei.asgi.application))"],
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )

        assert started.stdout.strip() == "True", started.stderr
