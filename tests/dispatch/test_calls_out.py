"""No call out while a connection to the database is held: every call site, and a pool that stays free meanwhile."""

import ast
import sys
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from django.db import connection, connections, transaction
from django.test import Client

from integrations.keys import health, platform, tests_at_once
from integrations.keys import services as integrations
from integrations.models import Integration
from integrations.outbound import http as outbound
from integrations.providers.base import ADAPTERS, ProviderFailure
from rensei.accounts import invitations
from rensei.accounts.single_sign_on import SocialAccountAdapter
from rensei.core.clock import database_now
from rensei.core.database_pool import waiting_for_connections
from rensei.core.errors import RateLimited, RenseiError
from rensei.core.later import later
from rensei.core.secret import Secret
from rensei.core.transactions import leave_database
from rensei.dispatch.admission import admit
from rensei.dispatch.admission.requests import DispatchRequest, messages_from
from rensei.dispatch.execution.execute import execute
from rensei.dispatch.execution.lease_renewal import LeaseRenewal, LiveRun
from rensei.dispatch.models import Run
from rensei.dispatch.queue import claims, wake_up
from rensei.orgs import entering
from rensei.orgs.access import Access
from rensei.orgs.models import Membership, Org, User
from tests import calls_out, servers
from tests.broker import ringing_through
from tests.waiting import wait_until

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.timeout(300)]

ROOT = Path(__file__).parents[2]
SERVER = ("billing", "catalog", "integrations", "profiles", "rensei")
NOT_THE_SERVER = ("rensei/simulator/", "rensei/cli/", "rensei/launcher.py")
CALLS_OUT = {
    "aiohttp",
    "anthropic",
    "celery",
    "django.core.mail",
    "http.client",
    "httpcore2",
    "httpx2",
    "requests",
    "smtplib",
    "urllib.request",
}
CALL_SITES = {
    # Calls out by themselves, below or where it says.
    "billing/integrity/witnesses.py",  # tests/billing/test_witnesses.py
    "integrations/outbound/http.py",
    "rensei/dispatch/pools/cloud.py",  # on the event loop of the sandboxes, as the relay
    "rensei/dispatch/pools/e2b.py",  # as above
    "integrations/vault/key_services/rest.py",  # tests/integrations/vault/key_services, behind the circuit
    "integrations/providers/anthropic/relay.py",
    "integrations/providers/anthropic/upstreams.py",  # on the event loop, whose thread can hold no connection
    "integrations/providers/anthropic/resolving.py",  # through outbound.py, in threads that read no database
    "rensei/core/mails.py",
    "rensei/dispatch/queue/broker.py",
    "rensei/dispatch/pools/relay.py",  # on the event loop of the sandboxes, whose thread can hold no connection
    "rensei/dispatch/pools/runner.py",  # inside of a sandbox, where there is no database
    "rensei/demo_agent.py",  # in a sandbox as well
    "rensei/accounts/single_sign_on.py",
    # Goes through outbound.py.
    "integrations/capacity/account.py",  # tests/integrations/test_capacity.py
    "integrations/providers/anthropic/connection.py",
    "integrations/providers/anthropic/federation.py",  # tests/integrations/test_federation.py
    # Names types, exceptions or constants.
    "integrations/providers/anthropic/errors.py",
    "integrations/providers/anthropic/stream.py",
    "rensei/dispatch/pools/bubblewrap.py",
    "rensei/gateway/call.py",
    # Define what Celery runs.
    "rensei/celery.py",
    "rensei/dispatch/execution/tasks.py",
}
KNOWN = {"Authorization": "Bearer right"}


@pytest.fixture
def byok(simulator: Any, connected: Integration, make_profile: Callable[..., Any]) -> Integration:
    make_profile()
    return connected


@pytest.fixture
def closed_mail_server(settings: Any) -> None:
    """The connection is refused, after it was tried."""
    settings.EMAIL_BACKEND = "django.core.mail.backends.smtp.EmailBackend"
    settings.EMAIL_HOST, settings.EMAIL_PORT = "127.0.0.1", servers.free_port()


@pytest.fixture(autouse=True)
def metrics_token(settings: Any) -> None:
    settings.RENSEI_METRICS_TOKEN = "right"


def refused() -> ProviderFailure:
    return ProviderFailure(
        code="PROVIDER_AUTH_FAILED", message="No.", fix="", status=401, retryable=False, maybe_billed=False
    )


def carry(access: Access, *, content: Any = None, text: str = "Hi.") -> Run:
    messages = messages_from(text=None if content else text, messages=content)
    run = admit.dispatch(access, DispatchRequest(profile_id="prof_deep", messages=messages))
    renewal = LeaseRenewal(owner="a-worker")
    try:
        claim = claims.claim_next(owner=renewal.owner)
        assert claim is not None
        execute(claim, renewal)
    finally:
        renewal.close()
    return Run.objects.get(id=run.id)


