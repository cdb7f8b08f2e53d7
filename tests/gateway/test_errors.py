"""What is refused, and how: the provider's refusals as they are, ours in the shape that its clients know."""

import time
from typing import Any

import anthropic
import pytest

from billing.models import CostEvent
from profiles import services as profiles
from rensei.dispatch.models import Run
from rensei.orgs.models import User
from tests.gateway.line import MODEL, exchange, message, settled
from tests.gateway.wire import Wire

pytestmark = pytest.mark.django_db(transaction=True)

HELLO: list[Any] = [{"role": "user", "content": "Hello."}]
DEEP = b'{"model": "%s", "max_tokens": 10, "messages": %s1%s}' % (MODEL.encode(), b"[" * 100_000, b"]" * 100_000)


class TestTheProvidersErrors:
    @pytest.mark.parametrize(
        ("fault", "raised"),
        [
            ("403", anthropic.PermissionDeniedError),
            ("404", anthropic.NotFoundError),
            ("409", anthropic.ConflictError),
            ("413", anthropic.APIStatusError),
            ("422", anthropic.UnprocessableEntityError),
            ("429", anthropic.RateLimitError),
            ("500", anthropic.InternalServerError),
            ("529", anthropic.InternalServerError),
        ],
    )
    @pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
    def test_are_raised_as_by_the_provider_itself(
        self, client: anthropic.Anthropic, byok: Any, wire: Wire, fault: str, raised: type[Exception], stream: bool
    ) -> None:
        question: Any = [{"role": "user", "content": f"[[fault:{fault}]]"}]

        with pytest.raises(raised) as caught:
            client.messages.create(model=MODEL, max_tokens=100, messages=question, stream=stream)

        error = caught.value
        (passed,) = wire.messages()
        assert isinstance(error, anthropic.APIStatusError)
        assert error.status_code == int(fault) == passed.status
        assert error.response.content == bytes(passed.answer)
        assert error.response.headers["x-rensei-run-id"] == Run.objects.get().id

    def test_keep_their_retry_after(self, ask: Any, byok: Any) -> None:
        answer = ask(message("[[fault:ratelimited retry-after=17]]"))

        assert (answer.status, answer.headers["retry-after"]) == (429, "17")

    def test_of_an_own_key_never_look_like_a_refused_token(
        self, ask: Any, connect: Any, make_profile: Any, wire: Wire
    ) -> None:
        connect("revoked")
        make_profile(is_default=True)

        answer = ask(message())
        counted = ask({name: message()[name] for name in ("model", "messages")}, path="/v1/messages/count_tokens")

        assert [passed.status for passed in wire.passed] == [401, 401]
        for each in (answer, counted):
            assert (each.status, each.code) == (403, "PROVIDER_AUTH_FAILED")
            assert each.json()["error"]["type"] == "permission_error"
            assert each.headers["x-should-retry"] == "false"
            assert "Make a new key" in each.json()["error"]["message"]

    def test_for_a_request_that_it_does_not_take_are_passed_on(self, ask: Any, byok: Any, simulator: Any) -> None:
        answer = ask(message(temperature=7))
        simulator.reset()

        assert answer.status == 400
        assert answer.json()["error"]["type"] == "invalid_request_error"
        assert "code" not in answer.json()["error"]

    def test_are_runs_that_failed(self, ask: Any, byok: Any) -> None:
        answer = ask(message("[[fault:529]]"))

        settled()
        run = Run.objects.get(id=answer.headers["x-rensei-run-id"])
        assert (run.state, (run.error or {})["code"]) == (Run.State.FAILED, "PROVIDER_OVERLOADED")

    def test_in_a_stream_are_its_last_event(self, ask: Any, byok: Any, wire: Wire) -> None:
        answer = ask(message("[[fault:stream-error]] [[reply 60 words]]", stream=True))

        assert answer.body == bytes(wire.messages()[0].answer)
        assert answer.body.rstrip().rpartition(b"\n\n")[2].startswith(b"event: error")
        settled()
        assert Run.objects.get().state == Run.State.FAILED

    @pytest.mark.parametrize("fault", ["truncate", "cut"])
    def test_that_break_a_stream_off_are_told_of_by_an_event(self, ask: Any, byok: Any, fault: str) -> None:
        answer = ask(message(f"[[fault:{fault}]] [[reply 60 words]]", stream=True))

        settled()
        last = answer.body.rstrip().rpartition(b"\n\n")[2]
        assert last.startswith(b"event: error")
        assert b"PROVIDER_STREAM_BROKEN" in last
        assert CostEvent.objects.get().estimated

    def test_of_a_provider_that_hangs_up_are_ours(self, ask: Any, byok: Any) -> None:
        answer = ask(message("[[fault:reset]]"))

        assert (answer.status, answer.code) == (502, "PROVIDER_STREAM_BROKEN")
        assert answer.headers["x-should-retry"] == "false"


