"""
Runs in sandboxes: one event loop of the worker carries any number of them, and holds no thread while they work.

The row of a sandbox is committed before it is created. What calls the model is a program inside, through the gateway,
which writes and settles the attempts; the worker prepares the request, follows the program, and ends the run.
"""

import asyncio
import threading
import time
from collections.abc import Callable, Collection, Coroutine, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from datetime import timedelta
from functools import partial
from typing import Any, ParamSpec, TypeVar

import structlog
from django.conf import settings

from integrations.capacity.prices import Size
from rensei.core.clock import database_now
from rensei.core.errors import DATABASE_FAULTS
from rensei.core.limits import limit
from rensei.core.transactions import leave_database
from rensei.dispatch import run_tokens
from rensei.dispatch.execution import agent_work, one_call
from rensei.dispatch.execution.clouds import UNDER_WAY, Clouds, Place
from rensei.dispatch.execution.lease_renewal import LOOK_SECONDS, LeaseRenewal, LiveRun
from rensei.dispatch.execution.provider_call import TextEvents
from rensei.dispatch.execution.sandbox_work import Ended, Work
from rensei.dispatch.models import Attempt, Run, Sandbox
from rensei.dispatch.pools.accounts import CLOUDS
from rensei.dispatch.pools.bubblewrap import Bubblewrap
from rensei.dispatch.pools.driver import Box, Driver, Heard, SandboxFault
from rensei.dispatch.pools.relay import Relay
from rensei.dispatch.queue import claims
from rensei.dispatch.queue.claims import Claim, Stop
from rensei.dispatch.settlement import capacity_use, outcomes, settle

DATABASE_THREADS = 4
# Requests are prepared apart from that: images are fetched, and the provider counts, which may take long.
PREPARED_AT_ONCE = limit(
    8, "runs", what="Runs in sandboxes whose requests a worker prepares at once", told="the run: it starts later"
)
FLUSH_SECONDS = 0.25
# An answered call is settled within a tenth of a second. One whose gateway died is not.
SETTLED_WITHIN_SECONDS = 10.0
SETTLED_LOOK_SECONDS = 0.05
# A gateway that lives reads an answer to its end after the connection from the sandbox broke, and settles it. Few
# answers take longer than this.
CUT_SECONDS = 600.0
# A program may write many lines at once, which must not keep the other sandboxes waiting.
LINES_BETWEEN_TURNS = 200
SWEEP_SECONDS = 60.0
PROBE_AGAIN_SECONDS = 300.0
# An agent whose call was refused for its cost may still end by itself.
CAP_SECONDS = 3.0

Result = TypeVar("Result")
Given = ParamSpec("Given")

logger = structlog.get_logger(__name__)


