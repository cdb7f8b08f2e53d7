"""
Runs in sandboxes: one event loop of the worker carries any number of them, and holds no thread while they work.

The row of a sandbox is committed before it is created. What calls the model is a program inside, through the gateway,
which writes and settles the attempts; the worker prepares the request, follows the program, and ends the run.
"""

import asyncio
import json
import threading
import time
from collections.abc import Callable, Coroutine
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

import structlog
from django.conf import settings
from django.db.models import F, Q

from integrations.providers.base import BuiltRequest
from rensei.core.clock import database_now
from rensei.core.errors import DATABASE_FAULTS, RenseiError, Said, StoredError
from rensei.core.limits import limit
from rensei.core.texts import read_storable
from rensei.core.transactions import leave_database
from rensei.dispatch import run_tokens, stored_bytes
from rensei.dispatch.execution import execute
from rensei.dispatch.execution.lease_renewal import LOOK_SECONDS, LeaseRenewal, LiveRun
from rensei.dispatch.execution.provider_call import TextEvents
from rensei.dispatch.models import Attempt, Run, Sandbox
from rensei.dispatch.pools import bubblewrap, runner
from rensei.dispatch.pools.bubblewrap import Bubblewrap, LocalBox
from rensei.dispatch.pools.driver import Fault, SandboxFault
from rensei.dispatch.queue import claims
from rensei.dispatch.queue.claims import Claim, Stop
from rensei.dispatch.settlement import outcomes, settle
from rensei.dispatch.settlement.settle import RunEnd
from rensei.orgs import storage

DATABASE_THREADS = 4
# Requests are prepared apart from that: images are fetched, and the provider counts, which may take long.
PREPARED_AT_ONCE = limit(
    8, "runs", what="Runs in sandboxes whose requests a worker prepares at once", told="the run: it starts later"
)
FLUSH_SECONDS = 0.25
# An answered call is settled within a tenth of a second. One whose gateway died is not.
SETTLED_WITHIN_SECONDS = 10.0
SETTLED_LOOK_SECONDS = 0.05
SWEEP_SECONDS = 60.0
PROBE_AGAIN_SECONDS = 300.0
# An answer as pieces, then as blocks, each with the escapes of JSON.
JSON_FACTOR = limit(
    6,
    "times what is stored of its answer at most",
    what="Lines that the program in a sandbox writes",
    told="the run: it ends with `SANDBOX_LOST`",
)
OTHER_CHARACTERS_MAX = 300
# The gateway's refusals of a call that only say that there was one.
_ABOUT_THE_TOKEN = frozenset({"NOT_PERMITTED", "RATE_LIMITED"})
PROGRAM = Path(runner.__file__).read_bytes()

Result = TypeVar("Result")
Given = ParamSpec("Given")

logger = structlog.get_logger(__name__)


class SandboxNotCreated(RenseiError):
    """The sandbox of the run could not be created."""

    code = "SANDBOX_NOT_CREATED"
    status = 502
    title = "Sandbox not created"
    message = Said("{reason}", "No call was made. Dispatch the run again, or to the pool 'local'; tell your operator.")
    retryable = True


class SandboxLost(RenseiError):
    """The sandbox ended before the run did."""

    code = "SANDBOX_LOST"
    status = 502
    title = "Sandbox lost"
    message = Said(
        "The sandbox ended before the run did: {reason}",
        "A call that it made is in the ledger, and is not repeated by itself. Dispatch the run again if it is needed.",
    )
    retryable = True


class PoolCannotReachServer(RenseiError):
    """The sandbox could not reach the gateway of this server."""

    code = "POOL_CANNOT_REACH_SERVER"
    status = 409
    title = "The pool cannot reach this server"
    message = Said(
        "The sandbox could not reach this server at {url}.",
        "Ask your operator to set RENSEI_PUBLIC_URL to an address at which the workers reach the server.",
    )


@dataclass(kw_only=True)
class Reported:
    """What the program in a sandbox has reported. It is not trusted: only the ledger says what was called."""

    bytes_left: int
    texts: list[str] = field(default_factory=list)
    message: dict[str, Any] | None = None
    # Anything else, for the log.
    other: str = ""

    @property
    def text(self) -> str:
        return "".join(self.texts)

    @property
    def is_any(self) -> bool:
        return bool(self.texts) or self.message is not None

    def make_room(self, size: int) -> None:
        """:raises SandboxFault: if it is more than an answer can have"""
        self.bytes_left -= size
        if self.bytes_left < 0:
            raise SandboxFault(Fault.DEAD, "Its program reported more than an answer can have.")


