"""
Advancing workflow runs: collect the nodes whose runs have ended, dispatch those whose needs have succeeded.

All state is in the database and written by conditional updates, so this may be interrupted anywhere and
repeated: a node's run is dispatched under the node's own Idempotency-Key, and a change stays counted until
it has been processed.
"""

from collections.abc import Mapping
from dataclasses import replace
from datetime import timedelta
from typing import Any

from django.db import transaction
from django.db.models import F, Q

from rensei.core import jobs
from rensei.core.clock import database_now
from rensei.core.errors import NotFound, RateLimited, RenseiError, Said, StoredError
from rensei.dispatch import services
from rensei.dispatch.admission import admit
from rensei.dispatch.admission.requests import DispatchRequest
from rensei.dispatch.models import IdempotencyKey, Run
from rensei.dispatch.settlement.outcomes import refusal_error
from rensei.orgs.access import Access, for_member
from rensei.orgs.models import User
from rensei.workflows.documents import Node
from rensei.workflows.models import NodeRun, WorkflowRun
from rensei.workflows.templates import Rendering

# The condition, for a periodic job, that any workflow run has unprocessed changes.
ANY_DUE = "EXISTS (SELECT 1 FROM workflows_workflowrun WHERE changes > advanced)"
LEASE = timedelta(seconds=30)
DUE_AT_ONCE = 100
# So many dispatches finish well before the lease expires, even when slow. Then the lease is renewed.
BATCH = 20
# How long a workflow run that waits for its organization's rate rests, at most. A cancellation waits as long.
WAIT_SECONDS_MAX = 10
# The metadata of a node's run, by which its end is matched to the workflow run.
WORKFLOW_RUN, NODE = "workflowRunId", "nodeId"
UNSUCCESSFUL = {NodeRun.State.FAILED, NodeRun.State.SKIPPED, NodeRun.State.CANCELLED}
# Fields of a run that are not needed here and may be long.
LONG = ("run__output_content", "run__agent_result", "run__trace", "run__prices", "run__effort_applied")


class StarterMayNot(RenseiError):
    """The member who started the workflow run has since left the organization, or may only read now."""

    code = "NOT_PERMITTED"
    status = 403
    title = "Not permitted"
    message = Said(
        "The person who started this workflow run may no longer dispatch runs in the organization.",
        "Start it again as a member who may.",
    )


class ProfileGone(RenseiError):
    """The profile of a node, or its project, has been deleted since the document was applied."""

    code = "NOT_FOUND"
    status = 404
    title = "Not found"
    message = Said(
        "The profile '{profile_id}' of this node is not there any more.", "Apply the workflow with another one."
    )


def note_end(sender: type[Run], run: Run, **kwargs: object) -> None:
    """Count the end of a node's run, in the transaction that writes it, and advance the workflow after commit."""
    workflow_run_id = run.metadata.get(WORKFLOW_RUN)
    if not isinstance(workflow_run_id, str):
        return
    going_on = WorkflowRun.objects.filter(id=workflow_run_id, org_id=run.org_id).exclude(state__in=WorkflowRun.ENDED)
    if going_on.update(changes=F("changes") + 1):
        # If this fails, or the process dies first, the periodic job finds the change.
        transaction.on_commit(lambda: advance(workflow_run_id), robust=True)


def advance_due() -> None:
    """Advance every workflow run with unprocessed changes. The failure of one does not affect the others."""
    now = database_now()
    free = Q(leased_until=None) | Q(leased_until__lt=now)
    due = WorkflowRun.objects.filter(free, changes__gt=F("advanced")).order_by("id")
    # A failed one keeps its lease, so it is not retried at once.
    jobs.for_each(due.values_list("id", flat=True)[:DUE_AT_ONCE], advance, job="advance-workflows")


def advance(workflow_run_id: str) -> None:
    """Advance a workflow run as far as possible now. Does nothing while another process holds its lease."""
    now = database_now()
    free = Q(leased_until=None) | Q(leased_until__lt=now)
    lease = now + LEASE
    if not WorkflowRun.objects.filter(free, id=workflow_run_id).update(leased_until=lease):
        return
    while True:
        held = WorkflowRun.objects.filter(id=workflow_run_id, leased_until=lease)
        found = held.select_related("org", "project", "host", "created_by", "cancelled_by", "version").first()
        if found is None:
            return
        look = _Look(found)
        more = found.state not in WorkflowRun.ENDED and look.go_on()
        if look.waits_seconds:
            # The periodic job looks again when this lease has ended.
            held.update(changes=F("changes") + 1, leased_until=database_now() + timedelta(seconds=look.waits_seconds))
            return
        if not more and held.filter(changes=found.changes).update(advanced=found.changes, leased_until=None):
            return
        # There is more to do, or something has changed in the meantime, so another pass follows.
        renewed = database_now() + LEASE
        held.update(leased_until=renewed)
        lease = renewed