class TestEveryCallSite:
    def test_is_known(self) -> None:
        """A module that learns to call out is added to the list, and to the tests that show what it holds."""
        found = set()
        for package in SERVER:
            for path in (ROOT / package).rglob("*.py"):
                name = str(path.relative_to(ROOT))
                if not name.startswith(NOT_THE_SERVER) and _imports(path):
                    found.add(name)

        assert found == CALL_SITES

    def test_of_a_test_of_a_key(self, byok: Integration, ada_access: Access, make_key: Any, grace: User) -> None:
        assert integrations.check_integration(ada_access, byok).ok
        assert integrations.check_connection(ada_access, provider="claude", api_key=Secret(make_key())).ok
        integrations.rotate_integration(ada_access, byok, api_key=Secret(make_key()))
        key = platform.add_platform_key(
            actor=grace, provider="claude", pool="metered", name="Pool", api_key=Secret(make_key())
        )
        assert platform.check_platform_key(key, actor=grace).ok

        assert len([place for place in calls_out.made if "socket.connect " in place]) == 4

    def test_of_the_name_of_a_base_url(self, byok: Integration, ada_access: Access, make_key: Any) -> None:
        with pytest.raises(RenseiError):
            integrations.update_integration(
                ada_access, byok, base_url="https://llm.invalid", api_key=Secret(make_key())
            )

        assert any("getaddrinfo" in place for place in calls_out.made)

    def test_of_a_run(self, byok: Integration, ada_access: Access) -> None:
        run = carry(ada_access)

        assert run.state == Run.State.SUCCEEDED
        assert calls_out.made

    def test_of_the_images_of_a_run(self, byok: Integration, ada_access: Access) -> None:
        image = {"type": "image", "source": {"type": "url", "url": "https://pictures.invalid/a.png"}}

        run = carry(ada_access, content=[{"role": "user", "content": [image]}])

        assert run.error is not None
        assert run.error["code"] == "INVALID_IMAGE"
        assert any("getaddrinfo" in place for place in calls_out.made)

    def test_of_an_exact_count(self, byok: Integration) -> None:
        adapter = ADAPTERS["claude"]
        params = {"model": "claude-opus-5-5", "messages": [{"role": "user", "content": "Hi."}]}
        Org.objects.count()

        adapter.count_input_tokens(
            params, credential=integrations.open_integration(byok), context_window_tokens=200_000
        )

        assert not calls_out.holds_a_connection()
        assert calls_out.made

    def test_of_a_mail(
        self, closed_mail_server: None, byok: Integration, ada_access: Access, ada: User, grace: User, make_key: Any
    ) -> None:
        pool_key = platform.add_platform_key(
            actor=grace, provider="claude", pool="metered", name="Pool", api_key=Secret(make_key())
        )
        now = database_now()

        health.note_refused(integrations.open_integration(byok), refused(), now=now)
        failed = health.FailedCall(
            credential=platform.open_platform_key(pool_key),
            org_id=ada_access.org.id,
            rate_limit="claude-opus-5-5",
            succeeded_at=lambda since: None,
        )
        health.note_failure(failed, refused(), now=now)
        invitations.invite(ada_access, email="new@acme.test", role="member")
        entering.tell_owners(Membership.objects.get(user=ada), operator=grace, reason="Asked for.")
        assert len([place for place in calls_out.made if "socket.connect from rensei/core/mails.py" in place]) == 4
        Client().post("/accounts/password/reset/", {"email": "ada@acme.test"})
        later.wait()

        assert "socket.connect from rensei/accounts/adapter.py" in calls_out.made[-1]

    def test_of_single_sign_on(self) -> None:
        Org.objects.count()

        with SocialAccountAdapter().get_requests_session():
            assert not calls_out.holds_a_connection()

    def test_of_a_message_to_the_broker(self, settings: Any) -> None:
        Org.objects.count()

        with ringing_through(f"redis://127.0.0.1:{servers.free_port()}/0", settings):
            wake_up.notify_workers("run_x")
            wait_until(wake_up.is_broker_away)

        assert calls_out.holds_a_connection()
        assert "socket.connect from rensei/dispatch/queue/broker.py" in calls_out.made[-1]


