"""Streams that do not end as they should: the caller leaves, reads slowly or cancels; the provider falls silent."""

import http.client
import socket
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from typing import Any
from urllib.parse import urlsplit

import pytest

from billing.models import BudgetHold, BudgetUsage, CostEvent
from rensei.dispatch.models import Attempt, Run
from rensei.orgs.models import User
from tests.dispatch.reconcile import assert_explained
from tests.gateway.line import STANDARD_HEADERS, Answer, as_bytes, exchange, message, settled
from tests.gateway.server import Server
from tests.gateway.wire import FLOOD_MEGABYTES, Wire
from tests.waiting import wait_until

pytestmark = pytest.mark.django_db(transaction=True)

MEGABYTE = 1024 * 1024
# What a request to count a prompt has of a message's.
COUNTED = ("model", "messages")


@pytest.fixture
def open_stream(server: Server, token: str) -> Iterator[Callable[..., http.client.HTTPResponse]]:
    """Begin a stream, and leave it to the test to read it."""
    connections = []

    def begin(text: str, *, to: Server = server, **fields: Any) -> http.client.HTTPResponse:
        connection = http.client.HTTPConnection(urlsplit(to.url).netloc, timeout=60)
        connections.append(connection)
        headers = {**STANDARD_HEADERS, "x-api-key": token}
        connection.request("POST", "/v1/messages", as_bytes(message(text, stream=True, **fields)), headers)
        response = connection.getresponse()
        connection.of = response  # type: ignore[attr-defined]
        return response

    yield begin
    for connection in connections:
        connection.of.close()  # type: ignore[attr-defined]
        connection.close()


class TestACallerWhoLeaves:
    def test_pays_for_what_was_made_and_the_ledger_has_it_exactly(
        self, server: Server, token: str, byok: Any, wire: Wire, simulator: Any
    ) -> None:
        leave_after_the_first_event(server, token, message("[[reply 60 words]] [[slow 0.1]]", stream=True))

        settled()
        line, run = CostEvent.objects.get(), Run.objects.get()
        assert run.state == Run.State.SUCCEEDED
        assert not line.estimated
        assert line.output_tokens >= 60
        assert wire.messages()[0].is_whole
        assert_explained(simulator)

    def test_before_a_whole_answer_pays_for_it_too(self, server: Server, token: str, byok: Any, simulator: Any) -> None:
        with closing(socket.create_connection(where(server), timeout=30)) as line:
            line.sendall(raw_request(token, message("[[slow 1]] Hello.")))
            wait_until(lambda: Attempt.objects.exists(), what="the attempt")

        settled()
        assert Run.objects.get().state == Run.State.SUCCEEDED
        assert not CostEvent.objects.get().estimated
        assert_explained(simulator)

    def test_in_the_middle_of_a_body_leaves_nothing(
        self, server: Server, token: str, byok: Any, wire: Wire, ask: Any
    ) -> None:
        said = len(server.log())
        with closing(socket.create_connection(where(server), timeout=30)) as line:
            line.sendall(raw_request(token, message("Hello."))[:-20])

        assert ask(message()).status == 200
        assert Run.objects.count() == 1
        assert server.log()[said:].partition("Traceback")[2] == ""


class TestASlowCaller:
    def test_does_not_fill_the_servers_memory(self, server: Server, open_stream: Any, byok: Any, wire: Wire) -> None:
        # A page that the provider fetches may make an answer as large.
        tools = [{"type": "web_fetch_20250910", "name": "web_fetch"}]
        open_stream("[[wire:flood]] warm up", tools=tools).read()
        settled()
        before = server.memory()

        response = open_stream("[[wire:flood]]", tools=tools)
        most = before
        for _ in range(60):
            most = max(most, server.memory())
            threading.Event().wait(0.05)
        is_held_back = not wire.messages()[-1].is_whole
        received = len(response.read())

        assert is_held_back, "the provider was read to its end although nobody took it"
        assert most - before < FLOOD_MEGABYTES / 2 * MEGABYTE, f"{(most - before) / MEGABYTE:.0f} MB more"
        assert received > FLOOD_MEGABYTES * MEGABYTE
        settled()
        assert Run.objects.filter(state=Run.State.SUCCEEDED).count() == 2


