"""Where clients with a wrong base URL call, they learn the right one, in the shape that they read."""

import http.client
from typing import Any

import anthropic
import pytest
from django.urls import Resolver404, resolve

from rensei.gateway.addresses import is_gateways
from tests.gateway.line import MODEL, Answer, exchange, message
from tests.gateway.wire import Wire

pytestmark = pytest.mark.django_db(transaction=True)

ANTHROPICS = [
    "/messages",
    "/messages/count_tokens",
    "/v1/v1/messages",
    "/v1/v1/messages/count_tokens",
    "/api/v1/messages",
    "/api/v1/v1/messages",
    "/anthropic/v1/messages",
    "/v1/complete",
    "/v1/messages/batches",
    "/v1/messages/batches/msgbatch_1/results",
    "/v1/messages/",
    "/v1/nothing",
    "/v1/",
]
OPENAIS = [
    "/chat/completions",
    "/v1/chat/completions",
    "/v1/v1/chat/completions",
    "/openai/v1/chat/completions",
    "/v1/completions",
    "/v1/responses",
    "/responses",
    "/v1/responses/resp_1",
    "/v1/embeddings",
    "/embeddings",
    "/v1/images/generations",
    "/v1/batches",
    "/v1/audio/speech",
]


class TestAnAddressOfAnthropic:
    @pytest.mark.parametrize("path", [path for path in ANTHROPICS if path != "/v1/messages/"])
    def test_says_which_base_url_to_set(self, ask: Any, server: Any, path: str) -> None:
        answer = ask(message(), path=path)

        said = answer.json()
        assert (answer.status, answer.code) == (404, "NOT_FOUND")
        assert (said["type"], said["error"]["type"]) == ("error", "not_found_error")
        assert f"{server.url} to a client that adds /v1/messages" in said["error"]["message"]
        assert f"{server.url}/v1 to one that adds /messages" in said["error"]["message"]
        assert answer.headers["x-should-retry"] == "false"

    def test_needs_no_token(self, server: Any) -> None:
        answer = exchange(server, message(), path="/messages", method="POST", headers={})

        assert answer.status == 404

    def test_is_read_by_the_sdk(self, server: Any, token: str, wire: Wire, sdk: Any) -> None:
        client = sdk(base_url=f"{server.url}/v1", api_key=token)

        with pytest.raises(anthropic.NotFoundError, match="adds /v1/messages"):
            client.messages.create(model=MODEL, max_tokens=9, messages=message()["messages"])

        assert wire.messages() == []


class TestAnAddressOfOpenAi:
    @pytest.mark.parametrize("path", OPENAIS)
    def test_is_answered_in_openais_shape(self, ask: Any, server: Any, path: str) -> None:
        answer = ask({"model": "gpt-9"}, path=path)

        said = answer.json()
        assert answer.status == 404
        assert said.keys() == {"error"}
        assert said["error"].keys() == {"message", "type", "param", "code"}
        assert "speaks Anthropic's Messages API, not OpenAI's" in said["error"]["message"]
        assert server.url in said["error"]["message"]

    @pytest.mark.parametrize("path", ["/v1/files", "/v1/files/file_1/content"])
    def test_that_both_have_is_answered_by_whose_header_it_has(self, ask: Any, server: Any, path: str) -> None:
        connection = http.client.HTTPConnection(server.url.removeprefix("http://"), timeout=60)
        connection.request("GET", path)
        openais = Answer(connection.getresponse())
        connection.close()

        assert ask(path=path, method="GET").json()["type"] == "error"
        assert openais.json().keys() == {"error"}


class TestAHostName:
    @pytest.mark.parametrize(
        "host", ["evil.example", "evil.example:443", "127.0.0.1.evil.example", "a b", "@127.0.0.1"]
    )
    @pytest.mark.parametrize("path", ["/v1/messages", "/v1/models", "/v1/nothing", "/messages"])
    def test_that_is_not_ours_is_refused_before_the_token_is_looked_at(
        self, ask: Any, byok: Any, wire: Wire, path: str, host: str
    ) -> None:
        answer = ask(message(), path=path, host=host)

        assert (answer.status, answer.json()["error"]["type"]) == (400, "invalid_request_error")
        assert "RENSEI_ALLOWED_HOSTS" in answer.json()["error"]["message"]
        assert host not in answer.json()["error"]["message"]
        assert wire.messages() == []

    @pytest.mark.parametrize("host", ["localhost", "LOCALHOST:9", "127.0.0.1:1"])
    def test_that_is_ours_is_answered_to(self, ask: Any, byok: Any, host: str) -> None:
        assert ask(message(), host=host).status == 200


class TestThePagesAndRest:
    def test_have_no_address_that_the_gateway_takes(self) -> None:
        strayed = [path for path in ANTHROPICS + OPENAIS if not path.startswith("/v1/")]

        for path in strayed:
            with pytest.raises(Resolver404):
                resolve(path)

    @pytest.mark.parametrize(
        "path",
        ["/", "/api/v1/runs", "/api/v1/integrations/test", "/o/messages", "/o/acme/catalog/x/messages", "/healthz"],
    )
    def test_stay_where_they_are(self, path: str) -> None:
        assert not is_gateways(path)
