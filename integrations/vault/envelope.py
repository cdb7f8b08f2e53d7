"""
The format of one sealed record, which describes itself. Version 1:

    "RNS1" | format 1 | suite 1 | DEK id 16 | salt 32 | commitment 32 | nonce 12 | ciphertext | tag 16

HKDF-SHA-512 over the data key and the salt gives 64 bytes: a fresh AES-256-GCM key for this record alone, and
a commitment to it. With a fresh key, the 2^32 limit of random nonces (NIST SP 800-38D, 8.3) is never reached. The
commitment makes it impossible to create a text that opens under two keys, which GCM by itself allows.
"""

import hmac
import secrets
import uuid
from collections.abc import Sequence

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA512
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from integrations.vault.errors import RecordInvalid
from integrations.vault.framing import length_prefixed

MAGIC = b"RNS1"
FORMAT = 1
SUITE = 1  # HKDF-SHA-512 and AES-256-GCM
INFO = b"rensei.v1.enc+commit"
DOMAIN = "rensei.cred.v1"

KEY_BYTES = 32
SALT_BYTES = 32
NONCE_BYTES = 12
TAG_BYTES = 16
HEADER_BYTES = len(MAGIC) + 2 + 16
_SALT_END = HEADER_BYTES + SALT_BYTES
_COMMITMENT_END = _SALT_END + KEY_BYTES
_NONCE_END = _COMMITMENT_END + NONCE_BYTES


def seal(plaintext: bytes, *, key: bytes, key_id: uuid.UUID, context: Sequence[str]) -> bytes:
    """Seal a text under a data key. It opens only under the same key and context."""
    header = MAGIC + bytes([FORMAT, SUITE]) + key_id.bytes
    salt = secrets.token_bytes(SALT_BYTES)
    nonce = secrets.token_bytes(NONCE_BYTES)
    record_key, commitment = _derive(key, salt)
    ciphertext = AESGCM(record_key).encrypt(nonce, plaintext, _associated_data(header, context))
    return header + salt + commitment + nonce + ciphertext


def key_id_of(sealed: bytes) -> uuid.UUID:
    """
    Read which data key opens a record.

    :raises RecordInvalid: if it is not a record of a known format
    """
    if len(sealed) < _NONCE_END + TAG_BYTES or not sealed.startswith(MAGIC):
        raise RecordInvalid("a stored credential is damaged: it is not a sealed record")
    if (sealed[4], sealed[5]) != (FORMAT, SUITE):
        raise RecordInvalid("a stored credential has a format of another version of Rensei")
    return uuid.UUID(bytes=sealed[6:HEADER_BYTES])


def open_sealed(sealed: bytes, *, key: bytes, context: Sequence[str]) -> bytes:
    """
    Open a record.

    :raises RecordInvalid: if it was altered, or was sealed under another key or context
    """
    key_id_of(sealed)
    header, salt = sealed[:HEADER_BYTES], sealed[HEADER_BYTES:_SALT_END]
    commitment, nonce = sealed[_SALT_END:_COMMITMENT_END], sealed[_COMMITMENT_END:_NONCE_END]
    record_key, expected = _derive(key, salt)
    # The commitment is checked first, so no ciphertext is decrypted with another key.
    if hmac.compare_digest(commitment, expected):
        try:
            return AESGCM(record_key).decrypt(nonce, sealed[_NONCE_END:], _associated_data(header, context))
        except InvalidTag:
            pass
    raise RecordInvalid("a stored credential does not open here: it was altered, or moved from another place")


def _derive(key: bytes, salt: bytes) -> tuple[bytes, bytes]:
    derived = HKDF(algorithm=SHA512(), length=2 * KEY_BYTES, salt=salt, info=INFO).derive(key)
    return derived[:KEY_BYTES], derived[KEY_BYTES:]


def _associated_data(header: bytes, context: Sequence[str]) -> bytes:
    return length_prefixed(header, DOMAIN, *context)
