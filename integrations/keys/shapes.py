"""The formats of submitted keys, addresses and ids, and which part of a key may be shown afterwards."""

import re
from collections.abc import Collection

from integrations import capacity
from integrations.outbound.http import check_base_url
from integrations.providers.base import ADAPTERS, Federation, Given
from rensei.core.errors import FieldError
from rensei.core.secret import Secret

# Visible ASCII only: an HTTP client's error would print a key with a line break in full.
KEY_SHAPE = re.compile(r"[\x21-\x7e]{20,512}")
MASK_MARKS = ("…", "...", "•", "**")
# The part of a key that names its kind and is the same in all keys, such as the first three words of `sk-ant-api03-`.
PUBLIC_PREFIX = re.compile(r"(?:[a-z]{2,8}-){1,2}[a-z]{2,8}\d{2}-")
SHOWN_AT_END = 4
REMIND_AFTER_DAYS_MAX = 3650
WORKSPACE_SHAPE = re.compile(r"[A-Za-z0-9_-]{0,120}")
# Of any provider.
ANY_WORKSPACE_SHAPE = re.compile(r"[A-Za-z0-9_/-]{0,120}")


def clean_provider(provider: str, *, known: Collection[str] = ()) -> str:
    """:raises FieldError: if the provider is unknown"""
    known = known or capacity.specs()
    if provider not in known:
        names = ", ".join(sorted(known))
        raise FieldError(pointer="/provider", reason=f"There is no such provider. Known here: {names}.")
    return provider


def clean_key(api_key: Secret, *, provider: str, base_url: str = "") -> Secret:
    """
    Strip white space around a pasted key, and check that it may be stored.

    `base_url` is the integration's own, or empty: another server may use keys of another format.

    :raises FieldError: if it is empty, masked, or contains an invalid character
    :raises KeyKindRefused: if it is a key of another kind
    """
    text = api_key.reveal().strip()
    if not text:
        raise FieldError(pointer="/apiKey", reason="The key is empty. Paste the whole key.")
    if any(mark in text for mark in MASK_MARKS):
        raise FieldError(
            pointer="/apiKey", reason="This is the shortened form that is shown for a key. Paste the whole key."
        )
    if not KEY_SHAPE.fullmatch(text):
        raise FieldError(
            pointer="/apiKey",
            reason="A key has 20 to 512 visible characters, without blanks or line breaks inside. Paste it again.",
        )
    key = Secret(text)
    capacity.connectable(provider).check_key(key, base_url=base_url)
    return key


def require_no_base_url(base_url: str) -> None:
    """:raises FieldError: if a federation is given a base URL of its own"""
    if base_url:
        raise FieldError(
            pointer="/baseUrl", reason="A federation is exchanged at the provider itself. Leave the base URL empty."
        )


def clean_given(given: Given, *, provider: str, base_url: str = "") -> Given:
    """
    Check what is given to connect a provider: a key, or the ids of a federation.

    :raises FieldError: if it has the wrong format, or the provider offers no federation, or not at another address
    :raises KeyKindRefused: if it is a key of another kind
    """
    if isinstance(given, Secret):
        return clean_key(given, provider=provider, base_url=base_url)
    if not capacity.specs()[provider].federation_audience:
        raise FieldError(pointer="/federation", reason="This provider offers no federation. Connect a key.")
    require_no_base_url(base_url)
    ADAPTERS[provider].check_federation(given)
    return given


def one_given(api_key: Secret | None, federation: Federation | None) -> Given:
    """:raises FieldError: if it is not exactly one of them"""
    given = api_key or federation
    if given is None or (api_key and federation):
        raise FieldError(pointer="/apiKey", reason="Give either an API key or a federation, and not both.")
    return given


def hint_of(given: Given) -> str:
    """Shorten what was given for display."""
    return key_hint(given) if isinstance(given, Secret) else f"{given.rule_id[:5]}…{given.rule_id[-SHOWN_AT_END:]}"


def key_hint(key: Secret) -> str:
    """Shorten a key for display: its kind and its last four characters."""
    text = key.reveal()
    prefix = PUBLIC_PREFIX.match(text)
    return f"{prefix.group() if prefix else ''}…{text[-SHOWN_AT_END:]}"


def clean_base_url(base_url: str, *, provider: str, org_slug: str) -> str:
    """
    Check an integration's own base URL. It is empty where the provider's own address is used.

    :raises FieldError: if it is empty and the provider has no address of its own
    :raises BaseUrlRefused: if keys must not be sent to that address
    """
    if base_url.strip() and provider in capacity.CAPACITY:
        raise FieldError(pointer="/baseUrl", reason="This provider has one address. Leave the base URL empty.")
    if base_url.strip():
        return check_base_url(base_url.strip(), org_slug=org_slug)
    if capacity.specs()[provider].requires_endpoint:
        raise FieldError(pointer="/baseUrl", reason="This provider has no address of its own. Give the base URL.")
    return ""


def clean_reminder(days: int | None) -> int | None:
    """:raises FieldError: if it is no age at which a person may be reminded"""
    if days is not None and not 1 <= days <= REMIND_AFTER_DAYS_MAX:
        raise FieldError(pointer="/remindAfterDays", reason=f"It is from 1 to {REMIND_AFTER_DAYS_MAX} days.")
    return days


def clean_workspace_id(workspace_id: str, *, provider: str) -> str:
    """:raises FieldError: if it is not a possible workspace id, or the provider has no workspaces"""
    workspace_id = workspace_id.strip()
    if provider in capacity.ACCOUNTS:
        capacity.ACCOUNTS[provider].check_workspace(workspace_id)
    elif not WORKSPACE_SHAPE.fullmatch(workspace_id):
        raise FieldError(
            pointer="/workspaceId", reason="A workspace id has up to 120 letters, digits, hyphens and underscores."
        )
    return workspace_id
