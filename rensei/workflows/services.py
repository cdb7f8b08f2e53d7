"""Applying workflow documents, and starting and cancelling workflow runs."""

from collections.abc import Sequence
from typing import Any

from django.db import IntegrityError
from django.db.models import F, OuterRef, Q, QuerySet

from catalog import services as catalog
from catalog.provider_config import validate_provider_config
from integrations.keys import leaks
from integrations.keys.leaks import Leaks
from profiles import services as profiles
from profiles.models import ModelProfile
from rensei.audit.record import record
from rensei.core.clock import database_now
from rensei.core.errors import AlreadyExists, InUse, NotFound, NotPermitted, RenseiError, Said, named_in
from rensei.core.transactions import durable, unique
from rensei.dispatch import idempotency
from rensei.dispatch.models import Run
from rensei.orgs import row_limits, storage
from rensei.orgs import services as orgs
from rensei.orgs.access import Access
from rensei.orgs.models import OrgScopedQuerySet, Project
from rensei.orgs.scopes import Scope
from rensei.workflows import execution, stored_bytes
from rensei.workflows.documents import Document, Node, read_document, wanted_input
from rensei.workflows.models import NodeRun, Workflow, WorkflowRun, WorkflowVersion
from rensei.workflows.reading import Fault, WorkflowInvalid


class InputRequired(RenseiError):
    """The workflow refers to an input that was not given."""

    code = "INPUT_REQUIRED"
    status = 422
    title = "Input required"
    message = "{reason}"

    def __init__(self, *, reason: str, pointers: Sequence[str]) -> None:
        super().__init__(reason=reason)
        self.errors = [{"pointer": pointer, "code": "required", "detail": reason} for pointer in pointers]


class WorkflowRunNotEnded(RenseiError):
    """The workflow run has not ended, so there is nothing to repeat yet."""

    code = "WORKFLOW_RUN_NOT_ENDED"
    status = 409
    title = "Workflow run has not ended"
    message = Said("The workflow run is {state}.", "Wait until it has ended, or cancel it, before you start it again.")


class WorkflowRunNotCancellable(RenseiError):
    """The workflow run has already ended."""

    code = "RUN_NOT_CANCELLABLE"
    status = 409
    title = "Run already ended"
    message = "The workflow run has already ended as {state}, so there is nothing to cancel."


def visible_workflows(access: Access) -> OrgScopedQuerySet[Workflow]:
    """List the workflows that a caller may read: all, or for a project's API token the organization's and its own."""
    workflows = Workflow.objects.for_org(access.org).select_related("project")
    return workflows.filter(Q(project=None) | Q(project=access.project)) if access.project else workflows


def find_workflow(access: Access, workflow_id: str) -> Workflow:
    """:raises NotFound: if there is none, or the caller may not read it"""
    return visible_workflows(access).get_or_404(id=workflow_id)


def workflows_naming(access: Access, profile_id: str) -> list[Workflow]:
    """List the workflows whose newest version names a profile, by name."""
    newest = WorkflowVersion.objects.filter(
        workflow__in=visible_workflows(access), number=F("workflow__version"), document__contains=profile_id
    )
    # A document may contain the id in other places, such as in a prompt.
    found = newest.select_related("workflow").defer("document").order_by("workflow__name")
    return [
        version.workflow
        for version in found.iterator(chunk_size=100)
        if any(node["profile_id"] == profile_id for node in version.nodes)
    ]


def visible_workflow_runs(access: Access) -> OrgScopedQuerySet[WorkflowRun]:
    """List the workflow runs that a caller may read, by the same rule as for runs."""
    found = workflow_runs_to_show().for_org(access.org)
    if access.project:
        found = found.filter(project=access.project)
    return found if Scope.READ in access.scopes else found.filter(created_by=access.user)


def workflow_runs_to_show() -> OrgScopedQuerySet[WorkflowRun]:
    """List all workflow runs with the related rows that their JSON needs. For callers that are already authorized."""
    return WorkflowRun.objects.select_related("project", "version__workflow", "created_by")


def listed(workflow_runs: OrgScopedQuerySet[WorkflowRun]) -> OrgScopedQuerySet[WorkflowRun]:
    """Leave out fields of workflow runs that lists do not show and that may be long: the input and the document."""
    return workflow_runs.defer("input", "version__document", "version__nodes")


def find_workflow_run(access: Access, workflow_run_id: str) -> WorkflowRun:
    """:raises NotFound: if there is none, or the caller may not read it"""
    return visible_workflow_runs(access).get_or_404(id=workflow_run_id)


