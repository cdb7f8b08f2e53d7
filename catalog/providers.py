"""The providers that Rensei supports: one spec each, loaded from `catalog/specs/`."""

import importlib
import pkgutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from fractions import Fraction

from catalog import specs
from rensei.core.auth_modes import AuthMode


@dataclass(frozen=True, kw_only=True)
class ProviderSpec:
    """The facts about a provider that do not depend on a connected key."""

    id: str
    display_name: str
    config_namespace: str
    auth_modes: tuple[AuthMode, ...]
    requires_endpoint: bool
    category: str
    default_base_url_setting: str
    key_page_url: str
    # The highest published price of a web search of any of its models.
    dearest_search_picodollars: int
    # The audience of the identity tokens that the provider exchanges for its own; empty: it takes keys only.
    federation_audience: str = ""
    # What a key may be bound to at the provider, as people are asked for it; empty: nothing.
    # What a key is, where that is not clear by itself.
    key_help: str = ""
    workspace_label: str = ""
    workspace_help: str = ""
    config_keys: tuple[str, ...] = ()
    # Prefixes of the ids of models that suit most work. A new profile proposes the newest of them.
    recommended: tuple[str, ...] = ()
    # A prefix that may precede an id, as written by routers of several providers.
    model_prefix: str = ""
    # Suffixes that request a window of so many tokens, if the model has one.
    window_suffixes: Mapping[str, int] = field(default_factory=dict)
    # Factors on the prices of tokens, by the field of an answer that reports them, and by its value.
    price_factors: Mapping[str, Mapping[str, Fraction]] = field(default_factory=dict)


PROVIDERS: dict[str, ProviderSpec] = {}


def register(spec: ProviderSpec) -> ProviderSpec:
    PROVIDERS[spec.id] = spec
    return spec


for found in pkgutil.iter_modules(specs.__path__):
    register(importlib.import_module(f"{specs.__name__}.{found.name}").SPEC)
