"""Effort, vision, caching and the window, from the door to the provider and back."""

import base64
import hashlib
import io
from collections.abc import Callable
from typing import Any

import pytest
from PIL import Image
from rest_framework.test import APIClient

from billing.models import CostEvent
from rensei.dispatch.models import Run
from rensei.orgs.models import User
from tests.dispatch.reconcile import assert_explained

pytestmark = pytest.mark.django_db(transaction=True)

OPUS_4_1 = "claude-opus-4-1-20250514"
HAIKU_4_5 = "claude-haiku-4-5-20251001"
HELLO = {"role": "user", "content": "Hello."}
# The simulator counts a short word as one token, and four more for each message.
FRAME_TOKENS = 4


@pytest.fixture
def api(ada: User, ada_access: Any, api_as: Callable[..., APIClient], connect: Any) -> APIClient:
    connect()
    return api_as(ada)


def run_it(api: APIClient, work: Callable[[], list[Run]], **body: Any) -> dict[str, Any]:
    answer = api.post("/api/v1/runs", {"profileId": "prof_deep", **body})
    assert answer.status_code == 202, answer.json()
    work()
    run: dict[str, Any] = api.get(answer["Location"]).json()
    return run


def sent(simulator: Any) -> dict[str, Any]:
    """The body of the last message that the provider was sent."""
    body: dict[str, Any] = [call for call in simulator.requests() if call["path"] == "/v1/messages"][-1]["body"]
    return body


class TestEffort:
    def test_of_a_dispatch_beats_the_profiles_and_is_sent_as_the_serving_model_takes_it(
        self, simulator: Any, api: APIClient, make_profile: Any, work: Any
    ) -> None:
        make_profile(model_id=OPUS_4_1, effort="low")

        run = run_it(api, work, input="Think.", effort="high")

        assert run["state"] == "SUCCEEDED", run["error"]
        assert run["effort"] == "high"
        assert run["effortApplied"] == {"output_config": {"effort": "high"}}
        assert sent(simulator)["output_config"] == {"effort": "high"}
        assert run["usage"]["thinkingTokens"] > 0

    def test_is_a_thinking_budget_on_a_model_that_takes_budgets(
        self, simulator: Any, api: APIClient, make_profile: Any, work: Any
    ) -> None:
        make_profile(model_id="claude-haiku-4-5-20251001")

        run = run_it(api, work, input="Think.", effort="high")

        assert run["state"] == "SUCCEEDED", run["error"]
        assert sent(simulator)["thinking"] == {"type": "enabled", "budget_tokens": 4096}

    @pytest.mark.parametrize(
        ("asked", "reason"),
        [
            ({"input": "Think.", "maxTokens": 1}, "1 tokens have no room"),
            ({"input": "Think.", "maxTokens": 64_000, "effort": None}, ""),
            ({"messages": [HELLO, {"role": "assistant", "content": "Well"}]}, "an answer begun"),
        ],
        ids=["short", "longest", "prefill"],
    )
    def test_of_the_profile_gives_way_to_what_the_caller_asks_for(
        self, simulator: Any, api: APIClient, make_profile: Any, work: Any, asked: dict[str, Any], reason: str
    ) -> None:
        make_profile(model_id=HAIKU_4_5, effort="high")

        run = run_it(api, work, **asked)

        assert run["state"] == "SUCCEEDED", run["error"]
        assert bool(run["effortApplied"]) is not bool(reason)
        assert ("thinking" in sent(simulator)) is not bool(reason)
        assert sent(simulator)["max_tokens"] == asked.get("maxTokens", 16_384)
        assert reason in next(line["detail"] for line in run["trace"] if line["verdict"] == "chosen")

    def test_that_is_asked_for_beside_an_answer_begun_is_refused(self, api: APIClient, make_profile: Any) -> None:
        make_profile(model_id=HAIKU_4_5)
        begun = [HELLO, {"role": "assistant", "content": "Well"}]

        answer = api.post("/api/v1/runs", {"profileId": "prof_deep", "messages": begun, "effort": "low"})

        assert answer.status_code == 400
        assert answer.json()["errors"][0]["pointer"] == "/effort"


class TestAPromptForTheCache:
    def test_brings_no_answer(self, simulator: Any, api: APIClient, make_profile: Any, work: Any) -> None:
        make_profile()

        run = run_it(api, work, input="Hi.", system="word " * 3000, maxTokens=0)

        assert run["state"] == "SUCCEEDED", run["error"]
        assert run["output"]["text"] == ""
        assert run["usage"]["outputTokens"] == 0
        assert run["usage"]["cacheWrite5mTokens"] >= 3000
        assert run["cost"]["estimated"] is False
        assert "stream" not in sent(simulator)
        assert_explained(simulator)


