"""The providers that Rensei knows: one spec each, found in `catalog/specs/`."""

import importlib
import pkgutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from fractions import Fraction

from catalog import specs
from rensei.core.auth_modes import AuthMode


@dataclass(frozen=True, kw_only=True)
class ProviderSpec:
    """What a provider is, before any key is connected."""

    id: str
    display_name: str
    config_namespace: str
    auth_modes: tuple[AuthMode, ...]
    requires_endpoint: bool
    category: str
    default_base_url_setting: str
    key_page_url: str
    config_keys: tuple[str, ...] = ()
    # How the ids of the models begin that suit most work. The newest of them is what a new profile proposes.
    recommended: tuple[str, ...] = ()
    # What may stand before an id, as routers of several providers write it.
    model_prefix: str = ""
    # What may stand behind an id to ask for a window of so many tokens, where the model has one.
    window_suffixes: Mapping[str, int] = field(default_factory=dict)
    # What multiplies the prices of tokens, by the field in which an answer tells it, and by its value there.
    price_factors: Mapping[str, Mapping[str, Fraction]] = field(default_factory=dict)


PROVIDERS: dict[str, ProviderSpec] = {}


def register(spec: ProviderSpec) -> ProviderSpec:
    PROVIDERS[spec.id] = spec
    return spec


for found in pkgutil.iter_modules(specs.__path__):
    register(importlib.import_module(f"{specs.__name__}.{found.name}").SPEC)
