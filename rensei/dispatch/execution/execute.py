"""
The second half of a dispatch: open the credential, prepare, write the attempt, call, settle, end the run.

Every call to a provider has an attempt that is committed before it, and a settlement after it. The payer and the
mode never change after the dispatch.
"""

import random
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import datetime
from functools import partial
from typing import TypeVar

import structlog
from django.db import connection

from billing.limits.caps import SpendCapExceeded
from integrations.keys import services as integrations
from integrations.providers.base import ADAPTERS, Adapter, BuiltRequest, Credential, Interrupted, ProviderFailure
from rensei.core.auth_modes import AuthMode
from rensei.core.clock import database_now
from rensei.core.errors import DATABASE_FAULTS, RenseiError, database_refusal
from rensei.core.limits import limit
from rensei.core.transactions import leave_database
from rensei.dispatch import run_caps
from rensei.dispatch.admission import decide
from rensei.dispatch.execution import preparation
from rensei.dispatch.execution.lease_renewal import LeaseRenewal, LiveRun
from rensei.dispatch.execution.provider_call import ProviderCall
from rensei.dispatch.models import Run
from rensei.dispatch.modes import MODES, Mode
from rensei.dispatch.queue import claims
from rensei.dispatch.run_caps import RunCostExceeded
from rensei.dispatch.settlement import outcomes, settle
from rensei.dispatch.settlement.settle import SettlementPlan

ATTEMPTS_MAX = limit(
    3, "attempts", what="Attempts of a run with one key", told="the run: it ends with the last one's error"
)
KEYS_MAX = limit(
    10, "keys", what="Keys of one payer that a run or a call tries", told="the run: it ends with the last one's error"
)
BACKOFF_SECONDS = 0.5
COUNT_EXACTLY_FROM = 0.8

Result = TypeVar("Result")

logger = structlog.get_logger(__name__)


def execute(claim: claims.Claim, renewal: LeaseRenewal) -> None:
    """Execute a claimed run until it ends."""
    run = claim.run
    live = LiveRun(run, seconds_left=(run.deadline_at - claim.claimed_at).total_seconds())
    try:
        with structlog.contextvars.bound_contextvars(run_id=run.id), renewal.watching(live):
            _carry(run, live)
    finally:
        connection.close()


@dataclass(frozen=True, kw_only=True)
class ReadyRun:
    """A run whose call can be made: the opened key, and the request."""

    credential: Credential
    built: BuiltRequest


def build_for_sandbox(run: Run, live: LiveRun) -> BuiltRequest | None:
    """
    Build the request of a run whose call a sandbox makes. None if the run has ended here.

    The gateway signs that call, so the key is opened only if the provider has to count the prompt.
    """
    return until_refused(run, live, lambda mode: _prepare(run, live, partial(mode.open_credential, run)))


def _make_ready(run: Run, live: LiveRun) -> ReadyRun | None:
    """Open the key of a run, and build its request. None if the run has ended here."""

    def prepare(mode: Mode) -> ReadyRun:
        credential = mode.open_credential(run)
        return ReadyRun(credential=credential, built=_prepare(run, live, lambda: credential))

    return until_refused(run, live, prepare)


def until_refused(run: Run, live: LiveRun, prepare: Callable[[Mode], Result]) -> Result | None:
    """Prepare a call, or end the run that cannot make it: None is returned then."""
    mode = MODES[AuthMode(run.auth_mode)]
    try:
        decide.require_running(run)
        return prepare(mode)
    except Interrupted:
        _settle(partial(outcomes.stopped_without_call, run, live.stop or claims.Stop.DEADLINE))
    except RenseiError as refusal:
        _settle(partial(outcomes.without_call, run, outcomes.refusal_error(refusal)))
    except ProviderFailure as failure:
        _settle(partial(_never_called, run, failure, mode=mode))
    return None


def _carry(run: Run, live: LiveRun) -> None:
    ready = _make_ready(run, live)
    if ready is None:
        return
    adapter, mode = ADAPTERS[run.provider], MODES[AuthMode(run.auth_mode)]
    credential, built = ready.credential, ready.built
    while live.stop is None:
        again = _attempt(run, live, adapter, mode, credential, built)
        if again is None:
            return
        credential = again.credential
        try:
            run_caps.require_another_call(run, now=database_now())
        except (SpendCapExceeded, RunCostExceeded) as refusal:
            _settle(partial(outcomes.without_call, run, outcomes.refusal_error(refusal)))
            return
        _pause(live, again.after_seconds)
    _settle(partial(outcomes.stopped_without_call, run, live.stop))


