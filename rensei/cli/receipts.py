"""Verify the signed receipt of a run with a public key, without a server."""

import base64
import hashlib
import json
from decimal import Decimal
from typing import Any

from rensei.cli.errors import ADD_ALL, Refused

FORMAT = "rensei-receipt-1"
PICODOLLARS_PER_DOLLAR = 10**12


def parse(text: str) -> dict[str, Any]:
    """:raises Refused: if a text is not a JSON object, or has the same name twice"""
    try:
        document = json.loads(text, object_pairs_hook=_without_doubles)
    except (ValueError, RecursionError) as fault:
        raise _invalid(f"it is not JSON ({fault})") from fault
    if not isinstance(document, dict):
        raise _invalid("it is not a JSON object")
    return document


def verify(document: dict[str, Any], keys: dict[str, Any]) -> dict[str, Any]:
    """
    Verify a receipt with the public keys of its issuer, and return what was signed.

    :raises Refused: if anything of it was changed, or no key of these signed it
    """
    if document.get("format") != FORMAT or document.get("alg") != "EdDSA":
        raise _invalid(f"its format is not {FORMAT}")
    key = _key_of(document, keys)
    content = {name: value for name, value in document.items() if name != "signature"}
    if not _is_signed(canonical(content), decoded(document.get("signature")), key):
        raise _invalid("its signature does not belong to what it says")
    receipt = document.get("receipt")
    if not isinstance(receipt, dict):
        raise _invalid("it has no content")
    _check_amounts(receipt)
    return receipt


def canonical(document: Any) -> bytes:
    """Write what was signed: sorted names, no spaces, UTF-8."""
    text = json.dumps(document, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return text.encode(errors="surrogatepass")


def decoded(text: Any) -> bytes:
    """:raises Refused: if a value is not base64url as it is written without padding"""
    try:
        content = base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))
    except (TypeError, ValueError) as fault:
        raise _invalid("a part of it is not in base64url") from fault
    # Each content has one spelling: others would be changes that go unnoticed.
    if base64.urlsafe_b64encode(content).decode().rstrip("=") != text:
        raise _invalid("a part of it is not in base64url")
    return content


def _key_of(document: dict[str, Any], keys: dict[str, Any]) -> bytes:
    """:raises Refused: if none of the keys has the id that the receipt names"""
    kid = document.get("kid")
    listed = keys.get("keys") if isinstance(keys.get("keys"), list) else []
    for key in listed or []:
        if isinstance(key, dict) and key.get("kid") == kid and key.get("kty") == "OKP" and key.get("crv") == "Ed25519":
            public = decoded(key.get("x"))
            said = {"crv": "Ed25519", "kty": "OKP", "x": key["x"]}
            if base64.urlsafe_b64encode(hashlib.sha256(canonical(said)).digest()).decode().rstrip("=") == kid:
                return public
    raise Refused(
        "RECEIPT_KEY_UNKNOWN",
        "The receipt names a key that is not among those given.",
        fix="Take the keys from the server that issued it: its address with /api/v1/receipt-keys.",
    )


def _is_signed(message: bytes, signature: bytes, public: bytes) -> bool:
    """:raises Refused: if the library that verifies is not installed"""
    try:
        from cryptography.exceptions import InvalidSignature
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
    except ModuleNotFoundError as fault:
        raise Refused(
            "LIBRARY_MISSING", "The library that verifies signatures is not installed.", fix=ADD_ALL
        ) from fault
    try:
        Ed25519PublicKey.from_public_bytes(public).verify(signature, message)
    except (InvalidSignature, ValueError):
        return False
    return True


def _check_amounts(receipt: dict[str, Any]) -> None:
    """
    Compute each amount again from its counts and prices, and their sum.

    :raises Refused: if one differs
    """
    total: int | None = 0
    for line in receipt["lines"]:
        amount = _picodollars(line["amountUsd"])
        counted = sum(count * (line["unitPrices"][name] or 0) for name, count in line["counts"].items())
        if amount is not None and amount != counted:
            raise _invalid(f"the amount of its line {line['id']} is not its counts times its prices")
        total = None if total is None or amount is None else total + amount
    if total != _picodollars(receipt["total"]["amountUsd"]):
        raise _invalid("its total is not the sum of its lines")


def _picodollars(dollars: str | None) -> int | None:
    return None if dollars is None else int(Decimal(dollars) * PICODOLLARS_PER_DOLLAR)


def _without_doubles(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a name occurs twice in an object")
    return found


def _invalid(why: str) -> Refused:
    return Refused(
        "RECEIPT_INVALID",
        f"This is not a receipt that can be trusted: {why}.",
        fix="Ask for the file again: GET /api/v1/runs/RUN/receipt.",
    )
