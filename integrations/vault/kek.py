"""The key-encryption keys: the interface that the vault requires, and its implementation as a local keyring."""

import hashlib
import hmac
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Protocol

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from integrations.vault import keyring
from integrations.vault.errors import KekChanged, KekNotFound, WrapInvalid
from integrations.vault.framing import length_prefixed

NONCE_BYTES = 12
CHECK_VALUE_BYTES = 8

# What a wrapped key is bound to, by name and in a fixed order: it unwraps only in the same context.
Context = Mapping[str, str]


@dataclass(frozen=True, kw_only=True)
class Wrapped:
    """A wrapped data key, and the version of the key that wrapped it, where versions are known; else empty."""

    blob: bytes = field(repr=False)
    version: str = ""


@dataclass(frozen=True, kw_only=True)
class DestroyedKey:
    """An outer key of one organization that was destroyed in its key service, and when that becomes final."""

    name: str
    final_at: datetime


class KekProvider(Protocol):
    """
    Stores key-encryption keys, and never returns one.

    All methods but `describe`, `is_remote` and `holds` raise a `VaultFault`; `unwrap` raises `WrapInvalid` where a
    wrapped key was altered or has another context. A provider that is remote calls out, so no transaction is open.
    """

    @property
    def is_remote(self) -> bool:
        """Whether using a key is a call to another machine or device."""

    def describe(self) -> str:
        """Describe for the operator where the keys are stored."""

    def holds(self, kek_id: str) -> bool:
        """Whether a key of this id is this provider's, even if it cannot be used now."""

    def current_id(self) -> str:
        """Return the id of the key that wraps from now on."""

    def current_version(self) -> str:
        """Return the version of that key which wraps from now on; empty where versions are not known."""

    def check_value(self, kek_id: str) -> bytes:
        """Return a value to store at the first use of a key, by which `check` later recognises it."""

    def check(self, kek_id: str, value: bytes) -> None:
        """:raises KekChanged: if the value was made with another key of the same id"""

    def wrap(self, key: bytes, *, kek_id: str, context: Context) -> Wrapped: ...

    def unwrap(self, wrapped: Wrapped, *, kek_id: str, context: Context) -> bytes: ...

    def destroy_key_of(self, owner: str, *, has_wrapped: bool) -> DestroyedKey | None:
        """
        Destroy the key that the provider holds for one organization alone. None if it holds none for it.

        It may be repeated, as after an answer that was lost. Its name stays taken until `forget_key_of`.

        :param has_wrapped: it wraps data keys, so one that is not found was destroyed before
        """

    def forget_key_of(self, owner: str) -> None:
        """Free the name of a destroyed key, so that the organization can have another one."""


class LocalKeyring:
    """The keys in a file on this machine. It is read each time, so a restored keyring works at once."""

    is_remote = False

    def __init__(self, path: Path) -> None:
        self._path = path

    def describe(self) -> str:
        return f"local keyring {self._path}"

    def holds(self, kek_id: str) -> bool:
        return kek_id.startswith(keyring.ID_PREFIX)

    def current_id(self) -> str:
        return keyring.load(self._path).current

    def current_version(self) -> str:
        return ""

    def check_value(self, kek_id: str) -> bytes:
        return hmac.digest(self._key(kek_id), b"rensei.kcv", hashlib.sha256)[:CHECK_VALUE_BYTES]

    def check(self, kek_id: str, value: bytes) -> None:
        if not hmac.compare_digest(value, self.check_value(kek_id)):
            raise KekChanged(f"the key {kek_id} is not the one that sealed: its bytes differ")

    def wrap(self, key: bytes, *, kek_id: str, context: Context) -> Wrapped:
        return Wrapped(blob=encrypt(key, key=self._key(kek_id), bound_to=length_prefixed(*context.values())))

    def unwrap(self, wrapped: Wrapped, *, kek_id: str, context: Context) -> bytes:
        return decrypt(wrapped.blob, key=self._key(kek_id), bound_to=length_prefixed(*context.values()))

    def destroy_key_of(self, owner: str, *, has_wrapped: bool) -> DestroyedKey | None:
        return None

    def forget_key_of(self, owner: str) -> None:
        pass

    def _key(self, kek_id: str) -> bytes:
        keys = keyring.load(self._path).keys
        if kek_id not in keys:
            raise KekNotFound(f"the key {kek_id} is not in the keyring")
        return keys[kek_id]


def encrypt(plaintext: bytes, *, key: bytes, bound_to: bytes) -> bytes:
    """Encrypt as `nonce 12 | ciphertext | tag 16` of AES-256-GCM."""
    nonce = secrets.token_bytes(NONCE_BYTES)
    return nonce + AESGCM(key).encrypt(nonce, plaintext, bound_to)


def decrypt(blob: bytes, *, key: bytes, bound_to: bytes) -> bytes:
    """:raises WrapInvalid: if it was altered, or was encrypted with another key or context"""
    try:
        return AESGCM(key).decrypt(blob[:NONCE_BYTES], blob[NONCE_BYTES:], bound_to)
    except (InvalidTag, ValueError):
        raise WrapInvalid("a data key does not open: it was altered, or belongs elsewhere") from None
