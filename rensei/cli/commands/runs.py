"""Runs: list, watch and cancel them."""

import sys
import time
from typing import Annotated, Any

import typer

from rensei.cli import completion
from rensei.cli.app import group
from rensei.cli.client import Client, at
from rensei.cli.errors import Refused
from rensei.cli.inputs import moment
from rensei.cli.output import Columns, Output
from rensei.cli.session import Session, command
from rensei.cli.web import Web, open_page

runs = group("run", help="What was dispatched.")

Id = Annotated[
    str,
    typer.Argument(metavar="RUN", help="Id of the run", show_default=False, autocompletion=completion.runs),
]
STATES = ("QUEUED", "RUNNING", "SUCCEEDED", "FAILED", "CANCELLED")
ENDED = ("SUCCEEDED", "FAILED", "CANCELLED")
COLUMNS: Columns = {
    "Id": "id",
    "State": "state",
    "Mode": "authMode",
    "Model": "servedModel",
    "Profile": "profileId",
    "Cost $": "cost.amountUsd",
    "Created": "createdAt",
}
DETAILS: Columns = {
    **COLUMNS,
    "Payer": "payer",
    "Asked model": "askedModel",
    "Catalog model": "model",
    "Project": "projectId",
    "Pool": "pool",
    "Waits for": "waitsFor",
    "Machine": "hostId",
    "Effort": "effort",
    "Input tokens": "usage.inputTokens",
    "Output tokens": "usage.outputTokens",
    "Error": lambda run: f"{run['error']['code']}: {run['error']['detail']}" if run["error"] else None,
    "Ended": "finishedAt",
}


@command(runs, "list")
def list_runs(
    session: Session,
    state: Annotated[
        str | None,
        typer.Option(
            help="QUEUED, RUNNING, SUCCEEDED, FAILED or CANCELLED, in any case",
            autocompletion=completion.of_words(*STATES),
        ),
    ] = None,
    auth_mode: Annotated[str | None, typer.Option(help="byok, metered, shared or host-session")] = None,
    profile: Annotated[str | None, typer.Option(help="Only this profile's", autocompletion=completion.profiles)] = None,
    search: Annotated[
        str | None, typer.Option(help="Words of the prompt, the error, the person or the model; they may be cut short")
    ] = None,
    model: Annotated[str | None, typer.Option(help="Only those that this model served")] = None,
    member: Annotated[str | None, typer.Option(help="Only this member's: an id from `member list`")] = None,
    token: Annotated[str | None, typer.Option(help="Only this API token's: an id from `token list`")] = None,
    code: Annotated[str | None, typer.Option(help="Only those that failed with this code")] = None,
    since: Annotated[
        str | None,
        typer.Option(metavar="WHEN", help="Not before: 2026-11-01, 2026-11-01T08:00:00Z, or 30m, 2h, 7d ago"),
    ] = None,
    until: Annotated[str | None, typer.Option(metavar="WHEN", help="Not after; a day is included")] = None,
    limit: Annotated[int, typer.Option(help="How many, the newest first", min=1)] = 20,
) -> None:
    """List runs, the newest first."""
    query = {
        "state": state.upper() if state else None,
        "authMode": auth_mode.lower() if auth_mode else None,
        "profileId": profile,
        "projectId": session.flags.project,
        "q": search,
        "servedModel": model,
        "memberId": member,
        "tokenId": token,
        "code": code.upper() if code else None,
        "createdAfter": moment(since, flag="--since") if since else None,
        "createdBefore": moment(until, flag="--until", end_of_day=True) if until else None,
    }
    session.output.table(session.client.list("runs", limit=limit, **query), COLUMNS)


@command(runs, "show")
def show_run(session: Session, run_id: Id, web: Web = False) -> None:
    """Show a run, with its answer."""
    if web:
        open_page(session, "runs", run_id)
        return
    run = session.client.get(at("runs", run_id))
    session.output.details(run, DETAILS)
    if not session.output.as_json and run["output"]:
        session.output.text(f"\n{run['output']['text']}\n")


@command(runs, "watch")
def watch_run(
    session: Session,
    run_id: Id,
    timeout: Annotated[float | None, typer.Option(metavar="SECONDS", help="Wait no longer than this")] = None,
) -> None:
    """Follow a run to its end. Ends with 0 where it succeeded."""
    deadline = time.monotonic() + timeout if timeout is not None else None
    watch(session.client, session.output, run_id, deadline=deadline)


@command(runs, "cancel")
def cancel_run(session: Session, run_id: Id) -> None:
    """Cancel a run. What it has used until then is charged."""
    run = session.client.post(at("runs", run_id, "cancel"))
    session.output.done(run, f"{run['id']}: {run['state']}")


def watch(client: Client, output: Output, run_id: str, *, deadline: float | None) -> None:
    """Write the answer as it arrives, and end with the result of the run."""
    writer, waiting = Writer(output), False
    try:
        for event in client.events(run_id, deadline=deadline):
            if event.kind == "delta":
                writer.write(event.data["text"])
            elif event.kind == "log":
                writer.write_log(event.data["text"])
            elif event.kind == "done":
                writer.finish(event.data)
            elif event.kind == "state" and event.data["state"] in ENDED:
                waiting = False
            elif event.kind == "state" and event.data["state"] == "QUEUED" and not waiting and sys.stderr.isatty():
                waiting = True
                output.note(f"{run_id} waits for its turn. {event.data.get('waitsFor') or ''}".rstrip())
    except KeyboardInterrupt:
        output.note(f"\nThe run goes on: rensei run watch {run_id}, or rensei run cancel {run_id}.")
        raise


class Writer:
    """Writes an answer in pieces, and at its end its cost and its result."""

    def __init__(self, output: Output) -> None:
        self._output = output
        self._written = ""

    def write(self, text: str) -> None:
        self._written += text
        if not self._output.as_json:
            self._output.text(text)

    def write_log(self, text: str) -> None:
        """Write what the program of an agent has logged."""
        if not self._output.as_json:
            self._output.log(text)

    def finish(self, run: dict[str, Any]) -> None:
        """:raises Refused: unless the run succeeded"""
        if self._output.as_json:
            self._output.json(run)
        else:
            self._write_rest((run["output"] or {}).get("text", ""))
            self._output.note(_summary(run))
        if run["state"] != "SUCCEEDED":
            error = run["error"] or {"code": run["state"], "detail": f"The run {run['id']} was cancelled."}
            problem = {**error, "run": run["id"]}
            raise Refused(error["code"], error["detail"], fix=error.get("fix", ""), problem=problem)

    def _write_rest(self, text: str) -> None:
        """Write the text of the run where the pieces, such as those of a retried call, are not the answer."""
        if text.startswith(self._written):
            self._output.text(text[len(self._written) :])
        elif text:
            self._output.note("\nThe answer was begun again. Here it is whole:")
            self._output.text(text)
        if text and not text.endswith("\n"):
            self._output.text("\n")


def _summary(run: dict[str, Any]) -> str:
    cost, usage = run["cost"], run["usage"]
    amount = f"${cost['amountUsd']}" if cost["amountUsd"] is not None else "cost unknown"
    model = run["servedModel"] + (f" for {run['model']}" if run["model"] != run["servedModel"] else "")
    parts = [
        run["id"],
        f"{run['authMode']}, paid by {run['payer']}",
        model,
        f"{usage['inputTokens']} tokens in, {usage['outputTokens']} out",
        amount + (" (estimated)" if cost["estimated"] else ""),
    ]
    return " · ".join(parts)
