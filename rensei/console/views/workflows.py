"""Workflows: the list, the document with its faults, and one workflow run, updated until it ends."""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from django.contrib import messages
from django.db.models import OuterRef, Subquery
from django.http import HttpResponse
from django.shortcuts import redirect, render
from django.views.decorators.http import require_http_methods, require_POST, require_safe

from rensei.console import graph
from rensei.console.access import PageRequest, attempt, page, say_refusal
from rensei.console.answers import confirm
from rensei.console.forms.workflows import DocumentForm, NewWorkflowForm, StartForm
from rensei.core.clock import database_now
from rensei.core.errors import NotFound, RenseiError
from rensei.orgs import services as orgs
from rensei.workflows import services
from rensei.workflows.documents import Node, wanted_input
from rensei.workflows.models import NodeRun, Workflow, WorkflowRun, WorkflowVersion, total_cost
from rensei.workflows.reading import WorkflowInvalid

RUNS_SHOWN = 25
# The states of nodes in the order of the summary.
SUMMARY = [
    NodeRun.State.SUCCEEDED,
    NodeRun.State.FAILED,
    NodeRun.State.SKIPPED,
    NodeRun.State.CANCELLED,
    NodeRun.State.RUNNING,
    NodeRun.State.PENDING,
]
# The example in the documentation of the Anthropic provider.
EXAMPLE = """\
nodeId: llm_call_1
nodeType: action/llm.inference
config:
  profileId: prof_anthropic_deep_reasoning
  systemPrompt: "You are an expert problem solver. Think deeply."
"""


@require_safe
@page
def workflows(request: PageRequest) -> HttpResponse:
    """List the workflows, the last changed first."""
    latest = services.visible_workflow_runs(request.access).filter(version__workflow=OuterRef("pk")).order_by("-id")
    found = (
        services.visible_workflows(request.access)
        .annotate(last_run=Subquery(latest.values("id")[:1]), last_state=Subquery(latest.values("state")[:1]))
        .order_by("-updated_at")
    )
    rows = [{"workflow": one, "state": WorkflowRun.State(one.last_state) if one.last_state else None} for one in found]
    return render(request, "console/workflows.html", {"rows": rows, "example": EXAMPLE})


@require_http_methods(["GET", "HEAD", "POST"])
@page
def create(request: PageRequest) -> HttpResponse:
    """Apply a document. If it names an existing workflow, it becomes a new version of it."""
    access = request.access
    access.require_writer()
    projects = list(orgs.visible_projects(access).order_by("name"))
    form = NewWorkflowForm(request.POST or None, projects=projects, initial={"document": EXAMPLE})
    if request.method == "POST" and form.is_valid():
        fields = form.cleaned_data
        project_id = fields["project"] or None
        saved = _try(form, partial(services.apply_document, access, fields["document"], project_id=project_id))
        if saved is not None:
            workflow, created = saved
            said = "was created" if created else f"is at version {workflow.version}"
            messages.success(request, f"{workflow.name} {said}.")
            return redirect("console:workflow", access.org.slug, workflow.id)
    return render(request, "console/workflow_create.html", {"form": form}, status=form.status)


@require_http_methods(["GET", "HEAD", "POST"])
@page
def workflow(request: PageRequest, workflow_id: str) -> HttpResponse:
    """Show a workflow: its document to change, a form to run it, and its runs."""
    found = services.find_workflow(request.access, workflow_id)
    version = found.versions.get(number=found.version)
    form = DocumentForm(request.POST or None, initial={"document": version.document})
    if request.method == "POST":
        request.access.require_writer()
        if form.is_valid():
            document = form.cleaned_data["document"]
            saved = _try(form, partial(services.change_document, request.access, found, document))
            if saved is not None:
                messages.success(request, f"{saved.name} is at version {saved.version}.")
                return redirect("console:workflow", request.access.org.slug, found.id)
    return _workflow_page(request, found, version, form=form, start_form=_start_form(version))


@require_POST
@page
def start(request: PageRequest, workflow_id: str) -> HttpResponse:
    """Run the newest version, or show the form again with the missing inputs."""
    found = services.find_workflow(request.access, workflow_id)
    request.access.require_writer()
    start_form = StartForm(request.POST)
    if start_form.is_valid():
        try:
            begun = services.start(request.access, found, given=start_form.cleaned_data["given"])
        except NotFound:
            raise
        except RenseiError as refusal:
            start_form.refuse(refusal)
        else:
            return redirect("console:workflow-run", request.access.org.slug, begun.id)
    version = found.versions.get(number=found.version)
    form = DocumentForm(initial={"document": version.document})
    return _workflow_page(request, found, version, form=form, start_form=start_form)


