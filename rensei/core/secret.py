"""A secret in memory that cannot be printed by mistake, and its hash for look-up."""

import hashlib
from typing import NoReturn


class Secret:
    """
    Plain text that is hidden from logs, tracebacks, JSON, pickles and copies.

    Python cannot wipe memory, so store it only in a local variable. `.reveal()` is the only access,
    and is easy to search for.
    """

    __slots__ = ("__value",)

    def __init__(self, value: str) -> None:
        self.__value = value

    def reveal(self) -> str:
        return self.__value

    def __repr__(self) -> str:
        return "Secret(***)"

    __str__ = __repr__

    def __format__(self, spec: str) -> str:
        return repr(self)

    def __reduce__(self) -> NoReturn:
        raise TypeError("A secret is neither pickled nor copied")


def token_digest(token: str) -> str:
    """Hash a whole token for look-up, so that no two tokens can collide."""
    return hashlib.sha256(token.encode()).hexdigest()
