"""
The broker and the database are killed, and slow, while clients dispatch, call and read: nothing is lost or paid twice.

Redis is the broker and nothing else: rate limits and locks are counted in the database.
"""

import json
import re
import secrets
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psycopg
import pytest

from rensei.core.logs import Outages
from tests import servers
from tests.attacks import sized
from tests.gateway.line import Answer, exchange
from tests.journeys.stack import Program, Stack, start
from tests.operations.installation import Installation
from tests.operations.load import NO_ANSWER, Load
from tests.proxy import Proxy, standing_before
from tests.waiting import wait_until

pytestmark = [pytest.mark.postgres, pytest.mark.redis, pytest.mark.attack, pytest.mark.timeout(900)]

METRICS_TOKEN = secrets.token_urlsafe(16)
SECONDS = sized(3.0, 60.0)
THREADS = sized(6, 24)
# By how much each answer of a slow server is held back.
DELAY = sized(1.5, 5.0)
OUTAGES = {*Outages.EVENTS, "Service", "broker_is_away"}
EVENT = re.compile(r"\[(warning|error|critical) *\] (\S+)")


@dataclass(kw_only=True)
class World:
    """What runs, what stands before it, and the organization that sends."""

    stack: Stack
    celery: Program
    database: servers.Postgres
    redis: servers.Redis
    before_database: Proxy
    before_redis: Proxy
    installed: Installation
    simulator: Any
    token: str = field(repr=False)
    profile: str

    def ask(self, path: str, *, token: str = METRICS_TOKEN) -> Answer:
        return exchange(self.stack, None, path=path, method="GET", headers={"authorization": f"Bearer {token}"})

    def rows(self, statement: str) -> list[tuple[Any, ...]]:
        with psycopg.connect(self.database.url) as connection:
            return connection.execute(statement).fetchall()

    def load(self) -> Load:
        return Load(url=self.stack.url, token=self.token, profile=self.profile, threads=THREADS)


