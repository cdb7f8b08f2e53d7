"""
One call through the gateway: written, sent, streamed to the caller, and settled with the usage in the stream.

The response is read to its end even if the caller has disconnected, because the output is paid for. Only a
cancellation or the run's deadline aborts the call.
"""

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import aiohttp
import structlog
from django.utils.functional import cached_property

from billing.limits.caps import SpendCapExceeded
from integrations.outbound.http import AnswerRefused
from integrations.providers.anthropic import relay
from integrations.providers.anthropic.relay import Relay, Tap
from integrations.providers.base import Credential, ProviderFailure
from rensei.core.auth_modes import AuthMode
from rensei.core.clock import database_now
from rensei.core.errors import DATABASE_FAULTS, RenseiError, Said, StoredError, database_refusal
from rensei.core.ids import RUN_ID_HEADER, new_id
from rensei.core.json_body import work_of
from rensei.core.usage import Usage, UsagePart, total
from rensei.dispatch import run_caps
from rensei.dispatch.execution.execute import KEYS_MAX
from rensei.dispatch.execution.lease_renewal import LiveRun
from rensei.dispatch.models import Attempt, Run
from rensei.dispatch.modes import MODES
from rensei.dispatch.queue import claims
from rensei.dispatch.queue.claims import Stop
from rensei.dispatch.run_caps import RunCostExceeded
from rensei.dispatch.run_tokens import RunToken
from rensei.dispatch.settlement import outcomes, settle
from rensei.dispatch.settlement.settle import SettlementPlan
from rensei.gateway import answers
from rensei.gateway.answers import Headers
from rensei.gateway.requests import Others, Outgoing
from rensei.gateway.routing import Route
from rensei.gateway.threads import BodyThreads, in_thread

Send = Callable[[dict[str, Any]], Awaitable[None]]

logger = structlog.get_logger(__name__)

# We stop reading an answer that is late or too large, or cannot be decompressed. The provider bills it nevertheless.
_STOPPED_BY_US = (TimeoutError, AnswerRefused)


class RunCancelled(RenseiError):
    """The run was cancelled while its caller waited for the response."""

    code = "RUN_CANCELLED"
    status = 409
    title = "Run cancelled"
    message = Said(
        "The run was cancelled, in the pages or by REST.",
        "What was produced until then is charged, and it is not repeated by itself.",
    )


_STOPPED: dict[Stop, type[RenseiError]] = {Stop.CANCELLED: RunCancelled, Stop.SHUTDOWN: outcomes.RunInterrupted}


class Caller:
    """The connection to the caller. After a disconnect nothing more is sent, but the provider is still read."""

    def __init__(self, send: Send) -> None:
        self.has_begun = False
        # Of a sandbox that calls without a relay, which would know of a refusal.
        self.run_token: RunToken | None = None
        # The caller's usage of its limits. Every response includes these headers.
        self.limit_headers: Headers = []
        self._tail = b""
        self._send = send
        self._gone = False

    @cached_property
    def request_id(self) -> str:
        """The id of the request in the gateway's own responses. A provider's response has the provider's id."""
        return new_id("req")

    async def answer(self, status: int, headers: Headers, body: bytes) -> None:
        """Send a complete response."""
        sized = [(name, value) for name, value in headers if name != b"content-length"]
        await self.begin(status, [*sized, (b"content-length", str(len(body)).encode())])
        await self._tell({"type": "http.response.body", "body": body})

    async def begin(self, status: int, headers: Headers) -> None:
        self.has_begun = True
        whole = [*headers, *answers.TRANSPORT, *self.limit_headers]
        await self._tell({"type": "http.response.start", "status": status, "headers": whole})

    async def pass_on(self, chunk: bytes) -> None:
        self._tail = (self._tail + chunk)[-2:]
        await self._tell({"type": "http.response.body", "body": chunk, "more_body": True})

    async def break_off(self, error: StoredError) -> None:
        """End a stream with an event that gives the reason. `error` is the run's."""
        if self._tail not in {b"", b"\n\n"}:
            # The stream broke within an event. Terminate it, so that the error event is parsed separately.
            await self.pass_on(b"\n\n")
        await self.pass_on(answers.stream_error(error, request_id=self.request_id))
        await self.end()

    async def end(self) -> None:
        await self._tell({"type": "http.response.body", "body": b""})

    async def _tell(self, message: dict[str, Any]) -> None:
        if self._gone:
            return
        try:
            await self._send(message)
        except (OSError, RuntimeError):
            # ASGI servers raise these for a closed connection.
            self._gone = True


@dataclass(frozen=True, kw_only=True)
class Named:
    """What a call names besides its model: the ids of those models, and of the keys that may sign for all of them."""

    models: frozenset[str] = frozenset()
    keys: frozenset[str] | None = None

    @classmethod
    def of(cls, others: Others, keys: Iterable[str]) -> "Named":
        if not others:
            return cls()
        models = frozenset(route.judgement.entry.model_id for _, route in others)
        return cls(models=models, keys=frozenset(keys))

    def is_served_by(self, credential: Credential) -> bool:
        return self.keys is None or credential.id in self.keys


