"""What goes on verbatim, in both directions, and the few things that do not."""

import base64
import gzip
import hashlib
import http.client
import io
import itertools
import json
import os
import time
import zlib
from functools import partial
from typing import Any

import brotli
import pytest
from PIL import Image

from catalog.models import CatalogEntry
from integrations.providers.anthropic.connection import API_VERSION
from rensei.core.encodings import zstd
from tests.gateway.line import MODEL, STANDARD_HEADERS, as_bytes, message
from tests.gateway.server import Server
from tests.gateway.wire import Wire

pytestmark = pytest.mark.django_db(transaction=True)

COMPRESSORS = {
    "gzip": gzip.compress,
    "deflate": zlib.compress,
    "br": partial(brotli.compress, quality=1),
    "zstd": zstd.compress,
}
TOOLS = [
    {
        "name": "get_weather",
        "input_schema": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    }
]
BODIES: dict[str, dict[str, Any]] = {
    "text": message("[[reply 200 words]] – with an umlaut: ü, and a 😀"),
    "tools": message("[[use get_weather]]", tools=TOOLS),
    "thinking": message(thinking={"type": "adaptive", "display": "summarized"}, output_config={"effort": "high"}),
    "unknown-events": message("[[fault:unknownevents]] Hello."),
    "odd-text": message("[[fault:odd-text]] Hello."),
    "refusal": message("[[stop refusal]] Hello."),
}


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


class TestTheAnswer:
    @pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
    @pytest.mark.parametrize("kind", BODIES)
    def test_is_the_providers_byte_for_byte(self, ask: Any, wire: Wire, byok: Any, kind: str, stream: bool) -> None:
        answer = ask({**BODIES[kind], "stream": stream})

        (passed,) = wire.messages()
        assert answer.status == 200
        assert sha256(answer.body) == passed.answer_sha256
        assert (b"event: ping" in answer.body) == stream

    @pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
    def test_to_an_image_of_ten_megabytes_is_the_providers_byte_for_byte(
        self, ask: Any, wire: Wire, byok: Any, stream: bool
    ) -> None:
        picture = io.BytesIO()
        Image.new("RGB", (64, 48), "teal").save(picture, "PNG")
        # Bytes after the end of a PNG belong to no chunk, so the picture stays what it is.
        image = picture.getvalue() + os.urandom(7_400_000)
        source = {"type": "base64", "media_type": "image/png", "data": base64.b64encode(image).decode()}
        content = [{"type": "image", "source": source}, {"type": "text", "text": "What is it?"}]
        body = as_bytes({**message(), "messages": [{"role": "user", "content": content}], "stream": stream})
        assert body is not None

        answer = ask(body)

        (passed,) = wire.messages()
        assert answer.status == 200, answer.body[:300]
        assert sha256(passed.body) == sha256(body)
        assert sha256(answer.body) == passed.answer_sha256
        if not stream:
            assert sha256(image) in answer.json()["content"][-1]["text"]

    def test_has_the_providers_own_headers_and_ours(self, ask: Any, wire: Wire, byok: Any) -> None:
        answer = ask(message())

        (passed,) = wire.messages()
        assert {"x-rensei-run-id", "x-rensei-auth-mode"} <= answer.headers.keys()
        for name, value in passed.answer_headers.items():
            if name not in {"date", "server", "connection", "transfer-encoding"}:
                assert answer.headers.get(name) == value, name

    def test_tells_nothing_of_the_platforms_account_nor_what_is_left_of_its_limits(
        self, ask: Any, wire: Wire, metered: Any
    ) -> None:
        answer = ask(message())

        given = wire.messages()[0].answer_headers
        assert {"anthropic-organization-id", "anthropic-ratelimit-requests-remaining"} <= given.keys()
        assert not [name for name in answer.headers if name.startswith("anthropic-")]

    def test_of_a_stream_comes_as_it_is_made(self, server: Any, token: str, byok: Any) -> None:
        connection = http.client.HTTPConnection(server.url.removeprefix("http://"), timeout=60)
        body = as_bytes(message("[[reply 12 words]] [[slow 0.5]]", stream=True))
        connection.request("POST", "/v1/messages", body, {"x-api-key": token, **STANDARD_HEADERS})
        answer = connection.getresponse()
        arrived = []
        while answer.read1(65536):
            arrived.append(time.monotonic())
        connection.close()

        assert len([None for a, b in itertools.pairwise(arrived) if b - a > 0.3]) >= 3


