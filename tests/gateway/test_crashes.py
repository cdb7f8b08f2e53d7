"""The web process dies, or is told to stop, in the middle of streams: the ledger and the provider's log agree."""

import http.client
import os
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from billing.models import CostEvent, Entitlement
from integrations.models import KeyOpening
from rensei.core.clock import database_now
from rensei.dispatch.execution import reaper
from rensei.dispatch.models import Attempt, Run
from rensei.dispatch.queue import claims
from tests.dispatch.reconcile import assert_explained
from tests.gateway.line import Answer, exchange, message
from tests.gateway.server import Server
from tests.gateway.wire import Wire
from tests.waiting import wait_until

pytestmark = pytest.mark.django_db(transaction=True)

# As many as a busy installation has, where somebody wants to wait for it.
STREAMS = int(os.environ.get("GATEWAY_CRASH_STREAMS", "20"))


def call(server: Server, token: str, text: str, **fields: Any) -> Answer | None:
    """Call, and give the answer, or None where the line broke."""
    body = message(text, **fields)
    try:
        return exchange(server, body, path="/v1/messages", method="POST", headers={"x-api-key": token})
    except (OSError, http.client.HTTPException):
        return None


@pytest.mark.timeout(300)
class TestKilled:
    @pytest.mark.parametrize("mode", ["byok", "metered", "shared"])
    def test_in_the_middle_of_streams_leaves_nothing_unexplained(
        self, start_server: Any, request: Any, token: str, wire: Wire, simulator: Any, mode: str
    ) -> None:
        request.getfixturevalue(mode)
        Entitlement.objects.update(shared_runs_per_day=STREAMS)
        server = start_server()
        call(server, token, "Hello.")

        with ThreadPoolExecutor(STREAMS) as pool:
            calls = [
                pool.submit(call, server, token, f"[[reply 90 words]] [[slow 0.5]] {number}", stream=True)
                for number in range(STREAMS - 1)
            ]
            wait_until(lambda: sum(bool(passed.answer) for passed in wire.messages()) >= STREAMS, what="the streams")
            server.kill()
            answers = [each.result() for each in calls]

        assert answers == [None] * (STREAMS - 1)
        wait_until(lambda: all(one["outcome"] for one in simulator.requests()), what="the end of the calls")
        # The settlement of the very first call may have been on its way.
        assert Run.objects.filter(state=Run.State.RUNNING).count() >= STREAMS - 1
        Run.objects.filter(state=Run.State.RUNNING).update(lease_until=database_now() - claims.LEASE)
        reaper.reap()

        assert Attempt.objects.filter(state=Attempt.State.INDETERMINATE).count() >= STREAMS - 1
        assert CostEvent.objects.filter(estimated=True).count() >= STREAMS - 1
        assert_explained(simulator)


@pytest.mark.timeout(300)
class TestOpenings:
    def test_of_a_killed_process_are_recorded_but_for_its_last_second(
        self, start_server: Any, byok: Any, token: str, simulator: Any
    ) -> None:
        server = start_server()
        answer = call(server, token, "Hello.")
        assert answer is not None
        # The bound that the documents state.
        time.sleep(1)
        server.kill()

        opening = KeyOpening.objects.get()
        assert (opening.reason, opening.run_id) == ("gateway", answer.headers["x-rensei-run-id"])

    def test_of_a_process_that_is_told_to_stop_are_all_recorded(
        self, start_server: Any, byok: Any, token: str, simulator: Any
    ) -> None:
        server = start_server()
        assert call(server, token, "Hello.")
        server.terminate()

        assert KeyOpening.objects.exists()


@pytest.mark.timeout(300)
class TestToldToStop:
    def test_ends_the_calls_under_way_and_writes_what_they_came_to(
        self, start_server: Any, byok: Any, token: str, wire: Wire, simulator: Any
    ) -> None:
        server = start_server()

        with ThreadPoolExecutor(6) as pool:
            calls = [
                pool.submit(call, server, token, f"[[reply 30 words]] [[slow 0.3]] {number}", stream=True)
                for number in range(6)
            ]
            wait_until(lambda: sum(bool(passed.answer) for passed in wire.messages()) >= 6, what="the streams")
            stopping = threading.Thread(target=server.terminate)
            stopping.start()
            answers = [each.result() for each in calls]
            stopping.join()

        assert all(answer is not None and b"message_stop" in answer.body for answer in answers)
        assert {run.state for run in Run.objects.all()} == {Run.State.SUCCEEDED}
        assert not CostEvent.objects.filter(estimated=True).exists()
        assert_explained(simulator)

    @pytest.mark.parametrize("stream", [True, False], ids=["stream", "whole"])
    def test_ends_late_calls_and_charges_what_has_arrived_of_them(
        self, start_server: Any, metered: Any, token: str, wire: Wire, simulator: Any, stream: bool
    ) -> None:
        server = start_server(RENSEI_GATEWAY_DRAIN_SECONDS="1")

        with ThreadPoolExecutor(1) as pool:
            text = "[[reply 300 words]] [[slow 0.2]]" if stream else "[[stall]]"
            calling = pool.submit(call, server, token, text, stream=stream)
            wait_until(lambda: any(passed.answer or not stream for passed in wire.messages()), what="the call")
            server.terminate()
            answer = calling.result(timeout=30)

        run, line = Run.objects.get(), CostEvent.objects.get()
        assert (run.state, (run.error or {})["code"]) == (Run.State.FAILED, "RUN_INTERRUPTED")
        assert answer is not None
        assert b"permission_error" in answer.body
        assert line.estimated
        # Of a whole answer nothing has arrived, and its caller has not ended it.
        assert line.billed is stream
        assert bool(line.output_tokens) is stream
        assert_explained(simulator)
