"""What reports of usage come to: generated ones against an oracle of their own, and what the SDK's types name."""

from collections import defaultdict
from collections.abc import Iterable
from fractions import Fraction
from typing import Any, get_args

from anthropic.types import beta
from anthropic.types.beta.beta_iterations_usage import BetaIterationsUsageItem
from hypothesis import given, settings
from hypothesis import strategies as st

from integrations.providers.anthropic import usage as usage_module
from integrations.providers.anthropic.reply import Reply
from integrations.providers.anthropic.usage_counts import COUNTED, TOKENS_MAX
from rensei.core.unknown import take_counts
from rensei.core.usage import Usage, UsagePart

ASKED = "claude-opus-5-5"
CLASSES = {
    "input_tokens": "input_tokens",
    "output_tokens": "output_tokens",
    "cache_read_input_tokens": "cache_read_tokens",
    "ephemeral_5m_input_tokens": "cache_write_5m_tokens",
    "ephemeral_1h_input_tokens": "cache_write_1h_tokens",
    "web_search_requests": "web_search_requests",
}
CLASSES_OF_A_PROMPT = ("input_tokens", "cache_read_input_tokens", "cache_creation_input_tokens")
ALL_CLASSES = (*CLASSES_OF_A_PROMPT, "output_tokens")
FACTORS = {
    "inference_geo": {"us": Fraction(11, 10), "global": Fraction(1), "mars": Fraction(11, 10)},
    "speed": {"fast": Fraction(2), "standard": Fraction(1), "warp": Fraction(2)},
    "service_tier": {"standard": Fraction(1), "priority": Fraction(1), "batch": Fraction(1, 2), "gold": Fraction(1)},
}
UNKNOWN = {"mars", "warp", "gold"}
MADE_UP = {
    "video_input_tokens": "cache_write_1h_tokens",
    "cached_widgets_tokens": "cache_write_1h_tokens",
    "speech_output_tokens": "output_tokens",
    "tokens_of_thought": "output_tokens",
    "map_requests": "web_search_requests",
}

counts = st.integers(0, 2_000_000)
maybe = st.none() | counts


def some(fields: dict[str, Any]) -> st.SearchStrategy[dict[str, Any]]:
    return st.fixed_dictionaries({}, optional=fields)


TOKENS = {
    "input_tokens": maybe,
    "output_tokens": maybe,
    "cache_read_input_tokens": maybe,
    "cache_creation_input_tokens": maybe,
    "cache_creation": st.none()
    | some(
        {"ephemeral_5m_input_tokens": counts, "ephemeral_1h_input_tokens": counts, "ephemeral_9d_input_tokens": counts}
    ),
    **dict.fromkeys(MADE_UP, maybe),
}


