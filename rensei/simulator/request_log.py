"""
A log of all requests, to reconcile a ledger against.

A request is written when it arrives, before it is answered, and again when it has ended, so that it is recorded even
if a process is killed in between. The key is never written, only its SHA-256.
"""

import json
from collections import deque
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from rensei.simulator.exchange import Exchange
from rensei.simulator.keys import key_digest

_HELD_MAX = 100_000

Outcome = Literal["completed", "cut_by_fault", "client_disconnected", "crashed"]


@dataclass(kw_only=True)
class LoggedRequest:
    sequence: int
    request_id: str
    arrived_at: str
    method: str
    path: str
    query: str
    header_names: list[str]
    key_sha256: str | None
    attempt_id: str | None
    anthropic_version: str | None
    anthropic_beta: str | None
    workspace_id: str | None
    body_bytes: int = 0
    model: str | None = None
    stream: bool = False
    body: Any = None
    # The following is known only when the answer has begun.
    status: int | None = None
    error_type: str | None = None
    error_message: str | None = None
    error_on_purpose: bool = False
    served_model: str | None = None
    usage: dict[str, Any] | None = None
    usage_is_final: bool = False
    deltas_sent: int = 0
    outcome: Outcome | None = None
    ended_at: str | None = None
    faults: list[str] = field(default_factory=list)


class RequestLog:
    def __init__(self, *, file: Path | None, keep_bodies: bool) -> None:
        self.keep_bodies = keep_bodies
        self._requests: deque[LoggedRequest] = deque(maxlen=_HELD_MAX)
        self._sequence = 0
        self._file = file.open("a", encoding="utf-8") if file else None

    def open_request(self, exchange: Exchange, raw: bytes, *, request_id: str) -> LoggedRequest:
        """Record that a request has arrived."""
        self._sequence += 1
        body = _parse(raw)
        request = LoggedRequest(
            sequence=self._sequence,
            request_id=request_id,
            arrived_at=_now(),
            method=exchange.method,
            path=exchange.path,
            query=exchange.query_string,
            header_names=sorted(exchange.headers),
            key_sha256=key_digest(exchange.headers),
            attempt_id=exchange.headers.get("x-rensei-attempt"),
            anthropic_version=exchange.headers.get("anthropic-version"),
            anthropic_beta=exchange.headers.get("anthropic-beta"),
            workspace_id=exchange.headers.get("anthropic-workspace-id"),
            body_bytes=len(raw),
            model=body.get("model"),
            stream=body.get("stream") is True,
            body=_without_assertion(body) if self.keep_bodies and raw else None,
        )
        self._requests.append(request)
        self._append("arrived", request)
        return request

    def close_request(self, request: LoggedRequest, *, status: int | None, outcome: Outcome) -> None:
        """Record how a request has ended, and the status that was sent, if one was."""
        request.status = status
        request.outcome = outcome
        request.ended_at = _now()
        self._append("ended", request)

    def since(self, sequence: int) -> list[dict[str, Any]]:
        return [asdict(request) for request in self._requests if request.sequence > sequence]

    def clear(self) -> None:
        """Clear the log in memory; the sequence continues, and the file keeps everything."""
        self._requests.clear()

    def _append(self, event: str, request: LoggedRequest) -> None:
        if self._file:
            self._file.write(json.dumps({"event": event, **asdict(request)}) + "\n")
            self._file.flush()


def _parse(raw: bytes) -> dict[str, Any]:
    """Parse a body for the log; a body that is not a JSON object gives an empty one."""
    try:
        body = json.loads(raw)
    except (ValueError, RecursionError):
        return {}
    return body if isinstance(body, dict) else {}


def _without_assertion(body: dict[str, Any]) -> dict[str, Any]:
    return {**body, "assertion": "***"} if "assertion" in body else body


def _now() -> str:
    return datetime.now(UTC).isoformat()
