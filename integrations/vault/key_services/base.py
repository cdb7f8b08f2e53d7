"""What the key services have in common: the check value, and the sentences of their faults."""

import hmac
import importlib
import re
from abc import ABC, abstractmethod
from types import ModuleType
from urllib.parse import SplitResult, parse_qs, urlsplit

from integrations.vault.errors import (
    KekChanged,
    KekDenied,
    KekDisabled,
    KekNotFound,
    KekUnavailable,
    KeyServiceSilent,
    VaultFault,
    WrapInvalid,
)
from integrations.vault.framing import length_prefixed
from integrations.vault.kek import Context, DestroyedKey, Wrapped
from rensei.core.networks import LOOPBACK

KEK_ID_LENGTH_MAX = 255
# Public: recognising a key by it takes the use of that key.
_CHECKED = b"rensei.kcv".ljust(32, b".")
ORG_ID = re.compile(r"org_[0-9a-z]{26}")


class AddressInvalid(ValueError):
    """An address in RENSEI_KEK_URL cannot be used. The text says why, and names no secret."""


class KeyService(ABC):
    """
    One key in a key service.

    Its check value is a constant wrapped by the key: another key under the same name does not unwrap it.
    """

    is_remote = True
    # The address without its host, so that a service may move to another host; `#name` tells two of a kind apart.
    kek_id: str

    def holds(self, kek_id: str) -> bool:
        return kek_id == self.kek_id

    def current_id(self) -> str:
        return self.kek_id

    def current_version(self) -> str:
        return ""

    def describe(self) -> str:
        return self.kek_id

    def check_value(self, kek_id: str) -> bytes:
        wrapped = self.wrap(_CHECKED, kek_id=kek_id, context=_check_context(kek_id))
        return length_prefixed(wrapped.version) + wrapped.blob

    def check(self, kek_id: str, value: bytes) -> None:
        end = 4 + int.from_bytes(value[:4], "big")
        wrapped = Wrapped(version=value[4:end].decode(errors="replace"), blob=value[end:])
        try:
            found = self.unwrap(wrapped, kek_id=kek_id, context=_check_context(kek_id))
        except WrapInvalid:
            found = b""
        if not hmac.compare_digest(found, _CHECKED):
            raise KekChanged("the key in the key service is not the one that sealed")

    def destroy_key_of(self, owner: str, *, has_wrapped: bool) -> DestroyedKey | None:
        return None

    def forget_key_of(self, owner: str) -> None:  # noqa: B027 - most have no names to free
        pass

    @abstractmethod
    def wrap(self, key: bytes, *, kek_id: str, context: Context) -> Wrapped: ...

    @abstractmethod
    def unwrap(self, wrapped: Wrapped, *, kek_id: str, context: Context) -> bytes: ...


def silent(why: str) -> KeyServiceSilent:
    """:param why: a few words without host or account, such as `timeout`"""
    return KeyServiceSilent(f"the key service does not answer ({why})")


def denied() -> VaultFault:
    return KekDenied("the key service refuses this server the use of the key")


def disabled() -> VaultFault:
    return KekDisabled("the key, or the version of it that sealed, is disabled or destroyed in the key service")


def not_found() -> VaultFault:
    return KekNotFound("the key service has no such key")


def altered() -> VaultFault:
    return WrapInvalid("a data key does not open: it was altered, or belongs elsewhere")


def unexpected(what: str) -> VaultFault:
    return KekUnavailable(f"the key service answered in an unexpected way ({what})")


def library(module: str, *, extra: str) -> ModuleType:
    """
    Import the library of a key service.

    :raises KekUnavailable: if it is not installed, with the extra that adds it
    """
    try:
        return importlib.import_module(module)
    except ImportError:
        raise KekUnavailable(
            f"this server lacks the library of its key service: pip install 'rensei[server,{extra}]'"
        ) from None


def options(address: SplitResult, *known: str) -> dict[str, str]:
    """
    Read the options after the `?` of an address.

    :raises AddressInvalid: if one is not known, or is given twice
    """
    found = parse_qs(address.query, keep_blank_values=True, separator="&")
    for name, values in found.items():
        if name not in known or len(values) != 1:
            raise AddressInvalid(f"the option '{name}' is not one of {', '.join(known) or 'any'}, given once")
    return {name: values[0] for name, values in found.items()}


def is_per_org(chosen: dict[str, str]) -> bool:
    """
    Read whether a service holds a key for each organization.

    :raises AddressInvalid: if the option is another word than `yes`
    """
    if chosen.get("per-org", "yes") != "yes":
        raise AddressInvalid("per-org is `yes`, or is left out")
    return "per-org" in chosen


def own_key_of(context: Context) -> str:
    """Return the organization whose own key wraps in a context; empty for the platform and for check values."""
    owner = context.get("owner", "")
    return owner if ORG_ID.fullmatch(owner) else ""


def require_safe(url: str) -> str:
    """:raises AddressInvalid: if data keys would travel over the network unencrypted"""
    if not url.startswith("https://") and urlsplit(url).hostname not in LOOPBACK:
        raise AddressInvalid("a key service on another machine is called over https only")
    return url


def name_of(address: SplitResult, path: str) -> str:
    """
    Build the id of a key from its address.

    :raises AddressInvalid: if it is too long for the database
    """
    kek_id = f"{address.scheme}:{path}" + (f"#{address.fragment}" if address.fragment else "")
    if len(kek_id) > KEK_ID_LENGTH_MAX:
        raise AddressInvalid(f"it names a key with more than {KEK_ID_LENGTH_MAX} characters")
    return kek_id


def _check_context(kek_id: str) -> Context:
    return {"domain": "rensei.kcv", "kek": kek_id}
