"""The database goes away under a running server, before a call and during one, and comes back."""

import json
import secrets
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests import servers
from tests.gateway.line import Answer, exchange, message
from tests.journeys.stack import Stack, start
from tests.operations.installation import Installation
from tests.waiting import wait_until

pytestmark = [pytest.mark.postgres, pytest.mark.timeout(600)]

MODEL = "claude-opus-5-5"
PATIENCE_SECONDS = 60
METRICS_TOKEN = secrets.token_urlsafe(16)

Ask = Callable[..., Answer]


@pytest.fixture(scope="module")
def database(migrated_postgres: Path) -> Iterator[servers.Postgres]:
    with servers.run_postgres(copy_of=migrated_postgres) as running:
        yield running


@pytest.fixture(scope="module")
def stack(
    database: servers.Postgres, simulator_process: Any, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Stack, str]]:
    """A server and a worker on that database, and a token of the organization in it."""
    folder = tmp_path_factory.mktemp("away")
    installed = Installation(folder=folder, database_url=database.url, provider_url=simulator_process.url)
    assert installed.manage("load_catalog").returncode == 0
    words = ("--name", "Acme", "--slug", "acme", "--owner", "ada@acme.test", "--password-stdin", "--json")
    made = installed.manage("create_org", *words, given=secrets.token_urlsafe(20))
    assert made.returncode == 0, made.stderr
    variables = {"DATABASE_URL": database.url, "RENSEI_METRICS_TOKEN": METRICS_TOKEN}
    with start(folder=folder, simulator_url=simulator_process.url, variables=variables) as running:
        yield running, json.loads(made.stdout)["token"]


@pytest.fixture
def ask(stack: tuple[Stack, str]) -> Ask:
    """Ask the server for something, with the organization's token."""
    running, token = stack

    def send(path: str, body: Any = None, **headers: str) -> Answer:
        method = "GET" if body is None else "POST"
        return exchange(
            running, body, path=path, method=method, headers={"authorization": f"Bearer {token}", **headers}
        )

    return send


@pytest.fixture
def profile(ask: Ask, simulator: Any, make_key: Callable[..., str]) -> str:
    """A profile of this test alone, whose runs a key of the organization signs."""
    connected = {"provider": "claude", "name": secrets.token_hex(8), "apiKey": make_key()}
    assert ask("/api/v1/integrations", connected).status == 201
    described = {"name": secrets.token_hex(8), "provider": "claude", "modelId": MODEL, "authModes": ["byok"]}
    answer = ask("/api/v1/profiles", described)
    assert answer.status == 201, answer.body
    made: str = answer.json()["id"]
    return made


@contextmanager
def away(database: servers.Postgres) -> Iterator[None]:
    database.crash()
    try:
        yield
    finally:
        database.start()


def end_of(ask: Ask, run_id: str) -> dict[str, Any]:
    """Wait for the end of a run."""
    path = f"/api/v1/runs/{run_id}"
    # While the database recovers, the answer is a refusal, which has no state.
    wait_until(lambda: ask(path).json().get("state") in {"SUCCEEDED", "FAILED"}, seconds=PATIENCE_SECONDS, what=run_id)
    found: dict[str, Any] = ask(path).json()
    return found


class TestADatabaseThatIsAway:
    def test_refuses_a_dispatch_without_a_call_and_takes_it_when_it_is_back(self, ask, profile, database, simulator):
        before = len(simulator.requests())
        wanted, key = {"profileId": profile, "input": "Hello."}, {"Idempotency-Key": secrets.token_hex(8)}
        with away(database):
            refused, made_elsewhere = ask("/api/v1/runs", wanted, **key), ask("/v1/messages", message(model=profile))

        assert (refused.status, refused.json()["code"], refused.headers["retry-after"]) == (
            503,
            "DATABASE_UNAVAILABLE",
            "5",
        )
        assert (made_elsewhere.status, made_elsewhere.code) == (503, "DATABASE_UNAVAILABLE")
        assert "x-should-retry" not in made_elsewhere.headers
        assert len(simulator.requests()) == before

        again = ask("/api/v1/runs", wanted, **key)
        assert again.status == 202, again.body
        assert end_of(ask, again.json()["id"])["state"] == "SUCCEEDED"
        assert ask("/v1/messages", message(model=profile)).status == 200
        assert len(simulator.requests()) == before + 2

    def test_is_said_by_pages_and_by_readiness(self, ask, database):
        with away(database):
            page = ask("/accounts/login/", cookie="sessionid=anything")
            alive, ready = ask("/healthz"), ask("/readyz", authorization=f"Bearer {METRICS_TOKEN}")

        assert (page.status, page.headers["retry-after"]) == (503, "5")
        assert b"The database does not answer" in page.body
        assert alive.status == 200
        assert (ready.status, ready.json()["missing"]) == (503, ["The database does not answer."])

    def test_loses_no_answer_of_a_call_under_way(self, ask, profile, database, simulator):
        before = len(simulator.requests())
        dispatched = ask("/api/v1/runs", {"profileId": profile, "input": "[[slow 0.2]] [[reply 20 words]]"})
        wait_until(lambda: len(simulator.requests()) > before, what="the call")
        with away(database):
            time.sleep(5)

        ended = end_of(ask, dispatched.json()["id"])
        assert (ended["state"], ended["attempts"], ended["cost"]["estimated"]) == ("SUCCEEDED", 1, False)
        assert len(simulator.requests()) == before + 1