@dataclass(frozen=True, kw_only=True)
class Ended:
    """How a sandbox ended: why it was stopped, what it reported, what it failed with, and what its relay knows."""

    stop: Stop | None
    reported: Reported
    fault: SandboxFault | None
    refusal: dict[str, Any] | None
    is_unreachable: bool


class Sandboxes:
    """
    The sandboxes of one worker process. `refusal` is the reason why it starts none, or "".

    `on_end` is called when a sandbox has ended, so that there is room for another.
    """

    def __init__(self, *, owner: str, on_end: Callable[[], None] = lambda: None) -> None:
        self.refusal = "they are turned off (RENSEI_SANDBOXES_AT_ONCE is 0)."
        self._owner = owner
        self._on_end = on_end
        self._running: set[Future[None]] = set()
        # The runs whose sandbox has not ended. A run may wait for the end of its call after that.
        self._places: set[Claim] = set()

    def open(self) -> None:
        """Begin, if this machine can isolate programs."""
        self._renewal = LeaseRenewal(owner=self._owner)
        self._threads = ThreadPoolExecutor(DATABASE_THREADS, thread_name_prefix="sandboxes")
        self._preparing = ThreadPoolExecutor(PREPARED_AT_ONCE, thread_name_prefix="sandbox-requests")
        self._loop = asyncio.new_event_loop()
        # Sandboxes end with the thread that starts them.
        self._thread = threading.Thread(target=self._loop.run_forever, name="sandboxes", daemon=True)
        self._thread.start()
        self._driver = self._in_loop(_make_driver()).result()
        if settings.RENSEI_SANDBOXES_AT_ONCE:
            self._in_loop(self._probe()).result()
            self._in_loop(self._sweep_forever())

    def can_start(self) -> bool:
        """Return whether a run waits for a sandbox, and there is room for one."""
        has_room = not self.refusal and len(self._places) < settings.RENSEI_SANDBOXES_AT_ONCE
        return has_room and claims.is_waiting(in_sandbox=True)

    def start_next(self) -> bool:
        """
        Claim a run and carry it in a sandbox. False if there is none to claim, or no room.

        :raises DatabaseError: if the database does not answer
        """
        if not self.can_start():
            return False
        is_last = len(self._places) + 1 >= settings.RENSEI_SANDBOXES_AT_ONCE
        claim = claims.claim_next_for_sandbox(owner=self._owner, is_last=is_last)
        if claim is None:
            return False
        self._places.add(claim)
        future = self._in_loop(self._carry(claim))
        self._running.add(future)
        future.add_done_callback(self._running.discard)
        return True

    def close(self, *, seconds: float) -> None:
        """Wait for the sandboxes, and end those that take longer: the reaper ends their runs."""
        wait(set(self._running), timeout=seconds)
        self._in_loop(self._end()).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()
        self._threads.shutdown()
        self._preparing.shutdown()
        self._renewal.close()

    def _in_loop(self, work: Coroutine[Any, Any, Result]) -> Future[Result]:
        return asyncio.run_coroutine_threadsafe(work, self._loop)

    async def _end(self) -> None:
        others = asyncio.all_tasks() - {asyncio.current_task()}
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)
        await self._driver.close()

    async def _in_thread(self, work: Callable[Given, Result], *args: Given.args, **kwargs: Given.kwargs) -> Result:
        return await self._run_in(self._threads, partial(work, *args, **kwargs))

    async def _run_in(self, threads: ThreadPoolExecutor, work: Callable[[], Result]) -> Result:
        return await self._loop.run_in_executor(threads, partial(_with_database, work))

    async def _carry(self, claim: Claim) -> None:
        """Carry a claimed run to its end. After a bug it keeps its lease until that expires; the reaper ends it."""
        run = claim.run
        live = LiveRun(run, seconds_left=(run.deadline_at - claim.claimed_at).total_seconds())
        with structlog.contextvars.bound_contextvars(run_id=run.id), self._renewal.watching(live):
            try:
                built = await self._run_in(self._preparing, partial(execute.build_for_sandbox, run, live))
                if built is not None:
                    await self._carry_ready(claim, live, _request_of(built))
            except DATABASE_FAULTS as fault:
                logger.warning("sandbox_left_to_the_reaper", fault=type(fault).__name__)
            except Exception:
                logger.exception("sandbox_failed")
            finally:
                self._leave(claim)

    def _leave(self, claim: Claim) -> None:
        if claim in self._places:
            self._places.discard(claim)
            self._on_end()

    async def _carry_ready(self, claim: Claim, live: LiveRun, request: bytes) -> None:
        run = claim.run
        issued = await self._in_thread(run_tokens.issue, run, provider_id=self._driver.provider_id, request=request)
        if issued is None:
            return
        sandbox, token = issued
        reported = Reported(bytes_left=stored_bytes.of_report_at_most(run))
        fault: SandboxFault | None = None
        box = await self._driver.create(
            sandbox.id, token=token, request_bytes_max=len(request), lines_bytes_max=_lines_bytes_max(run)
        )
        try:
            await box.start(bubblewrap.program_of("runner.py"), files={"runner.py": PROGRAM, "request.json": request})
            await self._follow(box, run, live, reported)
        except SandboxFault as caught:
            fault = caught
        finally:
            await box.destroy()
        self._leave(claim)
        if fault is not None or reported.other:
            logger.info("sandbox_said", fault=str(fault or ""), other=reported.other)
        await self._settled(sandbox, live, is_cut=box.relay.is_cut)
        if live.stop is not Stop.LEASE_LOST:
            ended = Ended(
                stop=live.stop,
                reported=reported,
                fault=fault,
                refusal=box.relay.refusal,
                is_unreachable=box.relay.is_unreachable,
            )
            await self._in_thread(_finish, run, ended)
        await self._in_thread(_note_ended, sandbox)

    async def _follow(self, box: LocalBox, run: Run, live: LiveRun, reported: Reported) -> None:
        """Take what the program writes, until it ends or the run is stopped."""
        reading = asyncio.ensure_future(_read(box, reported))
        stored, events = 0, TextEvents(run, live)
        while not reading.done() and live.stop is None:
            await asyncio.wait({reading}, timeout=FLUSH_SECONDS if reported.texts else LOOK_SECONDS)
            new, stored = "".join(reported.texts[stored:]), len(reported.texts)
            events.pending += new
            if new or reading.done():
                await self._in_thread(events.write, is_end=reading.done())
        if reading.done():
            reading.result()
        else:
            reading.cancel()
            await asyncio.wait({reading})

    async def _settled(self, sandbox: Sandbox, live: LiveRun, *, is_cut: bool) -> None:
        """
        Wait until the gateway has settled the call, which it does right after the answer.

        A sandbox may end before its call does. What the run holds for the call must not be given to others meanwhile,
        so this waits until the run's deadline, unless the gateway ends the call as well, or has died with it.
        """
        until, pause = None, SETTLED_LOOK_SECONDS
        while live.stop is not Stop.LEASE_LOST and await self._is_calling(sandbox):
            if live.stop is not None or is_cut:
                until = until or time.monotonic() + SETTLED_WITHIN_SECONDS
                if time.monotonic() >= until:
                    return
            await asyncio.sleep(pause)
            pause = min(LOOK_SECONDS, 1.5 * pause)

    async def _is_calling(self, sandbox: Sandbox) -> bool:
        """Return whether a call is under way. After this has returned False, none can begin."""
        try:
            return await self._in_thread(run_tokens.end, sandbox)
        except DATABASE_FAULTS as fault:
            logger.warning("attempts_not_read", fault=type(fault).__name__)
            return True

    async def _probe(self) -> None:
        self.refusal = await self._driver.probe()
        if self.refusal:
            logger.info("sandboxes_not_offered", reason=self.refusal)

    async def _sweep_forever(self) -> None:
        """Remove what dead workers have left, and see from time to time whether sandboxes can be offered by now."""
        probed = time.monotonic()
        while True:
            try:
                await self._sweep_once()
                if self.refusal and time.monotonic() - probed >= PROBE_AGAIN_SECONDS:
                    probed = time.monotonic()
                    await self._probe()
            except Exception:
                logger.exception("sandboxes_not_swept")
            await asyncio.sleep(SWEEP_SECONDS)

    async def _sweep_once(self) -> None:
        """Remove what is left of sandboxes on this machine that no live run owns."""
        existing = set(await self._driver.list())
        for box_id in existing - await self._in_thread(_owned, existing):
            await self._driver.destroy(box_id)