class LiveCall(LiveRun):
    """
    A gateway run in progress. An order to stop, from the lease renewal's thread or at the deadline, interrupts its
    current wait.
    """

    def __init__(self, run: Run, *, seconds_left: float) -> None:
        super().__init__(run, seconds_left=seconds_left)
        self._loop = asyncio.get_running_loop()
        self._task = asyncio.current_task()
        self._end_of_time = self._loop.call_later(seconds_left, self.order, Stop.DEADLINE)

    def close(self) -> None:
        self._end_of_time.cancel()

    def order(self, reason: Stop) -> None:
        if reason is Stop.LEASE_LOST and self.seconds_left > 0:
            # The process was paused for too long, and the reaper ended the run. The caller is still connected, so the
            # call continues: its settlement corrects the estimate.
            return
        super().order(reason)
        assert self._task is not None
        self._loop.call_soon_threadsafe(self._task.cancel)


class GatewayCall:
    """Make attempts until one gets a response. `run`, `attempt`, `text` and `usage` are the input of the settlement."""

    # No output is stored.
    text = ""

    def __init__(
        self,
        *,
        run: Run,
        attempt: Attempt,
        credential: Credential,
        route: Route,
        outgoing: Outgoing,
        live: LiveRun,
        settle: Callable[[SettlementPlan], object],
        caller: Caller,
        threads: BodyThreads,
        named: Named,
        hold: Callable[[int], Awaitable[None]],
    ) -> None:
        self.run = run
        self.attempt = attempt
        self.request_id = ""
        self._credential = credential
        self._route = route
        self._outgoing = outgoing
        self._live = live
        self._settle = settle
        self._caller = caller
        self._threads = threads
        self._named = named
        self._hold = hold
        self._settled = False
        # Whether any of the current attempt was sent, and the provider has not refused it.
        self._is_under_way = False
        self._tap: Tap | None = None

    @property
    def usage(self) -> Usage | None:
        """The total of `parts`, or None if nothing of an answer has arrived."""
        parts = self.parts
        return total(parts) if parts else None

    @property
    def parts(self) -> tuple[UsagePart, ...]:
        return self._tap.parts_so_far() if self._tap is not None else ()

    @property
    def unheard(self) -> Usage | None:
        """An answer that is not streamed may be as good as done when nothing of it has arrived."""
        if not self._is_under_way:
            return None
        output_tokens = 0 if self._outgoing.streams else self._outgoing.max_tokens
        return Usage(input_tokens=self.attempt.input_tokens_estimate, output_tokens=output_tokens)

    async def carry(self, sessions: Relay, *, path: str, headers: Mapping[str, str]) -> None:
        """Send the request, pass the response on, and settle."""
        try:
            await self._carry(sessions, path=path, headers=headers)
        except asyncio.CancelledError:
            stop = self._live.stop
            # Without an order to stop, the server itself ends the task.
            self._end(outcomes.stopped(self, stop or Stop.SHUTDOWN, now=self._route.now()))
            if stop is None:
                raise
            task = asyncio.current_task()
            assert task is not None
            task.uncancel()
            refusal = _STOPPED.get(stop, outcomes.RunTimeout)()
            if self._caller.has_begun:
                await self._caller.break_off(outcomes.refusal_error(refusal))
            else:
                status, own, body = answers.refusal_answer(refusal, request_id=self._caller.request_id)
                await self._caller.answer(status, [*own, *run_headers(self.run)], body)

    async def _carry(self, sessions: Relay, *, path: str, headers: Mapping[str, str]) -> None:
        while True:
            try:
                answer = await sessions.send(
                    path,
                    credential=self._credential,
                    headers=headers,
                    body=self._outgoing.body.raw,
                    attempt_id=self.attempt.id,
                    on_sent=self._note_sent,
                )
            except ProviderFailure as failure:
                if not await self._try_again(failure):
                    await self._say(await self._fail(failure), failure)
                    return
                continue
            if relay.is_answer(answer):
                await self._pass_on(answer)
                return
            self._is_under_way = False
            body, refused = await relay.read_failure(answer)
            self.request_id = refused.request_id
            if not await self._try_again(refused):
                await self._refuse(answer, body, refused)
                return

    async def _pass_on(self, answer: aiohttp.ClientResponse) -> None:
        """Pass a response on as it arrives, and read its usage."""
        self.request_id = relay.request_id(answer)
        streams = answer.content_type == "text/event-stream"
        try:
            tap = self._tap = Tap(
                input_tokens_about=self._outgoing.input_tokens_about,
                streams=streams,
                encoding=answer.headers.get("content-encoding", ""),
                asked=self._outgoing.asked,
                bytes_max=self._outgoing.answer_bytes_max,
            )
        except ProviderFailure as failure:
            answer.close()
            await self._say(await self._fail(failure), failure)
            return
        whole = b""
        try:
            if streams:
                await self._caller.begin(answer.status, self._headers(answer))
                while chunk := await relay.read_piece(answer):
                    await self._threads.run(
                        partial(tap.take, chunk), size=tap.waiting + work_of(chunk), org_id=self.run.org_id
                    )
                    await self._caller.pass_on(chunk)
            else:
                # The provider sends it only when it is complete, so it is read as a whole.
                whole = await relay.read_whole(answer, bytes_max=self._outgoing.answer_bytes_max, hold=self._hold)
            read = partial(tap.answer, whole, request_id=self.request_id)
            answered = await self._threads.run(read, size=max(tap.waiting, work_of(whole)), org_id=self.run.org_id)
            self._end(outcomes.succeeded(self, answered, now=self._route.now()))
        except (aiohttp.ClientError, *_STOPPED_BY_US) as fault:
            answer.close()
            broken = tap.broken(request_id=self.request_id, gave_up=isinstance(fault, _STOPPED_BY_US))
            error = await self._fail(broken)
            if streams:
                await self._caller.break_off(error)
            else:
                await self._say(error, broken)
            return
        except ProviderFailure as failure:
            error = await self._fail(failure)
            if not streams:
                # What cannot be read cannot be charged as reported, so it is not given away.
                await self._say(error, failure)
                return
            if not tap.has_error:
                await self._caller.break_off(error)
                return
            # It ended with the provider's own error event, which is passed on unchanged.
        except asyncio.CancelledError:
            answer.close()
            raise
        if streams:
            await self._caller.end()
        else:
            await self._caller.answer(answer.status, self._headers(answer), whole)

    async def _refuse(self, answer: aiohttp.ClientResponse, body: bytes, failure: ProviderFailure) -> None:
        """Pass the provider's refusal on unchanged, unless it is about a platform key, which callers must not see."""
        error = await self._fail(failure)
        if error["code"] == failure.code and relay.is_refusal(answer):
            await self._caller.answer(answer.status, self._headers(answer), body)
        else:
            await self._say(error, failure)

    async def _say(self, error: StoredError, failure: ProviderFailure) -> None:
        """Respond with the run's error, if there is no provider response to pass on."""
        status, headers, body = answers.failure_answer(
            error, request_id=self._caller.request_id, retry_after=failure.retry_after_seconds
        )
        await self._caller.answer(status, [*headers, *run_headers(self.run)], body)

    async def _try_again(self, failure: ProviderFailure) -> bool:
        """Settle a failed attempt, and write an attempt with another key of the same payer, if there is one."""
        try:
            again = await in_thread(partial(self._next_attempt, failure))
        except DATABASE_FAULTS as fault:
            logger.warning("no_other_key", code=database_refusal(fault, run_id=self.run.id).code)
            return False
        if again is None:
            return False
        self.attempt, self._credential = again
        self._is_under_way = False
        return True

    def _next_attempt(self, failure: ProviderFailure) -> tuple[Attempt, Credential] | None:
        mode = MODES[AuthMode(self.run.auth_mode)]
        try:
            credential = mode.next_credential(self.run, self._credential, failure, rate_limit=self._outgoing.rate_limit)
        except RenseiError as refusal:
            logger.warning("no_other_key", code=refusal.code)
            return None
        if credential is None or self.run.attempt_count >= KEYS_MAX or self._live.stop is not None:
            return None
        if not self._named.is_served_by(credential):
            return None
        error = mode.error_of(self.run, failure)
        now = database_now()
        settle.write([outcomes.failed(self, failure, error=error, again=True, now=now)])
        try:
            run_caps.require_another_call(self.run, now=now)
        except (SpendCapExceeded, RunCostExceeded) as refusal:
            logger.warning("no_other_attempt", code=refusal.code)
            return None
        attempt = claims.open_attempt(
            self.run,
            credential_id=credential.id,
            credential_version=credential.version,
            input_tokens=self._outgoing.input_tokens_about,
        )
        return (attempt, credential) if attempt is not None else None

    async def _fail(self, failure: ProviderFailure) -> StoredError:
        """Settle a call that failed finally, and return the error that is shown to the organization."""
        try:
            error = await error_of(self.run, failure)
        except DATABASE_FAULTS as fault:
            # The failed call is settled when the database is available again.
            error = outcomes.refusal_error(database_refusal(fault, run_id=self.run.id))
        self._end(outcomes.failed(self, failure, error=error, again=False, now=self._route.now()))
        return error

    def _note_sent(self) -> None:
        self._is_under_way = True

    def _end(self, plan: SettlementPlan) -> None:
        if not self._settled:
            self._settled = True
            self._settle(replace(plan, named=self._named.models) if self._named.models else plan)

    def _headers(self, answer: aiohttp.ClientResponse) -> Headers:
        passed = relay.incoming_headers(answer, platform_key=self._route.is_by_platform_key)
        return [*passed, *run_headers(self.run)]


async def error_of(run: Run, failure: ProviderFailure) -> StoredError:
    """Return the error shown to the organization, computed in a thread: a mode may read keys from the database."""
    return await in_thread(partial(MODES[AuthMode(run.auth_mode)].error_of, run, failure))


def run_headers(run: Run) -> Headers:
    """Return the headers with the run id of a call and its auth mode."""
    return [(RUN_ID_HEADER.encode(), run.id.encode()), (b"x-rensei-auth-mode", run.auth_mode.encode())]
