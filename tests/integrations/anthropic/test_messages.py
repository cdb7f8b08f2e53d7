"""Requests in the shape of the Messages API. The expected ones stand in `requests.json`, to be read by people."""

import itertools
import json
from pathlib import Path

import pytest

from catalog.services import EffortNotSupported
from integrations.providers.anthropic.messages import ContextWindowExceeded, build, check_last_turn, fit
from rensei.core.errors import FieldError
from tests.integrations.anthropic.conftest import ROWS, make_entry, make_request

EXPECTED = json.loads((Path(__file__).parent / "requests.json").read_text())
# Long enough for every model to cache.
LONG_SYSTEM = "You are an expert problem solver. " * 500
CONVERSATION = [
    {"role": "user", "content": "What is a payer?"},
    {"role": "assistant", "content": "Whoever is billed."},
    {"role": "user", "content": "And a mode?"},
]
GOLDEN = [
    (model_id, effort, caching)
    for model_id in (
        "claude-opus-5-5",
        "claude-sonnet-5-5",
        "claude-haiku-5-5",
        "claude-opus-4-8",
        "claude-sonnet-4-6",
        "claude-opus-4-5-20251101",
        "claude-haiku-4-5-20251001",
        "claude-opus-4-1-20250514",
        "claude-3-5-haiku-20241022",
    )
    for effort in ("low", "medium", "high")
    for caching in ("off", "ephemeral")
]


class TestBuild:
    @pytest.mark.parametrize(("model_id", "effort", "caching"), GOLDEN)
    def test_gives_exactly_the_expected_json(self, model_id, effort, caching):
        entry = make_entry(model_id)
        request = make_request(system=LONG_SYSTEM, messages=CONVERSATION, effort=effort, prompt_caching=caching)

        if not entry.effort_levels:
            with pytest.raises(EffortNotSupported):
                build(request, entry=entry)
            return
        built = json.dumps(build(request, entry=entry).params).replace(LONG_SYSTEM, "LONG SYSTEM")

        assert json.loads(built) == EXPECTED[f"{model_id} {effort} {caching}"]

    @pytest.mark.parametrize("caching", ["off", "ephemeral", "static"])
    def test_leaves_effort_and_thinking_out_for_a_model_without_them(self, caching):
        request = make_request(system=LONG_SYSTEM, messages=CONVERSATION, prompt_caching=caching)

        built = build(request, entry=make_entry("claude-3-5-haiku-20241022"))

        params = json.loads(json.dumps(built.params).replace(LONG_SYSTEM, "LONG SYSTEM"))
        assert params == EXPECTED[f"claude-3-5-haiku-20241022 none {caching}"]
        assert built.effort_applied == {}

    @pytest.mark.parametrize("model_id", [row for row in ROWS if ROWS[row]["effortLevels"]])
    def test_takes_medium_where_no_effort_is_named(self, model_id):
        entry = make_entry(model_id)

        unset, medium = build(make_request(), entry=entry), build(make_request(effort="medium"), entry=entry)

        assert unset.params == medium.params
        assert unset.effort_applied

    @pytest.mark.parametrize("model_id", ROWS)
    def test_sends_every_level_that_the_catalog_offers_in_words_that_the_model_takes(self, model_id):
        entry = make_entry(model_id)

        for level in entry.effort_levels:
            applied = build(make_request(effort=level), entry=entry).effort_applied
            if thinking := applied.get("thinking"):
                assert thinking["type"] in entry.capabilities["thinking"]["types"]
            else:
                assert applied == {"output_config": {"effort": level}}

    @pytest.mark.parametrize(
        ("model_id", "effort"),
        [
            ("claude-opus-4-1-20250514", "max"),
            ("claude-opus-4-5-20251101", "xhigh"),
            ("claude-sonnet-4-6", "xhigh"),
            ("claude-3-5-haiku-20241022", "low"),
            ("claude-opus-5-5", "extreme"),
        ],
    )
    def test_refuses_a_level_that_the_model_lacks(self, model_id, effort):
        with pytest.raises(EffortNotSupported) as refused:
            build(make_request(effort=effort), entry=make_entry(model_id))

        assert refused.value.code == "EFFORT_NOT_SUPPORTED"
        assert f"'{effort}'" in refused.value.detail

    def test_leaves_the_given_messages_as_they_are(self):
        given = json.loads(json.dumps(CONVERSATION))

        build(
            make_request(system=LONG_SYSTEM, messages=given, prompt_caching="ephemeral"),
            entry=make_entry("claude-opus-5-5"),
        )

        assert given == CONVERSATION


