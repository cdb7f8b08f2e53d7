"""A call through the gateway is a run like any other, but for its words."""

import json
from collections.abc import Iterator
from typing import Any

import pytest
from django.apps import apps
from django.db import connection
from django.test import Client
from rest_framework.test import APIClient

from billing.models import CostEvent
from rensei.dispatch.models import Run
from rensei.dispatch.settlement import audit
from rensei.orgs.models import User
from tests.dispatch.reconcile import assert_explained
from tests.gateway.line import MODEL, exchange, message, settled
from tests.gateway.server import Server

pytestmark = pytest.mark.django_db(transaction=True)

CANARY = "canarywordofacme"


@pytest.fixture(params=[False, True], ids=["whole", "stream"])
def run(request: Any, ask: Any, byok: Any) -> Run:
    """A call that has ended."""
    answer = ask(message(f"[[echo {CANARY} is the answer]]", stream=request.param), x_claude_code_session_id="of-ada")
    assert answer.status == 200
    assert CANARY.encode() in answer.body
    settled()
    return Run.objects.get(id=answer.headers["x-rensei-run-id"])


class TestARun:
    def test_has_everything_that_a_run_has(self, run: Run, ada: User, ask: Any) -> None:
        attempt = run.attempts.get()

        assert run.state == Run.State.SUCCEEDED
        assert (run.via, run.model_id, run.auth_mode, run.payer) == ("gateway", MODEL, "byok", "organization")
        assert run.metadata == {"sessionId": "of-ada"}
        assert attempt.state == "SETTLED"
        assert run.finished_at is not None

    def test_is_on_the_ledger_with_what_the_provider_counted(self, run: Run, simulator: Any) -> None:
        (call,) = [call for call in simulator.requests() if call["path"] == "/v1/messages"]
        line = CostEvent.objects.get()

        assert call["attempt_id"] == line.attempt_id
        assert line.input_tokens == call["usage"]["input_tokens"]
        assert line.output_tokens == call["usage"]["output_tokens"]
        assert line.amount_picodollars == run.amount_picodollars
        assert not line.estimated

    def test_passes_the_audit(self, run: Run, simulator: Any) -> None:
        assert_explained(simulator)
        told: list[Any] = []
        audit.audit(told.append)
        assert told == []

    def test_is_listed_and_shown_by_rest(self, run: Run, ada: User, api_as: Any) -> None:
        api: APIClient = api_as(ada)

        listed = api.get("/api/v1/runs").json()
        shown = api.get(f"/api/v1/runs/{run.id}")

        assert run.id in json.dumps(listed)
        assert shown.status_code == 200
        assert shown.json()["state"] == "SUCCEEDED"

    def test_is_listed_and_shown_by_the_pages(self, run: Run, ada: User, page_as: Any) -> None:
        browser: Client = page_as(ada)

        runs = browser.get("/o/acme/runs", follow=True)
        page = browser.get(f"/o/acme/runs/{run.id}", follow=True)

        assert (runs.status_code, page.status_code) == (200, 200)
        assert run.id in runs.content.decode()
        assert run.id in page.content.decode()
        assert CANARY not in page.content.decode()

    def test_belongs_to_nobody_else(self, run: Run, eve: User, api_as: Any) -> None:
        assert api_as(eve, "evil").get(f"/api/v1/runs/{run.id}").status_code == 404

    def test_tells_its_end_on_its_event_stream(self, run: Run, server: Server, token: str) -> None:
        headers = {"authorization": f"Bearer {token}"}

        answer = exchange(server, None, path=f"/api/v1/runs/{run.id}/events", method="GET", headers=headers)

        assert answer.status == 200
        assert b"SUCCEEDED" in answer.body

    def test_leaves_no_word_of_it_anywhere(self, run: Run, server: Server) -> None:
        assert run.id in "".join(values())
        assert [value[:80] for value in values() if CANARY in value] == []
        assert CANARY not in server.log()


def values() -> Iterator[str]:
    """Read every column of every row of the database, as text."""
    for model in apps.get_models(include_auto_created=True):
        with connection.cursor() as cursor:
            cursor.execute(f"SELECT * FROM {connection.ops.quote_name(model._meta.db_table)}")
            for row in cursor.fetchall():
                for value in row:
                    yield bytes(value).decode("latin-1") if isinstance(value, (bytes, memoryview)) else str(value)
