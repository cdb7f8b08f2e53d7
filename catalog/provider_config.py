"""The settings that a profile or a dispatch passes to its provider, in the provider's namespace."""

import difflib
from typing import Any

from catalog.models import CatalogEntry
from catalog.providers import PROVIDERS, ProviderSpec
from rensei.core.errors import FieldError, json_pointer
from rensei.core.json_fields import members


def config_form() -> dict[str, Any]:
    """Return the configs accepted by `validate_provider_config`, as a JSON schema."""
    window = {"type": "integer", "minimum": 1, "description": "Tokens, at most the model's own window"}
    forms = {"contextWindow": window}
    return members(
        {
            spec.config_namespace: members(
                {name: forms.get(key, {}) for key in spec.config_keys for name in dict.fromkeys((key, _snake(key)))}
            )
            for spec in PROVIDERS.values()
        }
    )


def validate_provider_config(
    spec: ProviderSpec,
    entry: CatalogEntry,
    config: Any,
    *,
    served: CatalogEntry | None = None,
    pointer: str = "/providerConfig",
) -> dict[str, Any]:
    """
    Check a provider config, and return it in the documented spelling.

    It is `{"<namespace>": {"contextWindow": tokens}}`, and `context_window` is the same key. The window
    may not exceed that of the model, nor that of the model that serves it.

    :raises FieldError: if a key is unknown or a value is wrong
    """
    if config is None:
        return {}
    if not isinstance(config, dict):
        raise FieldError(pointer=pointer, reason=f'Give an object such as {{"{spec.config_namespace}": {{…}}}}.')
    normal: dict[str, Any] = {}
    for namespace, settings in config.items():
        place = pointer + json_pointer(namespace)
        if namespace != spec.config_namespace:
            raise FieldError(pointer=place, reason=_unknown(namespace, (spec.config_namespace,)))
        if not isinstance(settings, dict):
            raise FieldError(pointer=place, reason='Give an object such as {"contextWindow": 100000}.')
        normal[namespace] = _validate_settings(spec, settings, largest=_smaller_window(entry, served), pointer=place)
    return normal


def context_window_of(spec: ProviderSpec, config: dict[str, Any]) -> int | None:
    """Return the window set in a validated config, or None."""
    window: int | None = config.get(spec.config_namespace, {}).get("contextWindow")
    return window


def _validate_settings(
    spec: ProviderSpec, settings: dict[str, Any], *, largest: int | None, pointer: str
) -> dict[str, Any]:
    by_snake_case = {_snake(key): key for key in spec.config_keys}
    normal: dict[str, Any] = {}
    for given, value in settings.items():
        key = given if given in spec.config_keys else by_snake_case.get(given)
        place = pointer + json_pointer(given)
        if key is None:
            raise FieldError(pointer=place, reason=_unknown(given, spec.config_keys))
        if key in normal:
            raise FieldError(pointer=place, reason=f"This key is given twice, as {key} and in snake_case. Keep one.")
        if key == "contextWindow":
            _check_window(value, largest=largest, pointer=place)
        normal[key] = value
    return normal


def _check_window(value: Any, *, largest: int | None, pointer: str) -> None:
    # A bool is an int in Python, but `true` is not meant as one token.
    if type(value) is not int or value < 1:
        raise FieldError(pointer=pointer, reason="contextWindow is a positive whole number of tokens.")
    if largest is not None and value > largest:
        raise FieldError(pointer=pointer, reason=f"contextWindow {value} is above the model's own window, {largest}.")


def _smaller_window(entry: CatalogEntry, served: CatalogEntry | None) -> int | None:
    windows = [model.context_window_tokens for model in (entry, served) if model is not None]
    return min((window for window in windows if window is not None), default=None)


def _unknown(key: str, known: tuple[str, ...]) -> str:
    nearest = difflib.get_close_matches(_snake(key), [_snake(name) for name in known], n=1, cutoff=0)
    by_snake_case = {_snake(name): name for name in known}
    if not nearest:
        return f"'{key}' is not known here, and this provider takes no settings. Remove it."
    return f"'{key}' is not known here. Did you mean '{by_snake_case[nearest[0]]}'?"


def _snake(name: str) -> str:
    return "".join(f"_{letter.lower()}" if letter.isupper() else letter for letter in name)
