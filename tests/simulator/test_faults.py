"""The simulator fails as it is told to, by a word in the key or a directive in the prompt."""

import re
import time
from collections.abc import Callable
from typing import Any

import anthropic
import httpx2
import pytest

from rensei.simulator.faults import REFUSALS
from rensei.simulator.hostile import HOSTILE
from rensei.simulator.server import RunningSimulator
from tests.simulator.doc_tables import read_table
from tests.waiting import wait_until

KEY_ROWS = read_table("Word | Noticed by")
MODEL = "claude-haiku-4-5"
MakeClient = Callable[..., anthropic.Anthropic]


def say(client: anthropic.Anthropic, text: str) -> anthropic.types.Message:
    return client.messages.create(model=MODEL, max_tokens=500, messages=[{"role": "user", "content": text}])


def stream(client: anthropic.Anthropic, text: str) -> anthropic.types.Message:
    messages: list[Any] = [{"role": "user", "content": text}]
    with client.messages.stream(model=MODEL, max_tokens=500, messages=messages) as events:
        return events.get_final_message()


def list_models(client: anthropic.Anthropic) -> None:
    client.models.list()


def count_tokens(client: anthropic.Anthropic) -> None:
    client.messages.count_tokens(model=MODEL, messages=[{"role": "user", "content": "Hi."}])


class TestFaultByKey:
    def test_is_documented_for_every_word(self) -> None:
        documented = {row[0].strip("`") for row in KEY_ROWS}

        assert documented == {*REFUSALS, "workspaceneeded"}

    def test_is_known_for_every_word_of_the_situations(self) -> None:
        words = {word for row in read_table("Situation") for word in re.findall(r"`([a-z]+)`", row[1])}

        assert words - REFUSALS.keys() - HOSTILE == {"only", "nomodels", "zdr", "workspaceneeded", "slow"}

    @pytest.mark.parametrize("row", KEY_ROWS, ids=lambda row: row[0].strip("`"))
    def test_answers_a_message_as_documented(self, make_client: MakeClient, row: list[str]) -> None:
        word, _, status, kind, code, retry_after, message = row
        client = make_client(word.strip("`"))

        with pytest.raises(anthropic.APIStatusError) as caught:
            say(client, "Hi.")

        error = caught.value
        assert (error.status_code, error.type) == (int(status), kind)
        assert error.error_code == (code or None)
        assert error.response.headers.get("retry-after") == (retry_after or None)
        assert message in str(error.api_message)

    @pytest.mark.parametrize("row", KEY_ROWS, ids=lambda row: row[0].strip("`"))
    @pytest.mark.parametrize("call", [list_models, count_tokens], ids=["models", "count_tokens"])
    def test_is_noticed_by_the_free_calls_as_documented(
        self, make_client: MakeClient, row: list[str], call: Callable[[anthropic.Anthropic], Any]
    ) -> None:
        word, noticed_by, status = row[0].strip("`"), row[1], int(row[2])
        client = make_client(word)

        try:
            call(client)
            answered = 200
        except anthropic.APIStatusError as error:
            answered = error.status_code

        assert answered == (status if noticed_by == "everything" else 200)

    def test_lets_a_key_through_that_names_its_workspace(self, make_client: MakeClient) -> None:
        client = make_client("workspaceneeded", default_headers={"anthropic-workspace-id": "wrkspc_1"})

        assert client.models.list().data

    def test_tells_where_to_appeal_a_hold(self, make_client: MakeClient) -> None:
        client = make_client("onhold")

        with pytest.raises(anthropic.types.OrganizationOnHoldError) as caught:
            client.models.list()

        assert caught.value.details.appeal_url

    def test_makes_a_slow_key_slow(self, make_client: MakeClient) -> None:
        client = make_client("slow", timeout=0.5)

        with pytest.raises(anthropic.APITimeoutError):
            client.models.list()

    def test_ignores_a_word_inside_another(self, make_client: MakeClient) -> None:
        client = make_client("notrevoked")

        assert client.models.list().data


