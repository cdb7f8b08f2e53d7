"""
The Anthropic-compatible API, as an ASGI application beside Django's: https://platform.claude.com/docs/en/api/messages

Everything under `/v1/` is served here, in Anthropic's format. A call is authenticated, limited, decided, written and
committed, and only then sent.
"""

import asyncio
import copy
import gc
import json
import os
import signal
import socket
import threading
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Collection, Iterator, MutableMapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import replace
from datetime import timedelta
from functools import partial
from types import FrameType
from typing import Any, TypeVar

import structlog
from django.conf import settings

from integrations.keys.removed_tokens import drop_removed_tokens
from integrations.providers.anthropic import relay
from integrations.providers.anthropic.access_tokens import Version
from integrations.providers.anthropic.federation import tokens
from integrations.providers.anthropic.other_models import OtherModel, other_models, provider_chooses
from integrations.providers.anthropic.relay import Relay
from integrations.providers.base import Credential, ProviderFailure
from integrations.vault import openings
from integrations.vault.openings import Reason, Why
from rensei.core.api import LARGE_BODY_LIMIT
from rensei.core.auth_modes import AuthMode
from rensei.core.errors import DATABASE_FAULTS, NotPermitted, RateLimited, RenseiError, database_refusal
from rensei.core.ids import new_id
from rensei.core.instances import made_like
from rensei.core.json_body import work_of
from rensei.core.limits import limit
from rensei.core.problems import Internal, MethodNotAllowed
from rensei.core.proxies import address_of
from rensei.dispatch import agents, run_tokens, token_rate
from rensei.dispatch.admission import unknown_parts
from rensei.dispatch.admission.admit import AdmissionPlan
from rensei.dispatch.admission.unknown_parts import Names
from rensei.dispatch.decision_changes import DecisionChanges
from rensei.dispatch.execution.lease_renewal import LeaseRenewal
from rensei.dispatch.modes.base import Signer
from rensei.dispatch.queue.claims import LEASE, Stop
from rensei.dispatch.run_tokens import RunToken
from rensei.dispatch.settlement.settle import SettlementPlan
from rensei.gateway import addresses, answers, encoded, models_list, requests, routing
from rensei.gateway.answers import Headers
from rensei.gateway.body import Body, checked_name
from rensei.gateway.call import Caller, GatewayCall, LiveCall, Named, error_of
from rensei.gateway.callers import Callers
from rensei.gateway.headers import read_headers
from rensei.gateway.limits import Limits
from rensei.gateway.requests import Others, Outgoing
from rensei.gateway.routing import Route
from rensei.gateway.short_cache import ChangeWatch, ShortLivedCache
from rensei.gateway.threads import BodyThreads, LoadThreads, Turns
from rensei.gateway.uploads import Receive, Upload, read_body
from rensei.gateway.writer import GroupWriter, write_admissions, write_settlements
from rensei.orgs.access import Access

LOADERS = 4
# No caller waits for a settlement, so settlements are gathered. Callers wait for admissions, which are gathered for a
# moment while calls arrive side by side, as by PostgreSQL's `commit_delay` and `commit_siblings`.
SETTLEMENTS_GATHER_SECONDS = 0.1
ADMISSIONS_GATHER_SECONDS = 0.002
# The full garbage collection stops every thread, for a tenth of a second where many event streams are open. It is done
# in a moment without calls, or after twice this time in any.
COLLECT_SECONDS = 300.0
COLLECT_LOOK_SECONDS = 0.5
# For the end of the calls that are stopped at a shutdown: their callers may read slowly.
STOP_SECONDS_MAX = 5
RUN_REQUESTS_MAX = limit(
    64,
    "requests",
    what="Requests of a sandbox in a cloud that are not answered yet, each gateway process",
    told="the caller: 429 `RATE_LIMITED`",
)
RUN_TURN_SECONDS_MAX = limit(
    60,
    "seconds",
    what="Wait of a sandbox in a cloud for the end of its call before",
    told="the caller: 429 `RATE_LIMITED`",
)
RUN_TURN_LOOK_SECONDS = 0.05

Send = Callable[[Any], Awaitable[None]]
Result = TypeVar("Result")

logger = structlog.get_logger(__name__)


