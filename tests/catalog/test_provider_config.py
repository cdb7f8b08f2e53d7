"""What a profile or a dispatch may pass to its provider."""

import pytest

from catalog.models import CatalogEntry
from catalog.provider_config import context_window_of, validate_provider_config
from catalog.providers import PROVIDERS
from rensei.core.errors import FieldError

CLAUDE = PROVIDERS["claude"]
OPUS = CatalogEntry(model_id="opus", context_window_tokens=200_000)
SMALL = CatalogEntry(model_id="small", context_window_tokens=100_000)
UNKNOWN = CatalogEntry(model_id="unknown", context_window_tokens=None)


class TestValidateProviderConfig:
    @pytest.mark.parametrize("config", [None, {}, {"anthropic": {}}])
    def test_accepts_nothing(self, config):
        assert context_window_of(CLAUDE, validate_provider_config(CLAUDE, OPUS, config)) is None

    @pytest.mark.parametrize("key", ["contextWindow", "context_window"])
    @pytest.mark.parametrize("tokens", [1, 100_000, 200_000])
    def test_takes_a_window_under_either_spelling(self, key, tokens):
        normal = validate_provider_config(CLAUDE, OPUS, {"anthropic": {key: tokens}})

        assert normal == {"anthropic": {"contextWindow": tokens}}
        assert context_window_of(CLAUDE, normal) == tokens

    @pytest.mark.parametrize("tokens", [0, -1, "100000", 1.5, 100_000.0, True, False, None, [], {}, 10**30])
    def test_refuses_a_window_that_is_no_positive_whole_number(self, tokens):
        with pytest.raises(FieldError) as refusal:
            validate_provider_config(CLAUDE, OPUS, {"anthropic": {"contextWindow": tokens}})

        assert refusal.value.errors[0]["pointer"] == "/providerConfig/anthropic/contextWindow"

    def test_refuses_a_window_above_the_model_s_with_both_numbers(self):
        with pytest.raises(FieldError, match="200001 is above the model's own window, 200000"):
            validate_provider_config(CLAUDE, OPUS, {"anthropic": {"contextWindow": 200_001}})

    @pytest.mark.parametrize(("entry", "served"), [(OPUS, SMALL), (SMALL, OPUS), (UNKNOWN, SMALL), (SMALL, UNKNOWN)])
    def test_bounds_it_by_the_smaller_window(self, entry, served):
        config = {"anthropic": {"contextWindow": 100_000}}
        assert validate_provider_config(CLAUDE, entry, config, served=served)

        with pytest.raises(FieldError, match="own window, 100000"):
            validate_provider_config(CLAUDE, entry, {"anthropic": {"contextWindow": 100_001}}, served=served)

    def test_knows_no_bound_where_the_window_is_unknown(self):
        assert validate_provider_config(CLAUDE, UNKNOWN, {"anthropic": {"contextWindow": 10**9}})

    @pytest.mark.parametrize(
        ("config", "pointer", "nearest"),
        [
            ({"antropic": {}}, "/providerConfig/antropic", "anthropic"),
            ({"openai": {}}, "/providerConfig/openai", "anthropic"),
            ({"anthropic": {"contextWindw": 1}}, "/providerConfig/anthropic/contextWindw", "contextWindow"),
            ({"anthropic": {"contextwindow": 1}}, "/providerConfig/anthropic/contextwindow", "contextWindow"),
            ({"anthropic": {"a/b~c": 1}}, "/providerConfig/anthropic/a~1b~0c", "contextWindow"),
            ({"anthropic": {"": 1}}, "/providerConfig/anthropic/", "contextWindow"),
        ],
    )
    def test_refuses_an_unknown_key_and_names_the_nearest(self, config, pointer, nearest):
        with pytest.raises(FieldError) as refusal:
            validate_provider_config(CLAUDE, OPUS, config)

        assert refusal.value.errors[0]["pointer"] == pointer
        assert f"Did you mean '{nearest}'?" in refusal.value.detail

    @pytest.mark.parametrize("config", [[], "anthropic", 1, True, {"anthropic": []}, {"anthropic": None}])
    def test_refuses_what_is_no_object(self, config):
        with pytest.raises(FieldError):
            validate_provider_config(CLAUDE, OPUS, config)

    def test_refuses_both_spellings_at_once(self):
        with pytest.raises(FieldError, match="given twice"):
            validate_provider_config(CLAUDE, OPUS, {"anthropic": {"contextWindow": 1, "context_window": 2}})

    def test_points_where_the_caller_says(self):
        with pytest.raises(FieldError) as refusal:
            validate_provider_config(CLAUDE, OPUS, 1, pointer="/nodes/0/providerConfig")

        assert refusal.value.errors[0]["pointer"] == "/nodes/0/providerConfig"