class _Look:
    """One pass over the nodes of a workflow run."""

    def __init__(self, workflow_run: WorkflowRun) -> None:
        self._workflow_run = workflow_run
        self._described = {one["node_id"]: Node(**one) for one in workflow_run.version.nodes}
        self._nodes: dict[str, NodeRun] = {
            node.node_id: node for node in workflow_run.nodes.select_related("run").defer(*LONG)
        }
        self._now = database_now()
        self._dispatches = 0
        # How long nodes wait that could be dispatched, but for a limit.
        self.waits_seconds = 0

    def go_on(self) -> bool:
        """Do what can be done now. True if a batch was full, so there may be more."""
        for node in self._nodes.values():
            self._collect(node)
        if self._workflow_run.cancel_requested_at is not None:
            self._hang_up()
        else:
            # Each node comes after those that it needs, so one pass is enough.
            for node in self._nodes.values():
                if node.state == NodeRun.State.PENDING and self._dispatches < BATCH and not self.waits_seconds:
                    self._begin(node)
        self._finish()
        return self._dispatches == BATCH and not self.waits_seconds

    def _collect(self, node: NodeRun) -> None:
        """Copy the result of a node's ended run to the node."""
        if node.state != NodeRun.State.RUNNING or node.run is None or node.run.state not in Run.ENDED:
            return
        _change(node, NodeRun.State(node.run.state), error=node.run.error)

    def _begin(self, node: NodeRun) -> None:
        """Dispatch a node if all nodes that it needs have succeeded. Skip or cancel it if one of them has not."""
        described = self._described[node.node_id]
        needed = [self._nodes[name] for name in described.needs]
        for one in needed:
            if one.state in UNSUCCESSFUL:
                _give_up(node, because_of=one)
                return
        if any(one.state != NodeRun.State.SUCCEEDED for one in needed):
            return
        self._dispatches += 1
        try:
            run = self._dispatch(node, described, outputs={one.node_id: _output(one) for one in needed})
        except RateLimited as refusal:
            # Not the node's fault: it waits until the organization has tokens left again.
            self.waits_seconds = max(self.waits_seconds, min(refusal.extra.get("retryAfter", 1), WAIT_SECONDS_MAX))
        except RenseiError as refusal:
            _change(node, NodeRun.State.FAILED, error=refusal_error(refusal))
        else:
            self._mark_started()
            _change(node, NodeRun.State.RUNNING, run=run)

    def _dispatch(self, node: NodeRun, described: Node, *, outputs: Mapping[str, str]) -> Run:
        """:raises RenseiError: as any dispatch, or because the workflow run's member may no longer dispatch"""
        access = self._access()
        request = request_for(self._workflow_run, described, outputs=outputs)
        try:
            # With the key, a retry after a crash returns the same run.
            return admit.dispatch(access, request, idempotency_key=_key(node), body_digest=_digest(node))
        except NotFound as absent:
            raise ProfileGone(profile_id=described.profile_id or "default") from absent

    def _access(self) -> Access:
        """
        Return the present access of the member who started the workflow run.

        :raises StarterMayNot: if it is not sufficient
        """
        workflow_run = self._workflow_run
        access = _access_of(workflow_run.created_by, workflow_run)
        if access is None or (workflow_run.bound_to_project and workflow_run.project is None):
            raise StarterMayNot
        return replace(access, project=workflow_run.project, host=workflow_run.host, caps=workflow_run.caps)

    def _hang_up(self) -> None:
        """Cancel the pending nodes and the live runs."""
        access = _access_of(self._workflow_run.cancelled_by, self._workflow_run)
        for node in self._nodes.values():
            if node.state == NodeRun.State.PENDING:
                self._find_lost_run(node)
            if node.state == NodeRun.State.PENDING:
                _change(node, NodeRun.State.CANCELLED)
            live = node.state == NodeRun.State.RUNNING and node.run is not None
            # If the cancelling member may no longer write, the run is left to end by itself.
            if live and access is not None and node.run.cancel_requested_at is None:  # type: ignore[union-attr]
                try:
                    services.cancel_run(access, node.run)  # type: ignore[arg-type]
                except services.RunNotCancellable:
                    continue

    def _find_lost_run(self, node: NodeRun) -> None:
        """Find the run of a node if a process died directly after dispatching it."""
        key = IdempotencyKey.objects.for_org(self._workflow_run.org).filter(key=_key(node), body_digest=_digest(node))
        run = Run.objects.filter(id__in=key.values("run_id")).first()
        if run is not None:
            _change(node, NodeRun.State.RUNNING, run=run)

    def _mark_started(self) -> None:
        queued = WorkflowRun.objects.filter(id=self._workflow_run.id, state=WorkflowRun.State.QUEUED)
        queued.update(state=WorkflowRun.State.RUNNING, started_at=self._now)

    def _finish(self) -> None:
        """End the workflow run once every node has ended."""
        states = {node.state for node in self._nodes.values()}
        if states & {NodeRun.State.PENDING, NodeRun.State.RUNNING}:
            return
        if states == {NodeRun.State.SUCCEEDED}:
            end = WorkflowRun.State.SUCCEEDED
        elif NodeRun.State.FAILED in states:
            end = WorkflowRun.State.FAILED
        else:
            end = WorkflowRun.State.CANCELLED
        going_on = WorkflowRun.objects.filter(id=self._workflow_run.id).exclude(state__in=WorkflowRun.ENDED)
        going_on.update(state=end, finished_at=database_now())


