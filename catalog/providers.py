"""The providers that Rensei knows: one spec each, found in `catalog/specs/`."""

import importlib
import pkgutil
from dataclasses import dataclass

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


REGISTRY: dict[str, ProviderSpec] = {}


def register(spec: ProviderSpec) -> ProviderSpec:
    REGISTRY[spec.id] = spec
    return spec


for found in pkgutil.iter_modules(specs.__path__):
    register(importlib.import_module(f"{specs.__name__}.{found.name}").SPEC)