class TestOurRefusals:
    def test_are_raised_as_permission_denied(
        self, server: Any, otto: User, access_of: Any, make_token: Any, sdk: Any
    ) -> None:
        client = sdk(base_url=server.url, api_key=make_token(access_of(otto)), max_retries=0)

        with pytest.raises(anthropic.PermissionDeniedError) as caught:
            client.messages.create(model=MODEL, max_tokens=100, messages=HELLO)

        assert caught.value.body["error"]["code"] == "NOT_PERMITTED"  # type: ignore[index]

    @pytest.mark.parametrize("header", [{"api_key": "rsk_live_nobody"}, {"auth_token": "rsk_live_nobody"}], ids=str)
    def test_are_raised_as_not_authenticated(
        self, server: Any, byok: Any, wire: Wire, header: dict[str, str], sdk: Any
    ) -> None:
        client = sdk(**{"base_url": server.url, "max_retries": 0, **header})

        with pytest.raises(anthropic.AuthenticationError):
            client.messages.create(model=MODEL, max_tokens=100, messages=HELLO)

        assert wire.messages() == []

    @pytest.mark.parametrize(
        "headers",
        [{}, {"x-api-key": ""}, {"authorization": "Bearer"}, {"authorization": "Basic cnNrX2xpdmU="}],
        ids=str,
    )
    def test_meet_who_shows_no_token(self, server: Any, byok: Any, headers: dict[str, str]) -> None:
        answer = exchange(server, message(), path="/v1/messages", method="POST", headers=headers)

        assert (answer.status, answer.code) == (401, "NOT_AUTHENTICATED")
        assert answer.json()["error"]["type"] == "authentication_error"
        assert answer.headers["x-should-retry"] == "false"

    def test_let_the_token_be_beside_somebody_elses_key(
        self, ask: Any, byok: Any, token: str, make_key: Any, wire: Wire
    ) -> None:
        other = make_key()

        assert ask(message(), x_api_key=other, authorization=f"Bearer {token}").status == 200
        assert ask(message(), authorization=f"Bearer {other}").status == 200
        assert other not in str([passed.headers for passed in wire.messages()])

    def test_of_a_mode_are_raised_as_permission_denied(self, client: anthropic.Anthropic, make_profile: Any) -> None:
        make_profile(is_default=True)

        with pytest.raises(anthropic.PermissionDeniedError) as caught:
            client.messages.create(model=MODEL, max_tokens=100, messages=HELLO)

        assert caught.value.body["error"]["code"] == "BYOK_NOT_CONFIGURED"  # type: ignore[index]
        assert caught.value.response.headers["x-should-retry"] == "false"

    def test_are_raised_as_not_found(self, client: anthropic.Anthropic, byok: Any) -> None:
        with pytest.raises(anthropic.NotFoundError):
            client.messages.create(model="prof_nothing", max_tokens=100, messages=HELLO)

    def test_are_raised_as_too_large(self, ask: Any, byok: Any, wire: Wire) -> None:
        answer = ask(b'{"model": "' + b"x" * (33 * 1024 * 1024) + b'"}')

        assert (answer.status, answer.json()["error"]["type"]) == (413, "request_too_large")
        assert wire.messages() == []

    @pytest.mark.parametrize(("to", "status"), [("/v1/messages", 401), ("/v1/files", 404)])
    def test_reach_who_is_still_sending_a_large_body(self, ask: Any, byok: Any, to: str, status: int) -> None:
        answer = ask(b"x" * (10 * 1024 * 1024), path=to, x_api_key="rsk_live_nobody")

        assert answer.status == status

    def test_that_a_retry_would_meet_again_are_not_retried(
        self, server: Any, token: str, make_profile: Any, sdk: Any
    ) -> None:
        make_profile(is_default=True)
        client = sdk(base_url=server.url, api_key=token, max_retries=3)

        began = time.monotonic()
        with pytest.raises(anthropic.PermissionDeniedError) as caught:
            client.messages.create(model=MODEL, max_tokens=100, messages=HELLO)

        assert caught.value.response.request.headers["x-stainless-retry-count"] == "0"
        assert time.monotonic() - began < 10

    def test_meet_who_runs_on_a_machine_of_its_own(self, ask: Any, make_profile: Any, wire: Wire) -> None:
        make_profile(auth_modes=["host-session"], is_default=True)

        answer = ask(message())

        assert (answer.status, answer.code) == (403, "HOST_SESSION_WRONG_MACHINE")
        assert "hostId" not in answer.json()["error"]["message"]
        assert answer.headers["x-should-retry"] == "false"
        assert wire.messages() == []

    def test_meet_a_model_without_any_profile(self, ask: Any, connect: Any) -> None:
        connect()

        answer = ask(message())

        assert (answer.status, answer.code) == (403, "PROFILE_REQUIRED")
        assert "profileId" not in answer.json()["error"]["message"]

    def test_meet_an_unknown_model(self, ask: Any, byok: Any) -> None:
        answer = ask({**message(), "model": "gpt-9"})

        assert (answer.status, answer.code) == (404, "MODEL_NOT_IN_CATALOG")
        assert answer.json()["error"]["type"] == "not_found_error"

    def test_meet_the_profile_of_another_organization(self, ask: Any, byok: Any, eve: User, access_of: Any) -> None:
        profiles.create_profile(
            access_of(eve, "evil"), name="hidden", provider="claude", model_id=MODEL, auth_modes=["byok"]
        )

        assert ask({**message(), "model": "prof_hidden"}).status == 404


