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


@pytest.fixture
def key(make_key: Callable[..., str]) -> str:
    return make_key()


@pytest.fixture
def http(simulator: RunningSimulator) -> Any:
    with httpx2.Client(base_url=simulator.url, timeout=20) as client:
        yield client


@pytest.fixture
def make_client(simulator: RunningSimulator, make_key: Callable[..., str]) -> Any:
    clients = []

    def make(*words: str, **options: Any) -> anthropic.Anthropic:
        key = options.pop("api_key", None) or make_key(*words)
        options = {"max_retries": 0, "timeout": 10, **options}
        clients.append(anthropic.Anthropic(api_key=key, base_url=simulator.url, **options))
        return clients[-1]

    yield make
    for client in clients:
        client.close()


@pytest.fixture
def client(make_client: Callable[..., anthropic.Anthropic]) -> anthropic.Anthropic:
    return make_client()
