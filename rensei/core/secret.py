"""A secret in memory that cannot be printed by mistake, and its hash for look-up."""

import hashlib
from typing import NoReturn

from django.conf import settings
from django.utils.crypto import salted_hmac


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


def keyed_digests(text: str, *, salt: str) -> list[str]:
    """
    Hash a text that could be guessed by SECRET_KEY, and by each key before it that is still accepted.

    The first one is stored; a look-up accepts all of them, so that a new SECRET_KEY invalidates nothing.
    """
    keys = [settings.SECRET_KEY, *settings.SECRET_KEY_FALLBACKS]
    return [salted_hmac(salt, text, secret=key, algorithm="sha256").hexdigest() for key in keys]
