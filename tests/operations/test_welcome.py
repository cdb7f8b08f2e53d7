"""What `manage.py start` says when everything runs: where to click, and how the demo's first run ended."""

import http.server
import io
import threading
from collections.abc import Iterator
from typing import Any

import pytest
from django.core.management import call_command
from django.db import connection

from rensei import demo
from rensei.dispatch.execution.execute import execute
from rensei.dispatch.execution.lease_renewal import LeaseRenewal
from rensei.dispatch.models import Run
from rensei.dispatch.queue import claims
from tests import servers
from tests.console.agents import begin, finish, offer_sandboxes

pytestmark = pytest.mark.django_db(transaction=True)


class Ready(http.server.BaseHTTPRequestHandler):
    """A server that is ready."""

    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *details: object) -> None:
        """Write no log."""


@pytest.fixture
def ready_port() -> Iterator[int]:
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Ready)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server.server_port
    server.shutdown()
    server.server_close()


@pytest.fixture
def demo_data(catalog: None, simulator: Any) -> None:
    demo.create()


def execute_first_run() -> Run:
    renewal = LeaseRenewal(owner="test-worker")
    try:
        claim = claims.claim_next(owner=renewal.owner)
        assert claim is not None
        execute(claim, renewal)
    finally:
        renewal.close()
    return demo.first_run()


def welcome(port: int) -> str:
    printed = io.StringIO()
    # The greeting is a process of its own, which has no connection yet when it asks the server.
    connection.close()
    call_command("welcome", port=port, demo=True, stdout=printed)
    return printed.getvalue()


class TestWelcome:
    def test_shows_the_answer_of_the_first_run(self, demo_data, ready_port):
        run = execute_first_run()

        printed = welcome(ready_port)

        assert f"The first run, {run.id}: SUCCEEDED" in printed
        assert demo.PROMPT in printed
        assert "This machine starts no sandboxes" in printed
        assert "Ctrl-C stops everything." in printed

    def test_shows_why_the_first_run_failed_and_goes_on(self, demo_data, ready_port, settings):
        settings.RENSEI_ANTHROPIC_BASE_URL = f"http://127.0.0.1:{servers.free_port()}"
        run = execute_first_run()
        assert run.error is not None

        printed = welcome(ready_port)

        assert f"The first run, {run.id}: FAILED" in printed
        assert f"{run.error['code']}: {run.error['detail']}" in printed
        assert run.error["fix"] in printed
        assert "Ctrl-C stops everything." in printed

    def test_dispatches_an_agent_once_where_sandboxes_are_offered(self, demo_data, ready_port):
        execute_first_run()
        offer_sandboxes()
        agent = demo.agent_run()
        assert agent is not None
        begin(agent)
        finish(agent, text="notes.md has a title now.")

        printed = welcome(ready_port)

        assert f"An agent in a sandbox, {agent.id}: SUCCEEDED" in printed
        assert "notes.md has a title now." in printed
        assert f"/o/acme/runs/{agent.id}" in printed
        assert Run.objects.filter(is_agent=True).count() == 1
