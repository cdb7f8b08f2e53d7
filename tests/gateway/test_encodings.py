"""Answers that come compressed although none was asked for: the bytes pass, and the meter reads them."""

import json
import zlib
from collections.abc import Callable
from typing import Any

import brotli
import pytest

from billing.models import CostEvent
from rensei.dispatch.models import Run
from tests.gateway.line import message, settled
from tests.gateway.wire import Wire

try:
    from compression import zstd
except ImportError:
    from backports import zstd

pytestmark = pytest.mark.django_db(transaction=True)

DECODE: dict[str, Callable[[bytes], bytes]] = {
    "gzip": lambda data: zlib.decompress(data, wbits=31),
    "deflate": zlib.decompress,
    "br": brotli.decompress,
    "zstd": zstd.decompress,
}


class TestACompressedAnswer:
    @pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
    @pytest.mark.parametrize("encoding", DECODE)
    def test_passes_as_it_came_and_is_counted(
        self, ask: Any, wire: Wire, byok: Any, simulator: Any, encoding: str, stream: bool
    ) -> None:
        answer = ask(message(f"[[reply 200 words]] [[encode {encoding}]]", stream=stream))

        settled()
        assert answer.status == 200
        assert answer.headers["content-encoding"] == encoding
        assert answer.body == bytes(wire.messages()[0].answer)
        assert b'"type": "message' in DECODE[encoding](answer.body)
        line = CostEvent.objects.get()
        assert Run.objects.get().state == Run.State.SUCCEEDED
        assert line.output_tokens == simulator.requests()[-1]["usage"]["output_tokens"] >= 200
        assert not line.estimated

    @pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
    def test_that_cannot_be_read_is_told_before_the_first_byte(self, ask: Any, byok: Any, stream: bool) -> None:
        answer = ask(message("[[encode squeeze]]", stream=stream))

        settled()
        error = answer.json()["error"]
        assert answer.status == 502
        assert answer.headers["x-should-retry"] == "false"
        assert error["code"] == "PROVIDER_UNAVAILABLE"
        assert "compressed" in error["message"]
        assert Run.objects.get().state == Run.State.FAILED
        # The provider may have made an answer all the same.
        assert CostEvent.objects.get().estimated

    @pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
    def test_that_would_grow_without_end_is_not_read(self, ask: Any, byok: Any, stream: bool) -> None:
        ask(message("[[fault:gzipbomb mb=80]]", stream=stream))

        settled()
        assert Run.objects.get().error["code"] == "PROVIDER_STREAM_BROKEN"

    def test_of_an_error_is_understood(self, ask: Any, byok: Any, make_key: Any) -> None:
        answer = ask(message("[[fault:nocredit]] [[encode gzip]]"))

        settled()
        assert json.loads(DECODE["gzip"](answer.body))["error"]["type"] == "invalid_request_error"
        assert Run.objects.get().error["code"] == "PROVIDER_UNFUNDED"


class TestAStream:
    @pytest.mark.parametrize(
        "directive", ["lines cr", "lines crlf", "lines open", 'delta {"usage": {"output_tokens": 0}}']
    )
    def test_is_counted_whole_however_it_is_written(
        self, ask: Any, byok: Any, wire: Wire, simulator: Any, directive: str
    ) -> None:
        answer = ask(message(f"[[reply 200 words]] [[{directive}]]", stream=True))

        settled()
        assert answer.body == bytes(wire.messages()[0].answer)
        line = CostEvent.objects.get()
        assert line.output_tokens >= 200
        assert not line.estimated
        run = Run.objects.get()
        assert (run.state, run.stop_reason) == (Run.State.SUCCEEDED, "end_turn")