def nodes_of(run: Run | OuterRef) -> QuerySet[NodeRun]:
    """List the nodes that have a run, for a caller that may read it."""
    return NodeRun.objects.filter(run=run)


def apply_document(
    access: Access, document: str | dict[str, Any], *, project_id: str | None = None
) -> tuple[Workflow, bool]:
    """
    Create the workflow that a document names, or add a version to it. An unchanged document adds none.

    :raises WorkflowInvalid: listing all faults
    :raises AlreadyExists: if another project's workflow has the name
    :raises LimitReached: if the organization has as many workflows as it may
    """
    access.require_writer()
    project = _project(access, project_id)
    read = read_document(document)
    _check_profiles(access, read, project)
    own = Workflow.objects.for_org(access.org)
    with durable():
        if not own.filter(name=read.name).exists():
            row_limits.require_room(access.org, own, row_limits.WORKFLOWS)
        _take_room(access, read)
        workflow, created = Workflow.objects.select_for_update().get_or_create(
            org=access.org, name=read.name, defaults={"project": project}
        )
        if not created and (project_id is not None or access.project) and workflow.project != project:
            raise AlreadyExists(what=f"A workflow '{read.name}' of another project, or of the whole organization,")
        _add_version(access, workflow, read)
    return workflow, created


def change_document(access: Access, workflow: Workflow, document: str | dict[str, Any]) -> Workflow:
    """
    Give a workflow a new document, and possibly a new name.

    :raises WorkflowInvalid: listing all faults
    :raises AlreadyExists: if another workflow has the name
    """
    _require_reach(access, workflow)
    read = read_document(document)
    _check_profiles(access, read, workflow.project)
    with unique(AlreadyExists(what=f"A workflow '{read.name}'"), durable=True):
        _take_room(access, read)
        current: Workflow = Workflow.objects.for_org(access.org).select_for_update().get(id=workflow.id)
        if current.name != read.name:
            current.name = read.name
            current.save(update_fields=["name"])
        _add_version(access, current, read)
    return current


def delete_workflow(access: Access, workflow: Workflow) -> None:
    """
    Delete a workflow with its versions and workflow runs. The runs of its nodes, and what they cost, stay.

    :raises InUse: while one of its workflow runs has not ended
    """
    _require_reach(access, workflow)
    with durable():
        going_on = WorkflowRun.objects.filter(version__workflow=workflow).exclude(state__in=WorkflowRun.ENDED)
        names = list(going_on.order_by("id").values_list("id", flat=True)[:3])
        if names:
            raise InUse(what=f"The workflow '{workflow.name}'", users=", ".join(names))
        record(access, "workflow.deleted", object_id=workflow.id, name=workflow.name)
        workflow.delete()


def start(access: Access, workflow: Workflow, *, given: Any = None, idempotency_key: str = "") -> WorkflowRun:
    """
    Run the newest version of a workflow, or return the workflow run that was created with the same Idempotency-Key.

    :raises InputRequired: if it refers to an input that is not given
    :raises CredentialUnreadable: if a text in the input may be a key, and the vault cannot tell now
    :raises StorageLimitReached: if the organization's storage limit would be exceeded
    """
    access.require_writer()
    digest = idempotency.digest_of({"workflow": workflow.id, "input": given})
    if known := idempotency.known_id(access, idempotency_key, digest=digest):
        return find_workflow_run(access, known)
    version: WorkflowVersion = workflow.versions.get(number=workflow.version)
    nodes = [Node(**one) for one in version.nodes]
    _require_input(nodes, given)
    workflow_run, leaked = _new_workflow_run(access, version, given=given)
    return _begin(
        access,
        workflow_run,
        [_new_node(workflow_run, node) for node in nodes],
        leaked=leaked,
        key=idempotency_key,
        digest=digest,
        action="workflow.started",
        workflow=workflow.id,
        version=version.number,
    )


