"""Event streams: what many of them cost, how many there may be, and that they end with their caller's access."""

import asyncio
import gc
import json
import sys
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any

import pytest
from asgiref.sync import sync_to_async
from django.db import connection, connections
from django.test import AsyncClient
from django.utils import timezone
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rensei.core.clock import database_now
from rensei.dispatch.api import event_streams
from rensei.dispatch.api.open_streams import stream_places
from rensei.dispatch.api.run_notices import Notices
from rensei.dispatch.models import Run, RunChunk
from rensei.dispatch.queue import claims
from rensei.orgs.access import Access
from rensei.orgs.models import Host, Membership, User
from rensei.tokens.models import ApiToken
from rensei.tokens.services import create_token

pytestmark = pytest.mark.django_db(transaction=True)

PATH = "/api/v1/runs/{}/events"


@pytest.fixture(autouse=True)
def _close_the_connections_of_the_async_side(transactional_db: None) -> Iterator[None]:
    yield
    asyncio.run(sync_to_async(connections.close_all)())
    assert len(stream_places) == 0


@pytest.fixture
def make_run(ada_access: Access) -> Callable[..., Run]:
    """Make a run that a worker holds, so that events can be added to it."""

    def make(access: Access = ada_access, **fields: Any) -> Run:
        now = database_now()
        usual = {"state": Run.State.RUNNING, "epoch": 1, "lease_until": now + timedelta(hours=1)}
        return Run.objects.create(
            org=access.org, provider="claude", model_id="m", served_model_id="m", auth_mode="byok",
            payer="organization", max_tokens=10, created_at=now, deadline_at=now + timedelta(hours=1),
            created_by=access.user, **{**usual, **fields},
        )  # fmt: skip

    return make


@pytest.fixture
def token(ada_access: Access) -> tuple[ApiToken, dict[str, str]]:
    made, secret = create_token(ada_access, name="stream")
    return made, {"Authorization": f"Bearer {secret.reveal()}"}


def tell(run: Run, text: str) -> None:
    assert claims.add_chunk(run, kind=RunChunk.Kind.DELTA, data={"text": text})


async def opened(run: Run, headers: dict[str, str], client: AsyncClient | None = None) -> Any:
    """Open a stream, read its first event, and give back the rest."""
    response = await (client or AsyncClient()).get(PATH.format(run.id), headers=headers)
    assert response.status_code == 200, response.content
    pieces = response.streaming_content
    assert b"event: state" in await anext(pieces)
    return pieces


async def closed(pieces: Any) -> None:
    """Leave a stream, and wait until its place is free."""
    before = len(stream_places)
    await pieces.aclose()
    while len(stream_places) >= before:
        # The test client's answers are part of cycles.
        gc.collect()
        await asyncio.sleep(0.01)


def parsed(pieces: list[bytes]) -> list[tuple[str, Any]]:
    found = []
    for block in b"".join(pieces).decode().strip().split("\n\n"):
        fields = dict(line.split(": ", 1) for line in block.split("\n") if line and line[0] != ":")
        if fields:
            found.append((fields["event"], json.loads(fields["data"])))
    return found