class TestMaxTokens:
    @pytest.mark.parametrize(
        ("model_id", "effort", "requested", "sent"),
        [
            ("claude-opus-5-5", "high", None, 16384),
            ("claude-opus-4-1-20250514", "high", None, 16384),
            ("claude-3-5-haiku-20241022", None, None, 8192),
            ("claude-opus-5-5", "high", 4096, 4096),
            ("claude-opus-5-5", "high", 1, 1),
            # Where thinking takes a budget, it comes on top of what was asked for the answer.
            ("claude-opus-4-1-20250514", "low", 4096, 4096 + 1024),
            ("claude-opus-4-1-20250514", "medium", 4096, 4096 + 2048),
            ("claude-opus-4-1-20250514", "high", 4096, 4096 + 4096),
            ("claude-opus-4-1-20250514", "high", 16, 16 + 4096),
            ("claude-opus-4-1-20250514", "high", 32000 - 4096, 32000),
        ],
    )
    def test_leaves_room_for_the_answer(self, model_id, effort, requested, sent):
        built = build(make_request(effort=effort, max_tokens=requested), entry=make_entry(model_id))

        assert built.max_tokens == built.params["max_tokens"] == sent

    @pytest.mark.parametrize(
        ("model_id", "effort", "requested"),
        [
            ("claude-opus-5-5", None, 128_001),
            ("claude-3-5-haiku-20241022", None, 8193),
            ("claude-opus-4-1-20250514", "high", 32000 - 4095),
            ("claude-opus-5-5", None, -1),
            ("claude-opus-5-5", None, -5),
        ],
    )
    def test_refuses_what_the_model_cannot_give(self, model_id, effort, requested):
        with pytest.raises(FieldError) as refused:
            build(make_request(effort=effort, max_tokens=requested), entry=make_entry(model_id))

        assert refused.value.errors[0]["pointer"] == "/maxTokens"

    @pytest.mark.parametrize("requested", [None, 1, 1000, 5000, 20000, 27904])
    @pytest.mark.parametrize("effort", ["low", "medium", "high"])
    def test_always_keeps_the_budget_below_it(self, effort, requested):
        built = build(make_request(effort=effort, max_tokens=requested), entry=make_entry("claude-opus-4-1-20250514"))

        answer = built.max_tokens - built.params["thinking"]["budget_tokens"]
        assert answer == requested if requested else answer >= 1024

    @pytest.mark.parametrize("effort", [None, "low", "high"])
    def test_of_a_prompt_for_the_cache_stays_none(self, effort):
        request = make_request(effort=effort, effort_is_asked=effort is not None, max_tokens=0)

        assert build(request, entry=make_entry("claude-opus-5-5")).max_tokens == 0
        if effort is None:
            assert build(request, entry=make_entry("claude-haiku-4-5-20251001")).max_tokens == 0
        else:
            with pytest.raises(FieldError) as refused:
                build(request, entry=make_entry("claude-haiku-4-5-20251001"))
            assert refused.value.errors[0]["pointer"] == "/effort"

    @pytest.mark.parametrize("model_id", ["claude-haiku-4-5-20251001", "claude-opus-4-6", "claude-opus-5-5"])
    @pytest.mark.parametrize("effort", [None, "low", "medium", "high"])
    @pytest.mark.parametrize("effort_is_asked", [False, True], ids=["of the profile", "asked"])
    def test_never_exceed_the_cap_of_the_platforms_keys(self, model_id, effort, effort_is_asked):
        for requested, cap in itertools.product([None, 0, 1, 1000, 3000, 20_000], [1, 1000, 2048, 4096, 6000, 30_000]):
            request = make_request(
                effort=effort,
                effort_is_asked=effort_is_asked and effort is not None,
                max_tokens=requested,
                max_tokens_is_asked=requested is not None,
                max_tokens_cap=cap,
            )
            try:
                built = build(request, entry=make_entry(model_id))
            except FieldError:
                # The profile's own effort never causes a refusal: it is left out.
                assert request.effort_is_asked
                continue

            budget = built.params.get("thinking", {}).get("budget_tokens", 0)
            assert built.max_tokens <= cap
            assert not budget or built.max_tokens > budget
            assert requested is None or built.max_tokens <= requested + budget


