"""
What real clients send, kept small: their fields, headers and shapes, with every text made one of the same length.

`RECORD_CORPUS=1 make clients ALL=1` writes it anew. The Go SDK's requests are written by hand, from what its public
source does, as no Go is needed to test Rensei: https://github.com/anthropics/anthropic-sdk-go
"""

import json
import math
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rensei.simulator.signatures import sign_thinking
from tests.gateway.wire import Passed

FOLDER = Path(__file__).parent / "corpus"
KEPT_HEADERS = ("anthropic-", "content-type")
TEXT_KEPT_CHARACTERS = 24
BYTES_PER_WORD = 5
_WORDS = re.compile(r"<words (\d+)>")


@dataclass(frozen=True, kw_only=True)
class Recorded:
    """A request of a client. `lines` are its headers, of which one name may have several."""

    client: str
    lines: list[tuple[str, str]]
    body: dict[str, Any]

    def header(self, name: str) -> str:
        return ",".join(value for each, value in self.lines if each == name)

    @property
    def betas(self) -> frozenset[str]:
        return frozenset(part.strip() for part in self.header("anthropic-beta").split(",") if part.strip())


def record(client: str, passed: list[Passed]) -> None:
    """Keep what a client has sent, if this run is to write the corpus."""
    if os.environ.get("RECORD_CORPUS") != "1":
        return
    requests = []
    for each in passed:
        lines = [[name, value] for name, value in each.headers.items() if name.startswith(KEPT_HEADERS)]
        request = {"lines": sorted(lines), "body": _without_words(json.loads(each.body), {})}
        if request not in requests:
            requests.append(request)
    FOLDER.mkdir(exist_ok=True)
    (FOLDER / f"{client}.json").write_text(json.dumps(requests, indent=1) + "\n")


def load(*, key_sha256: str) -> list[Recorded]:
    """Read the corpus. Its thinking is signed as the simulator signs it for this key."""
    found = []
    for path in sorted(FOLDER.glob("*.json")):
        for request in json.loads(path.read_text()):
            lines = [(name, value) for name, value in request["lines"]]
            body = _with_words(request["body"], key_sha256=key_sha256)
            found.append(Recorded(client=path.stem, lines=lines, body=body))
    return found


def _without_words(value: Any, ids: dict[str, str], *, name: str = "") -> Any:
    """Leave the shape of a request, and nothing of what it says."""
    if isinstance(value, dict):
        if name == "input_schema":
            return {"type": "object", "description": _words(json.dumps(value))}
        return {key: _without_words(part, ids, name=key) for key, part in value.items()}
    if isinstance(value, list):
        return [_without_words(part, ids, name=name) for part in value]
    if not isinstance(value, str):
        return value
    match name:
        case "signature":
            return "<signature>"
        case "user_id":
            return "<user>"
        case "id" | "tool_use_id" | "previous_message_id":
            return ids.setdefault(value, f"{value.partition('_')[0]}_{len(ids) + 1}")
        case "data" | "type" | "role" | "model" | "name" | "media_type":
            return value
    return value if len(value) <= TEXT_KEPT_CHARACTERS else _words(value)


def _words(text: str) -> str:
    return f"<words {math.ceil(len(text) / BYTES_PER_WORD)}>"


def _with_words(value: Any, *, key_sha256: str) -> Any:
    if isinstance(value, dict):
        whole = {key: _with_words(part, key_sha256=key_sha256) for key, part in value.items()}
        if whole.get("signature") == "<signature>":
            whole["signature"] = sign_thinking(whole["thinking"], key_sha256=key_sha256)
        return whole
    if isinstance(value, list):
        return [_with_words(part, key_sha256=key_sha256) for part in value]
    if isinstance(value, str) and (found := _WORDS.fullmatch(value)):
        return "word " * int(found[1])
    return value