def iterations_of(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[list[Any]]:
    return st.lists(
        st.builds(
            lambda kind, model, used: {"type": kind, **({} if model is None else {"model": model}), **used},
            st.sampled_from(["message", "compaction", "advisor_message", "fallback_message", "made_up"]),
            st.sampled_from([None, ASKED, "claude-haiku-5-5", "someone-elses"]),
            some(
                {
                    **TOKENS,
                    "speed": st.none() | st.sampled_from(sorted(FACTORS["speed"])),
                    "inference_geo": st.none() | st.sampled_from(sorted(FACTORS["inference_geo"])),
                    "made_up_word": st.sampled_from([None, "", "word"]),
                    "iterations": inner,
                }
            ),
        ),
        max_size=4,
    )


# Iterations in iterations are no report that is known, so they come at the end, where they seldom are.
iterations = iterations_of(st.sampled_from([None, [], {}]) | iterations_of(st.none()))
reports = some(
    {
        **TOKENS,
        "output_tokens_details": st.none() | some({"thinking_tokens": counts, "made_up_tokens": counts}),
        "server_tool_use": st.none() | some({"web_search_requests": counts, "web_fetch_requests": counts}),
        "inference_geo": st.none() | st.sampled_from(sorted(FACTORS["inference_geo"])),
        "speed": st.none() | st.sampled_from(sorted(FACTORS["speed"])),
        "service_tier": st.none() | st.sampled_from(sorted(FACTORS["service_tier"])),
        "fallback_credit": st.just({"status": {"type": "redeemed"}}),
        "made_up_word": st.sampled_from([None, "", "word"]),
        "made_up_object": st.sampled_from([None, {}, {"a": 1}]),
        "iterations": st.none() | iterations,
    }
)
# How much less each later report of a stream says, out of four.
shrinking = st.lists(st.integers(0, 4), max_size=3)


def lessened(report: dict[str, Any], quarters: int) -> dict[str, Any]:
    """A later report that tells less of everything, as no honest one would."""

    def less(value: Any) -> Any:
        if isinstance(value, dict):
            return {name: less(inner) for name, inner in value.items()}
        if isinstance(value, list):
            return [less(inner) for inner in value[: len(value) * quarters // 4]]
        return value * quarters // 4 if type(value) is int else value

    shrunk: dict[str, Any] = less(report)
    return shrunk


class Oracle:
    """Counts by hand: every count that was ever said, by who used it and what it is called, in its highest value."""

    def __init__(self, start: dict[str, Any], later: list[dict[str, Any]], model: str) -> None:
        self.answered = model
        self.is_sure = True
        self.factors: dict[str, list[Fraction]] = defaultdict(list)
        said: dict[tuple[bool, str, str], int] = {}
        longest = 0
        for place, report in enumerate([start, *later]):
            for name, count in self.named(report, is_own=True):
                if place == 0 and name == "output_tokens":
                    continue
                key = (place == 0, "own", name)
                said[key] = max(said.get(key, 0), count)
            sums: dict[tuple[str, str], int] = defaultdict(int)
            inside: dict[str, int] = defaultdict(int)
            listed = report.get("iterations") or []
            is_whole = report.get("iterations") is not None and len(listed) >= longest
            longest = max(longest, len(listed))
            for iteration in self.with_nested(listed):
                if iteration["type"] == "fallback_message" and is_whole:
                    self.answered = iteration.get("model") or self.answered
                    self.fell_back = self.fell_back or "model" in iteration
                self.is_sure &= iteration["type"] != "made_up"
                self.is_sure &= iteration["type"] != "advisor_message" or "model" in iteration
                self.is_sure &= all(iteration.get(name) is None for name in FACTORS)
                for name, count in self.named(iteration, is_own=False):
                    if iteration["type"] not in ("message", "fallback_message"):
                        sums[iteration.get("model", ""), name] += count
                    elif name in MADE_UP or name == "ephemeral_9d_input_tokens":
                        inside[name] += count
            for (who, name), count in sums.items():
                said[False, "beside " + who, name] = max(said.get((False, "beside " + who, name), 0), count)
            for name, count in inside.items():
                said[False, "own", name] = max(said.get((False, "own", name), 0), count)
        tells_again = any(report.get("input_tokens") is not None for report in later)
        self.said: dict[str, dict[str, int]] = defaultdict(dict)
        for (at_start, who, name), count in said.items():
            if not (at_start and who == "own" and self.fell_back and tells_again):
                self.said[who][name] = max(self.said[who].get(name, 0), count)
        self.has_prompt = any(report.get("input_tokens") is not None for report in [start, *later])
        self.has_output = any(report.get("output_tokens") is not None for report in later)

    fell_back = False

    def with_nested(self, listed: Any) -> Iterable[dict[str, Any]]:
        for iteration in listed:
            yield iteration
            if nested := iteration.get("iterations"):
                self.is_sure = False
                yield from self.with_nested(nested)

    def named(self, report: dict[str, Any], *, is_own: bool) -> Iterable[tuple[str, int]]:
        for name, value in report.items():
            if name in FACTORS and value is not None:
                self.factors[name].append(FACTORS[name][value])
                self.is_sure &= value not in UNKNOWN
            elif isinstance(value, dict) and name in ("cache_creation", "server_tool_use", "output_tokens_details"):
                for member, count in value.items():
                    if member == "ephemeral_9d_input_tokens" and count:
                        self.is_sure = False
                    yield member, count
            elif name in MADE_UP and value:
                self.is_sure = False
                yield name, value
            elif name in ("made_up_word", "made_up_object") and value:
                self.is_sure = False
            elif type(value) is int:
                yield name, value

    def usage_of(self, who: str) -> Usage:
        found = defaultdict(int, self.said.get(who, {}))
        classes: dict[str, int] = defaultdict(int)
        for name, count in found.items():
            if target := CLASSES.get(name) or MADE_UP.get(name):
                classes[target] += count
        classes["cache_write_1h_tokens"] += found["ephemeral_9d_input_tokens"]
        lifetimes = sum(count for name, count in found.items() if name.startswith("ephemeral_"))
        unsplit = max(0, found["cache_creation_input_tokens"] - lifetimes)
        classes["cache_write_1h_tokens" if found["ephemeral_1h_input_tokens"] else "cache_write_5m_tokens"] += unsplit
        thinking = min(found["thinking_tokens"], classes["output_tokens"])
        return Usage(**classes, thinking_tokens=thinking)

    def by_model(self) -> dict[str, Usage]:
        used: dict[str, Usage] = defaultdict(Usage)
        used[self.answered] = self.usage_of("own")
        for who in self.said:
            if who.startswith("beside "):
                name = who.removeprefix("beside ") or self.answered
                used[name] = used[name] + self.usage_of(who)
        return {name: each for name, each in used.items() if each != Usage() or name == self.answered}

    @property
    def factor(self) -> Fraction:
        product = Fraction(1)
        for seen in self.factors.values():
            product *= max(seen)
        return product


def read(start: dict[str, Any], later: list[dict[str, Any]], *, model: str = ASKED) -> tuple[UsagePart, ...]:
    reply = Reply(input_tokens_about=7)
    reply.take({"type": "message_start", "message": {"model": model, "usage": start}})
    for report in later:
        reply.take({"type": "message_delta", "delta": {"stop_reason": "end_turn"}, "usage": report})
    return reply.parts()


class TestAShorterList:
    def test_of_a_later_report_does_not_change_who_answered(self) -> None:
        declined = {"type": "fallback_message", "model": "claude-haiku-5-5"}
        answered = {"type": "fallback_message", "model": ASKED}
        final = {"input_tokens": 100, "output_tokens": 20, "iterations": [declined, answered]}

        parts = read({}, [final, {**final, "iterations": [declined]}])

        assert [part.model_id for part in parts] == [ASKED]


class TestGeneratedReports:
    @settings(max_examples=1500, deadline=None)
    @given(start=reports, final=reports, quarters=shrinking)
    def test_come_to_what_the_oracle_counts(self, start: Any, final: Any, quarters: list[int]) -> None:
        later = [final, *(lessened(final, each) for each in quarters)]
        oracle = Oracle(start, later, ASKED)

        parts = read(start, later)

        assert parts[0].model_id == oracle.answered
        assert {part.price_factor for part in parts} == {oracle.factor}
        expected = oracle.by_model()
        found = {part.model_id: part.usage for part in parts}
        assert found.keys() == expected.keys()
        if oracle.has_prompt and oracle.has_output:
            assert found == expected
        sure = oracle.is_sure and oracle.has_prompt and oracle.has_output
        assert parts[0].estimated is not sure

    @settings(max_examples=500, deadline=None)
    @given(start=reports, final=reports, quarters=shrinking)
    def test_are_not_lowered_by_later_ones(self, start: Any, final: Any, quarters: list[int]) -> None:
        once = {part.model_id: part.usage for part in read(start, [final])}
        more = {
            part.model_id: part.usage for part in read(start, [final, *(lessened(final, each) for each in quarters)])
        }

        assert more == once

    @settings(max_examples=500, deadline=None)
    @given(
        report=reports, name=st.text(st.characters(codec="utf-8"), min_size=1, max_size=20), count=st.integers(1, 9_000)
    )
    def test_with_any_other_field_are_dearer_or_flagged_and_counted(self, report: Any, name: str, count: int) -> None:
        if name in {*TOKENS, *FACTORS, "type", "model", "iterations", "fallback_credit"}:
            return
        plain = {"input_tokens": 5, "output_tokens": 5}
        take_counts()

        (part,) = read(plain, [{**plain, f"{name}_tokens": count, name: "word"}])

        assert part.estimated
        assert sum(part.usage.as_dict().values()) == 10 + count
        assert {kind for kind, _ in take_counts()} == {"usage_field"}


class TestKnownFields:
    def test_are_all_that_the_sdk_names(self) -> None:
        known = COUNTED | set(usage_module._FREE) | set(usage_module._OBJECTS) | FACTORS.keys()
        types = [beta.BetaUsage, beta.BetaMessageDeltaUsage, *get_args(get_args(BetaIterationsUsageItem)[0])]

        named = {field for each in types for field in each.model_fields}
        inner = {
            f"{name}.{field}"
            for name, each in {
                "cache_creation": beta.BetaCacheCreation,
                "output_tokens_details": beta.BetaOutputTokensDetails,
                "server_tool_use": beta.BetaServerToolUsage,
            }.items()
            for field in each.model_fields
        }

        assert named | inner == known

    def test_are_the_kinds_of_iterations_that_the_sdk_names(self) -> None:
        kinds = {
            get_args(each.model_fields["type"].annotation)[0] for each in get_args(get_args(BetaIterationsUsageItem)[0])
        }

        assert kinds == usage_module._INSIDE | usage_module._BESIDE


absurd = st.sampled_from([-1, 2**62, "many", 1.5, True, [5]])


class TestAbsurdFigures:
    @settings(max_examples=500, deadline=None)
    @given(believed=some(dict.fromkeys(CLASSES_OF_A_PROMPT, counts)), name=st.sampled_from(ALL_CLASSES), wrong=absurd)
    def test_leave_the_other_counts_as_they_are_and_no_prompt_below_the_estimate(
        self, believed: dict[str, int], name: str, wrong: Any
    ) -> None:
        believed = {"output_tokens": 40, **believed}

        (part,) = read({}, [{**believed, name: wrong}])

        told = {each: count for each, count in believed.items() if each != name}
        prompt = sum(told.get(each, 0) for each in CLASSES_OF_A_PROMPT)
        assert part.estimated
        assert part.usage.prompt_tokens == max(7, prompt)
        assert part.usage.output_tokens == told.get("output_tokens", 0)
        assert part.usage.cache_read_tokens == told.get("cache_read_input_tokens", 0)

    def test_of_an_iteration_leave_the_answers_own_as_they_are(self) -> None:
        iteration = {"type": "advisor_message", "model": "m", "input_tokens": 2**62, "output_tokens": -1}

        own, other = read({"input_tokens": 9}, [{"output_tokens": 4, "iterations": [iteration]}])

        assert own.usage == Usage(input_tokens=9, output_tokens=4)
        assert other.usage == Usage(input_tokens=7)
        assert other.estimated

    def test_of_a_field_that_is_not_known_are_flagged_alone(self) -> None:
        (part,) = read({"input_tokens": 9}, [{"output_tokens": 4, "widget_tokens": 2**62}])

        assert part.usage == Usage(input_tokens=9, output_tokens=4)
        assert part.estimated

    def test_of_the_list_itself_are_flagged(self) -> None:
        for iterations in ({}, "x", [None], [[]], [{"type": "message"}] * 10_001):
            (part,) = read({"input_tokens": 9}, [{"output_tokens": 4, "iterations": iterations}])

            assert part.usage == Usage(input_tokens=9, output_tokens=4)
            assert part.estimated

    def test_are_bounded_however_many_add_up(self) -> None:
        most = TOKENS_MAX
        iterations = [
            {"type": "advisor_message", "model": f"m{number}", "output_tokens": most} for number in range(9_000)
        ]
        fields = {f"widget_{number}_tokens": most for number in range(9_000)}

        parts = read({"input_tokens": 9}, [{"output_tokens": 4, **fields, "iterations": iterations}])

        assert len(parts) <= usage_module.MODELS_MAX + 1
        assert max(count for part in parts for count in part.usage.as_dict().values()) <= 2 * most
        assert all(part.estimated for part in parts)
