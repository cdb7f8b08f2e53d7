"""Whatever is sent, the simulator answers it and does not fall over."""

import copy
import json
from collections.abc import Iterator
from typing import Any

import httpx2
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rensei.simulator.server import RunningSimulator
from tests.simulator.doc_tables import image_block, make_image, make_key

KEY = make_key("api03")
PNG = image_block(make_image(8, 8))
EPHEMERAL = {"type": "ephemeral", "ttl": "1h"}
TEXT_SOURCE = {"type": "text", "media_type": "text/plain", "data": "A fact."}
RESULT = [{"type": "text", "text": "Rain."}, PNG, {"type": "search_result", "source": "s", "title": "t", "content": []}]
RICH: dict[str, Any] = {
    "model": "claude-opus-4-6",
    "max_tokens": 3000,
    "stream": False,
    "system": [{"type": "text", "text": "Be kind.", "cache_control": EPHEMERAL}],
    "thinking": {"type": "enabled", "budget_tokens": 1024, "display": "summarized"},
    "output_config": {
        "effort": "low",
        "format": {"type": "json_schema", "schema": {"type": "object", "properties": {"a": {"enum": ["x"]}}}},
    },
    "metadata": {"user_id": "x"},
    "stop_sequences": ["zz"],
    "service_tier": "auto",
    "inference_geo": "us",
    "cache_control": {"type": "ephemeral"},
    "tools": [
        {"name": "look", "input_schema": {"type": "object", "properties": {"c": {"anyOf": [{"type": "integer"}]}}}},
        {"type": "web_search_20250305", "name": "web_search"},
    ],
    "tool_choice": {"type": "auto", "disable_parallel_tool_use": True},
    "messages": [
        {"role": "user", "content": [PNG, {"type": "document", "source": TEXT_SOURCE, "citations": {"enabled": True}}]},
        {"role": "assistant", "content": [{"type": "tool_use", "id": "t1", "name": "look", "input": {"c": 1}}]},
        {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "t1", "content": RESULT}]},
        {"role": "assistant", "content": [{"type": "redacted_thinking", "data": "zz"}, {"type": "text", "text": "ok"}]},
        {"role": "user", "content": "[[use look]] [[slow 0]]"},
    ],
}
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.sampled_from(["5m", "text", "base64"]),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["type", "text", "source", "x"]), inner)
    ),
    max_leaves=5,
)


def paths(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    parts = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for name, part in parts:
        yield (*path, name)
        yield from paths(part, (*path, name))


def replaced(path: tuple[Any, ...], value: Any) -> dict[str, Any]:
    body = copy.deepcopy(RICH)
    target: Any = body
    for name in path[:-1]:
        target = target[name]
    target[path[-1]] = value
    return body


class TestMutatedRequest:
    def test_starts_from_one_that_is_valid(self, http: httpx2.Client) -> None:
        answer = http.post("/v1/messages", headers=_headers(), json=RICH)

        assert answer.status_code == 200, answer.text

    @settings(
        max_examples=300,
        deadline=None,
        suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
    )
    @given(path=st.sampled_from(list(paths(RICH))), value=VALUES)
    def test_is_answered_by_the_rules(
        self, http: httpx2.Client, simulator: RunningSimulator, path: tuple[Any, ...], value: Any
    ) -> None:
        answer = http.post("/v1/messages", headers=_headers(), content=json.dumps(replaced(path, value)).encode())

        assert answer.status_code in (200, 400, 404), answer.text
        assert answer.json()["type"] in ("message", "error")


def _headers() -> dict[str, str]:
    return {"x-api-key": KEY, "anthropic-version": "2026-10-21", "content-type": "application/json"}
