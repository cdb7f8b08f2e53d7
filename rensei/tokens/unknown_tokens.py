"""
Unknown tokens, rejected before each costs a look-up.

A token that was not found is not looked up again for a while, and each address has a limit per minute of tokens that
are not found. Recently valid tokens are accepted regardless of other requests from their address.
"""

import threading
import time
from collections import OrderedDict

from django.conf import settings

from rensei.core.limits import limit
from rensei.core.networks import counted_address
from rensei.core.problems import NotAuthenticated
from rensei.core.rates import rates
from rensei.core.throttling import parse_rate

# How soon a token works again after its member's access is restored. No other token that was not found becomes valid.
UNKNOWN_SECONDS = 10.0
GOOD_SECONDS = 3600.0
KEPT_MAX = limit(
    10_000,
    "tokens",
    what="Tokens that a process remembers as good, and as unknown; the oldest is forgotten for a new one",
    told="the caller: the token is looked up again",
)


class _Recent:
    """Keys and their times, oldest first. Adding and checking take the same time for one and for many."""

    def __init__(self, *, seconds: float) -> None:
        self._seconds = seconds
        self._noted: OrderedDict[str, float] = OrderedDict()

    def __contains__(self, key: str) -> bool:
        noted_at = self._noted.get(key)
        return noted_at is not None and time.monotonic() - noted_at < self._seconds

    def note(self, key: str) -> None:
        self._noted[key] = time.monotonic()
        self._noted.move_to_end(key)
        if len(self._noted) > KEPT_MAX:
            self._noted.popitem(last=False)

    def drop(self, key: str) -> None:
        self._noted.pop(key, None)

    def clear(self) -> None:
        self._noted.clear()


class UnknownTokens:
    """The results of one process's look-ups, by the tokens' digests. It is thread-safe."""

    def __init__(self, name: str) -> None:
        """:param name: under which the tokens of an address that are not found are counted"""
        self._name = name
        self._lock = threading.Lock()
        self._good, self._unknown = _Recent(seconds=GOOD_SECONDS), _Recent(seconds=UNKNOWN_SECONDS)

    def require_look_up(self, digest: str, *, address: str | None) -> None:
        """
        Check that a token may be looked up.

        :raises NotAuthenticated: if it was not found just now
        :raises RateLimited: if its address has sent too many tokens that were not found
        """
        # Almost every call takes this path, so it uses no lock: one dictionary look-up needs none.
        if digest in self._good:
            return
        with self._lock:
            is_unknown = digest in self._unknown
        most, _ = parse_rate(settings.RENSEI_RATE_UNKNOWN_TOKENS)
        window = rates.known(self._key(address))
        if window.total >= most:
            raise rates.refusal(window.ends_at)
        if is_unknown:
            raise NotAuthenticated

    def note(self, digest: str, *, found: bool, address: str | None) -> None:
        """Store the result of a look-up."""
        if found:
            if digest not in self._good:
                with self._lock:
                    self._good.note(digest)
            return
        with self._lock:
            self._good.drop(digest)
            self._unknown.note(digest)
        _, seconds = parse_rate(settings.RENSEI_RATE_UNKNOWN_TOKENS)
        rates.count(self._key(address), seconds=seconds)

    def forget(self) -> None:
        with self._lock:
            self._good.clear()
            self._unknown.clear()

    def _key(self, address: str | None) -> str:
        return f"{self._name}:{counted_address(address)}"


unknown_tokens = UnknownTokens("unknown-token")
# Each run has a token of its own, and all come from the addresses of the workers: they are not counted with the others.
unknown_run_tokens = UnknownTokens("unknown-run-token")
