"""Doors that stay open: waiting for a run's end, and its events."""

import asyncio
import json
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from asgiref.sync import sync_to_async
from django.db import connections
from django.test import AsyncClient

from rensei.core.request_threads import Handler
from rensei.core.shares import Share
from rensei.dispatch.api import events as live
from rensei.dispatch.models import Run
from rensei.tokens.machines import register_host
from rensei.tokens.services import create_token
from rensei.worker import Worker
from tests.waiting import wait_until

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture
def worker(transactional_db: None) -> Iterator[Worker]:
    """A worker as the process has it, in a thread."""
    worker = Worker()
    thread = threading.Thread(target=worker.run)
    thread.start()
    yield worker
    worker.stop()
    thread.join(timeout=40)
    assert not thread.is_alive()


@pytest.fixture
def headers(ada_access: Any) -> dict[str, str]:
    _, secret = create_token(ada_access, name="live")
    return {"Authorization": f"Bearer {secret.reveal()}"}


@pytest.fixture(autouse=True)
def _close_the_connections_of_the_async_side(transactional_db: None) -> Iterator[None]:
    yield
    asyncio.run(sync_to_async(connections.close_all)())


def post(body: Any, headers: dict[str, str], **more: str) -> Any:
    return asyncio.run(
        AsyncClient().post("/api/v1/runs", data=body, content_type="application/json", headers={**headers, **more})
    )


def events(run_id: str, headers: dict[str, str], **more: str) -> list[tuple[int, str, Any]]:
    """Read a run's events to their end, as (id, event, data)."""

    async def read() -> bytes:
        response = await AsyncClient().get(f"/api/v1/runs/{run_id}/events", headers={**headers, **more})
        assert response.status_code == 200, response.content
        assert response["Content-Type"] == "text/event-stream"
        return b"".join([piece async for piece in response.streaming_content])

    found = []
    for block in asyncio.run(read()).decode().strip().split("\n\n"):
        fields = dict(line.split(": ", 1) for line in block.split("\n") if line and line[0] != ":")
        if fields:
            found.append((int(fields["id"]), fields["event"], json.loads(fields["data"])))
    return found


class TestPreferWait:
    def test_answers_200_with_the_ended_run(
        self, simulator: Any, connect: Any, make_profile: Any, headers: Any, worker: Worker
    ) -> None:
        connect()
        make_profile()

        answer = post({"profileId": "prof_deep", "input": "Hi."}, headers, Prefer="wait=30")

        assert answer.status_code == 200
        assert answer["Preference-Applied"] == "wait=30"
        assert answer.json()["state"] == "SUCCEEDED"
        assert answer.json()["output"]["text"]

    def test_answers_200_whatever_the_end(
        self, simulator: Any, connect: Any, make_profile: Any, headers: Any, worker: Worker
    ) -> None:
        connect("revoked")
        make_profile()

        answer = post({"profileId": "prof_deep", "input": "Hi."}, headers, Prefer="wait=30")

        assert (answer.status_code, answer.json()["state"]) == (200, "FAILED")

    def test_answers_202_when_the_time_has_passed(
        self, simulator: Any, connect: Any, make_profile: Any, headers: Any
    ) -> None:
        connect()
        make_profile()

        answer = post({"profileId": "prof_deep", "input": "Hi."}, headers, Prefer="respond-async, wait=1")

        assert answer.status_code == 202
        assert answer["Preference-Applied"] == "wait=1"

    def test_answers_a_refusal_at_once(self, simulator: Any, make_profile: Any, headers: Any) -> None:
        make_profile()

        answer = post({"profileId": "prof_deep", "input": "Hi."}, headers, Prefer="wait=60")

        assert (answer.status_code, answer.json()["code"]) == (409, "BYOK_NOT_CONFIGURED")
        assert "Preference-Applied" not in answer


async def dispatch(application: Handler, headers: dict[str, str]) -> tuple[int, str | None]:
    """Dispatch as through the server, which gives each request a thread, and return what was answered to `Prefer`."""
    body = json.dumps({"profileId": "prof_deep", "input": "Hi."}).encode()
    sent = {"host": "localhost", "content-type": "application/json", "content-length": str(len(body)), **headers}
    scope = {
        "type": "http",
        "method": "POST",
        "path": "/api/v1/runs",
        "query_string": b"",
        "headers": [(name.lower().encode(), value.encode()) for name, value in {**sent, "prefer": "wait=60"}.items()],
    }
    requests = iter([{"type": "http.request", "body": body, "more_body": False}])
    started: dict[str, Any] = {}

    async def receive() -> dict[str, Any]:
        for request in requests:
            return request
        await asyncio.Event().wait()
        raise AssertionError

    async def send(message: Any) -> None:
        if message["type"] == "http.response.start":
            started.update(message)

    await application(scope, receive, send)
    applied = {name.lower(): value.decode() for name, value in started["headers"]}.get(b"preference-applied")
    return started["status"], applied