class Gateway:
    """The gateway of one event loop: caches, connections, writers."""

    def __init__(self) -> None:
        executor = LoadThreads(LOADERS)
        self._changes, self._watcher = DecisionChanges(), LoadThreads(1)
        # The versions of credentials with an access token that were compared with the stored ones.
        self._checked_tokens: set[Version] = set()
        watch = ChangeWatch(self._changed_orgs, self._watcher, goes_on=lambda: bool(tokens.versions()))
        self._callers = Callers(executor, watch)
        # A refusal may depend on what is left of a limit, which the watch does not notice.
        self._routes: ShortLivedCache[Route | RenseiError] = ShortLivedCache(
            executor, watch, org_of=lambda _, found: found.run.org_id if isinstance(found, Route) else None
        )
        # By version: all callers and models share an opened key, so openings do not grow with them.
        self._keys: ShortLivedCache[Credential | RenseiError] = ShortLivedCache(
            executor,
            watch,
            org_of=lambda version, found: None if isinstance(found, RenseiError) else version[0],
            holds_secrets=True,
        )
        self._executor, self._watch = executor, watch
        self._limits = Limits()
        self._turns = Turns()
        # Of the runs whose sandboxes call without a relay: one call at a time, and so many requests that wait.
        self._turns_of_runs = Turns()
        self._requests_of_runs: Counter[str] = Counter()
        self._threads = BodyThreads()
        self._relay = Relay(idle_seconds=settings.RENSEI_GATEWAY_IDLE_SECONDS)
        self._renewal = LeaseRenewal(owner=f"gateway:{socket.gethostname()[:40]}:{os.getpid()}", is_kept=True)
        self._admissions = GroupWriter(
            "gateway-admissions", write_admissions, gather_under_load_seconds=ADMISSIONS_GATHER_SECONDS
        )
        self._settlements = GroupWriter(
            "gateway-settlements", write_settlements, gather_seconds=SETTLEMENTS_GATHER_SECONDS
        )
        # The calls under way. One whose rows are still being written has nothing to stop yet.
        self._live: dict[asyncio.Task[Any], LiveCall | None] = {}
        self._collection: asyncio.TimerHandle | None = None

    def _changed_orgs(self) -> Collection[str]:
        """Return the organizations for which something has changed, in the thread that watches."""
        orgs, held = self._changes.orgs(), tokens.versions()
        # A credential may have been removed while a token was obtained with it.
        if orgs or held - self._checked_tokens:
            drop_removed_tokens()
        # What was dropped may come back, by a renewal that was under way.
        self._checked_tokens = held & tokens.versions()
        return orgs

    def open_connections(self) -> None:
        """
        Open the connections of the threads that load, before requests may hold all of the pool.

        At the start of the server only: a call that waits already would wait twice where the database is away.
        """
        self._executor.open_connections()
        self._watcher.open_connections()

    def collect_garbage(self, last: float) -> None:
        """
        Run the full garbage collection once in a while, from now on.

        :param last: the loop's time of the last one
        """
        loop = asyncio.get_running_loop()
        late = loop.time() - last - COLLECT_SECONDS
        if late >= 0 and (not self._live or late >= COLLECT_SECONDS):
            gc.collect()
            last = loop.time()
        self._collection = loop.call_later(COLLECT_LOOK_SECONDS, self.collect_garbage, last)

    def stop_calls_after(self, number: int) -> None:
        """
        Stop the calls under way some time after a signal.

        A server that is told to stop waits for all connections, and is killed before it closes the gateway if a call
        takes too long. The handler of the event loop is called as well: it is told by the wakeup file descriptor.
        """
        loop = asyncio.get_running_loop()
        former = signal.getsignal(number)

        def begin(signum: int, frame: FrameType | None) -> None:
            loop.call_soon_threadsafe(loop.call_later, settings.RENSEI_GATEWAY_DRAIN_SECONDS, self._stop_calls)
            if callable(former):
                former(signum, frame)

        signal.signal(number, begin)

    def _stop_calls(self) -> None:
        """Each call is settled by what has arrived of it, and its caller is told."""
        for live in filter(None, self._live.values()):
            live.order(Stop.SHUTDOWN)

    async def answer(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        """Handle one request, including all errors."""
        caller = Caller(send)
        upload = Upload(receive)
        try:
            await self._answer(scope, upload, caller)
        except RenseiError as refusal:
            # A refusal may be cached, and its traceback would keep the body of this request as long.
            refusal.__traceback__ = None
            await upload.drop_rest()
            if caller.run_token is not None:
                await self._note_refusal(caller.run_token, refusal)
            await caller.answer(*answers.refusal_answer(refusal, request_id=caller.request_id))
        except DATABASE_FAULTS as fault:
            unavailable = database_refusal(fault, request_id=caller.request_id)
            if caller.has_begun:
                raise
            await caller.answer(*answers.refusal_answer(unavailable, request_id=caller.request_id))
        except Exception:
            logger.exception("gateway_failed", request_id=caller.request_id)
            if caller.has_begun:
                raise
            await caller.answer(*answers.refusal_answer(Internal(), request_id=caller.request_id))

    async def close(self) -> None:
        """Wait for the calls in progress, settle them, and release all resources."""
        if self._collection is not None:
            self._collection.cancel()
        if self._live:
            await asyncio.wait(self._live, timeout=settings.RENSEI_GATEWAY_DRAIN_SECONDS)
        self._stop_calls()
        if self._live:
            await asyncio.wait(self._live, timeout=STOP_SECONDS_MAX)
        await self._admissions.close()
        await self._settlements.close()
        await self._relay.close()
        await asyncio.get_running_loop().run_in_executor(None, self._renewal.close)
        self._watch.stop()
        await asyncio.get_running_loop().run_in_executor(self._watcher, self._changes.close)
        self._watcher.shutdown()
        # Server processes that are forked end without what is registered for their exit.
        await asyncio.get_running_loop().run_in_executor(self._executor, openings.write_at_exit)
        self._executor.shutdown()
        self._threads.close()

    async def _answer(self, scope: MutableMapping[str, Any], receive: Receive, caller: Caller) -> None:
        path, method = scope["path"].removesuffix("/"), scope["method"]
        headers = read_headers(scope["headers"])
        addresses.require_host(headers.get("host") or str((scope.get("server") or [""])[0]))
        addresses.require_served(path, headers)
        access = await self._callers.authenticate(
            headers, address_of(scope, forwarded=headers.get("x-forwarded-for", ""))
        )
        if isinstance(access.token, RunToken) and not access.token.is_relayed:
            with self._among_requests_of(access.token):
                caller.run_token = access.token
                await self._answer_to(access, path, method, headers, scope, receive, caller)
        else:
            await self._answer_to(access, path, method, headers, scope, receive, caller)

    @contextmanager
    def _among_requests_of(self, token: RunToken) -> Iterator[None]:
        """:raises RateLimited: if the sandbox has sent too many requests that are not answered yet"""
        if self._requests_of_runs[token.id] >= RUN_REQUESTS_MAX:
            raise RateLimited(seconds=1, extra={"retryAfter": 1})
        self._requests_of_runs[token.id] += 1
        try:
            yield
        finally:
            self._requests_of_runs[token.id] -= 1
            if not self._requests_of_runs[token.id]:
                del self._requests_of_runs[token.id]

    async def _answer_to(
        self,
        access: Access,
        path: str,
        method: str,
        headers: dict[str, str],
        scope: MutableMapping[str, Any],
        receive: Receive,
        caller: Caller,
    ) -> None:
        is_models = path.startswith(addresses.MODELS)
        _require_method(method, "GET" if is_models else "POST")
        if not (access.writes or is_models) or (isinstance(access.token, RunToken) and path != addresses.MESSAGES):
            raise NotPermitted
        with self._limits.within(access, caller.limit_headers) as live:
            if is_models:
                await self._models(access, path, scope["query_string"].decode("latin-1"), caller)
                return
            sent = await read_body(headers, receive, live.hold)
            raw = await self._decoded(headers, sent, live.hold, org_id=access.org.id)
            if isinstance(access.token, RunToken):
                access.token.require_request(raw)
            size = work_of(raw)
            body, named, chooses = await self._threads.run(partial(_parsed, raw), size=size, org_id=access.org.id)
            query = scope["query_string"].decode("latin-1")
            unknown = requests.unknown_in(body, headers, query)
            model = body.name_of("model")
            if isinstance(access.token, RunToken):
                access.token.require_models(model, [other.model_id for other in named])
            route, others = await self._decide(access, model, named)
            why, chosen = _why(access, path, route), None
            # The key of a run from its sandbox is chosen as a worker chooses it.
            if not isinstance(access.token, RunToken) and route.is_federated:
                chosen = routing.choose(route.signers_for(_routes(others)))
                if chosen.key.federation is not None:
                    credential = await self._open(route, chosen, why)
                    if await self._relay.fetch_token(credential):
                        # The key may have been removed meanwhile, so the call is decided again.
                        route, others = await self._decide(access, model, named)
            unknown_parts.require_judged(
                route.judgement.facts.policies,
                route.mode,
                own_models=[
                    entry.model_id for _, other in others if (entry := other.judgement.entry).org_id is not None
                ],
                provider_chooses=chooses,
            )
            address = path + ("?" + query if query else "")
            if path == addresses.COUNT_TOKENS:
                requests.require_known(unknown, headers, route)
                await self._count(route, chosen, why, body, size, address, headers, caller)
            else:
                await self._message(
                    access, route, chosen, why, body, size, others, address, headers, unknown, caller, live.hold_answer
                )

    async def _note_refusal(self, token: RunToken, refusal: RenseiError) -> None:
        try:
            await self._loaded(partial(run_tokens.note_refusal, token, refusal))
        except DATABASE_FAULTS as fault:
            # The run ends with a less exact error then.
            logger.warning("refusal_not_noted", fault=type(fault).__name__)

    async def _decoded(self, headers: dict[str, str], raw: bytes, hold: Callable[[int], None], *, org_id: str) -> bytes:
        """Decompress a body, if it is compressed. Even a small one may expand to the limit, so it counts as large."""
        encoding = headers.get("content-encoding", "").strip()
        if encoding.lower() in {"", "identity"}:
            return raw
        decoded = await self._threads.run(
            partial(encoded.read, raw, encoding=encoding), size=LARGE_BODY_LIMIT, org_id=org_id
        )
        hold(len(decoded))
        return decoded

    async def _route(self, access: Access, model: str, *, turned_to: str = "", mode: AuthMode | None = None) -> Route:
        """
        Decide a call, or another model that may serve it, under the mode of the call.

        :raises RenseiError: if the call is refused
        """
        assert access.token is not None
        if isinstance(access.token, RunToken) and not turned_to:
            # The run's mode, key and prices are its own, so nothing is kept.
            async with self._turns.of(access.org.id):
                return await self._loaded(partial(routing.load_of_run, access, access.token.run))
        # By token, not organization: a token may be bound to a project, and members have different visible profiles.
        # The caps are those of the caller as last read: a route that is made for an older one must not be kept for it.
        key = (access.token.id, tuple(access.caps), model, turned_to, mode)
        found = self._routes.kept(key)
        if found is None:
            load = partial(routing.load, access, model, turned_to=turned_to, mode=mode)
            # One at a time of each organization: refusals are not kept, and names of models can be made up.
            found = await self._routes.get(key, load, turn=self._turns.of(access.org.id))
        if isinstance(found, RenseiError):
            raise found
        return found

    async def _decide(
        self, access: Access, model: str, named: Sequence[OtherModel]
    ) -> tuple[Route, list[tuple[OtherModel, Route]]]:
        """
        Decide a call, and the models that it names besides.

        :raises RenseiError: if the call is refused
        """
        route = await self._route(access, model)
        others = []
        for other in named:
            name = checked_name(other.model_id, pointer=f"{other.pointer}/model")
            others.append((other, await self._route(access, model, turned_to=name, mode=route.mode)))
        return route, others

    async def _open(self, route: Route, signer: Signer, why: Why) -> Credential:
        """
        Open a key for the first call that it signs, and keep it while calls use it.

        :param why: this call, which the opening is recorded with if it causes one
        :raises RenseiError: if it cannot be opened
        """
        version = signer.version
        found = self._keys.kept(version)
        if found is None:
            found = await self._keys.get(version, partial(route.open_signer, signer, why=why))
        if isinstance(found, RenseiError):
            raise found
        return found

    async def _loaded(self, load: Callable[[], Result]) -> Result:
        return await asyncio.get_running_loop().run_in_executor(self._executor, load)

    async def _message(
        self,
        access: Access,
        route: Route,
        chosen: Signer | None,
        why: Why,
        body: Body,
        size: int,
        others: Others,
        address: str,
        headers: dict[str, str],
        unknown: Names,
        caller: Caller,
        hold: Callable[[int], Awaitable[None]],
    ) -> None:
        """Write the run and attempt of a call, and make the call."""
        org_id = route.run.org_id
        # The one call of a run was judged at its dispatch.
        is_judged = isinstance(access.token, RunToken) and not access.token.run.is_agent
        if route.is_by_platform_key and not is_judged:
            token_rate.require_left(org_id, route.mode)
        prepare = partial(requests.prepare, body, route, others=others, headers=headers, unknown=unknown)
        outgoing = await self._threads.run(prepare, size=size, org_id=org_id)
        body.forget_values()
        outgoing.body.forget_values()
        if isinstance(access.token, RunToken):
            credential = await self._loaded(partial(routing.open_key_of, access.token.run))
            if credential.federation is not None and await self._relay.fetch_token(credential):
                # The key may have been removed meanwhile.
                credential = await self._loaded(partial(routing.open_key_of, access.token.run))
            admitted, keys = _plan_of_run(access.token, route, credential, outgoing, headers), [credential.id]
        else:
            signers = route.signers_for(_routes(others), rate_limit=outgoing.rate_limit)
            credential = await self._open(route, routing.choose(signers, former=chosen), why)
            admitted = self._plan(route, credential, outgoing, headers, run_id=why.run_id)
            keys = [signer.key.id for signer in signers]
        run, attempt = admitted.run, admitted.attempt
        assert attempt is not None
        task = asyncio.current_task()
        assert task is not None
        self._live[task] = None
        try:
            await self._admit(admitted, caller)
            run.attempt_count = attempt.number
            seconds_left = (run.deadline_at - route.now()).total_seconds()
            live = self._live[task] = LiveCall(run, seconds_left=seconds_left)
            call = GatewayCall(
                run=run,
                attempt=attempt,
                credential=credential,
                route=route,
                outgoing=outgoing,
                live=live,
                settle=partial(self._settle, access),
                caller=caller,
                threads=self._threads,
                named=Named.of(others, keys),
                hold=hold,
            )
            with self._renewal.watching(live), closing(live):
                await call.carry(self._relay, path=address, headers=_outgoing_headers(route, headers))
        finally:
            del self._live[task]

    async def _admit(self, admitted: AdmissionPlan, caller: Caller) -> None:
        """
        Write the rows of a call. That of a sandbox waits for the end of the one before, as a relay lets it wait.

        :raises RenseiError: if it is refused
        """
        if caller.run_token is None:
            await self._admissions.submit(admitted)
            return
        until = time.monotonic() + RUN_TURN_SECONDS_MAX
        async with self._turns_of_runs.of(admitted.run.id):
            while True:
                try:
                    await self._admissions.submit(admitted)
                except RateLimited:
                    if time.monotonic() >= until:
                        raise
                    await asyncio.sleep(RUN_TURN_LOOK_SECONDS)
                else:
                    return

    def _settle(self, access: Access, plan: SettlementPlan) -> None:
        assert access.token is not None
        self._limits.use(access, tokens=token_rate.tokens_of(plan.usage))
        # The worker ends a run whose call a sandbox makes.
        self._settlements.submit(replace(plan, end=None) if isinstance(access.token, RunToken) else plan)

    def _plan(
        self, route: Route, credential: Credential, outgoing: Outgoing, headers: dict[str, str], *, run_id: str
    ) -> AdmissionPlan:
        """Build the rows of a call: a run that is RUNNING from the start, and its attempt."""
        now = route.now()
        session = headers.get("x-claude-code-session-id", "")[:100]
        run = made_like(route.run, id=run_id)
        run.credential_id = credential.id
        run.effort, run.effort_applied = outgoing.effort, outgoing.effort_applied
        if outgoing.left_out:
            run.trace = route.judgement.decision.noted(outgoing.left_out).wire()
        run.max_tokens = outgoing.max_tokens
        run.metadata = {"sessionId": session} if session else {}
        run.lease_owner, run.lease_until = self._renewal.owner, now + LEASE
        run.deadline_at = now + timedelta(seconds=settings.RENSEI_GATEWAY_DEADLINE_SECONDS)
        run.created_at = run.started_at = now
        attempt = made_like(
            route.attempt,
            run_id=run.id,
            credential_id=credential.id,
            credential_version=credential.version,
            input_tokens_estimate=outgoing.input_tokens_about,
            started_at=now,
        )
        return AdmissionPlan(run=run, attempt=attempt, at_most=outgoing.at_most)

    async def _count(
        self,
        route: Route,
        chosen: Signer | None,
        why: Why,
        body: Body,
        size: int,
        address: str,
        headers: dict[str, str],
        caller: Caller,
    ) -> None:
        """Have the provider count a prompt. This is free and creates no run."""
        served = route.judgement.entry.model_id
        outgoing = body
        if body.values["model"] != served:
            rewrite = partial(body.with_values, model=served)
            outgoing = await self._threads.run(rewrite, size=size, org_id=route.run.org_id)
        body.forget_values()
        outgoing.forget_values()
        credential = await self._open(route, routing.choose(route.signers, former=chosen), why)
        passed: Headers | None = None
        said = b""
        try:
            answer = await self._relay.send(
                address, credential=credential, headers=_outgoing_headers(route, headers), body=outgoing.raw
            )
            passed = relay.incoming_headers(answer, platform_key=route.is_by_platform_key)
            if relay.is_answer(answer):
                await caller.answer(answer.status, passed, await relay.read_count(answer))
                return
            said, failure = await relay.read_failure(answer)
        except ProviderFailure as fault:
            # There is no complete response that could be passed on.
            passed, failure = None, fault
        error = await error_of(route.run, failure)
        if passed is not None and error["code"] == failure.code and relay.is_refusal(answer):
            await caller.answer(answer.status, passed, said)
        else:
            await caller.answer(
                *answers.failure_answer(error, request_id=caller.request_id, retry_after=failure.retry_after_seconds)
            )

    async def _models(self, access: Access, path: str, query: str, caller: Caller) -> None:
        model_id = path.removeprefix(addresses.MODELS).removeprefix("/")
        look = partial(models_list.one, access, model_id) if model_id else partial(models_list.page, access, query)
        async with self._turns.of(access.org.id):
            found = await self._loaded(look)
        await caller.answer(200, answers.own_headers(caller.request_id), json.dumps(found).encode())


def with_gateway(
    application: Callable[..., Awaitable[None]], *, on_startup: Callable[[], None]
) -> Callable[..., Awaitable[None]]:
    """Combine the gateway with an ASGI application. It starts and stops with the server."""
    gateway: Gateway | None = None

    async def either(scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        nonlocal gateway
        if scope["type"] == "lifespan":
            on_startup()
            gateway = gateway or Gateway()
            gateway.open_connections()
            gateway.collect_garbage(asyncio.get_running_loop().time())
            if threading.current_thread() is threading.main_thread():
                gateway.stop_calls_after(signal.SIGTERM)
            while (await receive())["type"] != "lifespan.shutdown":
                await send({"type": "lifespan.startup.complete"})
            await gateway.close()
            await send({"type": "lifespan.shutdown.complete"})
        elif scope["type"] == "http" and addresses.is_gateways(scope["path"]):
            gateway = gateway or Gateway()
            await gateway.answer(scope, receive, send)
        else:
            await application(scope, receive, send)

    return either


def _plan_of_run(
    token: RunToken, route: Route, credential: Credential, outgoing: Outgoing, headers: dict[str, str]
) -> AdmissionPlan:
    """Build the attempt of a run's call from its sandbox. The run was admitted before, and holds what it may cost."""
    run = copy.copy(token.run)
    if run.is_agent:
        # Each request of an agent is another one.
        run.call_picodollars_at_most = outgoing.at_most
    agent_id, parent_agent_id = agents.ids_in(headers) if run.is_agent else ("", "")
    attempt = made_like(
        route.attempt,
        agent_id=agent_id,
        parent_agent_id=parent_agent_id,
        credential_id=credential.id,
        credential_version=credential.version,
        input_tokens_estimate=outgoing.input_tokens_about,
        at_most_picodollars=outgoing.at_most if run.is_agent else None,
        started_at=route.now(),
    )
    return AdmissionPlan(run=run, attempt=attempt, at_most=None, sandbox_id=token.id)


def _outgoing_headers(route: Route, headers: dict[str, str]) -> dict[str, str]:
    held = route.is_cost_held
    return relay.outgoing_headers(
        headers,
        known_only=held,
        documented_only="anthropic-beta" in headers and (held or route.is_judged),
        platform_key=route.is_by_platform_key,
    )


def _parsed(raw: bytes) -> tuple[Body, list[OtherModel], bool]:
    """
    Parse a body, and list the other models that it names. Return also whether the provider may choose more.

    :raises FieldError: if it is not a JSON object, or an other model has no name
    """
    body = Body.read(raw)
    return body, other_models(body.values, body.tools), provider_chooses(body.values, body.unknown)


def _routes(others: Others) -> list[Route]:
    return [route for _, route in others]


def _why(access: Access, path: str, route: Route) -> Why:
    """State for the record of openings what opens a key: a call with the id of its run, or counting a prompt."""
    token_id, org_id = route.run.token_id, route.run.org_id
    if path == addresses.COUNT_TOKENS:
        return Why(reason=Reason.COUNT, token_id=token_id, org_id=org_id)
    run_id = access.token.run.id if isinstance(access.token, RunToken) else new_id("run")
    return Why(reason=Reason.GATEWAY, run_id=run_id, token_id=token_id, org_id=org_id)


def _require_method(method: str, allowed: str) -> None:
    if method != allowed:
        raise MethodNotAllowed
