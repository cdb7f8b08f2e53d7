"""Carry out a run that the server leased to this machine: call, stream, report."""

import queue
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from rensei.cli.client import Client, at
from rensei.cli.errors import Refused
from rensei.cli.machine.answer import Answer
from rensei.cli.machine.child import Child
from rensei.cli.machine.runners import CallFailed, Runner, parse_line

HEARTBEAT_SECONDS = 5.0
CHUNK_SECONDS = 0.25
CHUNK_CHARACTERS = 2000
FINISH_SECONDS_MAX = 600.0
_ASK_SECONDS_MAX = 10.0


@dataclass(frozen=True, kw_only=True)
class Lease:
    """A run that this machine has leased, with the parameters of its call."""

    run: dict[str, Any]
    epoch: int
    attempt_id: str
    request: dict[str, Any]


def take(client: Client, host_id: str, *, run_id: str) -> Lease | None:
    """Lease one run. None if another worker of this machine has leased it, or it has ended."""
    return _lease(client, host_id, {"runId": run_id})


def take_next(client: Client, host_id: str, *, wait_seconds: int) -> Lease | None:
    """Lease the oldest run that waits for this machine, or the first that is queued within so many seconds."""
    return _lease(client, host_id, {"wait": wait_seconds})


def _lease(client: Client, host_id: str, body: dict[str, Any]) -> Lease | None:
    document = client.post(at("hosts", host_id, "lease"), body)
    if document is None:
        return None
    return Lease(
        run=document["run"],
        epoch=document["epoch"],
        attempt_id=document["attemptId"],
        request=document["request"],
    )


class Work:
    """One leased run. An unavailable server is retried for a while; a lost lease ends the work."""

    def __init__(
        self, client: Client, lease: Lease, runner: Runner, *, on_text: Callable[[str], None] = lambda text: None
    ) -> None:
        self._client = client
        self._lease = lease
        self._runner = runner
        self._on_text = on_text
        self._answer = Answer()
        self._unsent = ""
        self._spoken = time.monotonic()
        self._cancelled = False

    def carry_out(self) -> dict[str, Any]:
        """
        Make the call and report its end.

        :return: the ended run
        :raises Refused: LEASE_LOST if this machine's lease has ended
        """
        try:
            with self._runner.start(self._lease.request, attempt_id=self._lease.attempt_id) as child:
                self._follow(child)
        except CallFailed as failure:
            return self._finish("FAILED", sent=failure.sent, failure=failure)
        except (Refused, KeyboardInterrupt):
            # The call was made, so its usage is reported, even if another machine has the run now.
            self._finish("CANCELLED", sent=True)
            raise
        return self._finish("CANCELLED" if self._cancelled else "SUCCEEDED", sent=True)

    def _follow(self, child: Child) -> None:
        """Read the output of the call's process until it ends, and report it."""
        while not self._cancelled:
            self._report()
            try:
                line = child.next_line(seconds=CHUNK_SECONDS)
            except queue.Empty:
                continue
            if line is None:
                if not self._answer.is_complete:
                    raise self._runner.silent_failure(child.complaint())
                return
            self._take(parse_line(line))

    def _take(self, document: dict[str, Any]) -> None:
        if failure := self._runner.failure(document):
            raise failure
        if document.get("type") == "stream_event":
            text = self._answer.take(document["event"])
            self._unsent += text
            if text:
                self._on_text(text)

    def _report(self) -> None:
        """Send the pieces that have arrived, or a lease renewal."""
        silent_seconds = time.monotonic() - self._spoken
        enough = len(self._unsent) >= CHUNK_CHARACTERS or (self._unsent and silent_seconds >= CHUNK_SECONDS)
        if not enough and silent_seconds < HEARTBEAT_SECONDS:
            return
        self._spoken = time.monotonic()
        body: dict[str, Any] = {"epoch": self._lease.epoch}
        text, usage = self._unsent, self._answer.usage()
        if text:
            body |= {"text": text, **({"usage": usage} if usage else {})}
        try:
            state = self._client.post(
                at("runs", self._lease.run["id"], "lease", "chunks" if text else "heartbeat"),
                body,
                timeout_seconds=_ASK_SECONDS_MAX,
            )
        except Refused as refused:
            if not refused.is_temporary:
                raise
            return
        self._unsent = self._unsent[len(text) :]
        self._cancelled = state["cancelRequested"]

    def _finish(self, state: str, *, sent: bool, failure: CallFailed | None = None) -> dict[str, Any]:
        """Report the end until the server has accepted it, so that an answer that was paid for is not lost."""
        body: dict[str, Any] = {
            "epoch": self._lease.epoch,
            "state": state,
            "sent": sent,
            "output": self._answer.output(),
            "usage": self._answer.usage(),
            "told": self._answer.told(),
            "estimated": not self._answer.is_complete,
        }
        if failure:
            body["error"] = {"code": failure.code, "detail": failure.detail[:2000], "fix": failure.fix}
        deadline, pause = time.monotonic() + FINISH_SECONDS_MAX, 0.5
        while True:
            try:
                run: dict[str, Any] = self._client.post(at("runs", self._lease.run["id"], "lease", "finish"), body)
            except Refused as refused:
                if body.get("told") and refused.is_about("/told"):
                    # What the answer tells is left out rather than the answer: the usage is reported besides.
                    del body["told"]
                    continue
                if not refused.is_temporary or time.monotonic() > deadline:
                    raise
                time.sleep(pause)
                pause = min(2 * pause, 5.0)
            else:
                return run
