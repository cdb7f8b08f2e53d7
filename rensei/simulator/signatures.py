"""
The signatures of thinking blocks, which a caller sends back unchanged in a later turn.

A signature is valid for the key for which it was made, as blocks are not portable between unrelated accounts.
"""

import base64
import hashlib

from rensei.simulator.errors import ApiError


def sign_thinking(thinking: str, *, key_sha256: str) -> str:
    digest = hashlib.sha256(f"simulated thinking\n{key_sha256}\n{thinking}".encode()).digest()
    return base64.b64encode(digest).decode()


def check_signature(block: dict[str, str], *, path: str, key_sha256: str) -> None:
    """
    Refuse a thinking block that was edited, invented, or made for another key.

    :raises ApiError: 400
    """
    if block["signature"] != sign_thinking(block["thinking"], key_sha256=key_sha256):
        raise ApiError(400, f"{path}: Invalid `signature` in `thinking` block")