@require_http_methods(["GET", "HEAD", "POST"])
@page
def delete(request: PageRequest, workflow_id: str) -> HttpResponse:
    found = services.find_workflow(request.access, workflow_id)
    request.access.require_writer()
    if request.method == "POST":
        return attempt(
            request,
            lambda: services.delete_workflow(request.access, found),
            done=f"{found.name} was deleted.",
            back="workflows",
        )
    text = "This also deletes its versions and workflow runs. The runs of its nodes and their costs are kept."
    return confirm(
        request, title=f"Delete {found.name}?", text=text, action="Delete", section="Workflows", back="workflows"
    )


@require_safe
@page
def run(request: PageRequest, workflow_run_id: str) -> HttpResponse:
    """Show one workflow run; htmx requests only its changing part until it ends."""
    found = services.find_workflow_run(request.access, workflow_run_id)
    nodes = list(found.nodes.select_related("run__host"))
    states = {node.node_id: NodeRun.State(node.state) for node in nodes}
    needs = {one["node_id"]: one["needs"] for one in found.version.nodes}
    reasons = _reasons(found.version.nodes, states)
    counts = Counter(states.values())
    context = {
        "workflow_run": found,
        "ended": found.state in WorkflowRun.ENDED,
        "now": database_now(),
        "pictures": graph.pictures(found.version.nodes, states),
        "nodes": [{"node": node, "needs": needs[node.node_id], "because": reasons[node.node_id]} for node in nodes],
        "amount": total_cost([node.run for node in nodes if node.run is not None and not node.reused]),
        "counts": [(counts[state], state.label.lower()) for state in SUMMARY if counts[state]],
        "input": found.input if isinstance(found.input, str) else _pretty(found.input),
    }
    return render(request, "console/_workflow_run.html" if request.htmx else "console/workflow_run.html", context)


@require_POST
@page
def retry(request: PageRequest, workflow_run_id: str, node_id: str) -> HttpResponse:
    """Run a workflow run again from a node on, with the results of the nodes before it."""
    found = services.find_workflow_run(request.access, workflow_run_id)
    try:
        begun = services.retry(request.access, found, node_id=node_id)
    except NotFound:
        raise
    except RenseiError as refusal:
        say_refusal(request, refusal)
        return redirect("console:workflow-run", request.access.org.slug, found.id)
    kept = f"Nodes that succeeded keep their results, except those that need {node_id}."
    messages.success(request, f"Started again from {node_id}. {kept}")
    return redirect("console:workflow-run", request.access.org.slug, begun.id)


@require_POST
@page
def cancel(request: PageRequest, workflow_run_id: str) -> HttpResponse:
    found = services.visible_workflow_runs(request.access).get_or_404(pk=workflow_run_id)
    return attempt(
        request,
        lambda: services.cancel(request.access, found),
        done="The workflow run is being cancelled.",
        back="workflow-run",
        args=(workflow_run_id,),
    )


def _reasons(described: Sequence[Mapping[str, Any]], states: Mapping[str, NodeRun.State]) -> dict[str, list[str]]:
    """List for each skipped or cancelled node the nodes that did not succeed and that it needs, directly or not."""
    reasons: dict[str, list[str]] = {}
    for one in described:
        found: list[str] = []
        for needed in one["needs"]:
            own = [needed] if states[needed] == NodeRun.State.FAILED else []
            found += [name for name in own + reasons[needed] if name not in found]
        reasons[one["node_id"]] = found
    return reasons


def _try(form: DocumentForm, save: Any) -> Any:
    """Save a document, or show in the form why it cannot be saved."""
    try:
        return save()
    except NotFound:
        raise
    except WorkflowInvalid as invalid:
        form.show_faults(invalid)
    except RenseiError as refusal:
        form.refuse(refusal)
    return None


def _workflow_page(
    request: PageRequest, found: Workflow, version: WorkflowVersion, *, form: DocumentForm, start_form: StartForm
) -> HttpResponse:
    begun = services.visible_workflow_runs(request.access).filter(version__workflow=found).order_by("-id")
    context = {
        "workflow": found,
        "version": version,
        "node_count": len(version.nodes),
        "pictures": graph.pictures(version.nodes),
        "form": form,
        "start_form": start_form,
        "begun": services.listed(begun)[:RUNS_SHOWN],
    }
    status = max(form.status, start_form.status)
    return render(request, "console/workflow.html", context, status=status)


def _start_form(version: WorkflowVersion) -> StartForm:
    """Make the form for the input, with the names that the document refers to filled in."""
    wanted = wanted_input([Node(**one) for one in version.nodes])
    form = StartForm(initial={"given": _pretty(dict.fromkeys(wanted.names, ""))} if wanted.names else None)
    if wanted.names:
        form.fields["given"].help_text = f"A JSON object with {', '.join(wanted.names)}."
    elif wanted.whole:
        form.fields["given"].help_text = "A text, or a JSON object."
    else:
        form.fields["given"].help_text = "This workflow refers to no input."
    return form


def _pretty(value: Any) -> str:
    return "" if value is None else json.dumps(value, indent=2, ensure_ascii=False)