class Sandboxes:
    """
    The sandboxes of one worker process. `refusal` is the reason why it starts none on its own machine, or "", and
    `claude_code_refusal` is why none of those has Claude Code.

    `on_end` is called when a sandbox has ended, so that there is room for another.
    """

    def __init__(self, *, owner: str, on_end: Callable[[], None] = lambda: None) -> None:
        self.refusal = self.claude_code_refusal = "they are turned off (RENSEI_SANDBOXES_AT_ONCE is 0)."
        self._is_open = False
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
        self._driver, self._clouds = self._in_loop(_make_drivers()).result()
        if settings.RENSEI_SANDBOXES_AT_ONCE:
            self._in_loop(self._probe()).result()
            self._in_loop(self._sweep_forever())
        self._is_open = True

    def can_start(self) -> bool:
        """Return whether a run waits for a sandbox that this worker can start, and there is room for one."""
        has_room = self._is_open and len(self._places) < settings.RENSEI_SANDBOXES_AT_ONCE
        return has_room and claims.is_waiting_for_sandbox(isolates=not self.refusal)

    def start_next(self) -> bool:
        """
        Claim a run and carry it in a sandbox. False if there is none to claim, or no room.

        :raises DatabaseError: if the database does not answer
        """
        if not self.can_start():
            return False
        is_last = len(self._places) + 1 >= settings.RENSEI_SANDBOXES_AT_ONCE
        claim = claims.claim_next_for_sandbox(owner=self._owner, is_last=is_last, isolates=not self.refusal)
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
        self._in_loop(self._shut_down()).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()
        self._threads.shutdown()
        self._preparing.shutdown()
        self._renewal.close()

    def _in_loop(self, work: Coroutine[Any, Any, Result]) -> Future[Result]:
        return asyncio.run_coroutine_threadsafe(work, self._loop)

    async def _shut_down(self) -> None:
        others = asyncio.all_tasks() - {asyncio.current_task()}
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)
        await self._driver.close()
        await self._clouds.close()

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
                prepare = agent_work.prepare if run.is_agent else one_call.prepare
                work: Work | None = await self._run_in(self._preparing, partial(prepare, run, live))
                if work is None:
                    return
                place = await self._in_thread(self._clouds.place_of, run, live) if run.in_cloud else None
                if place is not None or not run.in_cloud:
                    await self._carry_ready(claim, live, work, place)
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

    async def _carry_ready(self, claim: Claim, live: LiveRun, work: Work, place: Place | None) -> None:
        """:param place: the account in a cloud that starts the sandbox; None for this machine"""
        run, setup = claim.run, await self._in_thread(lambda: work.setup)
        if work.seconds_max is not None:
            live.deadline = min(live.deadline, time.monotonic() + work.seconds_max)
        if place is not None:
            live.deadline = min(live.deadline, time.monotonic() + place.account.seconds_of_program)
        issued = await self._in_thread(
            run_tokens.issue,
            run,
            provider_id=self._driver.provider_id if place is None else place.provider_id,
            credential_id="" if place is None else place.key.id,
            workspace_id="" if place is None else place.key.workspace_id,
            request=setup.request,
            seconds_max=work.seconds_max,
        )
        if issued is None:
            return
        sandbox, token = issued
        fault: SandboxFault | None = None
        is_interrupted = False
        driver: Driver = self._driver if place is None else self._clouds.driver(place, run, seconds=live.seconds_left)
        box = await driver.create(
            sandbox.id,
            token=token,
            request_bytes_max=setup.request_bytes_max,
            lines_bytes_max=setup.lines_bytes_max,
            for_agent=run.is_agent,
            with_claude_code=setup.with_claude_code,
            login=setup.login,
        )
        try:
            has_started = await _start(box, driver.program_of(setup.program), setup.files, live)
            # The files of an agent are large, and it may work for an hour.
            del setup
            if has_started:
                await self._note_made(sandbox, box, place)
                is_interrupted = await self._follow(box, sandbox, run, live, work)
        except SandboxFault as caught:
            fault = caught
        finally:
            is_gone = await box.destroy()
            gone_at = time.monotonic()
        self._leave(claim)
        if fault is not None and place is not None:
            try:
                await self._in_thread(place.note, fault)
            except DATABASE_FAULTS as away:
                logger.warning("key_not_marked", fault=type(away).__name__)
        stop = live.stop
        if fault is not None or work.other:
            logger.info("sandbox_said", fault=str(fault or ""), other=work.other)
        await self._wait_until_settled(sandbox, live, is_cut=box.heard.is_cut)
        if live.stop is not Stop.LEASE_LOST:
            heard = await self._heard(box, sandbox, live)
            ended = Ended(
                # The deadline of a call that outlived the program is not how the program ended.
                stop=stop if live.stop is Stop.DEADLINE else live.stop,
                fault=fault,
                refusal=heard.refusal,
                cap_refusal=heard.cap_refusal,
                is_unreachable=heard.is_unreachable or (run.in_cloud and work.found_no_gateway),
                is_interrupted=is_interrupted,
                is_cut=heard.is_cut,
            )
            await self._in_thread(_finish, run, work, ended)
        if is_gone:
            gone_for = timedelta(seconds=time.monotonic() - gone_at)
            await self._in_thread(capacity_use.end, sandbox, box.made, gone_for=gone_for)

    async def _note_made(self, sandbox: Sandbox, box: Box, place: Place | None) -> None:
        """Keep the size of a sandbox, by which it is charged for also if this worker dies, and that its key works."""
        try:
            if box.made is not None and box.made.size is not None:
                await self._in_thread(capacity_use.note_size, sandbox, box.made.size)
            if place is not None:
                await self._in_thread(place.note_accepted)
        except DATABASE_FAULTS as fault:
            logger.warning("size_not_noted", fault=type(fault).__name__)

    async def _heard(self, box: Box, sandbox: Sandbox, live: LiveRun) -> Heard:
        """Return what the relay knows of its requests. Without one, the gateway has noted it."""
        if sandbox.provider_id not in CLOUDS:
            return box.heard
        while True:
            try:
                return await self._in_thread(_noted, sandbox)
            except DATABASE_FAULTS as fault:
                logger.warning("refusals_not_read", fault=type(fault).__name__)
                if live.stop is Stop.LEASE_LOST:
                    return box.heard
                await asyncio.sleep(LOOK_SECONDS)

    async def _follow(self, box: Box, sandbox: Sandbox, run: Run, live: LiveRun, work: Work) -> bool:
        """
        Take what the program writes, until it ends, or for a moment after the run is stopped.

        Returns whether it was stopped because the gateway has died with a call of it.

        :raises SandboxFault: if it writes or uses too much
        """
        reading = asyncio.ensure_future(_read(box, work))
        try:
            is_interrupted = await self._write_and_watch(reading, box, sandbox, run, live, work)
        finally:
            if not reading.done():
                reading.cancel()
                await asyncio.wait({reading})
        if not reading.cancelled():
            reading.result()
        return is_interrupted

    async def _write_and_watch(
        self, reading: "asyncio.Task[None]", box: Box, sandbox: Sandbox, run: Run, live: LiveRun, work: Work
    ) -> bool:
        outputs = [(texts, TextEvents(run, live, kind=kind)) for kind, texts in work.streams]
        stored = [0] * len(outputs)
        until: float | None = None
        cap_until: float | None = None
        doubt = _Doubt(run, box.relay)
        asked = 0.0
        while not reading.done() and live.stop is not Stop.LEASE_LOST:
            await asyncio.wait({reading}, timeout=FLUSH_SECONDS if any(stored) or run.is_agent else LOOK_SECONDS)
            # The database may take its time.
            box.require_memory()
            for place, (texts, events) in enumerate(outputs):
                new, stored[place] = "".join(texts[stored[place] :]), len(texts)
                events.pending += new
                if new or reading.done():
                    await self._in_thread(events.write, is_end=reading.done())
            now = time.monotonic()
            if run.is_agent and cap_until is None and now - asked >= (LOOK_SECONDS if run.in_cloud else 0.0):
                asked = now
                if (await self._heard(box, sandbox, live)).cap_refusal is not None:
                    cap_until = now + CAP_SECONDS
            is_over_cap = cap_until is not None and now >= cap_until
            if run.is_agent and doubt.is_due(now):
                await self._in_thread(doubt.look, now)
            if until is None and (live.stop is not None or is_over_cap or doubt.seems_dead):
                await box.order_stop()
                until = now + work.stop_seconds
            if until is not None and now >= until:
                break
        return doubt.seems_dead

    async def _wait_until_settled(self, sandbox: Sandbox, live: LiveRun, *, is_cut: bool) -> None:
        """
        Wait until the gateway has settled the call, which it does right after the answer.

        A sandbox may end before its call does. What the run holds for the call must not be given to others meanwhile,
        so this waits until the run's deadline, unless the gateway ends the call as well, or has died with it.
        """
        until, pause = None, SETTLED_LOOK_SECONDS
        while live.stop is not Stop.LEASE_LOST and await self._end_token(sandbox):
            if live.stop is not None or is_cut:
                until = until or time.monotonic() + SETTLED_WITHIN_SECONDS
                if time.monotonic() >= until:
                    return
            await asyncio.sleep(pause)
            pause = min(LOOK_SECONDS, 1.5 * pause)

    async def _end_token(self, sandbox: Sandbox) -> bool:
        """Return whether a call is under way. After this has returned False, none can begin."""
        try:
            return await self._in_thread(run_tokens.end, sandbox)
        except DATABASE_FAULTS as fault:
            logger.warning("attempts_not_read", fault=type(fault).__name__)
            return True

    async def _probe(self) -> None:
        """See what can be offered of that which could not be offered so far."""
        if self.refusal:
            self.refusal = await self._driver.probe()
            if self.refusal:
                logger.info("sandboxes_not_offered", reason=self.refusal)
        before = self.claude_code_refusal
        self.claude_code_refusal = self.refusal or await self._driver.probe_claude_code()
        if self.claude_code_refusal not in {"", before}:
            logger.info("claude_code_not_offered", reason=self.claude_code_refusal)

    async def _sweep_forever(self) -> None:
        """Remove what dead workers have left, and see from time to time whether sandboxes can be offered by now."""
        probed = time.monotonic()
        while True:
            try:
                await self._sweep_once()
                if self.claude_code_refusal and time.monotonic() - probed >= PROBE_AGAIN_SECONDS:
                    probed = time.monotonic()
                    await self._probe()
            except Exception:
                logger.exception("sandboxes_not_swept")
            await asyncio.sleep(SWEEP_SECONDS)

    async def _sweep_once(self) -> None:
        """Remove what is left of sandboxes on this machine, and in clouds, that no live run owns."""
        await self._sweep(self._driver)
        for place, left in await self._in_thread(self._clouds.left):
            try:
                await self._sweep_account(place, left)
            except Exception:
                # The other accounts are swept.
                logger.exception("cloud_not_swept", org_id=place.org_id)

    async def _sweep_account(self, place: Place, left: Sequence[Sandbox]) -> None:
        try:
            existing, kept = await self._sweep(self._clouds.driver(place))
        except SandboxFault as fault:
            logger.warning("cloud_not_swept", org_id=place.org_id, reason=fault.reason)
            await self._in_thread(place.note, fault)
            return
        ended = [sandbox for sandbox in left if sandbox.id not in kept]
        await self._in_thread(capacity_use.end_left, ended, existing)

    async def _sweep(self, driver: Driver) -> tuple[Mapping[str, Size | None], Collection[str]]:
        """Remove those that no live run owns. Returns all that have existed, and those that could not be removed."""
        existing = await driver.list()
        kept: set[str] = set()
        for box_id in existing.keys() - await self._in_thread(_owned, existing.keys()):
            try:
                await driver.destroy(box_id)
            except SandboxFault as fault:
                logger.warning("sandbox_not_removed", sandbox_id=box_id, reason=fault.reason)
                kept.add(box_id)
        return existing, kept