class TestAProviderThatSendsTooMuch:
    @pytest.mark.parametrize("path", ["/v1/messages", "/v1/messages/count_tokens"])
    def test_does_not_fill_the_servers_memory(
        self, server: Server, token: str, byok: Any, simulator: Any, path: str
    ) -> None:
        def call(text: str) -> Answer:
            body = message(text) if path == "/v1/messages" else {name: message(text)[name] for name in COUNTED}
            return exchange(server, body, path=path, method="POST", headers={"x-api-key": token})

        assert call("Hello.").status == 200
        settled()
        before = server.memory()

        answer = call("[[fault:hugebody mb=400 on=count_tokens]]" if "count" in path else "[[fault:hugebody mb=400]]")

        assert answer.status in {502, 503}
        assert answer.code.startswith("PROVIDER_")
        assert server.memory() - before < 200 * MEGABYTE
        settled()
        assert_explained(simulator)

    def test_or_breaks_off_while_it_counts_is_no_fault_of_ours(self, server: Server, token: str, byok: Any) -> None:
        body = {name: message("[[fault:reset on=count_tokens]]")[name] for name in COUNTED}

        answer = exchange(server, body, path="/v1/messages/count_tokens", method="POST", headers={"x-api-key": token})

        assert answer.status == 503
        assert answer.code.startswith("PROVIDER_")


class TestAProviderThatFallsSilent:
    @pytest.fixture
    def impatient(self, start_server: Any) -> Server:
        server: Server = start_server(RENSEI_GATEWAY_IDLE_SECONDS="2")
        return server

    def test_in_a_stream_is_given_up_by_an_event_and_estimated(
        self, impatient: Server, token: str, byok: Any, simulator: Any
    ) -> None:
        body = message("[[reply 60 words]] [[stall after=5]]", stream=True)

        answer = exchange(impatient, body, path="/v1/messages", method="POST", headers={"x-api-key": token})

        settled()
        run, line = Run.objects.get(), CostEvent.objects.get()
        assert answer.body.rstrip().rpartition(b"\n\n")[2].startswith(b"event: error")
        assert (run.state, (run.error or {})["code"]) == (Run.State.FAILED, "PROVIDER_STREAM_BROKEN")
        assert line.estimated
        assert line.output_tokens > 0
        assert_explained(simulator)

    def test_before_the_answer_is_given_up_and_estimated(
        self, impatient: Server, token: str, byok: Any, simulator: Any
    ) -> None:
        answer = exchange(
            impatient, message("[[stall]]"), path="/v1/messages", method="POST", headers={"x-api-key": token}
        )

        settled()
        assert answer.status >= 500
        assert answer.code.startswith("PROVIDER_")
        assert CostEvent.objects.get().estimated
        assert_explained(simulator)

    def test_is_given_up_at_the_runs_deadline(self, start_server: Any, token: str, byok: Any, simulator: Any) -> None:
        server = start_server(RENSEI_GATEWAY_DEADLINE_SECONDS="3")
        body = message("[[reply 300 words]] [[slow 0.2]]", stream=True)

        answer = exchange(server, body, path="/v1/messages", method="POST", headers={"x-api-key": token})

        settled()
        assert b"RUN_TIMEOUT" in answer.body.rstrip().rpartition(b"\n\n")[2]
        assert (Run.objects.get().error or {})["code"] == "RUN_TIMEOUT"
        assert_explained(simulator)


