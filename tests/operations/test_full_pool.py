"""
Requests of one organization hold every connection of the pool that they can get, which leaves some to others. Those of
two hold all of them. Others still use the gateway.
"""

import http.client
import json
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import psycopg
import pytest

from integrations.keys import services as integrations
from profiles import services as profiles
from rensei.core.database_pool import WAIT_SECONDS
from rensei.core.secret import Secret
from rensei.gateway.app import LOADERS
from rensei.orgs.access import Access
from rensei.orgs.models import User
from rensei.tokens.services import create_token
from tests.database import database_url, lock_waits
from tests.gateway.line import MODEL, message
from tests.journeys import stack as stacks
from tests.journeys.stack import Stack
from tests.waiting import wait_until

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.postgres]

# The gateway's loads and writes, and the poller of event streams, keep theirs.
POOL, REQUESTS, OF_REST = 12, 30, 2
# A caller and a route are loaded again after less than a second.
ROUNDS, SECONDS_APART = 4, 1.0


@pytest.fixture
def stack(transactional_db: None, catalog: None, tmp_path: Path, simulator: Any, settings: Any) -> Iterator[Stack]:
    folder = tmp_path / "stack"
    folder.mkdir()
    variables = {"DB_POOL_SIZE": str(POOL)}
    with stacks.start(folder=folder, simulator_url=simulator.url, variables=variables, interface="asgi") as running:
        settings.RENSEI_VAULT_KEYRING = running.keyring
        yield running


def ask(stack: Stack, method: str, path: str, token: str, body: bytes = b"") -> int:
    line = http.client.HTTPConnection(urlsplit(stack.url).netloc, timeout=60)
    headers = {"authorization": f"Bearer {token}", "content-type": "application/json"}
    try:
        line.request(method, path, body, headers)
        answer = line.getresponse()
        answer.read()
        return answer.status
    finally:
        line.close()


class TestAFullPool:
    def test_stops_neither_another_organization_nor_the_gateway(
        self, stack: Stack, ada_access: Access, make_key: Any, eve: User, access_of: Callable[..., Access]
    ) -> None:
        integrations.add_integration(ada_access, provider="claude", api_key=Secret(make_key()), name="Main")
        profiles.create_profile(
            ada_access, name="deep", provider="claude", model_id=MODEL, auth_modes=["byok"], is_default=True
        )
        _, secret = create_token(ada_access, name="program")
        token = secret.reveal()
        # More than the gateway has loaders, and none was loaded before.
        others = [create_token(ada_access, name=f"program {number}")[1].reveal() for number in range(2 * LOADERS)]
        body = json.dumps(message()).encode()
        listed: list[int] = []
        second = create_token(access_of(eve, "evil"), name="program")[1].reveal()
        lists = [
            threading.Thread(target=lambda of=of: listed.append(ask(stack, "GET", "/api/v1/workflows", of)))
            for of in [token] * REQUESTS + [second] * REQUESTS
        ]

        wait_until(lambda: ask(stack, "GET", "/readyz", token) == 200, what="the worker")
        with psycopg.connect(database_url()) as locked:
            # The gateway reads no workflows. Requests for them wait, each with a connection.
            locked.execute("LOCK TABLE workflows_workflow IN ACCESS EXCLUSIVE MODE")
            for each in lists[:REQUESTS]:
                each.start()
            wait_until(lambda: lock_waits() == OF_REST, what="the use of the share of an organization")
            began = time.monotonic()
            beside = [ask(stack, "GET", path, second) for path in ("/api/v1/me", "/api/v1/runs", "/readyz")]
            assert beside == [200, 200, 200]
            assert time.monotonic() - began < WAIT_SECONDS
            assert lock_waits() == OF_REST
            for each in lists[REQUESTS:]:
                each.start()
            wait_until(lambda: lock_waits() > OF_REST, what="the use of all connections")
            wait_until(lambda: ask(stack, "GET", "/readyz", token) == 503, what="a server that is not ready")
            with ThreadPoolExecutor(len(others)) as callers:
                called = list(callers.map(lambda other: ask(stack, "POST", "/v1/messages", other, body), others))
            for _ in range(ROUNDS):
                called.append(ask(stack, "POST", "/v1/messages", token, body))
                time.sleep(SECONDS_APART)

            assert called == [200] * (len(others) + ROUNDS)
            assert lock_waits()
        for each in lists:
            each.join()
