"""Anthropic Claude."""

from catalog.providers import ProviderSpec
from rensei.core.auth_modes import AuthMode

SPEC = ProviderSpec(
    id="claude",
    display_name="Anthropic Claude",
    config_namespace="anthropic",
    auth_modes=(AuthMode.BYOK, AuthMode.METERED, AuthMode.SHARED, AuthMode.HOST_SESSION),
    requires_endpoint=False,
    category="Cloud",
    default_base_url_setting="RENSEI_ANTHROPIC_BASE_URL",
    key_page_url="https://platform.claude.com/settings/keys",
    config_keys=("contextWindow",),
    recommended=("claude-opus-", "claude-sonnet-"),
    model_prefix="anthropic/",
    window_suffixes={"[1m]": 1_000_000},
)