class TestFaultByPrompt:
    @pytest.mark.parametrize(
        ("directive", "error"),
        [
            ("overloaded", anthropic.OverloadedError),
            ("529", anthropic.OverloadedError),
            ("500", anthropic.InternalServerError),
            ("503", anthropic.ServiceUnavailableError),
            ("504", anthropic.GatewayTimeoutError),
            ("408", anthropic.RequestTimeoutError),
            ("409", anthropic.ConflictError),
            ("413", anthropic.RequestTooLargeError),
            ("422", anthropic.UnprocessableEntityError),
            ("429", anthropic.RateLimitError),
            ("401", anthropic.AuthenticationError),
            ("402", anthropic.PaymentRequiredError),
            ("403", anthropic.PermissionDeniedError),
            ("404", anthropic.NotFoundError),
            ("499", anthropic.ClientClosedRequestError),
            ("tiercap", anthropic.EnforcedSpendLimitReachedError),
        ],
    )
    def test_is_the_error_of_the_sdk(self, client: anthropic.Anthropic, directive: str, error: type) -> None:
        with pytest.raises(error):
            say(client, f"[[fault:{directive}]]")

    def test_carries_the_wait_that_was_asked_for(self, client: anthropic.Anthropic) -> None:
        with pytest.raises(anthropic.RateLimitError) as caught:
            say(client, "[[fault:429 retry-after=7]]")

        assert caught.value.response.headers["retry-after"] == "7"

    def test_carries_the_code_that_was_asked_for(self, client: anthropic.Anthropic) -> None:
        with pytest.raises(anthropic.APIStatusError) as caught:
            say(client, "[[fault:forbidden code=cmek_key_disabled]]")

        assert caught.value.error_code == "cmek_key_disabled"

    def test_fails_so_many_times_and_then_no_more(self, client: anthropic.Anthropic) -> None:
        statuses = []
        for _ in range(4):
            try:
                say(client, "[[fault:529 times=1]] [[fault:500 times=2]]")
                statuses.append(200)
            except anthropic.APIStatusError as error:
                statuses.append(error.status_code)

        assert statuses == [529, 500, 500, 200]

    def test_counts_each_key_apart(self, make_client: MakeClient) -> None:
        for client in (make_client(), make_client()):
            with pytest.raises(anthropic.InternalServerError):
                say(client, "[[fault:500 times=1]]")

    def test_spares_the_count_of_tokens(self, client: anthropic.Anthropic) -> None:
        messages: list[Any] = [{"role": "user", "content": "[[fault:500]]"}]

        assert client.messages.count_tokens(model=MODEL, messages=messages).input_tokens

    def test_strikes_the_count_of_tokens_alone_where_asked(self, client: anthropic.Anthropic) -> None:
        text = "[[fault:500 on=count_tokens]]"

        assert say(client, text).stop_reason == "end_turn"
        with pytest.raises(anthropic.InternalServerError):
            client.messages.count_tokens(model=MODEL, messages=[{"role": "user", "content": text}])

    def test_counts_only_in_the_last_user_message(self, client: anthropic.Anthropic) -> None:
        message = client.messages.create(
            model=MODEL,
            max_tokens=500,
            messages=[
                {"role": "user", "content": "[[fault:500]]"},
                {"role": "assistant", "content": "Well."},
                {"role": "user", "content": "Again."},
            ],
        )

        assert message.stop_reason == "end_turn"

    def test_leaves_other_brackets_alone(self, client: anthropic.Anthropic) -> None:
        assert say(client, "if [[ -f file ]]; then echo [[Page]]; fi").stop_reason == "end_turn"


class TestBrokenStream:
    def test_ends_in_an_error_event_after_so_many_deltas(self, client: anthropic.Anthropic) -> None:
        with pytest.raises(anthropic.APIStatusError) as caught:
            stream(client, "[[reply 60 words]] [[fault:stream-error after=4]]")

        assert (caught.value.status_code, caught.value.type) == (200, "overloaded_error")

    def test_ends_without_message_stop(self, client: anthropic.Anthropic) -> None:
        message = stream(client, "[[reply 60 words]] [[fault:truncate after=4]]")

        assert message.stop_reason is None
        assert message.usage.output_tokens == 1
        assert message.content[0].type == "text"
        assert len(message.content[0].text.split()) == 12

    def test_ends_with_a_broken_connection(self, client: anthropic.Anthropic, simulator: RunningSimulator) -> None:
        with pytest.raises(httpx2.RemoteProtocolError):
            stream(client, "[[reply 60 words]] [[fault:cut after=4]]")

        logged = simulator.requests()[0]
        assert (logged["outcome"], logged["deltas_sent"]) == ("cut_by_fault", 4)

    def test_falls_silent(self, make_client: MakeClient, simulator: RunningSimulator) -> None:
        client = make_client(timeout=1.5)

        with pytest.raises(httpx2.ReadTimeout):
            stream(client, "[[reply 60 words]] [[stall after=4]]")

        assert _wait_for_outcome(simulator) == "client_disconnected"
        assert simulator.requests()[0]["deltas_sent"] == 4

    def test_sends_nothing_when_it_stalls_from_the_start(
        self, make_client: MakeClient, simulator: RunningSimulator
    ) -> None:
        client = make_client(timeout=0.5)

        with pytest.raises(anthropic.APITimeoutError):
            stream(client, "[[stall]]")

        assert _wait_for_outcome(simulator) == "client_disconnected"
        assert simulator.requests()[0]["status"] is None

    def test_comes_slowly(self, client: anthropic.Anthropic) -> None:
        began = time.monotonic()

        stream(client, "[[reply 12 words]] [[slow 0.1]]")

        assert time.monotonic() - began >= 0.4

    def test_has_events_that_no_client_knows(self, client: anthropic.Anthropic) -> None:
        message = stream(client, "[[echo known]] [[fault:unknown-events]]")

        assert message.stop_reason == "end_turn"
        assert message.content[0].type == "text"
        assert message.content[0].text == "known"


