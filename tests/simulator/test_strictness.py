"""The simulator refuses what the API refuses: each row of the table in docs/simulator.md, over HTTP."""

import json
from typing import Any

import httpx2
import pytest

from tests.simulator.doc_tables import make_key, merge_patch, read_json, read_table

ROWS = read_table("Call | Headers")
VALID = {"model": "claude-opus-4-8", "max_tokens": 1024, "messages": [{"role": "user", "content": "Hi."}]}


class TestStrictnessTable:
    def test_has_at_least_forty_rows_that_are_refused(self) -> None:
        refused = [row for row in ROWS if row[3] != "200"]

        assert len(refused) >= 40

    @pytest.mark.parametrize("row", ROWS, ids=lambda row: f"{row[0]} {row[1]} {row[2]}"[:120])
    def test_is_what_the_simulator_does(self, http: httpx2.Client, row: list[str]) -> None:
        call, headers_cell, body_cell, status, kind, message = row

        answer = _send(http, call, headers_cell, body_cell)

        assert answer.status_code == int(status), answer.text
        document = answer.json()
        if answer.status_code == 200:
            assert document.get("type", "") == kind
        else:
            assert document["type"] == "error"
            assert document["error"]["type"] == kind
            assert message in document["error"]["message"]
            assert document["request_id"] == answer.headers["request-id"]


def _send(http: httpx2.Client, call: str, headers_cell: str, body_cell: str) -> httpx2.Response:
    method, path = call.split()
    good = {"x-api-key": make_key("api03"), "anthropic-version": "2026-10-21", "content-type": "application/json"}
    headers = merge_patch(good, read_json(headers_cell))
    content = _body(body_cell) if method == "POST" else b""
    return http.request(method, path, headers=headers, content=content)


def _body(cell: str) -> bytes:
    text = cell.strip("`")
    if text == "raw <33 MB>":
        return b" " * (33 * 1024 * 1024)
    if text.startswith("raw "):
        return text.removeprefix("raw ").encode()
    body: Any = merge_patch(VALID, read_json(cell))
    return json.dumps(body).encode()