def retry(access: Access, workflow_run: WorkflowRun, *, node_id: str, idempotency_key: str = "") -> WorkflowRun:
    """
    Run the version and the input of an ended workflow run again, from one of its nodes on.

    The nodes that succeeded keep their results and are not paid for again, except this node and those that need it.
    The project stays, and with it the access policies and who pays.

    :raises NotFound: if the workflow run has no such node
    :raises IdempotencyKeyReused: if the key was used for another request
    :raises WorkflowRunNotEnded: while it has not ended
    :raises CredentialUnreadable: if a text in the input may be a key, and the vault cannot tell now
    :raises StorageLimitReached: if the organization's storage limit would be exceeded
    """
    access.require_writer()
    digest = idempotency.digest_of({"retry": workflow_run.id, "node": node_id})
    if known := idempotency.known_id(access, idempotency_key, digest=digest):
        return find_workflow_run(access, known)
    described = [Node(**one) for one in workflow_run.version.nodes]
    if node_id not in {node.node_id for node in described}:
        raise NotFound
    if workflow_run.state not in WorkflowRun.ENDED:
        raise WorkflowRunNotEnded(state=workflow_run.state)
    again = _with_dependants(described, node_id)
    done = {
        node.node_id: node.run
        for node in workflow_run.nodes.select_related("run").filter(state=NodeRun.State.SUCCEEDED)
        if node.run is not None and node.node_id not in again
    }
    begun, leaked = _new_workflow_run(access, workflow_run.version, given=workflow_run.input)
    begun.project, begun.bound_to_project = workflow_run.project, workflow_run.bound_to_project
    return _begin(
        access,
        begun,
        [_new_node(begun, node, reusing=done.get(node.node_id)) for node in described],
        leaked=leaked,
        key=idempotency_key,
        digest=digest,
        action="workflow.retried",
        workflow=workflow_run.version.workflow_id,
        of=workflow_run.id,
        node=node_id,
    )


def cancel(access: Access, workflow_run: WorkflowRun) -> WorkflowRun:
    """
    Cancel a workflow run: pending nodes are not run, and live runs are cancelled.

    :raises WorkflowRunNotCancellable: if it has ended
    """
    access.require_writer()
    going_on = WorkflowRun.objects.for_org(access.org).filter(id=workflow_run.id).exclude(state__in=WorkflowRun.ENDED)
    with durable():
        asked = going_on.filter(cancel_requested_at=None).update(
            cancel_requested_at=database_now(), cancelled_by=access.user, changes=F("changes") + 1
        )
        if asked:
            record(access, "workflow.cancelled", object_id=workflow_run.id)
    if not asked and not going_on.exists():
        workflow_run.refresh_from_db()
        raise WorkflowRunNotCancellable(state=workflow_run.state)
    execution.advance(workflow_run.id)
    return find_workflow_run(access, workflow_run.id)


def _begin(
    access: Access,
    workflow_run: WorkflowRun,
    nodes: Sequence[NodeRun],
    *,
    leaked: Leaks,
    key: str,
    digest: str,
    action: str,
    **detail: Any,
) -> WorkflowRun:
    """
    Save a new workflow run and start its first nodes, or return the one that an equal request has begun meanwhile.

    :param leaked: the keys that its input had, of which their owners are told
    :param key: the Idempotency-Key, or an empty text
    :param action: the event in the audit log, with `detail`
    """
    try:
        with durable():
            # Storage is taken first, as at a dispatch: two transactions with one key must not wait for each other.
            _save(workflow_run, nodes)
            now = workflow_run.created_at
            idempotency.insert(idempotency.new(access, key, digest=digest, run_id=workflow_run.id, now=now))
            record(access, action, object_id=workflow_run.id, **detail)
            leaks.note(leaked, place="input")
    except IntegrityError:
        # Two equal requests ran concurrently. This one waited for the other's commit, so the workflow run exists now.
        if known := idempotency.known_id(access, key, digest=digest):
            return find_workflow_run(access, known)
        raise
    execution.advance(workflow_run.id)
    return find_workflow_run(access, workflow_run.id)


def _new_workflow_run(access: Access, version: WorkflowVersion, *, given: Any) -> tuple[WorkflowRun, Leaks]:
    """Build a workflow run whose input has no known key, and return also those that were removed."""
    workflow = version.workflow
    # A workflow's prompts are composed here, of what is kept.
    leaked = leaks.find(given, org=access.org)
    given = leaked.blot(given)
    workflow_run = WorkflowRun(
        org=access.org,
        version=version,
        project=workflow.project or access.project,
        bound_to_project=bool(workflow.project or access.project),
        host=access.host,
        created_by=access.user,
        caps=access.caps,
        input=given,
        stored_bytes=stored_bytes.of_workflow_run(given, nodes=len(version.nodes)),
        created_at=database_now(),
    )
    return workflow_run, leaked


def _new_node(workflow_run: WorkflowRun, node: Node, *, reusing: Run | None = None) -> NodeRun:
    state = NodeRun.State.SUCCEEDED if reusing else NodeRun.State.PENDING
    return NodeRun(
        workflow_run=workflow_run, node_id=node.node_id, state=state, run=reusing, reused=reusing is not None
    )


