"""
A wire with a tap between the gateway and its provider: what went over it, byte for byte, in both directions.

It passes everything on to the simulator and changes nothing. Where a test needs a provider that the simulator cannot
be, such as one that sends a hundred megabytes, the prompt asks for it with `[[wire:…]]`.
"""

import hashlib
import http.client
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import urlsplit

FLOOD_MEGABYTES = 60
_MEGABYTE = 1024 * 1024


@dataclass(kw_only=True)
class Passed:
    """One request and its answer. Header names are in lower case."""

    method: str
    target: str
    headers: dict[str, str]
    body: bytes
    status: int = 0
    answer_headers: dict[str, str] = field(default_factory=dict)
    answer: bytearray = field(default_factory=bytearray)
    is_whole: bool = False

    @property
    def answer_sha256(self) -> str:
        return hashlib.sha256(self.answer).hexdigest()


@dataclass(kw_only=True)
class Wire:
    """A running wire. `passed` is what went over it, the oldest first."""

    url: str
    upstream: str
    passed: list[Passed] = field(default_factory=list)

    def messages(self) -> list[Passed]:
        return [each for each in self.passed if each.target.partition("?")[0] == "/v1/messages"]


@dataclass(frozen=True, kw_only=True)
class Hostile:
    """An answer that an attacker's address may give in the provider's place."""

    status: int
    headers: dict[str, str]
    body: bytes = b""
    # Headers that come beside others of the same name.
    repeated: tuple[tuple[str, str], ...] = ()


_ELSEWHERE = {"location": "https://attacker.example/v1/messages", "content-type": "application/json"}
_MESSAGE = (
    b'{"id": "msg_1", "type": "message", "role": "assistant", "model": "claude-opus-5-5", "content": '
    b'[{"type": "text", "text": "Hi."}], "stop_reason": "end_turn", "usage": {"input_tokens": 9, "output_tokens": 2}}'
)
_REPORT = b'"usage": {"input_tokens": 1000, "output_tokens": 90000}}'
_ODD = b'{"type": "message", "model": "claude-opus-5-5", "content": [%s], "stop_reason": "tool_use", ' + _REPORT
_SMUGGLED = {
    "content-type": "application/json",
    "request-id": "req_of_the_provider",
    "anthropic-organization-id": "of-the-provider",
    "set-cookie": "session=stolen",
    "location": "https://attacker.example",
    "refresh": "0; url=https://attacker.example",
    "content-security-policy": "script-src *",
    "access-control-allow-origin": "*",
    "link": "<https://attacker.example>; rel=preload",
    "clear-site-data": '"*"',
    "strict-transport-security": "max-age=0",
    "alt-svc": 'h2="attacker.example:443"',
    "x-rensei-run-id": "run_made_up",
    "x-rensei-auth-mode": "metered",
    "www-authenticate": "Basic",
    "x-made-up": "1",
}
_PAGE = b"<script>fetch('/api/v1/tokens')</script>"
# `[[wire:<word>]]` in a prompt asks for one of them.
HOSTILE = {
    **{
        f"redirect-{status}": Hostile(status=status, headers=_ELSEWHERE)
        for status in (300, 301, 302, 303, 304, 307, 308)
    },
    "page": Hostile(status=200, headers={"content-type": "text/html"}, body=_PAGE),
    "script": Hostile(status=200, headers={"content-type": "text/javascript"}, body=b"alert(1)"),
    **{
        word: Hostile(status=200, headers={"content-type": "application/json"}, body=body)
        for word, body in {
            "deep": _ODD % (b"[" * 1500 + b"]" * 1500),
            "many": _ODD % (b'{"type": "tool_use", "input": [' + b"1," * 300_000 + b"1]}"),
            "digits": _ODD % (b'{"type": "tool_use", "input": ' + b"9" * 5000 + b"}"),
            "large": b'{"type": "message", "model": "claude-opus-5-5", "stop_reason": "end_turn", "content": '
            b'[{"type": "text", "text": "' + b"x" * 5 * _MEGABYTE + b'"}], ' + _REPORT,
            "nothing": b'{"type": "message", "content": ' + b"[" * 3000,
        }.items()
    },
    "nameless": Hostile(status=200, headers={}, body=_MESSAGE),
    "created": Hostile(status=201, headers={"content-type": "application/json"}, body=_MESSAGE),
    "empty": Hostile(status=204, headers={}),
    "page-403": Hostile(status=403, headers={"content-type": "text/html"}, body=_PAGE),
    "page-500": Hostile(status=500, headers={"content-type": "text/html"}, body=_PAGE),
    "page-429": Hostile(status=429, headers={"content-type": "text/html", "retry-after": "7"}, body=_PAGE),
    "sign-in": Hostile(
        status=407, headers={"content-type": "application/json", "proxy-authenticate": "Basic"}, body=b"{}"
    ),
    "two-types": Hostile(
        status=200,
        headers={"content-type": "application/json"},
        body=_MESSAGE,
        repeated=(("content-type", "text/html"),),
    ),
    "two-types-400": Hostile(
        status=400,
        headers={"content-type": "application/json"},
        body=b'{"type": "error", "error": {"type": "invalid_request_error", "message": "No."}}',
        repeated=(("content-type", "text/html"),),
    ),
    "smuggled": Hostile(status=200, headers=_SMUGGLED, body=_MESSAGE),
    "smuggled-400": Hostile(
        status=400,
        headers=_SMUGGLED,
        body=b'{"type": "error", "error": {"type": "invalid_request_error", "message": "No."}}',
    ),
}


