"""The share of an organization in what a process does at the same time."""

import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager


class Share:
    """Counts what is under way for each organization in this process. It is thread-safe."""

    def __init__(self, at_once: int) -> None:
        self.at_once = at_once
        self._lock = threading.Lock()
        self._under_way: Counter[str] = Counter()

    def under_way(self, org_id: str) -> int:
        with self._lock:
            return self._under_way[org_id]

    @contextmanager
    def taken(self, org_id: str) -> Iterator[bool]:
        """Take one place while the block runs. False if the organization has none left; the block takes none then."""
        with self._lock:
            is_free = self._under_way[org_id] < self.at_once
            self._under_way[org_id] += is_free
        try:
            yield is_free
        finally:
            with self._lock:
                self._under_way[org_id] -= is_free
                if not self._under_way[org_id]:
                    del self._under_way[org_id]
