"""
What is taken back counts at most a second after its commit, in each web process.

`GATEWAY_FRESHNESS=100` repeats each case so often, and prints what it measured.
"""

import http.client
import os
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from datetime import timedelta
from typing import Any
from urllib.parse import urlsplit

import pytest
from django.utils import timezone

from billing.limits.entitlement import set_metered
from integrations.keys import platform
from integrations.keys import services as integrations
from integrations.models import Integration, PlatformKey
from rensei.core.secret import Secret, token_digest
from rensei.orgs.access import Access
from rensei.orgs.models import User
from rensei.policies import services as policies
from rensei.tokens.models import ApiToken
from rensei.tokens.services import revoke_token
from tests.gateway import server as servers
from tests.gateway.line import STANDARD_HEADERS, as_bytes, message
from tests.gateway.server import Server
from tests.gateway.wire import Wire

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.timeout(1800)]

SECONDS_MAX = 1.0
WATCHED_SECONDS = 1.5
TIMES = int(os.environ.get("GATEWAY_FRESHNESS", "3"))
# The system deals connections out to both processes, so these reach each of them.
LINES = 8


@pytest.fixture(scope="module")
def two_processes(server_for_all: Server, wire_for_all: Wire) -> Iterator[Server]:
    with servers.start(folder=server_for_all.folder, upstream=wire_for_all.url, workers=2) as running:
        yield running


class Caller:
    """Asks without a pause over its lines, and sees on the wire which key signed."""

    def __init__(self, server: Server, token: str, wire: Wire) -> None:
        self._wire = wire
        self._headers = {**STANDARD_HEADERS, "x-api-key": token}
        # Counting is judged as a message is, and writes nothing.
        self._body = as_bytes({"model": "prof_deep", "messages": message()["messages"]})
        self._lines = [http.client.HTTPConnection(urlsplit(server.url).netloc, timeout=30) for _ in range(LINES)]
        self._asked = 0

    def ask(self) -> str | None:
        """Ask, and give the key that signed, or None for a refusal."""
        line = self._lines[self._asked % LINES]
        self._asked += 1
        line.request("POST", "/v1/messages/count_tokens", self._body, self._headers)
        answer = line.getresponse()
        answer.read()
        if answer.status != 200:
            # The server hangs up on who is refused before the body was read.
            line.close()
            return None
        return self._wire.passed[-1].headers["authorization"]

    def seconds_until_it_counts(self, change: Callable[[], Any]) -> float:
        """Make a change, and tell how long after its commit something was still let in as before."""
        before = {self.ask() for _ in range(2 * LINES)}
        assert None not in before
        change()
        committed = last = time.monotonic()
        while time.monotonic() - committed < WATCHED_SECONDS:
            began = time.monotonic()
            if self.ask() in before:
                last = began
        return last - committed

    def close(self) -> None:
        for line in self._lines:
            line.close()


@pytest.fixture
def measure(
    two_processes: Server, transactional_db: None, wire: Wire, catalog: None, make_token: Any, capsys: Any
) -> Callable[..., None]:
    """Measure a change as often as is asked for. `change` is given the token that calls."""

    def measure_it(name: str, change: Callable[[str], Any], restore: Callable[[], Any] = lambda: None) -> None:
        found = []
        for _ in range(TIMES):
            token = make_token()
            with closing(Caller(two_processes, token, wire)) as caller:
                found.append(caller.seconds_until_it_counts(lambda: change(token)))  # noqa: B023 - called at once
            restore()
        found.sort()
        if TIMES >= 100:
            with capsys.disabled():
                print(f"\n{name}: {TIMES} times, median {found[TIMES // 2]:.2f} s, longest {found[-1]:.2f} s")
        assert found[-1] <= SECONDS_MAX

    return measure_it


class TestAChange:
    def test_of_a_token_that_is_revoked(self, measure: Any, byok: Any, ada_access: Access) -> None:
        def revoke(token: str) -> None:
            revoke_token(ada_access, ApiToken.objects.get(digest=token_digest(token)))

        measure("revoked token", revoke)

    def test_of_a_token_that_expires(
        self, two_processes: Server, transactional_db: None, wire: Wire, make_token: Any, byok: Any
    ) -> None:
        token = make_token()
        expires_at = timezone.now() + timedelta(seconds=3)
        ApiToken.objects.filter(digest=token_digest(token)).update(expires_at=expires_at)
        with closing(Caller(two_processes, token, wire)) as caller:
            admitted = []
            while not admitted or timezone.now() < expires_at + timedelta(seconds=WATCHED_SECONDS):
                began = timezone.now()
                if caller.ask() is not None:
                    admitted.append(began)

        assert len(admitted) > LINES
        assert admitted[-1] <= expires_at

    def test_of_an_entitlement_that_is_disabled(self, measure: Any, metered: Any, acme: Any, grace: User) -> None:
        set_metered(org_ids=[acme.id], enabled=True, actor_user=grace)

        measure(
            "disabled entitlement",
            lambda _: set_metered(org_ids=[acme.id], enabled=False, actor_user=grace),
            lambda: set_metered(org_ids=[acme.id], enabled=True, actor_user=grace),
        )

    def test_of_a_policy(self, measure: Any, byok: Any, ada_access: Access) -> None:
        denied = {"claude": {"byok": {"allowed": False}}}

        measure(
            "changed policy",
            lambda _: policies.set_policy(ada_access, matrix=denied),
            lambda: policies.set_policy(ada_access, matrix={}),
        )

    def test_of_an_own_key_that_is_rotated(self, measure: Any, byok: Any, ada_access: Access, make_key: Any) -> None:
        def rotate(_token: str) -> None:
            integrations.rotate_integration(ada_access, Integration.objects.get(), api_key=Secret(make_key()))

        measure("rotated key", rotate)

    def test_of_a_pools_key_that_is_replaced(self, measure: Any, metered: Any, make_key: Any) -> None:
        def replace(_token: str) -> None:
            platform.replace_key(PlatformKey.objects.get(), actor=None, api_key=Secret(make_key()))

        measure("replaced key of a pool", replace)

    def test_of_an_integration_that_is_removed(self, measure: Any, byok: Any, ada_access: Access, connect: Any) -> None:
        measure(
            "removed integration",
            lambda _: integrations.remove_integration(ada_access, Integration.objects.get()),
            connect,
        )