def request_for(workflow_run: WorkflowRun, node: Node, *, outputs: Mapping[str, str]) -> DispatchRequest:
    """Build the dispatch request of a node. For what the node leaves out, its profile's values apply."""
    fill = Rendering(given=workflow_run.input, outputs=outputs).render
    text = fill("{{ input }}" if node.prompt is None else node.prompt)
    images = [_image_block(fill(image) if isinstance(image, str) else image) for image in node.images]
    return DispatchRequest(
        profile_id=node.profile_id,
        system=None if node.system_prompt is None else fill(node.system_prompt),
        messages=[{"role": "user", "content": [*images, {"type": "text", "text": text}]}],
        effort=node.effort,
        provider_config=node.provider_config,
        pool=node.pool,
        max_cost_picodollars=node.max_cost_picodollars,
        agent=node.agent,
        metadata={WORKFLOW_RUN: workflow_run.id, NODE: node.node_id},
    )


def _image_block(image: str | dict[str, str]) -> dict[str, Any]:
    source = {"type": "url", "url": image} if isinstance(image, str) else image
    return {"type": "image", "source": source}


def _output(node: NodeRun) -> str:
    return node.run.output_text if node.run is not None else ""


def _key(node: NodeRun) -> str:
    return f"wf:{node.workflow_run_id}:{node.node_id}"


def _digest(node: NodeRun) -> str:
    """Return a constant in place of a digest: within one workflow run, the request of a node never changes."""
    return str(node.workflow_run_id)


def _access_of(user: User | None, workflow_run: WorkflowRun) -> Access | None:
    """Return the access of a member who may write; None for any other user."""
    access = for_member(user=user, slug=workflow_run.org.slug) if user is not None else None
    return access if access is not None and access.writes else None


def _give_up(node: NodeRun, *, because_of: NodeRun) -> None:
    """Skip a node whose need has failed, with the code of the failure. Cancel one whose need was cancelled."""
    if because_of.state == NodeRun.State.CANCELLED:
        _change(node, NodeRun.State.CANCELLED)
        return
    cause = because_of.error
    error: StoredError = {
        "code": cause["code"] if cause else "",
        "detail": f"Not run, because the node '{because_of.node_id}' did not succeed.",
        "fix": "",
        "retryable": bool(cause and cause.get("retryable")),
    }
    _change(node, NodeRun.State.SKIPPED, error=error)


def _change(node: NodeRun, state: NodeRun.State, *, run: Run | None = None, error: StoredError | None = None) -> None:
    """Write a node's new state, if its state has not changed in the meantime."""
    run = run or node.run
    NodeRun.objects.filter(pk=node.pk, state=node.state).update(state=state, run=run, error=error)
    node.state, node.run, node.error = state, run, error
