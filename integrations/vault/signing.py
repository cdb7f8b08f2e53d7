"""Signatures that others verify with a public key: Ed25519, by a private key that is derived from a secret."""

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

SEED_BYTES = 32


def public_key(secret: bytes, *, purpose: str) -> bytes:
    """Return the public key that belongs to a secret and a purpose."""
    return _private_key(secret, purpose).public_key().public_bytes_raw()


def sign(message: bytes, secret: bytes, *, purpose: str) -> bytes:
    """Sign a message. The same message always has the same signature."""
    return _private_key(secret, purpose).sign(message)


def is_signed(message: bytes, signature: bytes, public: bytes) -> bool:
    """Return whether a signature of a message was made with the private key of a public one."""
    try:
        Ed25519PublicKey.from_public_bytes(public).verify(signature, message)
    except (InvalidSignature, ValueError):
        return False
    return True


def _private_key(secret: bytes, purpose: str) -> Ed25519PrivateKey:
    seed = HKDF(algorithm=SHA256(), length=SEED_BYTES, salt=None, info=purpose.encode()).derive(secret)
    return Ed25519PrivateKey.from_private_bytes(seed)