def _save(workflow_run: WorkflowRun, nodes: Sequence[NodeRun]) -> None:
    """
    Save a new workflow run with its nodes, in their order.

    :raises StorageLimitReached: if the organization's storage limit would be exceeded
    """
    storage.take(workflow_run.org_id, stored=workflow_run.stored_bytes)
    workflow_run.save(force_insert=True)
    for place, node in enumerate(nodes):
        node.position = place
    NodeRun.objects.bulk_create(nodes)


def _with_dependants(nodes: Sequence[Node], node_id: str) -> set[str]:
    """Return a node and all that need it, directly or not. A document lists each node after those that it needs."""
    found = {node_id}
    for node in nodes:
        if found.intersection(node.needs):
            found.add(node.node_id)
    return found


def _project(access: Access, project_id: str | None) -> Project | None:
    """:raises NotFound: if the project is not visible to the caller"""
    if project_id is None:
        return access.project
    with named_in("/projectId"):
        return orgs.find_project(access, project_id)


def _require_reach(access: Access, workflow: Workflow) -> None:
    """:raises NotPermitted: if the caller may only read, or its API token is limited to another project"""
    access.require_writer()
    if access.project is not None and workflow.project != access.project:
        raise NotPermitted


def _add_version(access: Access, workflow: Workflow, read: Document) -> None:
    newest = workflow.versions.filter(number=workflow.version).first()
    if newest is not None and newest.document == read.source.text:
        storage.change({access.org.pk: (-stored_bytes.of_document(read), 0)})
        return
    workflow.version += 1
    workflow.updated_at = database_now()
    workflow.versions.create(
        number=workflow.version,
        document=read.source.text,
        nodes=[node.as_dict() for node in read.nodes],
        stored_bytes=stored_bytes.of_document(read),
        created_by=access.user,
    )
    workflow.save(update_fields=["version", "updated_at"])
    record(access, "workflow.applied", object_id=workflow.id, name=workflow.name, version=workflow.version)


def _take_room(access: Access, read: Document) -> None:
    """
    Count a new version of a document. If it turns out to be the same as the newest, its bytes are released.

    :raises StorageLimitReached: if the organization's storage limit would be exceeded
    """
    storage.take(access.org.pk, stored=stored_bytes.of_document(read))


def _check_profiles(access: Access, read: Document, project: Project | None) -> None:
    """
    Check that the nodes' profiles exist, and that their models accept the nodes' settings.

    :raises WorkflowInvalid: listing the nodes whose profile is unsuitable
    """
    named = {node.profile_id for node in read.nodes if node.profile_id is not None}
    found = {profile.public_id: profile for profile in profiles.visible_profiles(access).filter(public_id__in=named)}
    faults: list[Fault] = []
    for node in read.nodes:
        if node.profile_id is None:
            continue
        profile = found.get(node.profile_id)
        if profile is None or (project and profile.project_id not in {None, project.pk}):
            faults.append(read.fault(node, "profileId", f"There is no profile '{node.profile_id[:80]}' here."))
        else:
            faults.extend(_check_settings(access, read, node, profile))
    if faults:
        raise WorkflowInvalid(sorted(faults, key=lambda fault: fault.line or 0))


def _check_settings(access: Access, read: Document, node: Node, profile: ModelProfile) -> list[Fault]:
    """Check effort and provider config against the model that would answer today."""
    if node.effort is None and not node.provider_config:
        return []
    try:
        entry = catalog.find_entry(org=access.org, provider=profile.provider, model_id=profile.model_id)
    except catalog.ModelNotInCatalog:
        # The dispatch will refuse it and state the remedy.
        return []
    served = catalog.served_entries([entry], org=access.org, today=database_now().date())[entry.pk] or entry
    faults = []
    try:
        catalog.check_effort(served, node.effort)
    except RenseiError as refusal:
        faults.append(read.fault(node, "effort", refusal.detail))
    try:
        validate_provider_config(catalog.find_spec(profile.provider), entry, node.provider_config, served=served)
    except RenseiError as refusal:
        faults.append(read.fault(node, "providerConfig", refusal.detail))
    return faults


def _require_input(nodes: Sequence[Node], given: Any) -> None:
    """:raises InputRequired: listing what is missing"""
    wanted = wanted_input(nodes)
    empty = given is None or given == {} or (isinstance(given, str) and not given.strip())
    if wanted.whole and empty:
        reason = "This workflow needs an input: a text, or an object of named values."
        raise InputRequired(reason=reason, pointers=["/input"])
    held = given if isinstance(given, dict) else {}
    missing = [name for name in wanted.names if held.get(name) is None]
    if missing:
        reason = f"This workflow needs an input with {', '.join(missing)}."
        raise InputRequired(reason=reason, pointers=[f"/input/{name}" for name in missing])