def _prepare(run: Run, live: LiveRun, open_credential: Callable[[], Credential]) -> BuiltRequest:
    """
    Build the request. Near the limit of the window, the provider's free endpoint counts the prompt exactly.

    :raises RenseiError: if an image cannot be fetched, or the prompt does not fit; no attempt is made then
    :raises ProviderFailure: if the provider fails to count
    :raises Interrupted: if the run is stopped meanwhile
    """
    adapter = ADAPTERS[run.provider]
    built = preparation.build_request(
        run, adapter, seconds_left=lambda: live.seconds_left if live.stop is None else 0.0
    )
    window = run.context_window_tokens
    if window is None or built.input_tokens_about < window * COUNT_EXACTLY_FROM:
        return built
    exact = adapter.count_input_tokens(built.params, credential=open_credential(), context_window_tokens=window)
    params = adapter.fit(built.params, input_tokens=exact, context_window_tokens=window)
    return replace(built, params=params, input_tokens_at_least=exact, input_tokens_about=exact)


@dataclass(frozen=True, kw_only=True)
class _Again:
    """The next call to make: with which key and after how many seconds."""

    credential: Credential
    after_seconds: float


def _attempt(
    run: Run, live: LiveRun, adapter: Adapter, mode: Mode, credential: Credential, built: BuiltRequest
) -> _Again | None:
    """Make one call and settle it. Returns None if no further call is to be made."""
    attempt = claims.open_attempt(
        run,
        credential_id=credential.id,
        credential_version=credential.version,
        input_tokens=built.input_tokens_about,
    )
    if attempt is None:
        stop = claims.why_lost(run)
        _settle(partial(outcomes.stopped_without_call, run, stop))
        return None
    call = ProviderCall(run, live, attempt)
    try:
        answer = call.follow(
            adapter.stream(
                built.params, credential=credential, attempt_id=attempt.id, timeout_seconds=live.seconds_left
            )
        )
    except ProviderFailure as failure:
        if failure.provider_code == "deadline":
            live.order(claims.Stop.DEADLINE)
        if live.stop is not None:
            # Closing the connection can itself cause this failure.
            _settle(partial(outcomes.stopped, call, live.stop))
            return None
        again = _try_again(run, mode, credential, failure)
        _settle(partial(_failed, call, failure, mode=mode, again=again is not None))
        logger.info("provider_call_failed", code=failure.code, status=failure.status, again=again is not None)
        return again
    if answer is None:
        assert live.stop is not None, "A stream ends with an answer, a failure, or because it was stopped"
        _settle(partial(outcomes.stopped, call, live.stop))
        return None
    _settle(partial(outcomes.succeeded, call, answer))
    if run.auth_mode == AuthMode.BYOK:
        integrations.note_used(credential.id, database_now())
    return None


def _try_again(run: Run, mode: Mode, credential: Credential, failure: ProviderFailure) -> _Again | None:
    """Try another key of the same payer immediately, else the same key later, else no further call."""
    try:
        another = mode.next_credential(run, credential, failure)
    except RenseiError as refusal:
        # If the other key cannot be opened, there is no other key: the failed call must still be settled.
        logger.warning("no_other_key", code=refusal.code)
        another = None
    except DATABASE_FAULTS as fault:
        logger.warning("no_other_key", code=database_refusal(fault, run_id=run.id).code)
        another = None
    if another is not None and run.attempt_count < KEYS_MAX:
        return _Again(credential=another, after_seconds=0.0)
    # A prompt that the provider has reported is charged. The hold is for one call, and would be passed by a second one.
    if run.is_cost_held and failure.usage is not None:
        return None
    if failure.retryable and not failure.output_seen and run.attempt_count < ATTEMPTS_MAX:
        return _Again(credential=credential, after_seconds=_backoff_seconds(run, failure))
    return None


def _failed(
    call: outcomes.SettledCall, failure: ProviderFailure, *, mode: Mode, again: bool, now: datetime
) -> SettlementPlan:
    # `error_of` may read the database, so it is retried together with the settlement.
    return outcomes.failed(call, failure, error=mode.error_of(call.run, failure), again=again, now=now)


def _never_called(run: Run, failure: ProviderFailure, *, mode: Mode, now: datetime) -> SettlementPlan:
    return outcomes.without_call(run, mode.error_of(run, failure), now=now)


def _settle(outcome: Callable[..., SettlementPlan]) -> None:
    """Write the outcome of a call. The time comes from the database, so it is read inside the retry."""
    settle.write_patiently(lambda: [outcome(now=database_now())])


def _backoff_seconds(run: Run, failure: ProviderFailure) -> float:
    """Return the provider's `retry-after`, else an exponential backoff with jitter."""
    if failure.retry_after_seconds is not None:
        return failure.retry_after_seconds
    jitter = random.uniform(0.75, 1.25)  # noqa: S311 - it spreads load and guards nothing
    return BACKOFF_SECONDS * jitter * float(2 ** (run.attempt_count - 1))


def _pause(live: LiveRun, seconds: float) -> None:
    leave_database()
    until = time.monotonic() + seconds
    while live.stop is None and time.monotonic() < until:
        time.sleep(min(0.1, max(0.0, until - time.monotonic())))
