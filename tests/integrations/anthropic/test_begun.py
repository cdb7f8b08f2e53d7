"""What an answer that breaks off has surely used: over generated blocks and deltas, known and made up."""

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from integrations.providers.anthropic.begun import FREE_TOOLS, RESULTS
from integrations.providers.anthropic.reply import Reply
from integrations.providers.anthropic.usage import MODELS_MAX, NAMES_MAX
from rensei.core.unknown import take_counts
from rensei.core.usage import Usage, UsagePart
from tests.drawn import examples

texts = st.text(st.characters(codec="utf-8"), max_size=60)
odd = st.recursive(st.none() | st.booleans() | texts, lambda inner: st.lists(inner, max_size=3), max_leaves=6)
# The kind of a delta, and the member of it that is output.
DELTAS = {
    "text_delta": "text",
    "thinking_delta": "thinking",
    "input_json_delta": "partial_json",
    "compaction_delta": "content",
    "made_up_delta": "anything",
}
deltas = st.sampled_from(sorted(DELTAS)).flatmap(
    lambda kind: st.fixed_dictionaries({"type": st.just(kind), DELTAS[kind]: texts})
)
uncounted = st.builds(
    lambda kind, text: {"type": kind, "signature": text, "citation": {"cited_text": text}},
    st.sampled_from(["signature_delta", "citations_delta"]),
    texts,
)
blocks = st.one_of(
    st.fixed_dictionaries({"type": st.just("text"), "text": texts}),
    st.fixed_dictionaries({"type": st.just("thinking"), "thinking": texts, "signature": texts}),
    st.fixed_dictionaries({"type": st.just("redacted_thinking"), "data": texts}),
    st.fixed_dictionaries({"type": st.just("tool_use"), "name": texts, "input": st.just({})}),
    st.fixed_dictionaries({"type": st.just("compaction"), "content": st.none() | texts, "encrypted_content": texts}),
    st.fixed_dictionaries({"type": st.just("mcp_tool_use"), "name": texts, "input": st.just({})}),
    st.fixed_dictionaries(
        {
            "type": st.sampled_from(["server_tool_use", "made_up_tool_use"]),
            "name": st.sampled_from([*sorted(FREE_TOOLS), "web_search", "made_up"]),
            "input": st.just({}),
        }
    ),
    st.fixed_dictionaries({"type": st.sampled_from(sorted(RESULTS)), "content": texts}),
    st.fixed_dictionaries({"type": st.sampled_from(["made_up", "fallback"]), "anything": texts}),
)
anything = st.recursive(
    st.none() | st.booleans() | st.integers() | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=6,
)
KINDS = [
    "message_start",
    "content_block_start",
    "content_block_delta",
    "message_delta",
    "server_tool_use",
    "text",
    "ping",
]
parts_of_any_shape = st.fixed_dictionaries(
    {}, optional={"type": st.sampled_from(KINDS) | anything, "name": anything, "index": anything, "usage": anything}
)
members = ("message", "content_block", "delta", "index", "usage", "error", "iterations")
events_of_any_shape = st.fixed_dictionaries(
    {"type": st.sampled_from(KINDS) | anything}, optional=dict.fromkeys(members, parts_of_any_shape | anything)
)
pieces = st.lists(st.tuples(blocks, st.lists(deltas | uncounted, max_size=3)), max_size=6)


def read(seen: list[tuple[Any, list[Any]]], *later: dict[str, Any], start: Any = None) -> UsagePart:
    reply = Reply(input_tokens_about=7)
    message = {"model": "m", "usage": start or {"input_tokens": 500, "cache_read_input_tokens": 20}}
    reply.take({"type": "message_start", "message": message})
    for index, (block, parts) in enumerate(seen):
        reply.take({"type": "content_block_start", "index": index, "content_block": dict(block)})
        for part in parts:
            reply.take({"type": "content_block_delta", "index": index, "delta": part})
        reply.take({"type": "content_block_stop", "index": index})
    for event in later:
        reply.take(event)
    (part,) = reply.parts_so_far()
    return part


