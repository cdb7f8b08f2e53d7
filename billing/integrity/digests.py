"""
The format of seals and anchors: what a digest covers, and how it is encoded.

It imports nothing from Rensei, so that an export can be verified without a database or settings.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

# The predecessor of the first seal of a chain, and of the first anchor.
START = ""


def of_row(content: Mapping[str, Any], *, chain: str, seq: int, previous: str) -> str:
    """Return the digest of a row at its place in a chain, from a text that is the same on every database."""
    text = json.dumps([previous, chain, seq, content], sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def said_by_anchor(
    *,
    counter: int | None,
    previous: str,
    org: str | None,
    seq: int,
    digest: str,
    anchored_at: str,
    next_key: str = "",
    old_key_known: bool = False,
) -> Sequence[object]:
    """List the content of an anchor that its signature covers."""
    said = [org, seq, digest, anchored_at]
    # Anchors from before the chain of anchors existed were signed without it.
    whole = said if counter is None else [counter, previous, *said]
    return [*whole, *([next_key] if next_key else []), *([True] if old_key_known else [])]


def of_anchor(said: Sequence[object], signature: str) -> str:
    """Return the digest of an anchor, which the next anchor holds."""
    return hashlib.sha256(json.dumps([*said, signature]).encode()).hexdigest()
