"""
Signatures that others verify with a public key.

Ed25519 by a private key that is derived from a secret, and ES256 by a key of its own, which the verifiers of identity
tokens require: https://www.rfc-editor.org/rfc/rfc7518#section-3.4
"""

import hashlib
import json
import secrets
from base64 import urlsafe_b64encode

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

SEED_BYTES = 32
_P256_BYTES = 32
_P256_ORDER = 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551


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


def new_es256_key() -> str:
    """Make a private key, as 64 hexadecimal digits."""
    number = secrets.randbelow(_P256_ORDER - 1) + 1
    return number.to_bytes(_P256_BYTES).hex()


def es256_public(private: str) -> dict[str, str]:
    """Return the public key as a JSON Web Key. Its `kid` is the key's thumbprint, as RFC 7638 defines it."""
    point = _es256_key(private).public_key().public_numbers()
    required = {
        "crv": "P-256",
        "kty": "EC",
        "x": base64url(point.x.to_bytes(_P256_BYTES)),
        "y": base64url(point.y.to_bytes(_P256_BYTES)),
    }
    canonical = json.dumps(required, separators=(",", ":"), sort_keys=True).encode()
    return {**required, "kid": base64url(hashlib.sha256(canonical).digest()), "alg": "ES256", "use": "sig"}


def es256_sign(message: bytes, private: str) -> bytes:
    """Sign a message, in the form of a JSON Web Signature: both numbers, 32 bytes each."""
    r, s = decode_dss_signature(_es256_key(private).sign(message, ec.ECDSA(SHA256())))
    return r.to_bytes(_P256_BYTES) + s.to_bytes(_P256_BYTES)


def base64url(data: bytes) -> str:
    return urlsafe_b64encode(data).decode().rstrip("=")


def _es256_key(private: str) -> ec.EllipticCurvePrivateKey:
    return ec.derive_private_key(int(private, 16), ec.SECP256R1())
