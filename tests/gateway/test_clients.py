"""The official Python SDK, pointed at Rensei by nothing but an address and a token."""

import base64
import io
from collections.abc import Callable
from typing import Any

import anthropic
import pytest
from PIL import Image

from rensei.dispatch.models import Run
from rensei.orgs.models import User
from tests.gateway.line import MODEL
from tests.gateway.wire import Wire

pytestmark = pytest.mark.django_db(transaction=True)

HELLO: list[Any] = [{"role": "user", "content": "Hello."}]
WEATHER: Any = {
    "name": "get_weather",
    "description": "Tells the weather.",
    "input_schema": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
}

# Some versions of the clients say so in the address.
BETA = {"beta": "true"}


class TestMessages:
    def test_are_answered(self, client: anthropic.Anthropic, byok: Any) -> None:
        answer = client.messages.create(model=MODEL, max_tokens=500, messages=HELLO)

        assert answer.model == MODEL
        assert "answering as claude-opus-5-5" in answer.content[-1].text  # type: ignore[union-attr]
        assert answer.usage.output_tokens > 0

    def test_are_answered_for_a_bearer_token(self, server: Any, token: str, byok: Any, sdk: Any) -> None:
        client = sdk(base_url=server.url, auth_token=token, api_key=None, max_retries=0)

        assert client.messages.create(model=MODEL, max_tokens=500, messages=HELLO).stop_reason == "end_turn"

    def test_are_answered_by_the_profile_whose_id_is_their_model(
        self, client: anthropic.Anthropic, byok: Any, make_profile: Any
    ) -> None:
        make_profile(name="quick", model_id="claude-sonnet-5-5")

        answer = client.messages.create(model="prof_quick", max_tokens=500, messages=HELLO)

        assert answer.model == "claude-sonnet-5-5"

    def test_stream(self, client: anthropic.Anthropic, byok: Any) -> None:
        question: Any = [{"role": "user", "content": "[[reply 60 words]]"}]

        with client.messages.stream(model=MODEL, max_tokens=500, messages=question) as stream:
            pieces = list(stream.text_stream)
            final = stream.get_final_message()

        assert len(pieces) == 20
        assert "".join(pieces) == final.content[-1].text  # type: ignore[union-attr]
        assert final.usage.output_tokens >= 60

    @pytest.mark.parametrize("streams", [False, True], ids=["whole", "stream"])
    def test_call_tools_and_take_their_results(
        self, client: anthropic.Anthropic, byok: Any, wire: Wire, streams: bool
    ) -> None:
        def say(messages: Any) -> anthropic.types.Message:
            asked: Any = {"model": MODEL, "max_tokens": 500, "tools": [WEATHER], "messages": messages}
            if not streams:
                answer: anthropic.types.Message = client.messages.create(**asked)
                return answer
            with client.messages.stream(**asked) as stream:
                return stream.get_final_message()

        messages: list[Any] = [{"role": "user", "content": "[[use get_weather]]"}]
        call = say(messages)
        use = next(block for block in call.content if block.type == "tool_use")
        result = {"type": "tool_result", "tool_use_id": use.id, "content": "Sunny."}
        messages += [{"role": "assistant", "content": call.content}, {"role": "user", "content": [result]}]
        answer = say(messages)

        assert call.stop_reason == "tool_use"
        assert "city" in use.input
        assert answer.stop_reason == "end_turn"
        assert b"Sunny." in wire.messages()[-1].body

    def test_think_and_their_signature_is_good_for_the_next_turn(self, client: anthropic.Anthropic, byok: Any) -> None:
        asked: Any = {
            "model": MODEL,
            "max_tokens": 2000,
            "thinking": {"type": "adaptive", "display": "summarized"},
            "output_config": {"effort": "high"},
        }

        first = client.messages.create(messages=HELLO, **asked)
        messages = [*HELLO, {"role": "assistant", "content": first.content}, *HELLO]
        second = client.messages.create(messages=messages, **asked)

        assert first.content[0].type == "thinking"
        assert first.content[0].signature
        assert second.stop_reason == "end_turn"

    def test_show_images(self, client: anthropic.Anthropic, byok: Any) -> None:
        picture = io.BytesIO()
        Image.new("RGB", (64, 48), "teal").save(picture, "PNG")
        data = base64.b64encode(picture.getvalue()).decode()
        source = {"type": "base64", "media_type": "image/png", "data": data}
        content: list[Any] = [{"type": "image", "source": source}, {"type": "text", "text": "What is it?"}]

        answer = client.messages.create(
            model=MODEL,
            max_tokens=500,
            messages=[{"role": "user", "content": content}],
        )

        assert "64x48" in answer.content[-1].text  # type: ignore[union-attr]

    def test_show_documents(self, client: anthropic.Anthropic, byok: Any) -> None:
        source = {"type": "base64", "media_type": "application/pdf", "data": base64.b64encode(pdf()).decode()}
        content: list[Any] = [{"type": "document", "source": source}, {"type": "text", "text": "What is it?"}]

        answer = client.messages.create(
            model=MODEL,
            max_tokens=500,
            messages=[{"role": "user", "content": content}],
        )

        assert answer.usage.input_tokens > 1500

    def test_may_name_a_beta_that_rensei_does_not_know(
        self, client: anthropic.Anthropic, byok: Any, wire: Wire
    ) -> None:
        beta = "context-1m-2025-08-07"

        answer = client.beta.messages.create(
            model=MODEL, max_tokens=500, messages=HELLO, betas=[beta], extra_query=BETA
        )

        assert answer.stop_reason == "end_turn"
        assert wire.messages()[0].target == "/v1/messages?beta=true"
        assert wire.messages()[0].headers["anthropic-beta"] == beta

    def test_name_the_run_that_they_became(self, client: anthropic.Anthropic, byok: Any, acme: Any) -> None:
        answer = client.messages.with_raw_response.create(model=MODEL, max_tokens=500, messages=HELLO)

        assert answer.headers["x-rensei-auth-mode"] == "byok"
        assert answer.headers["x-rensei-run-id"].startswith("run_")
        assert answer.headers["request-id"].startswith("req_")


