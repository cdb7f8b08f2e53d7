"""
Receipts that are signed with the anchors' key, so that an installation recognises what it has stated itself.

The signature is an HMAC: only an installation that has the key can verify it.
"""

import hashlib
import hmac
import json
from collections.abc import Mapping

from billing.integrity import anchor_keys, anchors
from billing.integrity.anchor_keys import AnchorKeyUnavailable, Keys
from billing.integrity.anchors import AnchorsCut


def sign(content: Mapping[str, object]) -> str:
    """
    Sign the content of a receipt.

    :raises AnchorKeyUnavailable: if the key is missing, readable by others, or damaged, or anchors are missing
    """
    return _sign(content, keys_now().active)


def is_signed(content: Mapping[str, object], signature: str) -> bool:
    """
    Return whether a receipt was signed with the key, or with one before it that others do not know.

    :raises AnchorKeyUnavailable: if the key is missing, readable by others, or damaged, or anchors are missing
    """
    keys = keys_now()
    accepted = [keys.active, *keys.replaced.values()]
    return any(hmac.compare_digest(_sign(content, key).encode(), signature.encode()) for key in accepted)


def keys_now() -> Keys:
    """
    Read the keys. Without the newest anchors, the database may name one that was replaced.

    :raises AnchorKeyUnavailable: if the key is missing, readable by others, or damaged, or anchors are missing
    """
    keys = anchor_keys.load()
    keys.require_all()
    try:
        anchors.require_mark(keys)
    except AnchorsCut as fault:
        raise AnchorKeyUnavailable(str(fault)) from None
    return keys


def _sign(content: Mapping[str, object], key: bytes) -> str:
    # A list with a name first is no anchor and no mark, so none of them can be taken for another.
    text = json.dumps(["receipt", content], sort_keys=True)
    return hmac.new(key, text.encode(), hashlib.sha256).hexdigest()