class TestABodyThatIsNoRequest:
    @pytest.mark.parametrize(
        "body",
        {
            "empty": b"",
            "text": b"hello",
            "cut": b'{"model": "claude-opus-5-5", "max_',
            "array": b"[1, 2]",
            "string": b'"x"',
            "null": b"null",
            "two": b'{"model": "a"} {"model": "b"}',
            "duplicate": b'{"model": "claude-opus-5-5", "model": "claude-sonnet-5-5", "max_tokens": 1, "messages": []}',
            "latin": '{"model": "é"}'.encode("latin-1"),
            "utf-16": '{"model": "x"}'.encode("utf-16"),
            "bom": b'\xef\xbb\xbf{"model": "x"}',
            "surrogate": b'{"model": "\\ud800", "max_tokens": 1, "messages": []}',
            "nul": b'{"model": "\\u0000", "max_tokens": 1, "messages": []}',
            "long-name": b'{"model": "%s", "max_tokens": 1, "messages": []}' % (b"x" * 1_000_000),
            "no-model": b'{"max_tokens": 1, "messages": []}',
            "model-number": b'{"model": 5, "max_tokens": 1, "messages": []}',
            "no-max-tokens": b'{"model": "claude-opus-5-5", "messages": []}',
            "max-tokens-text": b'{"model": "claude-opus-5-5", "max_tokens": "1", "messages": []}',
            "max-tokens-zero": b'{"model": "claude-opus-5-5", "max_tokens": 0, "messages": []}',
            "max-tokens-bool": b'{"model": "claude-opus-5-5", "max_tokens": true, "messages": []}',
            "max-tokens-huge": b'{"model": "claude-opus-5-5", "max_tokens": %s, "messages": []}' % (b"9" * 5000),
            "nan": b'{"model": "claude-opus-5-5", "max_tokens": NaN, "messages": []}',
            "nan-elsewhere": b'{"model": "claude-opus-5-5", "max_tokens": 9, "temperature": NaN, "messages": []}',
            "infinite": b'{"model": "claude-opus-5-5", "max_tokens": 1e999, "messages": []}',
            "deep": DEEP,
            "messages-number": b'{"model": "claude-opus-5-5", "max_tokens": 9, "messages": 7}',
            "messages-of-numbers": b'{"model": "claude-opus-5-5", "max_tokens": 9, "messages": [1, null]}',
            "tools-number": b'{"model": "claude-opus-5-5", "max_tokens": 9, "tools": 7, "messages": [{}]}',
            "half-character": b'{"model": "claude-opus-5-5", "max_tokens": 9, "messages": [{"role": "user", '
            b'"content": "\\ud83d"}]}',
        }.items(),
        ids=lambda pair: pair[0],
    )
    @pytest.mark.parametrize("path", ["/v1/messages", "/v1/messages/count_tokens"])
    def test_is_refused_in_anthropics_shape(
        self, ask: Any, metered: Any, simulator: Any, server: Any, body: tuple[str, bytes], path: str
    ) -> None:
        said = len(server.log())

        answer = ask(body[1], path=path)
        simulator.reset()

        if path.endswith("count_tokens") and "max-tokens" in body[0]:
            # It is not asked for there.
            assert answer.status in {200, 400}
            return
        assert 400 <= answer.status < 500, answer.body
        assert answer.json()["type"] == "error"
        assert answer.json()["error"]["type"]
        assert "Traceback" not in server.log()[said:]