class TestTheRequest:
    def test_is_the_callers_byte_for_byte(self, ask: Any, wire: Wire, byok: Any) -> None:
        body = (
            b'  {"max_tokens" : 500,"model":"%s", \n"metadata":{"user_id":"\\u00fc"},'
            b'"messages":[{"role":"user","content":"[[echo 1.0]] caf\xc3\xa9 \\/"}], "stop_sequences": [ ] }\n'
        ) % MODEL.encode()

        assert ask(body).status == 200

        assert wire.messages()[0].body == body

    def test_for_a_profile_differs_in_the_models_name_alone(self, ask: Any, wire: Wire, byok: Any) -> None:
        body = b'{ "model" :  "prof_deep" , "max_tokens":500,"messages":[{"role":"user","content":"Hi."}]}'

        assert ask(body).status == 200

        assert wire.messages()[0].body == body.replace(b"prof_deep", MODEL.encode())

    def test_for_a_retired_model_names_the_one_that_serves_it(self, ask: Any, wire: Wire, byok: Any) -> None:
        old = CatalogEntry.objects.get(model_id="claude-opus-4-20250514")

        assert ask({**message(), "model": old.model_id}).status == 200

        assert wire.messages()[0].body == as_bytes({**message(), "model": old.replaced_by})

    def test_gets_the_effort_of_the_profile_where_it_names_none(
        self, ask: Any, wire: Wire, byok: Any, make_profile: Any
    ) -> None:
        make_profile(name="thinker", effort="low")

        assert ask({**message(), "model": "prof_thinker"}).status == 200

        assert sent(wire)["output_config"] == {"effort": "low"}

    def test_keeps_its_own_effort(self, ask: Any, wire: Wire, byok: Any, make_profile: Any) -> None:
        make_profile(name="thinker", effort="low")
        body = message(output_config={"effort": "high"})

        assert ask({**body, "model": "prof_thinker"}).status == 200

        assert wire.messages()[0].body == as_bytes({**body, "model": MODEL})

    def test_gets_breakpoints_for_caching_where_it_sets_none(
        self, ask: Any, wire: Wire, byok: Any, make_profile: Any
    ) -> None:
        make_profile(name="cached", prompt_caching="static")

        ask({**message(), "model": "prof_cached", "system": "word " * 8000})

        assert b"cache_control" in wire.messages()[0].body

    def test_keeps_its_own_breakpoints(self, ask: Any, wire: Wire, byok: Any, make_profile: Any) -> None:
        make_profile(name="cached", prompt_caching="static")
        content = [{"type": "text", "text": "word " * 8000, "cache_control": {"type": "ephemeral", "ttl": "1h"}}]
        body = {**message(), "messages": [{"role": "user", "content": content}]}

        ask({**body, "model": "prof_cached"})

        assert wire.messages()[0].body == as_bytes({**body, "model": MODEL})

    def test_has_at_most_the_pools_max_tokens(self, ask: Any, wire: Wire, shared: Any) -> None:
        ask(message(max_tokens=64_000))

        assert sent(wire)["max_tokens"] == 2000

    def test_may_name_each_beta_on_a_line_of_its_own(self, server: Server, wire: Wire, byok: Any, token: str) -> None:
        betas = ["context-1m-2025-08-07", "interleaved-thinking-2025-05-14", "", "effort-2025-11-24"]
        body = as_bytes(message())
        assert body is not None
        connection = http.client.HTTPConnection(server.url.removeprefix("http://"), timeout=60)
        connection.putrequest("POST", "/v1/messages")
        lines = [*STANDARD_HEADERS.items(), ("x-api-key", token), *(("anthropic-beta", beta) for beta in betas)]
        for name, value in [*lines, ("content-length", str(len(body)))]:
            connection.putheader(name, value)
        connection.endheaders(body)
        assert connection.getresponse().status == 200
        connection.close()

        assert wire.messages()[0].headers["anthropic-beta"] == ", ".join(filter(None, betas))

    def test_carries_the_callers_dialect_and_none_of_its_secrets(
        self, ask: Any, wire: Wire, byok: Any, token: str
    ) -> None:
        answer = ask(
            message(),
            authorization=f"Bearer {token}",
            cookie=f"sessionid={token}",
            anthropic_beta="context-1m-2025-08-07",
            anthropic_made_up="kept",
            anthropic_workspace_id="wrkspc_of_somebody",
            user_agent="program/1.0",
            x_forwarded_for="10.9.8.7",
            x_stainless_lang="python",
        )

        (passed,) = wire.messages()
        assert answer.status == 200
        assert token not in str(passed.headers) + passed.body.decode()
        assert passed.headers["anthropic-beta"] == "context-1m-2025-08-07"
        assert passed.headers["anthropic-made-up"] == "kept"
        assert passed.headers["anthropic-version"] == "2023-06-01"
        assert passed.headers["user-agent"] == "program/1.0"
        assert not passed.headers.keys() & {
            "anthropic-workspace-id",
            "cookie",
            "x-api-key",
            "x-forwarded-for",
            "x-stainless-lang",
        }

    def test_without_a_version_has_the_current_one(self, server: Any, token: str, wire: Wire, byok: Any) -> None:
        connection = http.client.HTTPConnection(server.url.removeprefix("http://"), timeout=60)
        connection.request("POST", "/v1/messages", as_bytes(message()), {"x-api-key": token})
        answer = connection.getresponse()
        answer.read()
        connection.close()

        assert answer.status == 200
        assert wire.messages()[0].headers["anthropic-version"] == API_VERSION

    @pytest.mark.parametrize(("encoding", "compress"), COMPRESSORS.items(), ids=COMPRESSORS)
    def test_that_is_compressed_goes_on_as_it_was_before(
        self, ask: Any, wire: Wire, byok: Any, encoding: str, compress: Any
    ) -> None:
        body = as_bytes(message("[[reply 6 words]] caf\u00e9 " * 500))

        answer = ask(compress(body), content_encoding=encoding)

        assert answer.status == 200, answer.body
        assert wire.messages()[0].body == body
        assert "content-encoding" not in wire.messages()[0].headers

    @pytest.mark.parametrize("encoding", ["", " ", "identity", " Identity "])
    def test_that_names_no_coding_is_read_as_it_is(self, ask: Any, wire: Wire, byok: Any, encoding: str) -> None:
        answer = ask(message(), content_encoding=encoding)

        assert answer.status == 200, answer.body

    @pytest.mark.parametrize("encoding", ["compress", "gzip, br", "made-up"])
    def test_in_a_coding_that_is_not_read_is_refused_with_its_name(
        self, ask: Any, wire: Wire, byok: Any, encoding: str
    ) -> None:
        answer = ask(message(), content_encoding=encoding)

        assert (answer.status, answer.code) == (415, "UNSUPPORTED_MEDIA_TYPE")
        assert f"'{encoding}'" in answer.json()["error"]["message"]
        assert wire.messages() == []

    @pytest.mark.parametrize(("encoding", "compress"), COMPRESSORS.items(), ids=COMPRESSORS)
    def test_that_swells_beyond_the_limit_is_refused_and_fills_no_memory(
        self, ask: Any, server: Any, wire: Wire, byok: Any, encoding: str, compress: Any
    ) -> None:
        # A megabyte at most, which stands for three hundred.
        bomb = compress(bytes(300_000_000))
        ask(message())
        before = server.memory()

        answers = [ask(bomb, content_encoding=encoding) for _ in range(3)]

        assert {(answer.status, answer.code) for answer in answers} == {(413, "REQUEST_TOO_LARGE")}
        assert server.memory() - before < 200 * 1024 * 1024
        assert len(wire.messages()) == 1

    @pytest.mark.parametrize(("encoding", "compress"), COMPRESSORS.items(), ids=COMPRESSORS)
    def test_that_is_damaged_is_refused(self, ask: Any, wire: Wire, byok: Any, encoding: str, compress: Any) -> None:
        answer = ask(compress(as_bytes(message()))[:-9], content_encoding=encoding)

        assert (answer.status, answer.code) == (400, "VALIDATION_FAILED")
        assert wire.messages() == []

    def test_keeps_its_query(self, ask: Any, wire: Wire, byok: Any) -> None:
        assert ask(message(), path="/v1/messages?beta=true").status == 200

        assert wire.messages()[0].target == "/v1/messages?beta=true"


def sent(wire: Wire) -> Any:
    return json.loads(wire.messages()[-1].body)
