"""
What runs inside a sandbox: it makes the one call of a run, and reports the answer as lines of JSON.

It is copied into the sandbox, so it uses only the standard library, of Python 3.9 or later. Beside it are the request
and the socket of the relay; in a cloud, the address of the gateway, and the token is added on the way unless it is a
file here. A line is {"text": …} for each piece, and at the end {"message": {…}} or {"error": {…}}.
"""

import http.client
import json
import socket
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

HERE = Path(__file__).parent
HEADERS = {"content-type": "application/json", "anthropic-version": "2023-06-01"}
TRIES = 3
OK, TOO_OFTEN, SERVER_ERRORS = 200, 429, 500
RETRY_SECONDS, RETRY_SECONDS_MAX = 1.0, 30.0
REACH_SECONDS = 60.0
# The gateway sends something at least as often as the provider does, and ends a call at its run's deadline.
SILENT_SECONDS = 600.0


class Relay(http.client.HTTPConnection):
    """A connection to the relay. There is no other network here."""

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.connect(str(HERE / "relay.sock"))


class NoGateway(Exception):
    """The gateway cannot be reached."""


def connection() -> "tuple[http.client.HTTPConnection, str]":
    """Open a connection to the relay or the gateway, and return it with the path of its address."""
    gateway = HERE / "gateway"
    if not gateway.exists():
        return Relay("localhost"), ""
    address = urlsplit(gateway.read_text())
    until = time.monotonic() + REACH_SECONDS
    while True:
        link = http.client.HTTPSConnection(address.hostname or "", timeout=SILENT_SECONDS)
        try:
            link.connect()
        except OSError as fault:
            if time.monotonic() >= until:
                raise NoGateway from fault
            time.sleep(RETRY_SECONDS)
        else:
            return link, address.path


def main() -> None:
    request = (HERE / "request.json").read_bytes()
    try:
        call(request)
    except NoGateway:
        report(error={"code": "NO_GATEWAY"})
    except (OSError, ValueError, http.client.HTTPException) as fault:
        report(error={"message": f"The answer broke off: {type(fault).__name__}."})


def call(request: bytes) -> None:
    """Make the call, and repeat it after a passing error."""
    for tried in range(1, TRIES + 1):
        link, path = connection()
        link.request("POST", f"{path}/v1/messages", request, {**HEADERS, **signed()})
        answer = link.getresponse()
        if answer.status == OK:
            follow(answer)
            return
        failed = answer.read()
        if tried == TRIES or not may_repeat(answer):
            report(error=error_of(failed, answer.status))
            return
        # The failed call is settled first.
        asked = float(answer.headers.get("retry-after") or 0)
        time.sleep(min(RETRY_SECONDS_MAX, max(asked, RETRY_SECONDS * tried)))


def signed() -> "dict[str, str]":
    """Return the header with the token, where nothing adds it on the way."""
    token = HERE / "token"
    return {"authorization": f"Bearer {token.read_text()}"} if token.exists() else {}


def follow(answer: http.client.HTTPResponse) -> None:
    """Report the pieces of an answer as they arrive, then the whole message."""
    if not answer.headers.get("content-type", "").startswith("text/event-stream"):
        finish(json.loads(answer.read()))
        return
    message: dict[str, Any] = {}
    partial = ""
    for event in events(answer):
        kind = event.get("type")
        if kind == "message_start":
            message = event["message"]
        elif kind == "content_block_start":
            message["content"].append(event["content_block"])
            partial = ""
        elif kind == "content_block_delta":
            partial += take(message["content"][event["index"]], event["delta"])
        elif kind == "content_block_stop" and partial:
            message["content"][event["index"]]["input"] = json.loads(partial)
        elif kind == "message_delta":
            message.update({name: value for name, value in event["delta"].items() if value is not None})
        elif kind == "message_stop":
            finish(message)
            return
        elif kind == "error":
            report(error=event["error"])
            return
    report(error={"message": "The answer broke off."})


def take(block: dict[str, Any], delta: dict[str, Any]) -> str:
    """Add a piece to its block. A piece of a tool's input is returned, because it is no JSON yet."""
    kind = delta["type"]
    if kind == "text_delta":
        block["text"] += delta["text"]
        report(text=delta["text"])
    elif kind == "thinking_delta":
        block["thinking"] += delta["thinking"]
    elif kind == "signature_delta":
        block["signature"] = delta["signature"]
    elif kind == "citations_delta":
        block["citations"] = [*(block.get("citations") or []), delta["citation"]]
    return str(delta["partial_json"]) if kind == "input_json_delta" else ""


def events(answer: http.client.HTTPResponse) -> Iterator[dict[str, Any]]:
    """Read the server-sent events of an answer."""
    data: list[bytes] = []
    for line in answer:
        line = line.rstrip(b"\r\n")
        if line.startswith(b"data:"):
            data.append(line[5:].strip())
        elif not line and data:
            yield json.loads(b"\n".join(data))
            data = []


def may_repeat(answer: http.client.HTTPResponse) -> bool:
    is_passing = answer.status == TOO_OFTEN or answer.status >= SERVER_ERRORS
    return is_passing and answer.headers.get("x-should-retry") != "false"


def error_of(body: bytes, status: int) -> Any:
    try:
        return json.loads(body)["error"]
    except (ValueError, KeyError, TypeError):
        return {"message": f"The gateway answered with status {status}."}


def finish(message: dict[str, Any]) -> None:
    report(message={"content": message["content"], "stop_reason": message.get("stop_reason")})


def report(**line: Any) -> None:
    sys.stdout.write(json.dumps(line) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