class TestCountTokens:
    def test_counts_what_a_message_would_use(self, client: anthropic.Anthropic, byok: Any) -> None:
        counted = client.messages.count_tokens(model=MODEL, messages=HELLO)

        answer = client.messages.create(model=MODEL, max_tokens=500, messages=HELLO)

        assert counted.input_tokens == answer.usage.input_tokens

    def test_makes_no_run(self, client: anthropic.Anthropic, byok: Any) -> None:
        client.messages.count_tokens(model="prof_deep", messages=HELLO)

        assert not Run.objects.exists()


class TestModels:
    def test_are_listed_page_by_page(self, client: anthropic.Anthropic, byok: Any) -> None:
        page = client.models.list(limit=3)
        everything = [model.id for model in client.models.list(limit=3)]

        assert len(page.data) == 3
        assert page.has_more
        assert MODEL in everything
        assert everything[-1] == "prof_deep"
        assert len(everything) == len(set(everything)) > 6

    def test_are_listed_after_and_before_one(self, client: anthropic.Anthropic, byok: Any) -> None:
        everything = [model.id for model in client.models.list(limit=1000)]

        after = client.models.list(limit=2, after_id=everything[1])
        before = client.models.list(limit=2, before_id=everything[4])

        assert [model.id for model in after.data] == everything[2:4]
        assert [model.id for model in before.data] == everything[2:4]

    def test_are_shown_one_by_one(self, client: anthropic.Anthropic, byok: Any) -> None:
        assert client.models.retrieve(MODEL).id == MODEL
        assert client.models.retrieve("prof_deep").display_name == "deep"
        with pytest.raises(anthropic.NotFoundError):
            client.models.retrieve("claude-nothing-9")

    def test_show_nobody_the_profiles_of_another_organization(
        self, server: Any, byok: Any, eve: User, access_of: Any, make_token: Callable[..., str], sdk: Any
    ) -> None:
        token = make_token(access_of(eve, "evil"))
        client = sdk(base_url=server.url, api_key=token, max_retries=0)

        assert [model.id for model in client.models.list(limit=1000) if model.id.startswith("prof_")] == []
        with pytest.raises(anthropic.NotFoundError):
            client.models.retrieve("prof_deep")


def pdf() -> bytes:
    """Write a document of one empty page."""
    picture = io.BytesIO()
    Image.new("RGB", (10, 10), "white").save(picture, "PDF")
    return picture.getvalue()
