"""What answers in the provider's place leads no caller elsewhere, and says nothing but what a provider says."""

from typing import Any

import pytest

from billing.models import BudgetUsage, CostEvent
from rensei.dispatch.models import Attempt, Run
from tests.gateway.line import Answer, message, settled
from tests.gateway.wire import HOSTILE, Wire

pytestmark = pytest.mark.django_db(transaction=True)

CALLS = ["whole", "stream", "count_tokens"]
OURS = {"x-rensei-run-id", "x-rensei-auth-mode", "x-content-type-options", "cache-control"}
OF_HTTP = {"content-length", "date", "server", "connection", "transfer-encoding"}


@pytest.fixture(params=CALLS)
def call(request: Any, ask: Any, byok: Any) -> Any:
    """Call for one of the hostile answers."""

    def send(word: str) -> Answer:
        body = message(f"[[wire:{word}]]", stream=request.param == "stream")
        if request.param != "count_tokens":
            answer: Answer = ask(body)
            return answer
        counted: Answer = ask({name: body[name] for name in ("model", "messages")}, path="/v1/messages/count_tokens")
        return counted

    return send


class TestARedirect:
    @pytest.mark.parametrize("status", [300, 301, 302, 303, 304, 307, 308])
    def test_is_a_bad_gateway(self, call: Any, wire: Wire, status: int) -> None:
        answer = call(f"redirect-{status}")

        assert (answer.status, answer.code) == (502, "PROVIDER_UNAVAILABLE")
        assert "redirect" in answer.json()["error"]["message"]
        assert "location" not in answer.headers
        assert answer.headers["x-should-retry"] == "false"
        assert len(wire.passed) == 1


class TestWhatIsNoAnswer:
    @pytest.mark.parametrize("word", ["page", "script", "nameless", "created", "empty"])
    def test_is_a_bad_gateway(self, call: Any, word: str) -> None:
        answer = call(word)

        assert (answer.status, answer.code) == (502, "PROVIDER_UNAVAILABLE")
        assert answer.headers["content-type"] == "application/json"
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert b"<script" not in answer.body

    @pytest.mark.parametrize("word", ["page", "created"])
    def test_may_have_been_billed_where_it_calls_itself_a_success(self, ask: Any, byok: Any, word: str) -> None:
        ask(message(f"[[wire:{word}]]"))

        settled()
        assert Attempt.objects.get().state == Attempt.State.INDETERMINATE
        assert Run.objects.get().state == Run.State.FAILED

    @pytest.mark.parametrize(
        ("word", "status"), [("page-403", 403), ("page-500", 503), ("page-429", 429), ("sign-in", 502)]
    )
    def test_is_told_in_our_words_where_it_is_a_refusal(self, call: Any, word: str, status: int) -> None:
        answer = call(word)

        assert answer.status == status
        assert answer.json()["type"] == "error"
        assert answer.code.startswith("PROVIDER_")
        assert answer.headers["content-type"] == "application/json"
        assert "proxy-authenticate" not in answer.headers
        if status == 429:
            assert answer.headers["retry-after"] == "7"


class TestAWholeAnswerThatNoReaderBuilds:
    @pytest.mark.parametrize("word", ["deep", "many", "digits"])
    def test_is_charged_as_reported(self, ask: Any, metered: Any, word: str) -> None:
        answer = ask(message(f"[[wire:{word}]]"))

        settled()
        line = CostEvent.objects.get()
        assert (answer.status, answer.body) == (200, HOSTILE[word].body)
        assert (line.input_tokens, line.output_tokens) == (1000, 90_000)
        assert Run.objects.get().state == Run.State.SUCCEEDED
        assert BudgetUsage.objects.get().used == line.billed_picodollars > 0

    def test_is_kept_back_and_charged_by_its_bytes_if_its_usage_cannot_be_read(self, ask: Any, metered: Any) -> None:
        answer = ask(message("[[wire:nothing]]"))

        settled()
        line = CostEvent.objects.get()
        assert (answer.status, answer.code) == (502, "PROVIDER_STREAM_BROKEN")
        assert line.estimated
        assert line.output_tokens >= len(HOSTILE["nothing"].body) // 4
        assert BudgetUsage.objects.get().used == line.billed_picodollars > 0


class TestAWholeAnswerThatIsLargerThanItsTokensNeed:
    def test_is_kept_back_and_charged_as_a_broken_one(self, ask: Any, metered: Any) -> None:
        answer = ask(message("[[wire:large]]"))

        settled()
        line = CostEvent.objects.get()
        assert (answer.status, answer.code) == (502, "PROVIDER_STREAM_BROKEN")
        assert line.estimated
        assert BudgetUsage.objects.get().used == line.billed_picodollars > 0

    def test_is_passed_on_if_the_provider_may_have_fetched_it(self, ask: Any, byok: Any) -> None:
        answer = ask(message("[[wire:large]]", tools=[{"type": "web_fetch_20250910", "name": "web_fetch"}]))

        assert (answer.status, answer.body) == (200, HOSTILE["large"].body)

    def test_is_refused_as_a_count_of_tokens(self, ask: Any, byok: Any) -> None:
        body = message("[[wire:large]]")
        counted = ask({name: body[name] for name in ("model", "messages")}, path="/v1/messages/count_tokens")

        assert (counted.status, counted.code) == (503, "PROVIDER_UNAVAILABLE")
        assert len(counted.body) < 10_000


class TestItsHeaders:
    @pytest.mark.parametrize("word", ["two-types", "two-types-400"])
    def test_have_the_content_type_that_was_checked_and_no_second_one(self, call: Any, word: str) -> None:
        answer = call(word)

        assert answer.status == HOSTILE[word].status
        assert answer.body == HOSTILE[word].body
        assert answer.headers["content-type"] == "application/json"

    @pytest.mark.parametrize("word", ["smuggled", "smuggled-400"])
    def test_are_those_of_a_provider_and_no_others(self, call: Any, word: str) -> None:
        answer = call(word)

        provided = {"content-type", "request-id", "anthropic-organization-id"}
        assert answer.status == HOSTILE[word].status
        assert answer.body == HOSTILE[word].body
        limits = {name for name in answer.headers if name.startswith("rensei-ratelimit-")}
        assert answer.headers.keys() - OF_HTTP - limits <= provided | OURS
        assert {answer.headers[name] for name in provided} == {HOSTILE[word].headers[name] for name in provided}
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers.get("x-rensei-auth-mode", "byok") == "byok"
        assert answer.headers.get("x-rensei-run-id") != "run_made_up"
        settled()
        assert CostEvent.objects.filter(estimated=True).count() == 0
