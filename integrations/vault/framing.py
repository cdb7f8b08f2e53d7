"""How several values become the one byte string that a cipher or a MAC is bound to."""


def length_prefixed(*parts: str | bytes) -> bytes:
    """
    Join values so that no two different lists give the same bytes.

    Each is preceded by its length. Joined by a separator, `("a", "bc")` and `("ab", "c")` could be made equal.
    """
    encoded = [part.encode() if isinstance(part, str) else part for part in parts]
    return b"".join(len(part).to_bytes(4, "big") + part for part in encoded)