def note_dead(*, limit: int = 1000) -> int:
    """Mark the sandboxes as ended whose run is no longer under way in their epoch: they end with their worker."""
    under_way = Q(run__state=Run.State.RUNNING, run__epoch=F("epoch"))
    dead = Sandbox.objects.filter(ended_at=None).exclude(under_way).order_by("id")
    ids = list(dead.values_list("id", flat=True)[:limit])
    return Sandbox.objects.filter(id__in=ids).update(ended_at=database_now())


def _request_of(built: BuiltRequest) -> bytes:
    # A request that only fills the cache cannot be streamed.
    return json.dumps({**built.params, "stream": built.params["max_tokens"] > 0}).encode()


async def _make_driver() -> Bubblewrap:
    """Make it in the loop: its connections are bound to one."""
    return Bubblewrap()


async def _read(box: LocalBox, reported: Reported) -> None:
    async for line in box.follow():
        _take(line, reported)


def _take(line: bytes, reported: Reported) -> None:
    try:
        said = read_storable(line)
    except (ValueError, RecursionError):
        said = None
    match said:
        case {"text": str(text)}:
            reported.make_room(len(text.encode()))
            reported.texts.append(text)
        case {"message": {"content": list(content)} as message} if all(map(_is_block, content)):
            reported.make_room(storage.size_of(content))
            reported.message = message
        case _:
            reported.other = line.decode(errors="replace").replace("\0", "").strip()[:OTHER_CHARACTERS_MAX]