class TestACancellation:
    @pytest.mark.parametrize("stream", [True, False], ids=["stream", "whole"])
    def test_by_rest_ends_the_call_and_charges_what_was_made(
        self, ask: Any, byok: Any, ada: User, api_as: Any, simulator: Any, wire: Wire, stream: bool
    ) -> None:
        api = api_as(ada)
        slow = "[[reply 300 words]] [[slow 0.2]]" if stream else "[[slow 30]]"
        with ThreadPoolExecutor(1) as pool:
            calling = pool.submit(ask, message(slow, stream=stream))
            wait_until(lambda: any(passed.answer or not stream for passed in wire.messages()), what="the call")
            assert api.post(f"/api/v1/runs/{Run.objects.get().id}/cancel", {}).status_code in {200, 202}
            answer = calling.result(timeout=30)

        settled()
        run = Run.objects.get()
        assert run.state == Run.State.CANCELLED
        assert CostEvent.objects.get().estimated
        if stream:
            assert b"RUN_CANCELLED" in answer.body.rstrip().rpartition(b"\n\n")[2]
            assert b"permission_error" in answer.body.rstrip().rpartition(b"\n\n")[2]
        else:
            assert (answer.status, answer.code) == (403, "RUN_CANCELLED")
            assert answer.headers["x-should-retry"] == "false"
        assert_explained(simulator)


class TestACallOfWhichNothingHasComeBack:
    """Its prompt is billed by the provider, and so may be an answer that is not streamed."""

    def assert_charged(self, *, stream: bool) -> None:
        settled()
        line = CostEvent.objects.get()
        assert Attempt.objects.get().state == Attempt.State.SETTLED
        assert line.estimated
        assert line.input_tokens > 0
        assert line.output_tokens == (0 if stream else 1000)
        assert line.billed
        assert BudgetUsage.objects.get().used == line.billed_picodollars > 0
        assert not BudgetHold.objects.exists()

    @pytest.mark.parametrize("stream", [True, False], ids=["stream", "whole"])
    def test_is_charged_when_it_is_cancelled(
        self, ask: Any, metered: Any, ada: User, api_as: Any, simulator: Any, wire: Wire, stream: bool
    ) -> None:
        with ThreadPoolExecutor(1) as pool:
            calling = pool.submit(ask, message("[[stall]]", stream=stream))
            wait_until(lambda: bool(wire.messages()), what="the call")
            assert api_as(ada).post(f"/api/v1/runs/{Run.objects.get().id}/cancel", {}).status_code in {200, 202}
            answer = calling.result(timeout=30)

        assert (b"RUN_CANCELLED" in answer.body) is True
        self.assert_charged(stream=stream)
        assert_explained(simulator)

    @pytest.mark.parametrize("limit", ["DEADLINE", "IDLE"])
    def test_is_charged_when_it_takes_too_long(
        self, start_server: Any, token: str, metered: Any, simulator: Any, limit: str
    ) -> None:
        server = start_server(**{f"RENSEI_GATEWAY_{limit}_SECONDS": "2"})

        answer = exchange(
            server, message("[[stall]]"), path="/v1/messages", method="POST", headers={"x-api-key": token}
        )

        assert answer.status >= 400
        self.assert_charged(stream=False)
        assert_explained(simulator)


def where(server: Server) -> tuple[str, int]:
    parts = urlsplit(server.url)
    assert parts.hostname is not None
    assert parts.port is not None
    return parts.hostname, parts.port


def raw_request(token: str, body: dict[str, Any]) -> bytes:
    content = as_bytes(body)
    assert content is not None
    head = {**STANDARD_HEADERS, "host": "127.0.0.1", "x-api-key": token, "content-length": str(len(content))}
    lines = ["POST /v1/messages HTTP/1.1", *(f"{name}: {value}" for name, value in head.items()), "", ""]
    return "\r\n".join(lines).encode() + content


def leave_after_the_first_event(server: Server, token: str, body: dict[str, Any]) -> None:
    with closing(socket.create_connection(where(server), timeout=30)) as line:
        line.sendall(raw_request(token, body))
        seen = b""
        while b"content_block_delta" not in seen:
            seen += line.recv(4096)
