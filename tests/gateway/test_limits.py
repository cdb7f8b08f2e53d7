"""How often, and how many at once."""

import asyncio
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from types import SimpleNamespace
from typing import Any

import anthropic
import pytest
from django.conf import settings as settings_of
from django.test import override_settings
from hypothesis import given, settings
from hypothesis import strategies as st

from rensei.core.errors import RateLimited
from rensei.core.rates import rates
from rensei.dispatch.models import Run
from rensei.gateway.answers import Headers
from rensei.gateway.limits import MIB, Limits, LiveLimits
from rensei.orgs.models import User
from rensei.tokens.machines import register_host
from tests.gateway.line import MODEL, Answer, exchange, message, settled
from tests.gateway.server import Server
from tests.waiting import wait_until

pytestmark = pytest.mark.django_db(transaction=True)


def call(server: Server, token: str, text: str = "Hello.", **fields: Any) -> Answer:
    body = message(text, **fields)
    return exchange(server, body, path="/v1/messages", method="POST", headers={"x-api-key": token})


class TestRates:
    def test_hold_for_each_token(self, start_server: Any, byok: Any, make_token: Any) -> None:
        server = start_server(RENSEI_GATEWAY_RATE_TOKEN="3/hour")
        first, second = make_token(), make_token()

        answers = [call(server, first) for _ in range(5)]

        assert [answer.status for answer in answers] == [200, 200, 200, 429, 429]
        assert answers[-1].code == "RATE_LIMITED"
        assert answers[-1].json()["error"]["type"] == "rate_limit_error"
        assert 1 <= int(answers[-1].headers["retry-after"]) <= 3600
        assert call(server, second).status == 200

    def test_hold_for_lists_of_models_too(self, start_server: Any, byok: Any, token: str) -> None:
        server = start_server(RENSEI_GATEWAY_RATE_TOKEN="3/hour")
        paths = ["/v1/models", f"/v1/models/{MODEL}"] * 2

        answers = [exchange(server, None, path=path, method="GET", headers={"x-api-key": token}) for path in paths]

        assert [answer.status for answer in answers] == [200, 200, 200, 429]

    def test_hold_for_each_organization(
        self, start_server: Any, byok: Any, make_token: Any, eve: User, access_of: Any
    ) -> None:
        server = start_server(RENSEI_GATEWAY_RATE_ORG="3/hour")
        tokens = [make_token() for _ in range(4)]

        assert [call(server, token).status for token in tokens] == [200, 200, 200, 429]
        assert call(server, make_token(access_of(eve, "evil"))).status != 429

    @settings(max_examples=200)
    @given(st.lists(st.sampled_from("abc"), max_size=30), st.integers(1, 4), st.integers(1, 8))
    def test_take_nothing_of_an_organization_for_what_is_refused_to_a_token(
        self, callers: list[str], of_token: int, of_org: int
    ) -> None:
        rates.forget()
        allowed: Counter[str] = Counter()
        with override_settings(RENSEI_GATEWAY_RATES={"token": f"{of_token}/hour", "org": f"{of_org}/day"}):
            limits = Limits()
        for caller in callers:
            access: Any = SimpleNamespace(token=SimpleNamespace(id=caller), org=SimpleNamespace(id="org"))
            headers: Headers = []
            fits = allowed[caller] < of_token and allowed.total() < of_org
            try:
                with limits.within(access, headers):
                    assert fits
                    allowed[caller] += 1
            except RateLimited:
                assert not fits
                told = dict(headers)[b"rensei-ratelimit-requests-remaining"]
                assert told == b"0"
                if allowed[caller] < of_token:
                    # It counts for the token, as every call that passes its own limit does.
                    allowed[caller] += 1
                    allowed["refused"] -= 1
        rates.forget()

    def test_are_raised_as_a_rate_limit_error(self, start_server: Any, byok: Any, token: str, sdk: Any) -> None:
        server = start_server(RENSEI_GATEWAY_RATE_TOKEN="1/hour")
        client = sdk(base_url=server.url, api_key=token, max_retries=0)
        asked: Any = {"model": MODEL, "max_tokens": 100, "messages": message()["messages"]}
        client.messages.create(**asked)

        with pytest.raises(anthropic.RateLimitError) as caught:
            client.messages.create(**asked)

        assert int(caught.value.response.headers["retry-after"]) >= 1


class TestCallsAtOnce:
    def test_are_limited_for_each_organization_and_free_when_they_have_ended(
        self, start_server: Any, byok: Any, token: str, simulator: Any
    ) -> None:
        server = start_server(RENSEI_GATEWAY_CALLS_AT_ONCE="2")
        with ThreadPoolExecutor(2) as pool:
            slow = [pool.submit(call, server, token, f"[[slow 3]] {number}") for number in range(2)]
            wait_until(lambda: Run.objects.filter(state=Run.State.RUNNING).count() == 2, what="both calls")
            refused = call(server, token)
            answers = [each.result() for each in slow]

        assert (refused.status, refused.code) == (429, "RATE_LIMITED")
        assert refused.headers["retry-after"] == "1"
        assert [answer.status for answer in answers] == [200, 200]
        assert call(server, token).status == 200
        settled()


