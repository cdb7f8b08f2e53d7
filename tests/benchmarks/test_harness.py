"""The benchmark itself: what it sends and checks is real, and a ledger that does not agree makes its figures void."""

import asyncio
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.benchmarks import answers, contenders, loads
from tests.benchmarks.client import Connection, Tally
from tests.benchmarks.contenders import Contender

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def upstream(tmp_path_factory):
    with contenders.start_upstream(tmp_path_factory.mktemp("upstream"), seed=1, slow_event_seconds=0.01) as running:
        yield running


@pytest.fixture
def run_bench(migrated_postgres: Path, collected_files: Path) -> Callable[..., "subprocess.CompletedProcess[str]"]:
    """Run a short benchmark, on a database that is migrated and with static files that are collected."""
    command = [sys.executable, "-m", "tests.benchmarks", "--quick", "--contenders", "--without-worker"]
    command += ["--copy-of", str(migrated_postgres)]
    environment = {**os.environ, "RENSEI_STATIC_DIR": str(collected_files)}

    def run(*options: str) -> "subprocess.CompletedProcess[str]":
        return subprocess.run(
            [*command, *options], cwd=ROOT, env=environment, capture_output=True, text=True, check=False
        )

    return run


class Silent(asyncio.Transport):
    def write(self, data: Any) -> None:
        pass

    def close(self) -> None:
        pass


async def receive(stream: bytes) -> Tally:
    """Let a connection receive one stream, and tell what it saw."""
    tally = Tally(until=0)
    connection = Connection(b"", tally, streams=True, repeats=True)
    connection.connection_made(Silent())
    connection.data_received(stream)
    return tally


class TestTheAnswers:
    def test_are_the_same_for_the_same_seed(self):
        assert answers.make_variants(7) == answers.make_variants(7)
        assert answers.make_variants(7) != answers.make_variants(8)

    def test_stream_as_many_events_as_a_benchmark_counts(self):
        for variant in answers.make_variants(1):
            assert sum(piece.count(b"event: ") for piece in variant.pieces) == answers.EVENTS_OF_A_STREAM
            assert len(variant.pieces) == answers.EVENTS_OF_A_STREAM


class TestALoad:
    def test_counts_plain_answers(self, upstream):
        load = loads.by_own_client(upstream, body=answers.make_request(1), connections=2, seconds=0.3)

        assert load.answered > 0
        assert load.failed == {}
        assert 0 < load.p50_ms <= load.p99_ms

    def test_counts_streams_with_all_of_their_events(self, upstream):
        load = loads.streams(upstream, body=answers.make_request(1, stream=True), connections=2, seconds=0.3)

        assert load.answered > 0
        assert load.failed == {}
        assert 0 < load.first_p50_ms <= load.p50_ms

    def test_counts_refusals_as_failures(self, upstream):
        elsewhere = Contender(name="elsewhere", url=f"{upstream.url}/nowhere", pid=upstream.pid)

        load = loads.by_own_client(elsewhere, body=b"{}", connections=1, seconds=0.1)

        assert load.answered == 0
        assert load.failed["status 404"] > 0

    def test_holds_slow_streams_open(self, upstream):
        body = answers.make_request(1, stream=True, slow=True)

        opened = loads.open_streams(upstream, body=body, count=3)

        assert (opened.opened, opened.ended_well, opened.failed) == (3, 3, {})

    def test_finds_a_stream_that_lacks_an_event(self):
        pieces = answers.make_variants(1)[0].pieces

        tally = asyncio.run(receive(b"".join([*pieces[:10], *pieces[11:]])))

        assert tally.whole == []
        assert tally.failed == {f"{answers.EVENTS_OF_A_STREAM - 1} events": 1}


@pytest.mark.postgres
@pytest.mark.timeout(300)
class TestABenchmark:
    def test_reports_what_the_ledger_agrees_with(self, run_bench):
        result = run_bench("--parts", "throughput", "streams")

        assert result.returncode == 0, result.stdout + result.stderr
        assert "requests/s" in result.stdout

    def test_reports_nothing_where_a_call_is_in_no_ledger(self, run_bench):
        result = run_bench("--parts", "throughput", "--plant")

        assert result.returncode == 1
        assert "a call without an attempt: att_that_nobody_made" in result.stderr
        assert "Aims" not in result.stdout