@pytest.fixture(scope="module")
def world(migrated_postgres: Path, simulator_process: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    folder = tmp_path_factory.mktemp("load")
    # What other tests have sent is in no ledger of this installation.
    simulator_process.reset()
    with ExitStack() as running:
        database = running.enter_context(servers.run_postgres(copy_of=migrated_postgres))
        redis = running.enter_context(servers.run_redis())
        before_database = running.enter_context(standing_before(int(database.url.rsplit(":", 1)[1].split("/")[0])))
        before_redis = running.enter_context(standing_before(redis.port))
        installed = Installation(folder=folder, database_url=database.url, provider_url=simulator_process.url)
        assert installed.manage("load_catalog").returncode == 0
        words = ("--name", "Acme", "--slug", "acme", "--owner", "ada@acme.test", "--password-stdin", "--json")
        made = installed.manage("create_org", *words, given=secrets.token_urlsafe(20))
        assert made.returncode == 0, made.stderr
        token = json.loads(made.stdout)["token"]
        url = f"postgres://postgres@{servers.LOOPBACK}:{before_database.port}/rensei"
        variables = {
            "DATABASE_URL": url,
            "CELERY_BROKER_URL": f"redis://{servers.LOOPBACK}:{before_redis.port}/0",
            "RENSEI_METRICS_TOKEN": METRICS_TOKEN,
            "RENSEI_RATE_API": "1000000/min",
            "RENSEI_RATE_ORG": "1000000/min",
            "RENSEI_WORKER_THREADS": "4",
        }
        stack = running.enter_context(start(folder=folder, simulator_url=simulator_process.url, variables=variables))
        command = [sys.executable, "-m", "celery", "-A", "rensei", "worker", "--pool", "threads", "--concurrency", "4"]
        celery = Program(command=command, environment=stack.web.environment, log=folder / "celery.log")
        running.callback(celery.stop)
        celery.start()
        ours = {"authorization": f"Bearer {token}"}

        def make(path: str, body: Any) -> Any:
            answer = exchange(stack, body, path=path, method="POST", headers=ours)
            assert answer.status == 201, answer.body
            return answer.json()

        key = "-".join(["sk-ant-api03", secrets.token_hex(24)])
        make("/api/v1/integrations", {"provider": "claude", "name": "Main", "apiKey": key})
        described = {"name": "deep", "provider": "claude", "modelId": "claude-opus-5-5", "authModes": ["byok"]}
        yield World(
            stack=stack,
            celery=celery,
            database=database,
            redis=redis,
            before_database=before_database,
            before_redis=before_redis,
            installed=installed,
            simulator=simulator_process,
            token=token,
            profile=make("/api/v1/profiles", described)["id"],
        )


def go_through(world: World, begin: Callable[[], None], end: Callable[[], None], look: Callable[[], None]) -> Load:
    """Have the load meet a fault, and see that all of it is carried out and paid once when the fault is over."""
    logs = {log: log.stat().st_size for log in world.stack.folder.glob("*.log")}
    began = time.monotonic()
    with world.load() as load:
        wait_until(lambda: load.is_well("before"), seconds=90, what="good answers")
        load.phase = "during"
        begin()
        try:
            until = time.monotonic() + SECONDS
            look()
            while time.monotonic() < until:
                time.sleep(0.1)
        finally:
            end()
        load.phase = "healing"
        wait_until(lambda: load.is_well("healing"), seconds=180, what="good answers again")
    load.pay_back()
    minutes = int((time.monotonic() - began) // 60) + 1
    said = {log.stem: warnings(log.read_text()[size:]) for log, size in logs.items()}
    print(f"\n{load.figures()}\nlog lines in {minutes} min: {said}")
    assert_all_is_carried_out(world, load)
    too_many = {event for lines in said.values() for event, count in lines.items() if count > minutes}
    assert not too_many & OUTAGES, said
    return load


def warnings(text: str) -> dict[str, int]:
    """Count the warnings and errors of a log by their event."""
    return dict(Counter(event for _, event in EVENT.findall(text)))


def assert_all_is_carried_out(world: World, load: Load) -> None:
    wait_until(
        lambda: not world.rows("SELECT 1 FROM dispatch_run WHERE state IN ('QUEUED', 'RUNNING') LIMIT 1"),
        seconds=240,
        what="the end of every run",
    )
    states = dict(world.rows("SELECT id, state FROM dispatch_run WHERE via = 'queue'"))
    assert set(load.run_ids.values()) <= states.keys(), "a run that was answered for is gone"
    ends = Counter(states[run_id] for run_id in load.run_ids.values())
    print(f"the ends of its runs: {dict(ends)}")
    twice = "SELECT attempt_id FROM billing_costevent WHERE kind = 'charge' GROUP BY attempt_id HAVING COUNT(*) > 1"
    assert world.rows(twice) == []
    sent = Counter(call["attempt_id"] for call in world.simulator.requests() if call["path"] == "/v1/messages")
    assert [attempt for attempt, count in sent.items() if count > 1] == []
    charged = {attempt for (attempt,) in world.rows("SELECT attempt_id FROM billing_costevent WHERE kind = 'charge'")}
    assert sent.keys() <= charged
    audited = world.installed.manage("audit_ledger")
    assert audited.returncode == 0, audited.stdout + audited.stderr
    ended_otherwise = "SELECT error FROM dispatch_run WHERE via = 'queue' AND state = 'FAILED'"
    assert {error["code"] for (error,) in world.rows(ended_otherwise)} <= {"RUN_INTERRUPTED"}


def degraded(world: World) -> Any:
    return world.ask("/readyz").json().get("degraded")


class TestTheBroker:
    def test_is_killed(self, world: World) -> None:
        def look() -> None:
            wait_until(lambda: degraded(world) and "broker" in degraded(world)[0], what="the word of the broker")
            assert "rensei_broker_ok 0.0" in world.ask("/metrics").body.decode()

        load = go_through(world, world.redis.kill, world.redis.start, look)

        assert load.statuses() == {200, 202}

    def test_is_slow(self, world: World) -> None:
        def slow(seconds: float) -> None:
            world.before_redis.delay = seconds

        def look() -> None:
            wait_until(lambda: degraded(world), what="the word of the broker")

        load = go_through(world, lambda: slow(DELAY), lambda: slow(0), look)

        assert load.statuses() == {200, 202}


def is_slow(world: World) -> bool:
    answer = world.ask("/readyz").json()
    return bool(answer["ready"] and answer["degraded"] and answer["degraded"][0].startswith("The database takes "))


class TestTheDatabase:
    def test_is_killed(self, world: World) -> None:
        def look() -> None:
            wait_until(lambda: world.ask("/readyz").status == 503, what="the word of the database")
            assert "rensei_database_ok 0.0" in world.ask("/metrics").body.decode()

        load = go_through(world, world.database.crash, world.database.start, look)

        assert load.statuses() <= {200, 202, 503}

    def test_is_slow(self, world: World) -> None:
        def slow(seconds: float) -> None:
            world.before_database.delay = seconds

        def look() -> None:
            # One answer may find a connection that is not there in time.
            wait_until(lambda: is_slow(world), what="the word of the database")
            wait_until(lambda: "rensei_database_ok 1.0" in world.ask("/metrics").body.decode(), what="its measure")

        load = go_through(world, lambda: slow(DELAY), lambda: slow(0), look)

        assert load.statuses() <= {200, 202, 503}
        assert NO_ANSWER not in load.statuses()