class _Doubt:
    """Whether the gateway seems to have died with a call of an agent: its connection broke, and it is not settled."""

    def __init__(self, run: Run, relay: Relay | None) -> None:
        self.seems_dead = False
        self._run, self._relay = run, relay
        self._cuts = 0
        self._call: str | None = None
        self._until = 0.0

    def is_due(self, now: float) -> bool:
        if self._relay is None:
            return False
        # While the gateway makes another call, it lives. One that it answers ends the doubt.
        is_over = self._call is not None and now >= self._until and not self._relay.is_asking
        return self._relay.cuts != self._cuts or is_over

    def look(self, now: float) -> None:
        """Note the call whose connection broke, and after a while, whether it is still open."""
        assert self._relay is not None, "It is due of a relay only"
        cuts = self._relay.cuts
        try:
            calls = Attempt.objects.filter(run=self._run, state=Attempt.State.OPEN).values_list("id", flat=True)
            call = calls.first()
        except DATABASE_FAULTS as fault:
            logger.warning("attempts_not_read", fault=type(fault).__name__)
            return
        if cuts != self._cuts:
            self._cuts, self._call, self._until = cuts, call, now + CUT_SECONDS
            return
        self.seems_dead = self._relay.is_cut and call == self._call
        self._call = None


def note_dead(*, limit: int = 1000) -> int:
    """
    Mark the sandboxes as ended whose run is no longer under way in their epoch: they end with their worker.

    Those in clouds do not, so that a worker has to end them.
    """
    dead = Sandbox.objects.filter(ended_at=None).exclude(UNDER_WAY).exclude(provider_id__in=CLOUDS).order_by("id")
    ids = list(dead.values_list("id", flat=True)[:limit])
    return Sandbox.objects.filter(id__in=ids).update(ended_at=database_now())


