"""The data file is read exactly, agrees with prices that were vetted by hand, and is refused in the wrong unit."""

import json
from collections.abc import Callable
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

import pytest

from catalog.datafile import FOLDER, DataFileInvalid, ListedModel, read, read_all

CLAUDE = FOLDER / "claude.json"
# Dollars for a million tokens (input, output), copied by hand from the provider's price page.
VETTED_DOLLARS = {
    "claude-fable-5-2": (8, 40),
    "claude-opus-5-5": (4, 20),
    "claude-sonnet-5-5": (2, 10),
    "claude-haiku-5-5": (0.10, 0.50),
    "claude-opus-4-8": (5, 25),
    "claude-opus-4-5-20251101": (5, 25),
    "claude-sonnet-4-6": (3, 15),
    "claude-haiku-4-5-20251001": (1, 5),
    "claude-opus-4-1-20250514": (15, 75),
    "claude-sonnet-4-20250514": (3, 15),
    "claude-3-5-haiku-20241022": (0.80, 4),
}


@pytest.fixture(scope="module")
def listed() -> dict[str, ListedModel]:
    return {model.facts["model_id"]: model for model in read(CLAUDE).models}


@pytest.fixture
def write_file(tmp_path: Path) -> Callable[..., Path]:
    """Write the real data file with one change, made by a function."""

    def write(change: Callable[[dict[str, Any]], Any]) -> Path:
        content = json.loads(CLAUDE.read_text())
        change(content)
        path = tmp_path / "claude.json"
        path.write_text(json.dumps(content))
        return path

    return write


def _entry(content: dict[str, Any], model_id: str) -> dict[str, Any]:
    return next(entry for entry in content["entries"] if entry["modelId"] == model_id)


class TestTheDataFile:
    @pytest.mark.parametrize(
        ("model_id", "name", "description"),
        [
            (
                "claude-opus-4-1-20250514",
                "Claude Opus 4.1",
                "Latest flagship; best for complex reasoning and agentic tasks. 200K context window.",
            ),
            (
                "claude-sonnet-4-20250514",
                "Claude Sonnet 4",
                "Balanced speed/quality; recommended for most workflows. 200K context window.",
            ),
            (
                "claude-3-5-haiku-20241022",
                "Claude Haiku",
                "Fastest; ideal for simple tasks and cost-sensitive work. 200K context window.",
            ),
        ],
    )
    def test_holds_the_documented_models_word_for_word(self, listed, model_id, name, description):
        facts = listed[model_id].facts

        assert (facts["display_name"], facts["description"]) == (name, description)
        assert facts["context_window_tokens"] == 200_000

    @pytest.mark.parametrize(("model_id", "dollars"), VETTED_DOLLARS.items())
    def test_agrees_with_vetted_prices(self, listed, model_id, dollars):
        band = listed[model_id].price_sets[-1].bands[0]

        assert band["input_microdollars"] == round(dollars[0] * 10**6)
        assert band["output_microdollars"] == round(dollars[1] * 10**6)

    def test_is_sorted(self, listed):
        assert list(listed) == sorted(listed)

    def test_has_whole_facts_for_every_model(self, listed):
        for model in listed.values():
            facts = model.facts
            assert facts["display_name"], facts
            assert facts["description"], facts
            assert facts["source"], facts
            assert facts["context_window_tokens"] > facts["max_output_tokens"] > 0, facts
            assert set(facts["capabilities"]) == {
                "vision",
                "highResVision",
                "promptCaching",
                "minCacheTokens",
                "forcedToolChoice",
                "prefill",
                "nativeEffort",
                "thinking",
            }

    def test_gives_every_effort_a_way_to_be_applied(self, listed):
        for model in listed.values():
            capabilities = model.facts["capabilities"]
            takes_one = capabilities["nativeEffort"] or "enabled" in capabilities["thinking"]["types"]
            assert bool(model.facts["effort_levels"]) == takes_one, model.facts["model_id"]

    def test_replaces_every_retired_model_by_one_that_is_not(self, listed):
        day = date(2026, 11, 23)
        retired = [
            model.facts for model in listed.values() if model.facts["retires_on"] and model.facts["retires_on"] <= day
        ]

        assert len(retired) == 13
        for facts in retired:
            replacement = listed[facts["replaced_by"]].facts
            assert replacement["retires_on"] is None, facts["model_id"]

    def test_offers_every_model_under_the_provider_s_modes(self, listed):
        for model in listed.values():
            assert model.facts["auth_modes"] == ["byok", "metered", "shared", "host-session"]

    def test_begins_a_lower_cache_price_on_its_day(self, listed):
        earlier, later = listed["claude-sonnet-5-5"].price_sets

        assert earlier.bands[0]["cache_read_microdollars"] == 200_000
        assert later.effective_from == datetime(2026, 10, 7, tzinfo=UTC)
        assert later.bands[0]["cache_read_microdollars"] == 100_000

    def test_bands_long_prompts_of_haiku(self, listed):
        (price_set,) = listed["claude-haiku-5-5"].price_sets

        assert [band["above_prompt_tokens"] for band in price_set.bands] == [0, 100_000]
        assert [band["cache_write_5m_microdollars"] for band in price_set.bands] == [125_000, 625_000]

    def test_prices_a_web_search_at_one_cent(self, listed):
        for model in listed.values():
            for price_set in model.price_sets:
                assert {band["web_search_picodollars"] for band in price_set.bands} == {10**10}


