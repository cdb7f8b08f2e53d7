"""What Rensei adds never makes a valid request invalid, and changes nothing that the caller gave."""

import copy
import json
import os
from typing import Any

import pytest
from hypothesis import HealthCheck, assume, event, given, settings
from hypothesis import strategies as st

from rensei.dispatch.models import Run
from rensei.gateway import requests as gateway_requests
from rensei.gateway.body import Body
from rensei.gateway.routing import Route
from rensei.simulator.validation import VERSIONS
from tests.gateway.bodies import is_valid, requests
from tests.gateway.line import MODEL, as_bytes, message
from tests.gateway.wire import Wire

pytestmark = pytest.mark.django_db(transaction=True)

CASES = int(os.environ.get("GATEWAY_ADDITIONS", "300"))


class TestAnAddition:
    def test_keeps_a_valid_request_valid(self, ways: list[Route]) -> None:
        added = []

        @settings(max_examples=CASES, suppress_health_check=list(HealthCheck))
        @given(data=st.data(), route=st.sampled_from(ways), version=st.sampled_from(VERSIONS))
        def check(data: st.DataObject, route: Route, version: str) -> None:
            values = data.draw(requests(route.judgement.entry.model_id))
            assume(is_valid(values, version=version))
            body = Body.read(json.dumps(values).encode())

            outgoing = gateway_requests.prepare(body, route)

            sent = json.loads(outgoing.body.raw)
            assert is_valid(sent, version=version), (version, values, sent)
            assert outgoing.max_tokens == sent["max_tokens"] == values["max_tokens"]
            assert sent | outgoing.effort_applied == sent
            assert without_additions(sent, values) == without_additions(values, values)
            added.append(bool(outgoing.effort_applied) or sent != values)
            event(f"added {added[-1]}")

        check()
        # It would say nothing of additions if nothing were added.
        assert sum(added) > len(added) / 10


def without_additions(sent: dict[str, Any], values: dict[str, Any]) -> dict[str, Any]:
    """What was sent, less an effort that the caller did not name, and less breakpoints, in one way to write texts."""
    left: dict[str, Any] = copy.deepcopy(sent)
    if "thinking" not in values:
        left.pop("thinking", None)
    if "effort" not in (values.get("output_config") or {}):
        config = left.pop("output_config", None) or {}
        config.pop("effort", None)
        left |= {"output_config": config} if config else {}
    for turn in left["messages"]:
        turn["content"] = _as_blocks(turn["content"])
    if "system" in left:
        left["system"] = _as_blocks(left["system"])
    return _unmarked(left)


def _as_blocks(content: Any) -> Any:
    return [{"type": "text", "text": content}] if isinstance(content, str) and content else content


def _unmarked(value: Any) -> Any:
    if isinstance(value, dict):
        return {
            name: _unmarked(part)
            for name, part in value.items()
            if name != "cache_control" or not isinstance(part, dict | type(None))
        }
    return [_unmarked(part) for part in value] if isinstance(value, list) else value


class TestAnEffortThatIsLeftOut:
    @pytest.mark.parametrize(
        ("model_id", "changed", "reason"),
        [
            ("claude-haiku-4-5-20251001", {"begun": True, "max_tokens": 8000}, "ends with an answer begun"),
            ("claude-haiku-4-5-20251001", {"max_tokens": 1}, "no room for 4096"),
            ("claude-haiku-4-5-20251001", {"max_tokens": 0}, "only fills the cache"),
            ("claude-haiku-4-5-20251001", {"temperature": 0.5}, "chooses its sampling"),
            (MODEL, {"fallbacks": [{"model": "claude-opus-4-8"}]}, "the request has `fallbacks`"),
        ],
        ids=["prefill", "one token", "no token", "sampling", "fallbacks"],
    )
    def test_says_so_on_the_run(
        self, ask: Any, wire: Wire, byok: Any, make_profile: Any, model_id: str, changed: dict[str, Any], reason: str
    ) -> None:
        make_profile(name="thinker", model_id=model_id, effort="high")
        body = {**message(), **changed, "model": "prof_thinker"}
        if body.pop("begun", False):
            body["messages"] = [*body["messages"], {"role": "assistant", "content": "The answer is"}]

        answer = ask(body, anthropic_beta="server-side-fallback-2026-07-01")

        assert answer.status == 200, answer.body
        assert wire.messages()[0].body == as_bytes({**body, "model": model_id})
        run = Run.objects.get()
        assert (run.effort, run.effort_applied, run.max_tokens) == ("", {}, body["max_tokens"])
        assert reason in next(line["detail"] for line in run.trace if line["verdict"] == "chosen")

    def test_is_used_with_all_of_the_callers_limit(self, ask: Any, wire: Wire, byok: Any, make_profile: Any) -> None:
        make_profile(name="thinker", model_id="claude-haiku-4-5-20251001", effort="low")

        assert ask({**message(max_tokens=64_000), "model": "prof_thinker"}).status == 200

        sent = json.loads(wire.messages()[0].body)
        assert sent["thinking"] == {"type": "enabled", "budget_tokens": 1024}
        assert sent["max_tokens"] == 64_000


class TestWhatIsNotKnown:
    def test_gets_nothing_added(self, way: Any) -> None:
        route = way("thinker", model_id=MODEL, effort="low", prompt_caching="static")
        body = Body.read(as_bytes(message(system="word " * 9000, made_up=1)) or b"")

        outgoing = gateway_requests.prepare(body, route)

        assert outgoing.body.values == {**body.values, "model": MODEL}
        assert "`made_up`" in outgoing.left_out


class TestAPoolsCap:
    def test_refuses_a_budget_that_no_longer_fits(self, ask: Any, shared: Any) -> None:
        thinking = {"type": "enabled", "budget_tokens": 3000}

        answer = ask({**message(max_tokens=8000), "thinking": thinking})

        assert answer.status == 400
        assert "at most 2000 tokens, thinking included" in answer.json()["error"]["message"]
        assert not Run.objects.exists()