def end_all_runs() -> None:
    Run.objects.update(state=Run.State.CANCELLED)
    connections.close_all()


class TestTheShareOfAnOrganization:
    """Each waiting request holds a thread, so only so many of one organization wait."""

    @pytest.fixture(autouse=True)
    def _share(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(live, "waits", Share(2))

    def test_answers_further_dispatches_at_once_and_those_of_others_in_their_time(
        self, simulator: Any, ada_access: Any, connect: Any, make_profile: Any, headers: Any
    ) -> None:
        connect()
        make_profile()

        async def ask() -> tuple[list[Any], list[Any]]:
            application = Handler()
            waiting = [asyncio.create_task(dispatch(application, headers)) for _ in range(2)]
            await asyncio.to_thread(wait_until, lambda: live.waits.under_way(ada_access.org.pk) == 2)
            with live.waits.taken("org_other") as others_may:
                assert others_may
            further = [await dispatch(application, headers) for _ in range(3)]
            assert not any(task.done() for task in waiting)
            await asyncio.to_thread(end_all_runs)
            return list(await asyncio.gather(*waiting)), further

        waited, further = asyncio.run(ask())

        assert waited == [(200, "wait=60")] * 2
        assert further == [(202, None)] * 3
        assert live.waits.under_way(ada_access.org.pk) == 0

    def test_tells_a_further_machine_when_to_ask_again(self, ada_access: Any) -> None:
        host, _, secret = register_host(ada_access, name="laptop")
        asked = {"Authorization": f"Bearer {secret.reveal()}"}

        async def ask() -> Any:
            with live.waits.taken(ada_access.org.pk), live.waits.taken(ada_access.org.pk):
                return await AsyncClient().post(
                    f"/api/v1/hosts/{host.id}/lease", data={"wait": 20}, content_type="application/json", headers=asked
                )

        answer = asyncio.run(ask())

        assert (answer.status_code, answer.json()["code"]) == (429, "RATE_LIMITED")
        assert answer["Retry-After"] == str(live.FULL_SECONDS)


class TestEvents:
    def test_tells_a_run_from_its_queue_to_its_end(
        self, simulator: Any, connect: Any, make_profile: Any, headers: Any, worker: Worker
    ) -> None:
        connect()
        make_profile()
        run_id = post({"profileId": "prof_deep", "input": "[[reply 30 words]] Go. [[slow 0.02]]"}, headers).json()["id"]

        found = events(run_id, headers)

        kinds = [kind for _, kind, _ in found]
        assert kinds[0] == "state"
        assert kinds[-1] == "done"
        assert {"delta", "usage"} <= set(kinds)
        assert [number for number, _, _ in found] == sorted(number for number, _, _ in found)
        done = found[-1][2]
        assert done["state"] == "SUCCEEDED"
        assert "".join(data["text"] for _, kind, data in found if kind == "delta") == done["output"]["text"]

    def test_replays_an_ended_run_and_ends(
        self, simulator: Any, connect: Any, make_profile: Any, headers: Any, work: Callable[[], list[Run]]
    ) -> None:
        connect()
        make_profile()
        run_id = post({"profileId": "prof_deep", "input": "Hi."}, headers).json()["id"]
        work()

        assert events(run_id, headers, Accept="text/event-stream") == events(run_id, headers)

    def test_goes_on_where_the_last_event_was(
        self, simulator: Any, connect: Any, make_profile: Any, headers: Any, work: Callable[[], list[Run]]
    ) -> None:
        connect()
        make_profile()
        run_id = post({"profileId": "prof_deep", "input": "Hi."}, headers).json()["id"]
        work()
        everything = events(run_id, headers)

        rest = events(run_id, headers, **{"Last-Event-ID": str(everything[-2][0])})

        assert rest == everything[-1:]
        assert events(run_id, headers, **{"Last-Event-ID": str(everything[-1][0])}) == []

    def test_refuses_a_strange_last_event(self, simulator: Any, connect: Any, make_profile: Any, headers: Any) -> None:
        connect()
        make_profile()
        run_id = post({"profileId": "prof_deep", "input": "Hi."}, headers).json()["id"]

        answer = asyncio.run(
            AsyncClient().get(f"/api/v1/runs/{run_id}/events", headers={**headers, "Last-Event-ID": "x"})
        )

        assert (answer.status_code, answer.json()["code"]) == (400, "VALIDATION_FAILED")