class TestVision:
    def test_shows_the_model_the_very_image(self, simulator: Any, api: APIClient, make_profile: Any, work: Any) -> None:
        make_profile()
        buffer = io.BytesIO()
        Image.new("RGB", (64, 48), "teal").save(buffer, "PNG")
        image = buffer.getvalue()
        source = {"type": "base64", "media_type": "image/jpeg", "data": base64.b64encode(image).decode()}
        content = [{"type": "image", "source": source}, {"type": "text", "text": "What is it?"}]

        run = run_it(api, work, messages=[{"role": "user", "content": content}])

        assert run["state"] == "SUCCEEDED", run["error"]
        assert "image/png" in run["output"]["text"]
        assert hashlib.sha256(image).hexdigest() in run["output"]["text"]


class TestPromptCaching:
    def test_reads_the_second_time_and_costs_less(
        self, simulator: Any, api: APIClient, make_profile: Any, work: Any
    ) -> None:
        make_profile(system="You weigh every word. " * 600)

        first = run_it(api, work, input="[[reply 20 words]] Go.")
        second = run_it(api, work, input="[[reply 20 words]] Go.")

        assert first["usage"]["cacheWrite5mTokens"] > 2000
        assert second["usage"]["cacheReadTokens"] == first["usage"]["cacheWrite5mTokens"]
        assert float(second["cost"]["amountUsd"]) < float(first["cost"]["amountUsd"])
        assert_explained(simulator)

    def test_is_off_where_the_profile_says_so(
        self, simulator: Any, api: APIClient, make_profile: Any, work: Any
    ) -> None:
        make_profile(system="You weigh every word. " * 600, prompt_caching="off")

        run = run_it(api, work, input="Go.")

        assert run["usage"]["cacheWrite5mTokens"] == run["usage"]["cacheReadTokens"] == 0
        assert "cache_control" not in str(sent(simulator))


class TestContextWindow:
    CONFIG = {"anthropic": {"contextWindow": 100_000}}

    def test_takes_a_prompt_of_99000_tokens_and_fits_the_answer_into_the_rest(
        self, simulator: Any, api: APIClient, make_profile: Any, work: Any
    ) -> None:
        make_profile(model_id=OPUS_4_1, prompt_caching="off")

        run = run_it(api, work, input="word " * (99_000 - FRAME_TOKENS), providerConfig=self.CONFIG)

        assert run["state"] == "SUCCEEDED", run["error"]
        assert run["usage"]["inputTokens"] == 99_000
        assert sent(simulator)["max_tokens"] <= 1000
        assert CostEvent.objects.count() == 1

    def test_refuses_one_of_100001_tokens_with_both_numbers_and_no_call(
        self, simulator: Any, api: APIClient, make_profile: Any, work: Any
    ) -> None:
        make_profile(model_id=OPUS_4_1)
        text = "word " * (100_001 - FRAME_TOKENS)

        answer = api.post("/api/v1/runs", {"profileId": "prof_deep", "input": text, "providerConfig": self.CONFIG})
        if answer.status_code == 202:
            work()
            error = api.get(answer["Location"]).json()["error"]
        else:
            error = answer.json()

        assert error["code"] == "CONTEXT_WINDOW_EXCEEDED"
        assert "100001" in error["detail"].replace(",", "")
        assert "100000" in error["detail"].replace(",", "")
        assert not [call for call in simulator.requests() if call["path"] == "/v1/messages"]
        assert not CostEvent.objects.exists()


class TestATestMessage:
    def test_is_a_real_ledgered_run(self, simulator: Any, api: APIClient, ada_access: Any, work: Any) -> None:
        from integrations.models import Integration
        from rensei.dispatch.admission import test_message

        test_message.send(ada_access, Integration.objects.get())
        (run,) = work()

        assert run.state == Run.State.SUCCEEDED, run.error
        assert run.profile_id == ""
        assert CostEvent.objects.get().amount_picodollars > 0

    def test_shows_that_credit_is_missing(self, simulator: Any, ada_access: Any, connect: Any, work: Any) -> None:
        from rensei.dispatch.admission import test_message

        test_message.send(ada_access, connect("nocredit"))
        (run,) = work()

        assert run.error["code"] == "PROVIDER_UNFUNDED"
