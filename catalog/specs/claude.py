"""Anthropic Claude."""

from fractions import Fraction

from catalog.providers import ProviderSpec
from rensei.core.auth_modes import AuthMode
from rensei.core.money import PICODOLLARS_PER_DOLLAR

SPEC = ProviderSpec(
    id="claude",
    display_name="Anthropic Claude",
    config_namespace="anthropic",
    auth_modes=(AuthMode.BYOK, AuthMode.METERED, AuthMode.SHARED, AuthMode.HOST_SESSION),
    requires_endpoint=False,
    category="Cloud",
    default_base_url_setting="RENSEI_ANTHROPIC_BASE_URL",
    key_page_url="https://platform.claude.com/settings/keys",
    # $10 for 1,000 searches: https://platform.claude.com/docs/en/about-claude/pricing
    dearest_search_picodollars=PICODOLLARS_PER_DOLLAR // 100,
    federation_audience="https://api.anthropic.com",
    workspace_label="Workspace ID",
    workspace_help="Only if the key is bound to a workspace.",
    config_keys=("contextWindow",),
    recommended=("claude-opus-", "claude-sonnet-"),
    model_prefix="anthropic/",
    window_suffixes={"[1m]": 1_000_000},
    # https://platform.claude.com/docs/en/about-claude/pricing
    price_factors={
        # `not_available` is reported for models that accept no region.
        "inference_geo": {"us": Fraction(11, 10), "global": Fraction(1), "not_available": Fraction(1), "": Fraction(1)},
        "speed": {"fast": Fraction(2), "standard": Fraction(1)},
        # Capacity of the priority tier was paid in advance. Its tokens are recorded at the list price.
        "service_tier": {"standard": Fraction(1), "priority": Fraction(1), "batch": Fraction(1, 2)},
    },
)
