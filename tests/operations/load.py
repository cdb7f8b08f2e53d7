"""Clients that dispatch, call through the gateway and read, without a pause, and count what they are answered."""

import http.client
import json
import secrets
import threading
import time
from collections import Counter
from typing import Any
from urllib.parse import urlsplit

NO_ANSWER = 0
GOOD = {200, 202}
KINDS = ("dispatch", "call", "read")
PATIENCE_SECONDS = 90
PAUSE_SECONDS = 0.02
PAID_BACK_MAX = 100


class Load:
    """
    Threads that send until they are stopped. `counts` has the answers by phase, kind of request and status.

    What was dispatched without a good answer is `owed`, and `pay_back` dispatches it again under its Idempotency-Key.
    """

    def __init__(self, *, url: str, token: str, profile: str, threads: int) -> None:
        self.counts: Counter[tuple[str, str, int]] = Counter()
        self.slowest: dict[tuple[str, str], float] = {}
        self.run_ids: dict[str, str] = {}
        self.owed: set[str] = set()
        self.phase = "before"
        self._netloc = urlsplit(url).netloc
        self._headers = {"authorization": f"Bearer {token}", "content-type": "application/json"}
        self._profile = profile
        self._stopped = threading.Event()
        self._lock = threading.Lock()
        self._threads = [
            threading.Thread(target=self._repeat, args=(KINDS[number % len(KINDS)],)) for number in range(threads)
        ]

    def __enter__(self) -> "Load":
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopped.set()
        for thread in self._threads:
            thread.join()

    def is_well(self, phase: str) -> bool:
        """Tell whether three requests of each kind have had a good answer in a phase."""
        good: Counter[str] = Counter()
        for (of, kind, status), count in list(self.counts.items()):
            good[kind] += count if of == phase and status in GOOD else 0
        return all(good[kind] >= 3 for kind in KINDS)

    def statuses(self) -> set[int]:
        return {status for _, _, status in self.counts}

    def pay_back(self) -> None:
        """Dispatch some of what was not taken again, as clients do, and keep the ids of the runs."""
        for key in sorted(self.owed)[:PAID_BACK_MAX]:
            status, body = self._dispatch(key)
            assert status in GOOD, (status, body)

    def figures(self) -> str:
        """Write the counts, one line for each phase and kind."""
        found: dict[tuple[str, str], dict[int, int]] = {}
        for (phase, kind, status), count in sorted(self.counts.items()):
            found.setdefault((phase, kind), {})[status] = count
        return "\n".join(
            f"{phase:8} {kind:8} {by_status}, the slowest {self.slowest[phase, kind]:.1f} s"
            for (phase, kind), by_status in found.items()
        )

    def _repeat(self, kind: str) -> None:
        while not self._stopped.wait(PAUSE_SECONDS):
            began, phase = time.monotonic(), self.phase
            match kind:
                case "dispatch":
                    status, _ = self._dispatch(secrets.token_hex(8))
                case "call":
                    said = [{"role": "user", "content": "[[reply 5 words]]"}]
                    body = {"model": self._profile, "max_tokens": 100, "messages": said}
                    status, _ = self._send("POST", "/v1/messages", body)
                case _:
                    status, _ = self._send("GET", "/api/v1/runs?pageSize=1")
            with self._lock:
                self.counts[phase, kind, status] += 1
                self.slowest[phase, kind] = max(self.slowest.get((phase, kind), 0.0), time.monotonic() - began)

    def _dispatch(self, key: str) -> tuple[int, Any]:
        body = {"profileId": self._profile, "input": "[[reply 5 words]]"}
        status, answer = self._send("POST", "/api/v1/runs", body, key=key)
        with self._lock:
            if status in GOOD:
                self.run_ids[key] = answer["id"]
                self.owed.discard(key)
            else:
                self.owed.add(key)
        return status, answer

    def _send(self, method: str, path: str, body: Any = None, *, key: str = "") -> tuple[int, Any]:
        connection = http.client.HTTPConnection(self._netloc, timeout=PATIENCE_SECONDS)
        headers = self._headers | {"anthropic-version": "2023-06-01"} | ({"idempotency-key": key} if key else {})
        try:
            connection.request(method, path, json.dumps(body) if body is not None else None, headers)
            answer = connection.getresponse()
            return answer.status, json.loads(answer.read())
        except (OSError, http.client.HTTPException, ValueError):
            return NO_ANSWER, None
        finally:
            connection.close()