class TestManyIdleStreams:
    def test_ask_the_database_no_more_than_few(self, make_run: Any, token: Any, monkeypatch: Any) -> None:
        """Statements of five whole looks, counted in the poller's thread, and every other read of a stream."""
        runs = [make_run() for _ in range(30)]
        reads, statements = [], []

        def counted(streams_open: int) -> list[int]:
            reads.clear()
            statements.clear()
            asyncio.run(idle(runs[:streams_open]))
            assert len(reads) == streams_open, "only the first event of each is read"
            return statements[-3:]

        async def idle(followed: list[Run]) -> None:
            pieces = [await opened(run, token[1]) for run in followed]
            waiting = [asyncio.ensure_future(anext(each)) for each in pieces]
            begun = len(statements)
            while len([count for count in statements[begun:] if count > 1]) < 5:  # noqa: ASYNC110 - of another thread
                await asyncio.sleep(0.02)
            statements[:] = [count for count in statements[begun:] if count > 1]
            for each in waiting:
                assert not each.done()
                each.cancel()
            await asyncio.gather(*waiting, return_exceptions=True)

        original_look, original_read = event_streams.Poller._try_to_look, event_streams.Poller.read

        def look(self: Any, *args: Any) -> Any:
            count = 0

            def count_it(execute: Any, *more: Any) -> Any:
                nonlocal count
                count += 1
                return execute(*more)

            with connection.execute_wrapper(count_it):
                found = original_look(self, *args)
            statements.append(count)
            return found

        async def read(self: Any, *args: Any) -> Any:
            reads.append(args)
            return await original_read(self, *args)

        monkeypatch.setattr(event_streams.Poller, "_try_to_look", look)
        monkeypatch.setattr(event_streams.Poller, "read", read)

        few, many = counted(3), counted(30)

        assert max(many) <= max(few)
        assert max(many) <= 5

    def test_cost_the_event_loop_nothing_when_others_write(self, make_run: Any, token: Any, monkeypatch: Any) -> None:
        """
        Python calls on the event loop in the looks that events of another organization's run cause.

        The loop also forwards the gateway's calls, and a busy installation writes events all the time.
        """
        runs, other = [make_run() for _ in range(30)], make_run()
        looks: list[Any] = []
        original_tell = event_streams.Poller._tell

        def tell_and_count(self: Any, found: Any) -> None:
            original_tell(self, found)
            looks.append(found)

        async def calls_of_looks(streams_open: int) -> float:
            pieces = [await opened(runs[place // 2], token[1]) for place in range(streams_open)]
            waiting = [asyncio.ensure_future(anext(each)) for each in pieces]
            with monkeypatch.context() as patch:
                patch.setattr(event_streams, "WHOLE_LOOK_SECONDS", 3600.0)
                patch.setattr(event_streams.Poller, "_tell", tell_and_count)
                counted = await calls_of_each_look()
            for each in waiting:
                each.cancel()
            await asyncio.gather(*waiting, return_exceptions=True)
            return counted

        async def calls_of_each_look() -> float:
            await look_after(other)
            await look_after(other)
            calls, before = 0, len(looks)

            def count(frame: Any, event: str, _argument: Any) -> None:
                nonlocal calls
                calls += event == "call" and frame.f_code.co_filename in {event_streams.__file__, "<string>"}

            sys.setprofile(count)
            try:
                for _ in range(5):
                    await look_after(other)
            finally:
                sys.setprofile(None)
            return calls / (len(looks) - before)

        async def look_after(run: Run) -> None:
            begun = len(looks)
            await sync_to_async(tell)(run, "a")
            while len(looks) == begun:  # noqa: ASYNC110 - of another task
                await asyncio.sleep(0.02)

        few = asyncio.run(calls_of_looks(4))
        many = asyncio.run(calls_of_looks(60))

        assert many <= few + 1

    def test_of_one_token_are_limited(self, make_run: Any, token: Any, settings: Any, ada_access: Access) -> None:
        settings.RENSEI_STREAMS_PER_TOKEN = 2
        run = make_run()
        _, other = create_token(ada_access, name="other")

        async def open_them() -> None:
            first, second = await opened(run, token[1]), await opened(run, token[1])
            refused = await AsyncClient().get(PATH.format(run.id), headers=token[1])
            assert (refused.status_code, refused.json()["code"]) == (429, "TOO_MANY_STREAMS")
            assert "GET" in refused.json()["detail"]
            assert refused["Retry-After"] == "5"
            others = await opened(run, {"Authorization": f"Bearer {other.reveal()}"})
            await closed(first)
            third = await opened(run, token[1])
            for each in (second, third, others):
                await closed(each)

        asyncio.run(open_them())

    def test_of_one_organization_are_limited(
        self, make_run: Any, token: Any, settings: Any, eve: User, access_of: Any
    ) -> None:
        settings.RENSEI_STREAMS_PER_ORG = 1
        run, foreign = make_run(), make_run(access_of(eve, "evil"))
        _, secret = create_token(access_of(eve, "evil"), name="eve")

        async def open_them() -> None:
            first = await opened(run, token[1])
            refused = await AsyncClient().get(PATH.format(run.id), headers=token[1])
            assert (refused.status_code, refused.json()["code"]) == (429, "TOO_MANY_STREAMS")
            other = await opened(foreign, {"Authorization": f"Bearer {secret.reveal()}"})
            await closed(first)
            await closed(other)

        asyncio.run(open_them())

    def test_give_their_place_back_where_nothing_ever_reads_them(self, make_run: Any, token: Any) -> None:
        async def leave() -> None:
            response = await AsyncClient().get(PATH.format(make_run_id), headers=token[1])
            assert len(stream_places) == 1
            del response

        make_run_id = make_run().id
        asyncio.run(leave())
        # The test client's answer is part of cycles, whose finalizers keep some of it for the next collection.
        for _ in range(3):
            gc.collect()

        assert len(stream_places) == 0


def _revoke(token: ApiToken) -> None:
    ApiToken.objects.filter(pk=token.pk).update(revoked_at=timezone.now())


def _expire(token: ApiToken) -> None:
    ApiToken.objects.filter(pk=token.pk).update(expires_at=timezone.now() - timedelta(seconds=1))


def _remove_member(token: ApiToken) -> None:
    Membership.objects.filter(pk=token.membership_id).delete()


def _let_access_end(token: ApiToken) -> None:
    Membership.objects.filter(pk=token.membership_id).update(ends_at=timezone.now())


def _deactivate(token: ApiToken) -> None:
    User.objects.filter(email="mia@acme.test").update(is_active=False)


def _narrow(token: ApiToken) -> None:
    ApiToken.objects.filter(pk=token.pk).update(scopes=["gateway"])


def _restrict(token: ApiToken) -> None:
    ApiToken.objects.filter(pk=token.pk).update(allowed_networks=["192.0.2.0/24"])


def _revoke_machine(token: ApiToken) -> None:
    host = Host.objects.create(org=token.org, owner=User.objects.get(email="mia@acme.test"), name="m")
    host.revoked_at = timezone.now()
    host.save()
    ApiToken.objects.filter(pk=token.pk).update(host=host)


class TestAccessThatEnds:
    """Nothing of the run is told after it: the last event says why, and the stream ends."""

    @pytest.mark.parametrize(
        "end", [_revoke, _expire, _remove_member, _let_access_end, _deactivate, _narrow, _restrict, _revoke_machine]
    )
    def test_of_a_token_closes_the_stream(self, make_run: Any, mia: User, access_of: Any, end: Any) -> None:
        run = make_run()
        made, secret = create_token(access_of(mia), name="mia")

        async def watch() -> list[tuple[str, Any]]:
            pieces = await opened(run, {"Authorization": f"Bearer {secret.reveal()}"})
            await sync_to_async(tell)(run, "before")
            before = await anext(pieces)
            await sync_to_async(end)(made)
            for number in range(3):
                await sync_to_async(tell)(run, f"secret {number}")
            return parsed([before, *[piece async for piece in pieces]])

        (first, last) = asyncio.run(watch())

        assert first == ("delta", {"text": "before"})
        assert last[0] == "closed"
        assert last[1]["code"] == "NOT_AUTHENTICATED"
        assert last[1]["detail"]

    @pytest.mark.parametrize("how", ["signed out", "password changed", "removed", "access ended"])
    def test_of_a_session_closes_the_stream(self, make_run: Any, mia: User, how: str) -> None:
        run = make_run()

        def end(client: AsyncClient) -> None:
            if how == "signed out":
                client.session.flush()
            elif how == "removed":
                Membership.objects.filter(user=mia).delete()
            elif how == "access ended":
                Membership.objects.filter(user=mia).update(ends_at=timezone.now())
            else:
                mia.set_password("another horse battery")
                mia.save()

        async def watch() -> list[tuple[str, Any]]:
            client = AsyncClient()
            await client.aforce_login(mia)
            pieces = await opened(run, {}, client)
            await sync_to_async(end)(client)
            await sync_to_async(tell)(run, "secret")
            return parsed([piece async for piece in pieces])

        ((kind, data),) = asyncio.run(watch())

        assert (kind, data["code"]) == ("closed", "NOT_AUTHENTICATED")

    def test_closes_an_idle_stream_too(self, make_run: Any, token: Any) -> None:
        run = make_run()

        async def watch() -> list[tuple[str, Any]]:
            pieces = await opened(run, token[1])
            await sync_to_async(_revoke)(token[0])
            return parsed([piece async for piece in pieces])

        assert [kind for kind, _ in asyncio.run(watch())] == ["closed"]

    def test_leaves_the_streams_of_others_open(self, make_run: Any, token: Any, ada_access: Access) -> None:
        run = make_run()
        _, other = create_token(ada_access, name="other")

        async def watch() -> bytes:
            mine = await opened(run, token[1])
            others = await opened(run, {"Authorization": f"Bearer {other.reveal()}"})
            await sync_to_async(_revoke)(token[0])
            assert b"event: closed" in await anext(mine)
            await sync_to_async(tell)(run, "still told")
            piece: bytes = await anext(others)
            await closed(mine)
            await closed(others)
            return piece

        assert b"still told" in asyncio.run(watch())

    def test_is_said_of_a_run_that_is_gone(self, make_run: Any, token: Any) -> None:
        run = make_run()

        async def watch() -> list[tuple[str, Any]]:
            pieces = await opened(run, token[1])
            await sync_to_async(run.delete)()
            return parsed([piece async for piece in pieces])

        ((kind, data),) = asyncio.run(watch())
        assert (kind, data["code"]) == ("closed", "NOT_FOUND")


class TestWhatIsRead:
    @settings(max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture])
    @given(sizes=st.lists(st.one_of(st.integers(0, 100), st.integers(0, 90_000)), max_size=12), data=st.data())
    def test_at_once_is_bounded_and_everything_in_order(self, make_run: Any, sizes: list[int], data: Any) -> None:
        run = make_run(chunk_count=len(sizes))
        texts = [str(number % 10) * size for number, size in enumerate(sizes)]
        RunChunk.objects.bulk_create(
            RunChunk(run=run, seq=number, kind="delta", data={"text": text}) for number, text in enumerate(texts, 1)
        )
        seen = data.draw(st.integers(0, len(sizes)))
        expected, told = texts[seen:], []

        while events := event_streams._events(run.id, seen, len(sizes)):
            assert len(events) == 1 or sum(
                len(event) for *_, event in events
            ) < event_streams.CHARACTERS_AT_ONCE + 60 * len(events)
            for seq, _, event in events:
                assert seq == seen + 1
                seen = seq
                told.append(parsed([event])[0][1]["text"])

        assert told == expected

    def test_of_a_run_that_keeps_no_events_is_its_end(self, make_run: Any, token: Any) -> None:
        run = make_run(via=Run.Via.GATEWAY)

        async def watch() -> list[tuple[str, Any]]:
            pieces = await opened(run, token[1])
            await sync_to_async(Run.objects.filter(pk=run.pk).update)(state=Run.State.SUCCEEDED)
            return parsed([piece async for piece in pieces])

        ((kind, data),) = asyncio.run(watch())
        assert (kind, data["state"]) == ("done", "SUCCEEDED")


class TestNotices:
    def test_name_the_runs_that_have_new_events(self, make_run: Any) -> None:
        first, second = make_run(), make_run()

        async def look() -> list[set[str]]:
            loop = asyncio.get_running_loop()
            with event_streams.ThreadPoolExecutor(max_workers=1) as thread:
                notices = Notices()

                async def named(*runs: Run) -> set[str]:
                    """Gather until these are named: PostgreSQL tells a moment after the commit."""
                    found: set[str] = set()
                    async with asyncio.timeout(30):
                        while not found >= {run.id for run in runs}:
                            found |= await loop.run_in_executor(thread, notices.told)
                    return found

                before = await loop.run_in_executor(thread, notices.told)
                await sync_to_async(tell)(first, "a")
                after_one = await named(first)
                again = await loop.run_in_executor(thread, notices.told)
                await sync_to_async(tell)(first, "b")
                await sync_to_async(tell)(second, "c")
                after_two = await named(first, second)
                await loop.run_in_executor(thread, notices.close)
            return [before, after_one, again, after_two]

        assert asyncio.run(look()) == [set(), {first.id}, set(), {first.id, second.id}]

    def test_that_are_lost_cost_a_moment_and_nothing_else(self, make_run: Any, token: Any, monkeypatch: Any) -> None:
        monkeypatch.setattr(Notices, "told", lambda self: set())
        run = make_run()

        async def watch() -> bytes:
            pieces = await opened(run, token[1])
            await sync_to_async(tell)(run, "found by looking")
            piece: bytes = await anext(pieces)
            await closed(pieces)
            return piece

        assert b"found by looking" in asyncio.run(watch())
