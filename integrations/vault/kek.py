"""The key-encryption keys: the interface that the vault requires, and its implementation as a local keyring."""

import hashlib
import hmac
import secrets
from pathlib import Path
from typing import Protocol

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from integrations.vault import keyring
from integrations.vault.errors import KekNotFound, WrapInvalid

NONCE_BYTES = 12
CHECK_VALUE_BYTES = 8


class KekProvider(Protocol):
    """
    Stores key-encryption keys, and never returns one.

    `context` is bound to the wrapped key: it unwraps only under the same context. All methods but `describe` raise
    `KekUnavailable` or `KekNotFound`, and `unwrap` also raises `WrapInvalid`.
    """

    def describe(self) -> str:
        """Describe for the operator where the keys are stored."""

    def current_id(self) -> str:
        """Return the id of the key that wraps from now on."""

    def health(self, kek_id: str) -> bytes:
        """Check that a key can be used, and return its check value, which differs for other bytes."""

    def wrap(self, key: bytes, *, kek_id: str, context: bytes) -> bytes: ...

    def unwrap(self, wrapped: bytes, *, kek_id: str, context: bytes) -> bytes: ...


class LocalKeyring:
    """
    The keys in a file on this machine. It is read each time, so a restored keyring works at once.

    A wrapped key is `nonce 12 | ciphertext | tag 16` of AES-256-GCM.
    """

    def __init__(self, path: Path) -> None:
        self._path = path

    def describe(self) -> str:
        return f"local keyring {self._path}"

    def current_id(self) -> str:
        return keyring.load(self._path).current

    def health(self, kek_id: str) -> bytes:
        return hmac.digest(self._key(kek_id), b"rensei.kcv", hashlib.sha256)[:CHECK_VALUE_BYTES]

    def wrap(self, key: bytes, *, kek_id: str, context: bytes) -> bytes:
        nonce = secrets.token_bytes(NONCE_BYTES)
        return nonce + AESGCM(self._key(kek_id)).encrypt(nonce, key, context)

    def unwrap(self, wrapped: bytes, *, kek_id: str, context: bytes) -> bytes:
        cipher = AESGCM(self._key(kek_id))
        try:
            return cipher.decrypt(wrapped[:NONCE_BYTES], wrapped[NONCE_BYTES:], context)
        except (InvalidTag, ValueError):
            raise WrapInvalid(f"a data key wrapped by {kek_id} does not open: it was altered") from None

    def _key(self, kek_id: str) -> bytes:
        keys = keyring.load(self._path).keys
        if kek_id not in keys:
            raise KekNotFound(f"the key {kek_id} is not in the keyring")
        return keys[kek_id]
