"""
The token of a run in a sandbox: the call of that run through the gateway, or the calls of its agent, and nothing else.

It is valid while the run is under way in the same epoch: for the one request that the worker has prepared, until an
answer has cost something; or for requests of an agent to the run's model, up to what the run may cost. No REST route
accepts it.
"""

import hashlib
import secrets
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from django.db.models import Exists, F, OuterRef, Q

from billing.models import CostEvent
from integrations.vault import openings
from rensei.core.clock import database_now
from rensei.core.errors import RateLimited, RenseiError, Said
from rensei.core.limits import limit
from rensei.core.models import WorkerHeartbeat
from rensei.core.problems import NotAuthenticated
from rensei.core.secret import Secret, token_digest
from rensei.core.transactions import assert_open, durable
from rensei.core.usage import NOTHING
from rensei.dispatch import agents, run_caps
from rensei.dispatch.models import Attempt, CapacityPool, Run, Sandbox
from rensei.orgs.access import Access
from rensei.orgs.models import Membership, Role
from rensei.orgs.scopes import Scope

TOKEN_PREFIX = "rsr_"  # noqa: S105 - public on purpose: secret scanners match it
# The first call and two repetitions, as on a local pool. A repetition follows only an error of the provider.
CALLS_MAX = limit(
    3, "calls", what="Calls with the token of a run in a sandbox", told="the run: it ends with the last one's error"
)
_COUNTED = (
    *("id", "epoch", "state", "cancel_requested_at", "attempt_count", "caps"),
    *("max_cost_picodollars", "call_picodollars_at_most", "is_agent", "auth_mode", "in_cloud", "lease_owner"),
)
# What the provider reported before a stream broke off may be billed, and is not owed.
_BROKEN = "PROVIDER_STREAM_BROKEN"
_PAID = CostEvent.objects.filter(attempt_id=OuterRef("pk")).exclude(**NOTHING.as_dict())


class RunTokenUsedUp(RenseiError):
    """The run has ended, or the token has made its call."""

    code = "NOT_PERMITTED"
    status = 403
    title = "Not permitted"
    message = Said("The token of {run} makes no further call: {reason}.", "Dispatch another run.")


@dataclass(kw_only=True)
class RunToken:
    """A run token as the caller's token of an access. It has the scope of the gateway only."""

    id: str
    pk: str
    run: Run
    request_digest: str
    # Whether a relay of the worker passes on its requests, and knows what became of them.
    is_relayed: bool
    project_id: int | None
    expires_at: datetime | None
    host_id: str | None = None
    scopes: list[str] = field(default_factory=lambda: [Scope.GATEWAY.value])
    allowed_networks: list[str] = field(default_factory=list)

    def require_request(self, body: bytes) -> None:
        """:raises RunTokenUsedUp: if it is not the request that was prepared for the run"""
        if not self.run.is_agent and request_digest(body) != self.request_digest:
            raise RunTokenUsedUp(run=self.run.id, reason="this is not the request of the run")

    def require_models(self, model: str, others: Iterable[str]) -> None:
        """:raises RunTokenUsedUp: if an agent calls another model than that of its run"""
        run = self.run
        own = {run.asked_name, run.model_id, run.served_model_id, run.profile_id}
        if run.is_agent and not {model, *others} <= own:
            raise RunTokenUsedUp(run=run.id, reason=f"it is for the model {run.served_model_id} only")


def request_digest(body: bytes) -> str:
    return hashlib.sha256(body).hexdigest()


def issue(
    run: Run,
    *,
    provider_id: str,
    request: bytes | None,
    seconds_max: float | None = None,
    credential_id: str = "",
    workspace_id: str = "",
) -> tuple[Sandbox, Secret] | None:
    """
    Write the row of a run's sandbox, with a token for it, before the sandbox is created.

    :param request: the one that it may make; None for an agent, which writes its own
    :param seconds_max: how long it may call, if that is less than its run may
    :param credential_id: the integration whose key makes it, in the workspace `workspace_id`
    Returns None if the worker no longer holds the run.
    """
    token = Secret(TOKEN_PREFIX + secrets.token_hex(32))
    with durable():
        if not Run.objects.filter(id=run.id, epoch=run.epoch, state=Run.State.RUNNING).exists():
            return None
        openings.write_of(run.id)
        now = database_now()
        sandbox = Sandbox.objects.create(
            org_id=run.org_id,
            run=run,
            epoch=run.epoch,
            pool=run.pool,
            provider_id=provider_id,
            credential_id=credential_id,
            workspace_id=workspace_id,
            token_digest=token_digest(token.reveal()),
            request_digest="" if request is None else request_digest(request),
            calls_left=agents.CALLS_MAX if run.is_agent else CALLS_MAX,
            created_at=now,
            ends_at=None if seconds_max is None else min(run.deadline_at, now + timedelta(seconds=seconds_max)),
        )
    return sandbox, token


def for_token(*, token: str, address: str | None = None) -> Access | None:
    """
    Look up the access of a run token; None for an unknown one, and for one whose run is no longer under way.

    :raises NotAuthenticated: if the person who dispatched the run has left the organization
    """
    found = (
        Sandbox.objects.filter(token_digest=token_digest(token), run__state=Run.State.RUNNING, run__epoch=F("epoch"))
        .select_related("run__org", "run__project")
        .first()
    )
    if found is None:
        return None
    if found.ends_at is not None:
        # A call of an agent ends with its program, therefore its cost is held until then.
        found.run.deadline_at = found.ends_at
    membership = (
        Membership.objects.live()
        .filter(org=found.run.org, user=found.run.created_by_id, user__is_active=True)
        .select_related("user")
        .first()
    )
    if membership is None:
        # This is no unknown token: those count against its address, which is the worker's.
        raise NotAuthenticated
    return Access(
        user=membership.user,
        org=found.run.org,
        role=Role(membership.role),
        membership=membership,
        project=found.run.project,
        token=RunToken(
            id=found.id,
            pk=found.id,
            run=found.run,
            request_digest=found.request_digest,
            is_relayed=found.provider_id == CapacityPool.Provider.SANDBOX,
            project_id=found.run.project_id,
            expires_at=found.run.deadline_at,
        ),
        address=address,
    )


