"""
The format of seals and anchors: what a digest covers, and how it is written.

It imports nothing of Rensei, so that an export can be verified where there is neither a database nor a setting.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

# What comes before the first seal of a chain, and before the first anchor.
START = ""


def of_row(content: Mapping[str, Any], *, chain: str, seq: int, previous: str) -> str:
    """Make the digest of a row at its place in a chain, from a text that is the same on every database."""
    text = json.dumps([previous, chain, seq, content], sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def said_by_anchor(
    *, counter: int | None, previous: str, org: str | None, seq: int, digest: str, anchored_at: str
) -> Sequence[object]:
    """List what an anchor says, which is what its signature covers."""
    said = [org, seq, digest, anchored_at]
    # Those of before the one chain were signed without it.
    return said if counter is None else [counter, previous, *said]


def of_anchor(said: Sequence[object], signature: str) -> str:
    """Make the digest of an anchor that the next one holds."""
    return hashlib.sha256(json.dumps([*said, signature]).encode()).hexdigest()