def _is_block(block: object) -> bool:
    match block:
        case {"type": "text", "text": str()}:
            return True
        case {"type": str(kind)}:
            return kind != "text"
    return False


def _finish(run: Run, ended: Ended) -> None:
    def plans() -> list[settle.SettlementPlan]:
        attempts = list(run.attempts.order_by("-number"))
        open_attempt = next((each for each in attempts if each.state == Attempt.State.OPEN), None)
        end = _end_of(run, attempts, ended)
        return outcomes.sandbox_ended(run, open_attempt, end=end, text=ended.reported.text, now=database_now())

    settle.write_patiently(plans)


def _end_of(run: Run, attempts: list[Attempt], ended: Ended) -> RunEnd:
    """Decide how a run ended. It succeeded only if the gateway has settled an answered call."""
    newest = attempts[0] if attempts else None
    reported, stop = ended.reported, ended.stop
    is_answered = newest is not None and newest.state == Attempt.State.SETTLED and newest.error is None
    if is_answered and reported.message is not None:
        content = reported.message["content"]
        stop_reason = str(reported.message.get("stop_reason") or "")[:40]
        text = "".join(block["text"] for block in content if block["type"] == "text")
        return RunEnd(state=Run.State.SUCCEEDED, text=text, content=content, stop_reason=stop_reason)
    if stop is None and claims.cancelled_among([run.id]):
        # The gateway has noticed it first.
        stop = Stop.CANCELLED
    if stop is not None and (end := outcomes.stopped_end(stop, reported.text)) is not None:
        return end
    return RunEnd(state=Run.State.FAILED, error=_error_of(newest, ended), text=reported.text)


def _error_of(newest: Attempt | None, ended: Ended) -> StoredError:
    """Return the error of a run whose newest call failed, or that made none."""
    refusal = ended.refusal
    if refusal is not None and (newest is None or refusal["code"] not in _ABOUT_THE_TOKEN):
        # The gateway refused a call before it was made, as after a change of the policy.
        said = str(refusal.get("message", ""))
        return {"code": refusal["code"], "detail": said, "fix": "", "retryable": refusal["code"] in _ABOUT_THE_TOKEN}
    if newest is not None and newest.state == Attempt.State.OPEN:
        return outcomes.refusal_error(outcomes.RunInterrupted())
    if newest is not None and newest.error is not None:
        return newest.error
    if newest is None and ended.is_unreachable:
        return outcomes.refusal_error(PoolCannotReachServer(url=settings.PUBLIC_URL))
    fault = ended.fault
    if newest is None and not ended.reported.is_any and (fault is None or fault.fault is Fault.NOT_CREATED):
        return outcomes.refusal_error(SandboxNotCreated(reason=fault.reason if fault else bubblewrap.NOT_STARTED))
    return outcomes.refusal_error(SandboxLost(reason=fault.reason if fault else "Its program gave no answer."))


def _note_ended(sandbox: Sandbox) -> None:
    Sandbox.objects.filter(id=sandbox.id, ended_at=None).update(ended_at=database_now())


def _owned(box_ids: set[str]) -> set[str]:
    live = Sandbox.objects.filter(id__in=box_ids, ended_at=None)
    return set(live.values_list("id", flat=True))


def _lines_bytes_max(run: Run) -> int:
    return JSON_FACTOR * stored_bytes.of_report_at_most(run)


def _with_database(work: Callable[[], Result]) -> Result:
    try:
        return work()
    finally:
        leave_database()
