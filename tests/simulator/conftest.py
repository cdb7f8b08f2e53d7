"""What the tests of the simulator share. They need no Django: only HTTP, and the SDK that Rensei uses."""

import secrets
from collections.abc import Callable, Iterator
from typing import Any

import anthropic
import httpx2
import pytest

from rensei.simulator import server
from rensei.simulator.server import RunningSimulator


@pytest.fixture(scope="session")
def simulator_process() -> Iterator[RunningSimulator]:
    running = server.start()
    yield running
    running.stop()


@pytest.fixture
def simulator(simulator_process: RunningSimulator) -> RunningSimulator:
    simulator_process.reset()
    return simulator_process


@pytest.fixture
def make_key() -> Callable[..., str]:
    def make(*words: str, kind: str = "api03") -> str:
        return "-".join(["sk", "ant", kind, *words, secrets.token_hex(24)])

    return make


@pytest.fixture(scope="session")
def pooled_http(simulator_process: RunningSimulator) -> Iterator[httpx2.Client]:
    with httpx2.Client(base_url=simulator_process.url, timeout=20) as client:
        yield client


@pytest.fixture
def http(pooled_http: httpx2.Client, simulator: RunningSimulator) -> httpx2.Client:
    return pooled_http


@pytest.fixture(scope="session")
def pooled_client(simulator_process: RunningSimulator) -> Iterator[anthropic.Anthropic]:
    # Making a client costs more than most of the tests, so all of them share the connections of one.
    with anthropic.Anthropic(api_key="none", base_url=simulator_process.url, max_retries=0, timeout=10) as client:
        yield client


@pytest.fixture
def make_client(
    pooled_client: anthropic.Anthropic, simulator: RunningSimulator, make_key: Callable[..., str]
) -> Callable[..., anthropic.Anthropic]:
    def make(*words: str, **options: Any) -> anthropic.Anthropic:
        return pooled_client.with_options(**{"api_key": make_key(*words), **options})

    return make


@pytest.fixture
def client(make_client: Callable[..., anthropic.Anthropic]) -> anthropic.Anthropic:
    return make_client()
