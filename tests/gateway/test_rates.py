"""Limits that hold across processes, count tokens too, and are told by headers."""

from datetime import UTC, datetime
from typing import Any

import pytest

from rensei.core.models import WindowCount
from rensei.dispatch.models import Run
from rensei.orgs.models import Org
from rensei.tokens.look_up import TOKEN_PREFIX
from rensei.tokens.models import ApiToken
from tests.gateway.line import settled
from tests.gateway.test_limits import call
from tests.waiting import wait_until

pytestmark = pytest.mark.django_db(transaction=True)


def counted(kind: str) -> int:
    """Add up the counts of this test's callers. A server of all tests may still tell of a test before."""
    ids = [*ApiToken.objects.values_list("pk", flat=True), *Org.objects.values_list("pk", flat=True)]
    keys = [f"{kind}:{caller}" for caller in ids]
    return sum(WindowCount.objects.filter(key__in=keys).values_list("count", flat=True))


class TestTwoProcesses:
    def test_allow_no_more_than_one_does(self, start_server: Any, byok: Any, make_token: Any) -> None:
        server, token = start_server(workers=2, RENSEI_GATEWAY_RATE_TOKEN="6/hour"), make_token()
        statuses = []
        for number in range(30):
            statuses.append(call(server, token).status)
            wait_until(lambda asked=number + 1: counted("gateway-token") == asked, what="the exchange of the count")

        # The second process learns of the count a quarter of a second after its own first call.
        assert set(statuses) == {200, 429}
        assert 6 <= statuses.count(200) <= 7
        settled()


class TestHeaders:
    def test_tell_how_a_caller_stands(self, start_server: Any, byok: Any, make_token: Any) -> None:
        server, token = start_server(RENSEI_GATEWAY_RATE_TOKEN="2/hour", RENSEI_GATEWAY_RATE_ORG="9/hour"), make_token()

        answers = [call(server, token), call(server, token, stream=True), call(server, token)]

        told = [
            [answer.headers[f"rensei-ratelimit-requests-{name}"] for name in ("limit", "remaining")]
            for answer in answers
        ]
        assert [answer.status for answer in answers] == [200, 200, 429]
        assert told == [["2", "1"], ["2", "0"], ["2", "0"]]
        reset = datetime.fromisoformat(answers[0].headers["rensei-ratelimit-requests-reset"])
        assert 0 < (reset - datetime.now(UTC)).total_seconds() <= 3600
        settled()


class TestTokensAMinute:
    @pytest.mark.parametrize(
        ("limit", "kind", "mode"),
        [
            ("RENSEI_GATEWAY_TOKENS_TOKEN", "tokens-token", "byok"),
            ("RENSEI_GATEWAY_TOKENS_ORG", "tokens-org", "byok"),
            ("RENSEI_PLATFORM_TOKENS_ORG", "tokens-platform", "metered"),
        ],
    )
    def test_are_counted_as_they_are_settled(
        self, start_server: Any, make_token: Any, request: Any, limit: str, kind: str, mode: str
    ) -> None:
        request.getfixturevalue(mode)
        server, token = start_server(**{limit: "1/hour"}), make_token()

        first = call(server, token)
        wait_until(lambda: counted(kind) > 0, what="the tokens of the call")
        refused = call(server, token)

        settled()
        run = Run.objects.get()
        used = sum(
            run.usage[name] for name in ("input_tokens", "output_tokens", "cache_read_tokens", "cache_write_5m_tokens")
        )
        assert (first.status, refused.status, refused.code) == (200, 429, "RATE_LIMITED")
        assert 1 <= int(refused.headers["retry-after"]) <= 3600
        assert counted(kind) == used
        if mode == "byok":
            told = [answer.headers["rensei-ratelimit-tokens-remaining"] for answer in (first, refused)]
            assert told == ["1", "0"]


class TestUnknownTokens:
    def test_are_limited_for_their_address(self, start_server: Any, byok: Any, make_token: Any) -> None:
        server, good = start_server(RENSEI_RATE_UNKNOWN_TOKENS="3/hour"), make_token()
        before = call(server, good).status

        statuses = [call(server, f"{TOKEN_PREFIX}unknown{number}").status for number in range(6)]

        assert statuses == [401] * 3 + [429] * 3
        assert (before, call(server, good).status) == (200, 200)
        settled()