def size(text: object) -> int:
    return len(text.encode()) if isinstance(text, str) else 0


def expected(seen: list[tuple[Any, list[Any]]]) -> tuple[Usage, int]:
    """What was begun, by hand: the usage, and the bytes of the names of made-up blocks that count as well."""
    output = results = turns = searches = slack = 0
    for block, parts in seen:
        kind = block["type"]
        if kind in RESULTS:
            results += size(block["content"])
        elif kind == "fallback":
            pass
        elif kind.startswith("made_up"):
            output += size(block.get("anything"))
            slack += sum(size(name) + size(value) for name, value in block.items() if name != "anything")
        else:
            output += sum(size(block.get(name)) for name in ("text", "thinking", "data"))
            output += size(block["content"]) if kind == "compaction" else 0
        turns += kind in {"compaction", "mcp_tool_use"} or kind.endswith("r_tool_use") or kind == "made_up_tool_use"
        searches += kind in {"server_tool_use", "made_up_tool_use"} and block["name"] not in FREE_TOOLS
        output += sum(size(part[DELTAS[part["type"]]]) for part in parts if part["type"] in DELTAS)
    usage = Usage(
        input_tokens=500 + turns * 520 - (-results // 3),
        cache_read_tokens=20,
        output_tokens=-(-output // 3),
        web_search_requests=searches,
    )
    return usage, slack


class TestThinkingThatIsNotShown:
    def test_is_counted_by_the_providers_estimate_until_it_is_reported(self) -> None:
        deltas = [{"type": "thinking_delta", "thinking": "", "estimated_tokens": 400}] * 3
        seen = [({"type": "thinking", "thinking": ""}, deltas)]

        assert read(seen).usage.output_tokens == 1200
        reported = read(seen, {"type": "message_delta", "delta": {}, "usage": {"output_tokens": 900}})
        assert reported.usage.output_tokens == 900


class TestAnAnswerThatBreaksOff:
    @settings(max_examples=examples(600), deadline=None)
    @given(seen=pieces)
    def test_has_used_what_was_seen_to_begin(self, seen: Any) -> None:
        least, slack = expected(seen)

        part = read(seen)

        assert part.estimated
        assert part.usage - part.unreported == Usage(input_tokens=500, cache_read_tokens=20)
        more = (part.usage - least).as_dict()
        assert 0 <= more.pop("output_tokens") <= slack
        assert not any(more.values())

    @settings(max_examples=examples(300), deadline=None)
    @given(seen=pieces, more=pieces)
    def test_is_charged_beyond_a_report_for_what_came_after_it(self, seen: Any, more: Any) -> None:
        report = {"type": "message_delta", "delta": {}, "usage": {"input_tokens": 900, "output_tokens": 40}}

        part = read(seen, report)
        alone = read(more, start={"input_tokens": 900, "cache_read_input_tokens": 20})
        again = read([*seen, *more], report, start={"input_tokens": 900, "cache_read_input_tokens": 20})

        assert not part.estimated
        assert part.usage == Usage(input_tokens=900, cache_read_tokens=20, output_tokens=40)
        assert again.usage == part.usage
        assert alone.unreported == alone.usage - Usage(input_tokens=900, cache_read_tokens=20)

    @pytest.mark.parametrize("kind", ["made_up_delta", "compaction_delta", "input_json_delta"])
    def test_counts_every_kind_of_delta(self, kind: str) -> None:
        part = read([({"type": "text", "text": ""}, [{"type": kind, DELTAS[kind]: "word " * 300}])])

        assert part.usage.output_tokens == 500


class TestAnEventThatIsNotKnown:
    @settings(max_examples=examples(200), deadline=None)
    @given(where=st.sampled_from(["", "message", "delta", "content_block"]), odd=odd)
    def test_is_counted_and_so_is_the_usage_in_it(self, where: str, odd: Any) -> None:
        usage = {"input_tokens": 9_000, "output_tokens": 70, "made_up_tokens": 5}
        event = {"type": "made_up", "odd": odd, **({where: {"usage": usage}} if where else {"usage": usage})}
        take_counts()

        part = read([], {"type": "message_delta", "delta": {}, "usage": {"output_tokens": 3}}, event)

        # It may come in addition.
        assert part.usage == Usage(input_tokens=9_500, cache_read_tokens=20, output_tokens=78)
        assert part.estimated
        assert take_counts()["event_type", "made_up"] == 1

    @pytest.mark.parametrize(
        "event",
        [
            {"type": "message_stop"},
            {"type": "ping"},
            {"type": "content_block_stop", "index": 0},
            {"type": "content_block_start", "index": 1, "content_block": {"type": "text", "text": ""}},
            {"type": "made_up"},
        ],
        ids=lambda event: event["type"],
    )
    def test_nor_is_usage_in_a_known_one_dropped(self, event: dict[str, Any]) -> None:
        usage = {"input_tokens": 90_000, "output_tokens": 9_000}
        held = (
            {**event, "content_block": {**event["content_block"], "usage": usage}} if "content_block" in event else {}
        )
        told = held or {**event, "usage": usage}

        part = read([], {"type": "message_delta", "delta": {}, "usage": {"output_tokens": 3}}, told, told)

        assert part.usage == Usage(input_tokens=90_500, cache_read_tokens=20, output_tokens=9_003)
        assert part.estimated

    def test_nor_is_usage_beside_the_known_one(self) -> None:
        more = {"input_tokens": 50_000, "output_tokens": 2_000}
        end = {"type": "message_delta", "delta": {}, "usage": {"output_tokens": 500}, "extra_usage": more}

        part = read([], end)

        assert part.usage == Usage(input_tokens=50_500, cache_read_tokens=20, output_tokens=2_500)

    def test_does_not_make_what_had_begun_less(self) -> None:
        text = [({"type": "text", "text": "word " * 3000}, [])]

        part = read(text, {"type": "made_up", "usage": {"output_tokens": 1}})

        assert part.usage.output_tokens >= 5_000

    def test_without_usage_is_counted_alone(self) -> None:
        take_counts()

        part = read([], {"type": "made_up"}, {"type": "message_delta", "delta": {}, "usage": {"output_tokens": 3}})

        assert part.usage.output_tokens == 3
        assert not part.estimated
        assert take_counts() == {("event_type", "made_up"): 1}

    def test_nor_is_a_delta_with_usage(self) -> None:
        delta = {"type": "made_up_delta", "usage": {"input_tokens": 9_000}}

        part = read([({"type": "text", "text": ""}, [delta])])

        assert part.usage.input_tokens == 9_500
        assert part.estimated


class TestAnAnswerWithoutAModel:
    def test_is_flagged_and_counted(self) -> None:
        reply = Reply(input_tokens_about=7)
        take_counts()
        reply.take({"type": "message_start", "message": {"usage": {"input_tokens": 5}}})
        reply.take({"type": "message_delta", "delta": {}, "usage": {"output_tokens": 5}})

        assert [part.estimated for part in reply.parts()] == [True]
        assert take_counts() == {("model", "(not named)"): 1}


class TestAnyShape:
    @given(st.lists(events_of_any_shape, max_size=8))
    @settings(max_examples=examples(500))
    def test_is_read_without_an_error(self, events: list[dict[str, Any]]) -> None:
        reply = Reply(input_tokens_about=7)
        for event in events:
            reply.take(event)

        assert reply.parts()

    def test_of_many_names_is_kept_within_bounds(self) -> None:
        reply = Reply(input_tokens_about=7)
        for number in range(1000):
            iteration = {"type": "message", "model": f"m{number}", f"made_up_{number}_tokens": number}
            reply.take({"type": "message_delta", "usage": {"output_tokens": 1, "iterations": [iteration]}})

        (answered, *beside) = reply.parts()

        assert answered.estimated
        assert len(beside) <= MODELS_MAX
        assert len(reply._usage._inside) <= NAMES_MAX
        assert len(reply._usage._samplings) <= NAMES_MAX