@contextmanager
def stretch(upstream: str) -> Iterator[Wire]:
    """Lay a wire to an upstream."""
    wire = Wire(url="", upstream=upstream)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            _pass(self, wire)

        do_GET = do_POST  # noqa: N815 - the base class names it

        def log_message(self, *arguments: Any) -> None:
            """Say nothing."""

    class Server(ThreadingHTTPServer):
        request_queue_size = 256
        daemon_threads = True

        def handle_error(self, request: Any, client_address: Any) -> None:
            """Say nothing: a client that hangs up is part of many tests."""

    server = Server(("127.0.0.1", 0), Handler)
    wire.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield wire
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def _pass(handler: BaseHTTPRequestHandler, wire: Wire) -> None:
    headers = {name.lower(): value for name, value in handler.headers.items()}
    body = handler.rfile.read(int(headers.get("content-length", 0)))
    passed = Passed(method=handler.command, target=handler.path, headers=headers, body=body)
    wire.passed.append(passed)
    if b"[[wire:flood]]" in body:
        _flood(handler, passed)
        return
    for word, answer in HOSTILE.items():
        if b"[[wire:%s]]" % word.encode() in body:
            _answer(handler, passed, answer)
            return
    connection = http.client.HTTPConnection(urlsplit(wire.upstream).netloc, timeout=120)
    try:
        connection.request(handler.command, handler.path, body, headers)
        # Closing the connection leaves the socket open where the answer is to end with it.
        with connection.getresponse() as answer:
            passed.status = answer.status
            passed.answer_headers = {name.lower(): value for name, value in answer.getheaders()}
            handler.send_response_only(answer.status)
            for name, value in answer.getheaders():
                if name.lower() != "transfer-encoding":
                    handler.send_header(name, value)
            chunked = "content-length" not in passed.answer_headers
            if chunked:
                handler.send_header("transfer-encoding", "chunked")
            handler.end_headers()
            while piece := answer.read1(65536):
                passed.answer += piece
                handler.wfile.write(b"%x\r\n%s\r\n" % (len(piece), piece) if chunked else piece)
                handler.wfile.flush()
            if chunked:
                handler.wfile.write(b"0\r\n\r\n")
            passed.is_whole = True
    except (OSError, http.client.HTTPException):
        # What breaks on one side breaks on the other.
        handler.close_connection = True
    finally:
        connection.close()


def _answer(handler: BaseHTTPRequestHandler, passed: Passed, answer: Hostile) -> None:
    passed.status, passed.answer = answer.status, bytearray(answer.body)
    handler.send_response_only(answer.status)
    for name, value in [*answer.headers.items(), *answer.repeated]:
        handler.send_header(name, value)
    handler.send_header("content-length", str(len(answer.body)))
    handler.end_headers()
    handler.wfile.write(answer.body)
    passed.is_whole = True


def _flood(handler: BaseHTTPRequestHandler, passed: Passed) -> None:
    """Send a whole answer in events of a megabyte, as fast as it is taken."""
    passed.status = 200
    handler.send_response_only(200)
    handler.send_header("content-type", "text/event-stream")
    handler.send_header("transfer-encoding", "chunked")
    handler.end_headers()
    usage = '{"input_tokens": 7, "output_tokens": %d}'
    start = '{"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}}'
    events = [
        f'event: message_start\ndata: {{"type": "message_start", "message": {{"usage": {usage % 1}}}}}\n\n',
        f"event: content_block_start\ndata: {start}\n\n",
    ]
    delta = '{"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": "%s"}}'
    events += [f"event: content_block_delta\ndata: {delta % ('x' * _MEGABYTE)}\n\n"] * FLOOD_MEGABYTES
    events += [
        f'event: message_delta\ndata: {{"type": "message_delta", "delta": {{}}, "usage": {usage % 99}}}\n\n',
        'event: message_stop\ndata: {"type": "message_stop"}\n\n',
    ]
    for event in events:
        piece = event.encode()
        handler.wfile.write(b"%x\r\n%s\r\n" % (len(piece), piece))
        passed.answer += b"." if len(piece) > _MEGABYTE else piece
    handler.wfile.write(b"0\r\n\r\n")
    passed.is_whole = True
