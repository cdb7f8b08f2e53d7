"""Workflows: documents of calls to models that wait for each other."""

import json
import secrets
import time
from pathlib import PurePath
from typing import Annotated, Any

import typer

from rensei.cli import completion
from rensei.cli.app import group
from rensei.cli.client import at
from rensei.cli.errors import Refused
from rensei.cli.inputs import Yes, confirm, read_document, read_text
from rensei.cli.output import Columns, Text
from rensei.cli.session import Session, command
from rensei.cli.web import Web, open_page

workflows = group("workflow", help="Calls to models that wait for each other.")

Id = Annotated[
    str,
    typer.Argument(
        metavar="WORKFLOW",
        help="Id or name of the workflow",
        show_default=False,
        autocompletion=completion.workflows,
    ),
]
FILES = (".yaml", ".yml", ".json")
COLUMNS: Columns = {
    "Id": "id",
    "Name": Text("name"),
    "Version": "version",
    "Project": "projectId",
    "Changed": "updatedAt",
}
NODES: Columns = {
    "Node": "nodeId",
    "State": "state",
    "Run": "runId",
    "Cost $": "cost.amountUsd",
    "Error": Text(lambda node: f"{node['error']['code']}: {node['error']['detail']}" if node["error"] else None),
}
ENDED = ("SUCCEEDED", "FAILED", "CANCELLED")
LOOK_SECONDS = 0.5


@command(workflows, "apply")
def apply_workflow(
    session: Session,
    file: Annotated[str, typer.Argument(metavar="FILE|-", help="YAML or JSON; - reads it from input")],
) -> None:
    """Create a workflow, or give the one of that name a new version. The same document again changes nothing."""
    session.output.details(_apply(session, file), COLUMNS)


@command(workflows, "list")
def list_workflows(session: Session) -> None:
    """List the workflows."""
    session.output.table(session.client.list("workflows", projectId=session.flags.project), COLUMNS)


@command(workflows, "show")
def show_workflow(session: Session, workflow: Id, web: Web = False) -> None:
    """Show a workflow with its document, or a run of one (wfr_…) with each node."""
    if web:
        is_run = workflow.startswith("wfr_")
        open_page(session, *(("workflow-runs", workflow) if is_run else ("workflows", _find(session, workflow))))
        return
    if workflow.startswith("wfr_"):
        _show_run(session, session.client.get(at("workflow-runs", workflow)))
        return
    found = session.client.get(at("workflows", _find(session, workflow)))
    session.output.details(found, COLUMNS)
    if not session.output.as_json:
        session.output.text(f"\n{found['document']}\n")


@command(workflows, "delete")
def delete_workflow(session: Session, workflow: Id, yes: Yes = False) -> None:
    """Delete a workflow. Its runs and their costs stay."""
    workflow_id = _find(session, workflow)
    confirm(f"Delete the workflow {workflow}?", yes=yes, otherwise=f"{workflow} was not deleted.")
    session.client.delete(at("workflows", workflow_id))
    session.output.done(None, f"Deleted {workflow}.")


@command(workflows, "run")
def run_workflow(
    session: Session,
    workflow: Annotated[
        str,
        typer.Argument(
            metavar="WORKFLOW|FILE",
            help="Id or name of the workflow, or a file that is applied first",
            show_default=False,
            autocompletion=completion.workflows,
        ),
    ],
    given: Annotated[
        str | None,
        typer.Option("--input", metavar="TEXT|-", help="Text, or a JSON object of named values; - reads it"),
    ] = None,
    wait: Annotated[bool, typer.Option("--wait/--no-wait", help="Wait for its end, or only start it")] = True,
    timeout: Annotated[float | None, typer.Option(metavar="SECONDS", help="Wait no longer than this")] = None,
) -> None:
    """Run a workflow. Ends with 0 where it succeeded."""
    body = {} if given is None else {"input": _input(read_text(given))}
    key = {"Idempotency-Key": secrets.token_hex(16)}
    # A file is recognized by its ending, so that the files in the folder make no difference.
    is_file = PurePath(workflow).suffix in FILES
    workflow_id = _apply(session, workflow)["id"] if is_file else _find(session, workflow)
    run = session.client.call("POST", at("workflows", workflow_id, "runs"), body=body, headers=key)
    if not wait:
        session.output.done(run, run["id"])
        return
    _show_run(session, _wait(session, run, timeout))


def _apply(session: Session, file: str) -> dict[str, Any]:
    body = {"document": read_document(file), "projectId": session.flags.project}
    workflow: dict[str, Any] = session.client.post("workflows", body)
    return workflow


def _find(session: Session, workflow: str) -> str:
    """Return an id unchanged, and look up a name."""
    if workflow.startswith("wf_"):
        return workflow
    rows = session.client.list("workflows", name=workflow)["results"]
    if len(rows) != 1:
        raise Refused(
            "NOT_FOUND",
            f"{'No' if not rows else 'More than one'} workflow is called {workflow}.",
            fix="`rensei workflow list` shows the ids.",
        )
    return str(rows[0]["id"])


def _input(text: str) -> Any:
    """Read an object as named values, and everything else as a text."""
    try:
        document = json.loads(text)
    except ValueError:
        return text
    return document if isinstance(document, dict) else text


def _wait(session: Session, run: dict[str, Any], timeout: float | None) -> dict[str, Any]:
    """Poll the run until it has ended, and print the state of each node meanwhile."""
    deadline = time.monotonic() + timeout if timeout is not None else None
    seen: dict[str, str] = {}
    while True:
        for node in run["nodes"]:
            if seen.get(node["nodeId"]) != node["state"] and not session.output.as_json:
                session.output.note(f"{node['nodeId']}: {node['state']}")
            seen[node["nodeId"]] = node["state"]
        if run["state"] in ENDED:
            return run
        if deadline is not None and time.monotonic() > deadline:
            fix = f"rensei workflow show {run['id']} shows how it goes on."
            raise Refused("WAIT_TIMEOUT", f"{run['id']} has not ended yet. It goes on.", fix=fix)
        time.sleep(LOOK_SECONDS)
        run = session.client.get(at("workflow-runs", run["id"]))


def _show_run(session: Session, run: dict[str, Any]) -> None:
    """:raises Refused: if it ended without success"""
    if session.output.as_json:
        session.output.json(run)
    else:
        session.output.table({"results": run["nodes"]}, NODES)
        for node in run["nodes"]:
            if node["output"]:
                session.output.text(f"\n{node['nodeId']}:\n{node['output']}\n")
        session.output.note(f"{run['id']}: {run['state']}, ${run['cost']['amountUsd']}")
    if run["state"] in ("FAILED", "CANCELLED"):
        raise Refused(run["state"], f"The workflow run {run['id']} ended as {run['state']}.")
