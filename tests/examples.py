"""
`RENSEI_RECORD_EXAMPLES=FILE pytest …` writes down what tests sent and received, and `python -m tests.examples FILE`
chooses from it the examples of the OpenAPI document, one for each operation. Secrets become placeholders.
"""

import json
import os
import re
import sys
from pathlib import Path
from typing import Any

from rensei.core.schema import EXAMPLES_FILE

RECORD = os.environ.get("RENSEI_RECORD_EXAMPLES", "")
LENGTH_MAX = 6000
ROWS_MAX = 1
SECRETS = {
    "apiKey": "your-key-from-the-providers-console",
    "deviceCode": "the-secret-of-the-machine",
    "userCode": "BCDF-GHJK",
    "link": "https://rensei.example/accounts/invitations/…",
    "verificationUriComplete": "https://rensei.example/device?code=BCDF-GHJK",
}
_TOKEN = re.compile(r"rsk_live_[A-Za-z0-9_-]+")
_ADDRESS = re.compile(r"http://(?:testserver|127\.0\.0\.1:\d+)")
# What a test sends to see it refused or read in another way is no example to follow.
_ODD = re.compile(r"invalid|evil|nobody|snake|attack|no-such|toy|canary|\[\[|93\\.184")


def record(operation: str, status: int, sent: Any, received: Any) -> None:
    """Write one exchange into the record."""
    with Path(RECORD).open("a") as lines:
        lines.write(json.dumps({"operation": operation, "status": status, "sent": sent, "received": received}) + "\n")


def choose(lines: list[dict[str, Any]]) -> dict[str, Any]:
    """Choose for each operation the exchange that shows most, by operation id."""
    chosen: dict[str, Any] = {}
    for line in sorted(lines, key=_shows):
        found = chosen.setdefault(line["operation"], {"request": None, "responses": {}})
        if line["received"] is not None:
            found["responses"][str(line["status"])] = _clean(line["received"])
        if line["sent"] is not None:
            found["request"] = _clean(line["sent"])
    return dict(sorted(chosen.items()))


def _shows(line: dict[str, Any]) -> tuple[int, str]:
    """Count the values that are given, none if they are too many to read; the rest makes the choice repeatable."""
    text = json.dumps([line["sent"], line["received"]], sort_keys=True)
    odd = len(text) > LENGTH_MAX or _ODD.search(text) or any("_" in name for name in line["sent"] or {})
    return (0 if odd else len(_values(line["sent"])) * 3 + len(_values(line["received"])), text)


def _values(node: Any) -> list[Any]:
    if isinstance(node, dict | list):
        parts = list(node.values()) if isinstance(node, dict) else node[:ROWS_MAX]
        return [value for part in parts for value in _values(part)]
    return [] if node in (None, "") else [node]


def _clean(node: Any, name: str = "") -> Any:
    if isinstance(node, dict):
        return {key: _clean(value, key) for key, value in node.items()}
    if isinstance(node, list):
        rows = node[:ROWS_MAX] if name == "results" else node
        return [_clean(one, name) for one in rows]
    if isinstance(node, str):
        return SECRETS.get(name) or _TOKEN.sub("rsk_live_…", _ADDRESS.sub("https://rensei.example", node))
    return node


if __name__ == "__main__":
    recorded = [json.loads(line) for line in Path(sys.argv[1]).read_text().splitlines()]
    examples = choose(recorded)
    EXAMPLES_FILE.write_text(json.dumps(examples, indent=1, ensure_ascii=False) + "\n")
    print(f"{len(examples)} operations, from {len(recorded)} exchanges")