class TestLargeBodies:
    def test_of_one_organization_leave_room_for_others(
        self, start_server: Any, byok: Any, token: str, make_token: Any, eve: User, access_of: Any, simulator: Any
    ) -> None:
        server = start_server(RENSEI_GATEWAY_BODY_MIB_ORG="2", RENSEI_GATEWAY_BODY_MIB="6")
        large = "[[slow 3]] " + "x" * 900_000
        with ThreadPoolExecutor(2) as pool:
            slow = [pool.submit(call, server, token, large) for _ in range(2)]
            wait_until(lambda: Run.objects.filter(state=Run.State.RUNNING).count() == 2, what="both calls")
            refused, small = call(server, token, large), call(server, token)
            theirs = call(server, make_token(access_of(eve, "evil")), large)
            answers = [each.result() for each in slow]

        assert (refused.status, refused.code, refused.headers["retry-after"]) == (429, "RATE_LIMITED", "1")
        assert small.status == 200
        # Evil has no profile: its body was read, and judged.
        assert theirs.code == "PROFILE_REQUIRED"
        assert [answer.status for answer in answers] == [200, 200]
        assert call(server, token, "x" * 900_000).status == 200
        settled()

    @settings(max_examples=300)
    @given(st.lists(st.tuples(st.sampled_from("abc"), st.lists(st.integers(0, MIB), max_size=6)), max_size=12))
    def test_are_counted_to_the_byte_and_let_go_of(self, calls: list[tuple[str, list[int]]]) -> None:
        limits = Limits()
        with override_settings(RENSEI_GATEWAY_BODY_MIB_ORG=2, RENSEI_GATEWAY_BODY_MIB=4), ExitStack() as live:
            held: Counter[str] = Counter()
            for org_id, pieces in calls:
                hold = live.enter_context(LiveLimits(limits, org_id)).hold
                for size in pieces:
                    free = 4 * MIB - held.total() - size
                    fits = held[org_id] + size <= min(2 * MIB, free / 2)
                    try:
                        hold(size)
                    except RateLimited:
                        assert not fits
                        break
                    assert fits
                    held[org_id] += size
        with LiveLimits(limits, "a") as all_free_again:
            all_free_again.hold(settings_of.RENSEI_GATEWAY_BODY_MIB_ORG * MIB)

    def test_of_answers_that_find_no_room_are_read_one_by_one_and_never_refused(self) -> None:
        async def play() -> tuple[list[bool], bool]:
            limits = Limits()
            fits, first, second, other = (LiveLimits(limits, org_id) for org_id in ("a", "a", "a", "b"))
            with fits, second, other:
                with first:
                    await fits.hold_answer(MIB)
                    await first.hold_answer(1)
                    await first.hold_answer(MIB)
                    waiting = [asyncio.create_task(each.hold_answer(1)) for each in (second, other)]
                    await asyncio.sleep(0)
                    done = [task.done() for task in waiting]
                await waiting[0]
                with pytest.raises(RateLimited):
                    second.hold(1)
            return done, bool(limits.bodies.total)

        with override_settings(RENSEI_GATEWAY_BODY_MIB_ORG=1, RENSEI_GATEWAY_BODY_MIB=4):
            assert asyncio.run(play()) == ([False, True], False)


class TestTokens:
    """A token opens the gateway if it was made for it, and from where it may be used."""

    @pytest.mark.parametrize(
        ("options", "code"),
        [
            ({"scopes": ["gateway"]}, None),
            ({"scopes": ["read", "runs", "manage", "billing"]}, "SCOPE_MISSING"),
            ({"allowed_networks": ["127.0.0.0/8"]}, None),
            ({"allowed_networks": ["192.0.2.0/24"]}, "NETWORK_NOT_ALLOWED"),
        ],
    )
    def test_are_held_to_what_they_were_made_for(
        self, server: Server, byok: Any, make_token: Any, options: Any, code: str | None
    ) -> None:
        token = make_token(**options)

        answers = [
            call(server, token),
            exchange(server, None, path="/v1/models", method="GET", headers={"x-api-key": token}),
        ]

        assert [answer.status for answer in answers] == ([200, 200] if code is None else [403, 403])
        assert code is None or [answer.code for answer in answers] == [code, code]
        assert Run.objects.count() == (1 if code is None else 0)

    def test_of_machines_are_refused(self, server: Server, byok: Any, ada_access: Any) -> None:
        _, _, secret = register_host(ada_access, name="box")

        assert call(server, secret.reveal()).code == "SCOPE_MISSING"