async def _make_drivers() -> tuple[Bubblewrap, Clouds]:
    """Make them in the loop: their connections are bound to one."""
    return Bubblewrap(), Clouds()


async def _start(box: Box, arguments: Sequence[str], files: Mapping[str, bytes], live: LiveRun) -> bool:
    """
    Start the program of a sandbox. False if the run was stopped meanwhile.

    :raises SandboxFault: if it cannot be started
    """
    starting = asyncio.ensure_future(box.start(arguments, files=files))
    try:
        while not starting.done() and live.stop is None:
            await asyncio.wait({starting}, timeout=LOOK_SECONDS)
    finally:
        if not starting.done():
            starting.cancel()
            await asyncio.wait({starting})
    if starting.cancelled():
        return False
    starting.result()
    return True


async def _read(box: Box, work: Work) -> None:
    count = 0
    async for line in box.follow():
        work.take(line)
        count += 1
        if count % LINES_BETWEEN_TURNS == 0:
            await asyncio.sleep(0)


def _finish(run: Run, work: Work, ended: Ended) -> None:
    def plans() -> list[settle.SettlementPlan]:
        attempts = list(run.attempts.order_by("-number"))
        open_attempt = next((each for each in attempts if each.state == Attempt.State.OPEN), None)
        end = work.end(run, attempts, ended)
        return outcomes.sandbox_ended(run, open_attempt, end=end, text=work.text, now=database_now())

    settle.write_patiently(plans)


def _noted(sandbox: Sandbox) -> Heard:
    refusals = Sandbox.objects.filter(id=sandbox.id).values("refusal", "cap_refusal").first()
    return Heard(**refusals) if refusals else Heard()


def _owned(box_ids: Collection[str]) -> set[str]:
    live = Sandbox.objects.filter(UNDER_WAY, id__in=box_ids, ended_at=None)
    return set(live.values_list("id", flat=True))


def _with_database(work: Callable[[], Result]) -> Result:
    try:
        return work()
    finally:
        leave_database()