class TestHostileAnswer:
    @pytest.mark.parametrize(("word", "status"), [("redirect", 307), ("html", 502), ("badjson", 200)])
    def test_is_given_by_key(self, http: httpx2.Client, make_key: Callable[..., str], word: str, status: int) -> None:
        headers = {"x-api-key": make_key(word), "anthropic-version": "2026-10-21"}

        answer = http.get("/v1/models", headers=headers)

        assert answer.status_code == status

    def test_has_more_headers_than_a_client_reads(self, make_client: MakeClient) -> None:
        with pytest.raises(anthropic.APIConnectionError):
            make_client("manyheaders").models.list()

    def test_redirects_to_a_place_that_is_logged(
        self, client: anthropic.Anthropic, simulator: RunningSimulator
    ) -> None:
        with pytest.raises(anthropic.NotFoundError):
            say(client, "[[fault:redirect]]")

        assert [request["path"] for request in simulator.requests()] == ["/v1/messages", "/__redirected"]

    def test_is_as_huge_as_asked(self, client: anthropic.Anthropic) -> None:
        answer = client.messages.with_raw_response.create(
            model=MODEL, max_tokens=500, messages=[{"role": "user", "content": "[[fault:hugebody mb=3]]"}]
        )

        assert len(answer.read()) > 3 * 1024 * 1024

    def test_unpacks_to_much_more_than_was_sent(self, http: httpx2.Client, key: str) -> None:
        body = {
            "model": MODEL,
            "max_tokens": 9,
            "messages": [{"role": "user", "content": "[[fault:gzipbomb mb=2]]"}],
        }

        answer = http.post("/v1/messages", headers={"x-api-key": key, "anthropic-version": "2026-10-21"}, json=body)

        assert int(answer.headers["content-length"]) < 10_000
        assert len(answer.content) > 2 * 1024 * 1024

    def test_breaks_the_connection(self, client: anthropic.Anthropic) -> None:
        with pytest.raises((anthropic.APIConnectionError, httpx2.RemoteProtocolError)):
            say(client, "[[fault:reset]]")

    @pytest.mark.parametrize("fault", ["no-usage", "negative-usage", "huge-usage", "nan-usage"])
    def test_gives_a_false_account(self, http: httpx2.Client, key: str, fault: str) -> None:
        body = {
            "model": MODEL,
            "max_tokens": 9,
            "messages": [{"role": "user", "content": f"[[fault:{fault}]]"}],
        }

        answer = http.post("/v1/messages", headers={"x-api-key": key, "anthropic-version": "2026-10-21"}, json=body)

        usage = answer.json().get("usage")
        honest = usage is not None and isinstance(usage["output_tokens"], int) and 0 <= usage["output_tokens"] <= 9
        assert not honest

    @pytest.mark.parametrize("stream", [True, False])
    def test_writes_characters_that_few_can_store(self, http: httpx2.Client, key: str, stream: bool) -> None:
        body = {
            "model": MODEL,
            "max_tokens": 9,
            "stream": stream,
            "messages": [{"role": "user", "content": "[[fault:odd-text]]"}],
        }

        answer = http.post("/v1/messages", headers={"x-api-key": key, "anthropic-version": "2026-10-21"}, json=body)

        assert "\\u0000" in answer.text
        assert "\\ud83d" in answer.text


def _wait_for_outcome(simulator: RunningSimulator) -> str:
    wait_until(lambda: simulator.requests()[0]["outcome"], what="an outcome")
    outcome: str = simulator.requests()[0]["outcome"]
    return outcome