class TestRead:
    @pytest.mark.parametrize("model_id", sorted(VETTED_DOLLARS))
    def test_refuses_dollars_in_the_place_of_cents(self, write_file, model_id):
        def in_dollars(content):
            for price in _entry(content, model_id)["prices"]:
                price["inputCents"] /= 100

        with pytest.raises(DataFileInvalid, match=f"inputCents of {model_id}"):
            read(write_file(in_dollars))

    def test_refuses_microdollars_in_the_place_of_cents(self, write_file):
        def in_microdollars(content):
            _entry(content, "claude-opus-5-5")["prices"][0]["outputCents"] = 20_000_000

        with pytest.raises(DataFileInvalid, match="outputCents of claude-opus-5-5"):
            read(write_file(in_microdollars))

    @pytest.mark.parametrize(("cents", "accepted"), [(100, True), (99, False), (2500, True), (2501, False)])
    def test_bounds_a_price_at_20_and_500_percent_of_its_reference(self, write_file, cents, accepted):
        path = write_file(lambda content: _entry(content, "claude-opus-5-5")["prices"][0].update(inputCents=cents))

        if accepted:
            assert read(path).models
        else:
            with pytest.raises(DataFileInvalid):
                read(path)

    def test_refuses_another_unit(self, write_file):
        with pytest.raises(DataFileInvalid, match="US cents per million tokens"):
            read(write_file(lambda content: content.update(priceUnit="US dollars per million tokens")))

    def test_refuses_an_unknown_provider(self, write_file):
        with pytest.raises(DataFileInvalid, match="'nobody'"):
            read(write_file(lambda content: content.update(provider="nobody")))

    def test_refuses_a_model_that_is_listed_twice(self, write_file):
        with pytest.raises(DataFileInvalid, match=r"claude-2\.0"):
            read(write_file(lambda content: content["entries"].append(content["entries"][0])))

    def test_refuses_a_price_without_a_reference(self, write_file):
        with pytest.raises(DataFileInvalid, match="no vetted reference"):
            read(write_file(lambda content: content["priceReferences"].pop("opus")))

    def test_refuses_a_price_finer_than_a_microdollar(self, write_file):
        def too_fine(content):
            _entry(content, "claude-haiku-5-5")["prices"][0]["cacheReadCents"] = 1.00001

        with pytest.raises(ValueError, match="finer than a microdollar"):
            read(write_file(too_fine))


class TestReadAll:
    def test_finds_the_file_of_every_provider(self):
        assert [file.provider for file in read_all()] == ["claude"]
