"""Encoding of several values as the one byte string that a cipher or a MAC is bound to."""


def length_prefixed(*parts: str | bytes) -> bytes:
    """
    Join values so that no two different lists give the same bytes.

    Each value is preceded by its length. With a separator, `("a", "bc")` and `("ab", "c")` could become equal.
    """
    encoded = [part.encode() if isinstance(part, str) else part for part in parts]
    return b"".join(len(part).to_bytes(4, "big") + part for part in encoded)
