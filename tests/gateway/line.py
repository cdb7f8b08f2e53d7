"""Requests to the gateway as bytes, and answers as they are on the line."""

import http.client
import json
from typing import Any
from urllib.parse import urlsplit

from rensei.dispatch.models import Run
from tests.gateway.server import Server
from tests.waiting import wait_until

MODEL = "claude-opus-5-5"
STANDARD_HEADERS = {"content-type": "application/json", "anthropic-version": "2023-06-01"}


class Answer:
    """An answer, read to its end."""

    def __init__(self, response: http.client.HTTPResponse) -> None:
        self.status = response.status
        self.headers = {name.lower(): value for name, value in response.getheaders()}
        self.body = response.read()

    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def code(self) -> str:
        """Rensei's own code of a refusal."""
        code: str = self.json()["error"]["code"]
        return code


def exchange(server: Server, body: Any, *, path: str, method: str, headers: dict[str, str]) -> Answer:
    """Send a request and read its answer. A body that is not bytes is sent as JSON."""
    connection = http.client.HTTPConnection(urlsplit(server.url).netloc, timeout=60)
    try:
        connection.request(method, path, as_bytes(body), {**STANDARD_HEADERS, **headers})
        with connection.getresponse() as response:
            return Answer(response)
    finally:
        connection.close()


def as_bytes(body: Any) -> bytes | None:
    return body if body is None or isinstance(body, bytes) else json.dumps(body).encode()


def message(text: str = "Hello.", **fields: Any) -> dict[str, Any]:
    """Make the body of a call."""
    return {"model": MODEL, "max_tokens": 1000, "messages": [{"role": "user", "content": text}], **fields}


def settled() -> None:
    """Wait until every call is settled."""
    wait_until(lambda: not Run.objects.exclude(state__in=Run.ENDED).exists(), what="the settlement")


def searched(times: int) -> str:
    """So many searches of the web, each with its result, as the answer shows them."""
    use = json.dumps({"type": "server_tool_use", "id": "srvtoolu_1", "name": "web_search", "input": {}})
    result = json.dumps({"type": "web_search_tool_result", "tool_use_id": "srvtoolu_1", "content": "x" * 300})
    return f"[[block {use}]] [[block {result}]] " * times