class TestContextWindow:
    def test_fits_max_tokens_into_what_is_left(self):
        request = make_request(messages=[{"role": "user", "content": "word " * 900}], context_window_tokens=1000)

        built = build(request, entry=make_entry("claude-opus-5-5"))

        assert built.input_tokens_at_least == 900
        assert built.max_tokens == 100

    def test_refuses_a_prompt_that_cannot_fit_and_tells_both_numbers(self):
        request = make_request(messages=[{"role": "user", "content": "word " * 1000}], context_window_tokens=1000)

        with pytest.raises(ContextWindowExceeded) as refused:
            build(request, entry=make_entry("claude-opus-5-5"))

        assert refused.value.extra == {"inputTokens": 1000, "contextWindowTokens": 1000}
        assert "at least 1000 tokens" in refused.value.detail
        assert "window is 1000 tokens" in refused.value.detail

    def test_takes_the_models_own_window_where_none_is_named(self):
        request = make_request(messages=[{"role": "user", "content": "word " * 200_000}])

        with pytest.raises(ContextWindowExceeded):
            build(request, entry=make_entry("claude-haiku-4-5-20251001"))

    def test_refuses_a_window_larger_than_the_models(self):
        with pytest.raises(FieldError) as refused:
            build(make_request(context_window_tokens=200_001), entry=make_entry("claude-opus-4-1-20250514"))

        assert refused.value.errors[0]["pointer"] == "/providerConfig/anthropic/contextWindow"

    @pytest.mark.parametrize("window", [0, -1])
    def test_refuses_a_window_of_nothing(self, window):
        with pytest.raises(FieldError):
            build(make_request(context_window_tokens=window), entry=make_entry("claude-opus-5-5"))

    def test_keeps_room_for_thinking_with_a_budget(self):
        request = make_request(effort="high", context_window_tokens=5000)

        with pytest.raises(ContextWindowExceeded, match="kept for thinking"):
            build(request, entry=make_entry("claude-opus-4-1-20250514"))

    def test_takes_an_entry_that_does_not_know_its_limits(self):
        entry = make_entry("claude-opus-5-5", context_window_tokens=None, max_output_tokens=None)

        assert build(make_request(max_tokens=500_000), entry=entry).max_tokens == 500_000


class TestFit:
    def test_lowers_max_tokens_to_what_is_left(self):
        assert fit({"max_tokens": 16384}, input_tokens=990, context_window_tokens=1000) == {"max_tokens": 10}

    def test_never_raises_them(self):
        assert fit({"max_tokens": 5}, input_tokens=10, context_window_tokens=1000) == {"max_tokens": 5}

    def test_refuses_what_leaves_nothing_and_says_what_the_room_is_for(self):
        with pytest.raises(ContextWindowExceeded, match="exactly 1000 tokens, and the answer needs room"):
            fit({"max_tokens": 5}, input_tokens=1000, context_window_tokens=1000)

    def test_counts_one_token_as_one(self):
        with pytest.raises(ContextWindowExceeded, match=r"exactly 2 tokens, but the context window is 1 token\."):
            fit({"max_tokens": 5}, input_tokens=2, context_window_tokens=1)


class TestCheckLastTurn:
    BEGUN = [{"role": "user", "content": "x"}, {"role": "assistant", "content": "So"}]

    def test_refuses_an_answer_begun_for_a_model_that_does_not_continue_it(self):
        with pytest.raises(FieldError) as refused:
            check_last_turn(self.BEGUN, entry=make_entry("claude-opus-5-5"))

        assert refused.value.errors[0]["pointer"] == "/messages/1/role"

    def test_lets_an_older_model_continue_an_answer(self):
        check_last_turn(self.BEGUN, entry=make_entry("claude-opus-4-5-20251101"))
