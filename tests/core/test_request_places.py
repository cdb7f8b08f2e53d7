"""The shares of organizations and of addresses in the requests that are answered at the same time."""

import asyncio
import threading
from collections.abc import Callable
from typing import Any
from weakref import WeakValueDictionary

import pytest
from django.http import HttpRequest
from django.test import Client

from rensei.core import request_places
from rensei.core.asgi_limits import limit_bodies
from rensei.core.errors import RateLimited
from rensei.core.request_places import leave_of_org, places_of_orgs, take_of_org
from rensei.core.request_threads import leave_thread
from rensei.core.shares import ByteShares
from rensei.dispatch.api import long_polling
from rensei.orgs.models import Org, User

ORG, OTHER = "org_one", "org_two"


@pytest.fixture(autouse=True)
def _no_requests(monkeypatch: pytest.MonkeyPatch) -> None:
    """A request that a test leaves under way holds its place for as long as it is in memory."""
    monkeypatch.setattr(request_places, "_org_places", WeakValueDictionary())


@pytest.fixture
def one_place(settings: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    settings.RENSEI_ORG_REQUESTS_AT_ONCE = 1
    monkeypatch.setattr(request_places, "ORG_WAIT_SECONDS", 0.01)


class TestTakeOfOrg:
    def test_takes_no_more_places_than_the_share(self, settings: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        settings.RENSEI_ORG_REQUESTS_AT_ONCE = 3
        monkeypatch.setattr(request_places, "ORG_WAIT_SECONDS", 0.01)
        held = [HttpRequest() for _ in range(3)]
        for request in held:
            take_of_org(request, ORG)

        with pytest.raises(RateLimited) as refused:
            take_of_org(HttpRequest(), ORG)
        take_of_org(HttpRequest(), OTHER)

        assert refused.value.extra["retryAfter"] == 1
        leave_of_org(held[0])
        take_of_org(HttpRequest(), ORG)

    @pytest.mark.usefixtures("one_place")
    def test_takes_one_place_for_a_request_and_returns_one(self) -> None:
        request = HttpRequest()
        take_of_org(request, ORG)
        take_of_org(request, ORG)

        leave_of_org(request)
        leave_of_org(request)

        last = HttpRequest()
        take_of_org(last, ORG)
        with pytest.raises(RateLimited):
            take_of_org(HttpRequest(), ORG)

    def test_waits_for_a_place(self, settings: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        settings.RENSEI_ORG_REQUESTS_AT_ONCE = 1
        monkeypatch.setattr(request_places, "ORG_WAIT_SECONDS", 30)
        waiting, first = threading.Event(), HttpRequest()
        monkeypatch.setattr(request_places, "leave_database", waiting.set)
        take_of_org(first, ORG)
        second = threading.Thread(target=take_of_org, args=(HttpRequest(), ORG))
        second.start()
        assert waiting.wait(30)

        leave_of_org(first)

        second.join(30)
        assert not second.is_alive()

    @pytest.mark.usefixtures("one_place")
    def test_holds_the_place_until_the_answer_and_not_after_a_fault(self) -> None:
        def answer(request: HttpRequest) -> Any:
            take_of_org(request, ORG)
            raise ZeroDivisionError

        for _ in range(2):
            with pytest.raises(ZeroDivisionError):
                places_of_orgs(answer)(HttpRequest())

    @pytest.mark.usefixtures("one_place", "transactional_db")
    def test_is_returned_for_a_long_poll(self) -> None:
        request = HttpRequest()
        take_of_org(request, ORG)

        asyncio.run(long_polling.begin_to_wait(request))

        take_of_org(HttpRequest(), ORG)


@pytest.mark.django_db
class TestAnOrganization:
    @pytest.mark.usefixtures("one_place")
    def test_has_a_share_in_rest_and_pages(
        self, ada: User, acme: Org, eve: User, api_as: Callable[..., Any], page_as: Callable[..., Client]
    ) -> None:
        ways = (lambda: api_as(ada).get("/api/v1/projects"), lambda: page_as(ada).get("/o/acme/runs"))
        under_way = HttpRequest()
        take_of_org(under_way, acme.pk)

        refused = [way() for way in ways]
        others = [api_as(eve, "evil").get("/api/v1/projects"), page_as(eve).get("/o/evil/runs")]
        leave_of_org(under_way)
        after = [way() for way in ways]

        assert [answer.status_code for answer in (*refused, *others, *after)] == [429, 429, 200, 200, 200, 200]
        assert refused[0].json()["code"] == "RATE_LIMITED"
        assert {answer.headers["Retry-After"] for answer in refused} == {"1"}

    def test_has_one_rate_for_rest_and_pages(
        self, ada: User, acme: Org, eve: User, page_as: Callable[..., Client], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("rensei.tokens.throttling.ApiThrottle.THROTTLE_RATES", {"api": "2/min", "org": "9/min"})
        page = page_as(ada)

        answers = [page.get(address) for address in ("/o/acme/runs", "/api/v1/me", "/o/acme/runs")]

        assert [answer.status_code for answer in answers] == [200, 200, 429]
        assert 0 < int(answers[-1].headers["Retry-After"]) <= 60
        assert answers[0].headers["rensei-ratelimit-requests-remaining"] == "1"
        assert page_as(eve).get("/o/evil/runs").status_code == 200


class TestAnAddress:
    """`ask` sends a request that stays under way to the end, and tells its status; None if its body does not come."""

    @pytest.fixture(autouse=True)
    def _few_places(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(request_places, "_addresses", ByteShares())
        monkeypatch.setattr(request_places, "OF_ADDRESS_MAX", 2)

    @staticmethod
    def serve(steps: Callable[[Callable[..., Any], asyncio.Event], Any], *, leave: Callable[[], None] | None) -> Any:
        async def run() -> Any:
            ended = asyncio.Event()
            under_way: list[asyncio.Future[None]] = []

            async def application(scope: Any, receive: Any, send: Any) -> None:
                await receive()
                await send({"type": "http.response.start", "status": 200, "headers": []})
                if leave is not None:
                    leave()
                await ended.wait()

            served = limit_bodies(application, sender_of=lambda scope: "")

            async def ask(address: str = "192.0.2.7", path: str = "/o/acme/", *, is_slow: bool = False) -> Any:
                begun: asyncio.Future[int] = asyncio.get_running_loop().create_future()

                async def receive() -> Any:
                    if is_slow:
                        await ended.wait()
                    return {"type": "http.request", "body": b"", "more_body": False}

                async def send(message: Any) -> None:
                    if message["type"] == "http.response.start":
                        begun.set_result(message["status"])

                scope = {"type": "http", "method": "GET", "path": path, "headers": [], "client": (address, 1)}
                under_way.append(asyncio.ensure_future(served(scope, receive, send)))
                if not is_slow:
                    return await begun
                await asyncio.sleep(0)
                return None

            try:
                return await steps(ask, ended)
            finally:
                ended.set()
                await asyncio.gather(*under_way)

        return asyncio.run(run())

    def test_has_a_share_of_the_requests_under_way(self) -> None:
        async def steps(ask: Any, ended: asyncio.Event) -> list[int]:
            own = [await ask() for _ in range(3)]
            watched = [await ask(path=path) for path in ("/healthz", "/readyz")]
            return [*own, *watched, await ask(address="198.51.100.9")]

        assert self.serve(steps, leave=None) == [200, 200, 429, 200, 200, 200]

    def test_holds_no_place_while_its_bodies_come(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """A few addresses without a login could otherwise stop REST and pages for all."""
        monkeypatch.setattr(request_places, "OF_ALL_MAX", 8)

        async def steps(ask: Any, ended: asyncio.Event) -> list[int | None]:
            slow = [await ask(address=f"192.0.2.{number}", is_slow=True) for number in range(20)]
            return [*slow, await ask(address="192.0.2.1"), await ask(address="198.51.100.9")]

        assert self.serve(steps, leave=None) == [None] * 20 + [200, 200]

    def test_is_served_again_after_its_requests(self) -> None:
        async def steps(ask: Any, ended: asyncio.Event) -> list[int]:
            first = [await ask() for _ in range(3)]
            ended.set()
            await asyncio.sleep(0)
            return [*first, await ask()]

        assert self.serve(steps, leave=None) == [200, 200, 429, 200]

    def test_may_have_any_number_that_only_wait(self) -> None:
        async def steps(ask: Any, ended: asyncio.Event) -> list[int]:
            return [await ask() for _ in range(8)]

        assert self.serve(steps, leave=leave_thread) == [200] * 8

    def test_has_at_most_half_as_many_as_are_free(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(request_places, "OF_ALL_MAX", 8)

        async def steps(ask: Any, ended: asyncio.Event) -> list[int]:
            return [await ask(address=f"192.0.2.{number // 2}") for number in range(8)]

        assert self.serve(steps, leave=None) == [200, 200, 200, 200, 200, 429, 200, 429]