class TestAnAddressThatIsNotThere:
    @pytest.mark.parametrize(
        ("method", "path", "status"),
        [
            ("GET", "/v1/messages", 405),
            ("OPTIONS", "/v1/messages", 405),
            ("DELETE", "/v1/models", 405),
            ("POST", "/v1/models", 405),
            ("PUT", "/v1/messages/count_tokens", 405),
            ("POST", "/v1/messages/batches", 404),
            ("GET", "/v1/files", 404),
            ("POST", "/v1/complete", 404),
            ("GET", "/v1/", 404),
            ("GET", "/v1/messages/../models/x", 404),
            ("GET", "/v1/models/claude%2Fopus", 404),
            ("GET", "/v1/models?limit=0", 400),
            ("GET", "/v1/models?limit=1001", 400),
            ("GET", "/v1/models?limit=x", 400),
            ("GET", f"/v1/models?limit={'9' * 5000}", 400),
            ("GET", "/v1/models?after_id=nothing", 400),
            ("GET", "/v1/models?after_id=claude-opus-5-5&before_id=claude-opus-5-5", 400),
            ("GET", "/v1/models/%00", 404),
        ],
    )
    def test_is_refused_in_anthropics_shape(
        self, ask: Any, byok: Any, server: Any, method: str, path: str, status: int
    ) -> None:
        said = len(server.log())

        answer = ask(path=path, method=method)

        assert answer.status == status, answer.body
        assert answer.json()["type"] == "error"
        assert answer.json()["request_id"] == answer.headers["request-id"]
        assert answer.headers["x-should-retry"] == "false"
        assert "Traceback" not in server.log()[said:]

    def test_is_refused_without_a_body_to_a_probe(self, ask: Any, byok: Any) -> None:
        for path in ("/v1/messages", "/v1/models", "/v1/nothing", "/"):
            answer = ask(path=path, method="HEAD")

            assert answer.status < 500
            assert answer.body == b""
