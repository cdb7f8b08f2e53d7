"""
Receipts that are signed with the anchors' key, so that an installation recognises what it has stated itself.

The signature is an HMAC: only an installation that has the key can verify it.
"""

import hashlib
import hmac
import json
from collections.abc import Mapping

from billing.integrity import anchors


def sign(content: Mapping[str, object]) -> str:
    """
    Sign the content of a receipt.

    :raises AnchorKeyUnavailable: if the key is missing, readable by others, or damaged
    """
    # A list with a name first is no anchor and no mark, so none of them can be taken for another.
    text = json.dumps(["receipt", content], sort_keys=True)
    return hmac.new(anchors.load_key(), text.encode(), hashlib.sha256).hexdigest()


def is_signed(content: Mapping[str, object], signature: str) -> bool:
    """:raises AnchorKeyUnavailable: if the key is missing, readable by others, or damaged"""
    return hmac.compare_digest(sign(content).encode(), signature.encode())
