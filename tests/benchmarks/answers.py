"""What the stand-in upstream answers: valid replies of the Messages API, made once from a seed."""

import json
import random
from dataclasses import dataclass
from typing import Any

MODEL = "claude-sonnet-5-5"
EVENTS_OF_A_STREAM = 60
# Enough that two calls side by side have different tokens, so that a mix-up shows in the ledger.
VARIANTS = 64
# message_start, content_block_start, ping, content_block_stop, message_delta and message_stop are no deltas.
_DELTAS = EVENTS_OF_A_STREAM - 6
_WORDS = ("ledger", "key", "policy", "quota", "answer", "model", "payer", "vault", "stream", "commit", "budget", "mode")
# How the keys begin that the servers call with that Rensei is compared with.
OTHERS_KEY = b"-".join([b"sk-ant-api03", b"other"])
# Stands where each call's own number goes. It has as many digits, so that lengths stay the same.
NUMBER = b"0123456789"


@dataclass(frozen=True, kw_only=True)
class Variant:
    """
    One answer: its tokens, as a whole response, and as the pieces of a streamed one.

    `plain` and `pieces[0]` hold `NUMBER` where the call's own number goes.
    """

    input_tokens: int
    output_tokens: int
    plain: bytes
    pieces: tuple[bytes, ...]


def make_variants(seed: int) -> list[Variant]:
    """Make the answers of a seed."""
    source = random.Random(seed)
    return [_make_variant(source) for _ in range(VARIANTS)]


def make_request(seed: int, *, stream: bool = False, slow: bool = False, model: str = MODEL) -> bytes:
    """Make the body that every contender is sent, about 2 kB as a short turn of a conversation has."""
    source = random.Random(seed)
    body = {
        "model": model,
        "max_tokens": 1024,
        "system": " ".join(source.choice(_WORDS) for _ in range(150)),
        "messages": [
            {"role": "user", "content": " ".join(source.choice(_WORDS) for _ in range(60))},
            {"role": "assistant", "content": " ".join(source.choice(_WORDS) for _ in range(40))},
            {"role": "user", "content": "Go on, slowly." if slow else "Go on."},
        ],
        **({"stream": True} if stream else {}),
    }
    return json.dumps(body).encode()


def models_page() -> bytes:
    data = [{"type": "model", "id": MODEL, "display_name": "Stand-in", "created_at": "2026-01-01T00:00:00Z"}]
    return _response(json.dumps({"data": data, "has_more": False, "first_id": MODEL, "last_id": MODEL}).encode())


def counted_tokens(tokens: int) -> bytes:
    return _response(json.dumps({"input_tokens": tokens}).encode())


def json_response(value: Any) -> bytes:
    return _response(json.dumps(value).encode())


def not_found() -> bytes:
    error = {"type": "error", "error": {"type": "not_found_error", "message": "Not found"}}
    return _response(json.dumps(error).encode(), status=b"404 Not Found")


def _make_variant(source: random.Random) -> Variant:
    input_tokens, output_tokens = source.randrange(400, 600), source.randrange(60, 200)
    words = [f"{source.choice(_WORDS)} " for _ in range(_DELTAS)]
    message = {
        "id": f"msg_bench_{NUMBER.decode()}",
        "type": "message",
        "role": "assistant",
        "model": MODEL,
        "content": [{"type": "text", "text": "".join(words)}],
        "stop_reason": "end_turn",
        "stop_sequence": None,
        "usage": _usage(input_tokens, output_tokens),
    }
    head = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream; charset=utf-8\r\ncache-control: no-cache\r\n"
    head += b"request-id: req_bench_%b\r\ntransfer-encoding: chunked\r\n\r\n" % NUMBER
    events = [_chunk(event) for event in _events(message, words)]
    return Variant(
        input_tokens=input_tokens,
        output_tokens=output_tokens,
        plain=_response(json.dumps(message).encode(), request_id=b"req_bench_%b" % NUMBER),
        pieces=(head + events[0], *events[1:-1], events[-1] + b"0\r\n\r\n"),
    )


def _events(message: dict[str, Any], words: list[str]) -> list[dict[str, Any]]:
    """Source of the events and their order: https://platform.claude.com/docs/en/build-with-claude/streaming"""
    usage = message["usage"]
    start = {**message, "content": [], "stop_reason": None, "usage": {**usage, "output_tokens": 1}}
    block = {"type": "text", "text": ""}
    end = {"stop_reason": "end_turn", "stop_sequence": None}
    return [
        {"type": "message_start", "message": start},
        {"type": "content_block_start", "index": 0, "content_block": block},
        {"type": "ping"},
        *({"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": word}} for word in words),
        {"type": "content_block_stop", "index": 0},
        {"type": "message_delta", "delta": end, "usage": {"output_tokens": usage["output_tokens"]}},
        {"type": "message_stop"},
    ]


def _usage(input_tokens: int, output_tokens: int) -> dict[str, Any]:
    return {
        "input_tokens": input_tokens,
        "output_tokens": output_tokens,
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": 0,
        "cache_creation": {"ephemeral_5m_input_tokens": 0, "ephemeral_1h_input_tokens": 0},
        "service_tier": "standard",
    }


def _chunk(event: dict[str, Any]) -> bytes:
    data = f"event: {event['type']}\ndata: {json.dumps(event)}\n\n".encode()
    return b"%x\r\n%b\r\n" % (len(data), data)


def _response(body: bytes, *, status: bytes = b"200 OK", request_id: bytes = b"req_bench_other") -> bytes:
    head = b"HTTP/1.1 %b\r\ncontent-type: application/json\r\nrequest-id: %b\r\ncontent-length: %d\r\n\r\n"
    return head % (status, request_id, len(body)) + body
