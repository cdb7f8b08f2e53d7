"""Limits of open event streams for each caller and organization in one process."""

import threading
from collections import Counter, deque

from django.conf import settings

from rensei.core.errors import RenseiError, Said
from rensei.orgs.access import Access


class TooManyStreams(RenseiError):
    """The caller or its organization has reached its limit of open streams."""

    code = "TOO_MANY_STREAMS"
    status = 429
    title = "Too many event streams"
    message = Said(
        "{whose} may follow {most} runs at a time, and does so already.",
        "Close a stream that is no longer read, or ask for the run itself with GET.",
    )
    retryable = True

    def __init__(self, *, whose: str, most: int) -> None:
        super().__init__(whose=whose, most=most, extra={"retryAfter": 5})


class StreamPlaces:
    """Counts the open streams of this process. It is thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._taken: Counter[str] = Counter()
        # Finalizers also release places. They may run at any point, even while this thread holds the lock.
        self._left: deque[tuple[str, str]] = deque()

    def take(self, access: Access) -> tuple[str, str]:
        """
        Take a place for a stream. Pass it to `leave` exactly once.

        :raises TooManyStreams: if the caller or its organization has no place left
        """
        token = access.token
        caller = f"token:{token.pk}" if token else f"person:{access.user.pk}:{access.org.pk}"
        org = f"org:{access.org.pk}"
        with self._lock:
            self._count_those_who_left()
            if self._taken[caller] >= settings.RENSEI_STREAMS_PER_TOKEN:
                whose = "This token" if token else "You"
                raise TooManyStreams(whose=whose, most=settings.RENSEI_STREAMS_PER_TOKEN)
            if self._taken[org] >= settings.RENSEI_STREAMS_PER_ORG:
                raise TooManyStreams(whose="The organization", most=settings.RENSEI_STREAMS_PER_ORG)
            self._taken.update((caller, org))
        return caller, org

    def leave(self, place: tuple[str, str]) -> None:
        self._left.append(place)

    def __len__(self) -> int:
        with self._lock:
            self._count_those_who_left()
            return sum(count for key, count in self._taken.items() if key.startswith("org:"))

    def _count_those_who_left(self) -> None:
        while self._left:
            for key in self._left.popleft():
                self._taken[key] -= 1
                if not self._taken[key]:
                    del self._taken[key]


stream_places = StreamPlaces()