class TestACallOutInATransaction:
    def test_is_a_bug_that_raises(self) -> None:
        with pytest.raises(AssertionError, match="in a transaction"), transaction.atomic():
            outbound.resolve("127.0.0.1", 80)

    def test_is_seen_by_the_watch(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(outbound, "leave_database", lambda: None)
        Org.objects.count()

        outbound.resolve("127.0.0.1", 80)

        assert calls_out.with_a_connection.pop()
        calls_out.with_a_connection.clear()


class TestAStream:
    def test_is_waited_for_without_a_connection(
        self, byok: Integration, ada_access: Access, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The run's thread writes what comes and waits again; another thread reads the provider's answer."""
        stop = vars(LiveRun)["stop"].fget
        held: list[bool] = []

        def look(live: LiveRun) -> Any:
            if sys._getframe(1).f_code.co_name == "follow":
                held.append(calls_out.holds_a_connection())
            return stop(live)

        monkeypatch.setattr(LiveRun, "stop", property(look))

        run = carry(ada_access, text="[[reply 60 words]] [[slow 0.02]]")

        assert run.chunks.filter(kind="delta").count() > 1
        assert len(held) > 10
        assert not any(held)


class Provider:
    """A provider that answers a call when it is told to, and not before."""

    def __init__(self) -> None:
        self.answer = threading.Event()
        self.asked = 0
        provider = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                provider.asked += 1
                provider.answer.wait(120)
                self.send_response(200)
                self.send_header("content-type", "application/json")
                self.end_headers()
                self.wfile.write(b'{"data": [], "has_more": false}')

            def log_message(self, *args: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"


@pytest.fixture
def slow_provider(settings: Any) -> Iterator[Provider]:
    made = Provider()
    settings.RENSEI_ANTHROPIC_BASE_URL = made.url
    thread = threading.Thread(target=made.server.serve_forever)
    thread.start()
    yield made
    made.answer.set()
    made.server.shutdown()
    thread.join()
    made.server.server_close()


@pytest.fixture
def pool(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[], dict[str, int]]]:
    """A pool of two connections for the threads of a test, as the server's processes have one of twenty."""
    connection.close()
    monkeypatch.setitem(
        connections.settings["default"]["OPTIONS"], "pool", {"min_size": 1, "max_size": 2, "timeout": 60}
    )
    database: Any = connection
    yield lambda: dict(database.pool.get_stats())
    database.close()
    database.close_pool()


class TestTestsUnderWay:
    @pytest.fixture
    def testing(self, slow_provider: Provider, make_user: Any, make_key: Any, access_of: Any, catalog: None) -> Any:
        """Have organizations test keys, each as often as it may, until the provider is asked by all."""
        from rensei.orgs import services as orgs

        accesses = []
        for number in range(3):
            owner = make_user(f"owner-{number}@test.test")
            orgs.create_org(name=f"Org {number}", slug=f"org-{number}", owner=owner)
            accesses.append(access_of(owner, f"org-{number}"))
        verdicts: list[Any] = []

        def check(access: Access) -> None:
            verdicts.append(integrations.check_connection(access, provider="claude", api_key=Secret(make_key())))
            connections.close_all()

        threads = [threading.Thread(target=check, args=(access,)) for access in accesses * tests_at_once.AT_ONCE]
        for thread in threads:
            thread.start()
        wait_until(lambda: slow_provider.asked == len(threads), seconds=60)
        yield SimpleNamespace(accesses=accesses, check=check, verdicts=verdicts)
        slow_provider.answer.set()
        for thread in threads:
            thread.join()
        assert len(verdicts) == len(threads)

    def test_are_so_many_for_each_organization(self, testing: Any, slow_provider: Provider) -> None:
        with pytest.raises(RateLimited):
            testing.check(testing.accesses[0])

        assert slow_provider.asked == 3 * tests_at_once.AT_ONCE

    @pytest.mark.postgres
    def test_take_no_connection_from_the_pool(self, pool: Any, testing: Any) -> None:
        """Twelve tests wait for the provider, and both connections of the pool are free for others."""
        leave_database()
        stats = pool()

        assert stats.get("requests_waiting", 0) == 0
        assert stats["pool_available"] == stats["pool_size"]
        said = Client().get("/readyz", headers=KNOWN).json()
        assert said["missing"] != []
        assert "taken" not in str(said)

    def test_leave_their_place_when_they_end(self, testing: Any, slow_provider: Provider) -> None:
        slow_provider.answer.set()
        wait_until(lambda: len(testing.verdicts) == 3 * tests_at_once.AT_ONCE, seconds=60)

        testing.check(testing.accesses[0])
        testing.verdicts.pop()


class TestReadiness:
    @pytest.mark.postgres
    def test_looks_at_the_pool(self, pool: Any, client: Client) -> None:
        release, held = threading.Event(), threading.Semaphore(0)

        def hold() -> None:
            Org.objects.count()
            held.release()
            release.wait(60)
            connections.close_all()

        threads = [threading.Thread(target=hold) for _ in range(3)]
        for thread in threads:
            thread.start()
        try:
            held.acquire()
            held.acquire()
            wait_until(lambda: waiting_for_connections() == 1, seconds=60)

            answer = client.get("/readyz", headers=KNOWN)

            assert answer.status_code == 503
            assert "taken" in str(answer.json())
        finally:
            release.set()
            for thread in threads:
                thread.join()

    def test_finds_no_one_waiting_where_there_is_no_pool(self) -> None:
        assert waiting_for_connections() == 0


def _imports(path: Path) -> set[str]:
    """Which of the libraries that call out a file imports."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names.update([node.module, *(f"{node.module}.{alias.name}" for alias in node.names)])
    return {library for library in CALLS_OUT for name in names if f"{name}.".startswith(f"{library}.")}