def note_refusal(token: RunToken, refusal: RenseiError) -> None:
    """Keep why the gateway refused a request before a call: no error of a run is in the words of its program."""
    said = {"code": refusal.code, "message": refusal.detail_for_gateway}
    own = Sandbox.objects.filter(id=token.id, ended_at=None)
    own.update(refusal=said)
    if refusal.code == run_caps.RunCostExceeded.code:
        own.filter(cap_refusal__isnull=True).update(cap_refusal=said)


def end(sandbox: Sandbox) -> bool:
    """
    Let a token make no further call, and return whether one is under way.

    It waits for a call that is being admitted, whose attempt is visible afterwards.
    """
    Sandbox.objects.filter(id=sandbox.id, calls_left__gt=0).update(calls_left=0)
    return Attempt.objects.filter(run=sandbox.run_id, state=Attempt.State.OPEN).exists()


def count_calls(calls: Iterable[tuple[str, Attempt]]) -> dict[str, RenseiError]:
    """
    Number the attempts of calls from sandboxes, given with the sandbox's id, in the transaction that saves them.

    A call is made only while its run is under way, one at a time, and none after one that was answered.
    Returns the refusals by attempt id.
    """
    assert_open()
    calls = list(calls)
    if not calls:
        return {}
    # The locks order the calls of a run. Each statement below sees what was committed before.
    locked = Run.objects.select_for_update().filter(id__in={attempt.run_id for _, attempt in calls}).order_by("id")
    runs = {run.id: run for run in locked.only(*_COUNTED)}
    refused: dict[str, RenseiError] = {}
    calling: set[str] = set()
    for sandbox_id, attempt in calls:
        try:
            _count_call(runs.get(attempt.run_id), attempt, sandbox_id, is_calling=attempt.run_id in calling)
            calling.add(attempt.run_id)
        except RenseiError as refusal:
            refused[attempt.id] = refusal
    return refused


def _count_call(run: Run | None, attempt: Attempt, sandbox_id: str, *, is_calling: bool) -> None:
    """
    Count one call and number its attempt.

    :raises RunTokenUsedUp: if the run has ended, or the token has made its calls
    :raises RateLimited: if the run is making a call, or one that failed is being settled
    :raises RunCostExceeded, SpendCapExceeded: if a cap of the run no longer covers another call
    """
    is_under_way = run is not None and run.state == Run.State.RUNNING and run.epoch == attempt.epoch
    if run is None or not is_under_way or run.cancel_requested_at is not None:
        raise RunTokenUsedUp(run=attempt.run_id, reason="the run has ended")
    if run.in_cloud and _is_silent(run.lease_owner, now=attempt.started_at):
        # A sandbox in a cloud outlives its worker. Its calls would renew the lease, and it would spend all it may.
        raise RunTokenUsedUp(run=run.id, reason="the worker that follows it has died")
    if is_calling or Attempt.objects.filter(run=run, state=Attempt.State.OPEN).exists():
        raise RateLimited(seconds=1, extra={"retryAfter": 1})
    if run.is_agent:
        assert attempt.at_most_picodollars is not None, "The cost of each call of an agent is bounded"
        run_caps.require_call(run, at_most=attempt.at_most_picodollars)
    else:
        _require_unanswered(run, now=attempt.started_at)
    in_time = Q(ends_at=None) | Q(ends_at__gt=attempt.started_at)
    if not Sandbox.objects.filter(in_time, id=sandbox_id, calls_left__gt=0).update(
        calls_left=F("calls_left") - 1, refusal=None
    ):
        raise RunTokenUsedUp(run=run.id, reason="it has made all calls that it may make, or its time is over")
    run.attempt_count += 1
    run.credential_id = attempt.credential_id
    run.save(update_fields=["attempt_count", "credential_id"])
    attempt.number = run.attempt_count
    # No key signs a call before it is known that it was opened for it.
    openings.write_of(run.id)


def _is_silent(lease_owner: str, *, now: datetime) -> bool:
    """Return whether the worker of a run has sent no heartbeat for too long. One that stops removes its own."""
    worker, _, _ = lease_owner.rpartition(":")
    return WorkerHeartbeat.objects.filter(worker=worker, seen_at__lte=now - WorkerHeartbeat.SILENT_AFTER).exists()


def _require_unanswered(run: Run, *, now: datetime) -> None:
    """
    Check that the one request of a run may be made, or made again.

    :raises RunTokenUsedUp: if it was answered, or may have been billed while its cost is held
    :raises RunCostExceeded, SpendCapExceeded: if a cap of the run no longer covers another call
    """
    attempts = Attempt.objects.filter(run=run)
    if attempts.filter(Q(error__isnull=True) | Exists(_PAID), state=Attempt.State.SETTLED).exists():
        raise RunTokenUsedUp(run=run.id, reason="its request has been answered")
    if run.is_cost_held and attempts.filter(state=Attempt.State.INDETERMINATE, error__code=_BROKEN).exists():
        raise RunTokenUsedUp(run=run.id, reason="its call broke off, and the provider may have billed it")
    if run.attempt_count:
        run_caps.require_another_call(run, now=now)
