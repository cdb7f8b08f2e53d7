"""Dispatch a run, watch it, look at what ran."""

import contextlib
import secrets
import sys
import time
from pathlib import Path
from typing import Annotated, Any

import typer

from rensei.cli.client import Client, at
from rensei.cli.commands.profiles import read_json
from rensei.cli.errors import Refused, ServerSilent
from rensei.cli.inputs import image_block, read_text
from rensei.cli.machine import logins, work
from rensei.cli.output import Columns, Output
from rensei.cli.session import Session, command

runs = typer.Typer(no_args_is_help=True, help="What was dispatched.")

Id = Annotated[str, typer.Argument(metavar="RUN", help="Id of the run", show_default=False)]
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
    "Machine": "hostId",
    "Effort": "effort",
    "Input tokens": "usage.inputTokens",
    "Output tokens": "usage.outputTokens",
    "Error": lambda run: f"{run['error']['code']}: {run['error']['detail']}" if run["error"] else None,
    "Ended": "finishedAt",
}


def add_to(app: typer.Typer) -> None:
    command(app, "dispatch")(dispatch)
    app.add_typer(runs, name="run")


def dispatch(
    session: Session,
    text: Annotated[str, typer.Option("--input", metavar="TEXT|-", help="What to ask; - reads standard input")],
    profile: Annotated[str | None, typer.Option(help="Id of the profile; else the default one")] = None,
    pool: Annotated[str | None, typer.Option(help="Capacity pool")] = None,
    host: Annotated[str | None, typer.Option(help="Machine of a host-session run; else this one")] = None,
    system: Annotated[str | None, typer.Option(help="System prompt")] = None,
    effort: Annotated[str | None, typer.Option(help="Reasoning effort: low, medium, high")] = None,
    max_tokens: Annotated[int | None, typer.Option(help="Longest answer, in tokens")] = None,
    context_window: Annotated[int | None, typer.Option(help="Tokens of prompt and answer together, at most")] = None,
    provider_config: Annotated[
        str | None, typer.Option(metavar="JSON", help='Such as {"anthropic": {"contextWindow": 100000}}')
    ] = None,
    image: Annotated[list[Path] | None, typer.Option(metavar="FILE", help="An image; may be repeated")] = None,
    wait: Annotated[bool, typer.Option("--wait/--no-wait", help="Wait for the answer, or only dispatch")] = True,
    timeout: Annotated[float | None, typer.Option(metavar="SECONDS", help="Wait no longer than this")] = None,
) -> None:
    """
    Ask a model, by a profile. The answer goes to standard output as it comes, mode and cost to standard error.

    Ends with 0 where the run succeeded, with 1 where it failed, was refused, or --timeout passed. A host-session
    run of this machine runs here, to its end; with --no-wait it waits for `rensei worker`.
    """
    config = read_json(provider_config) if provider_config else {}
    if context_window is not None:
        config.setdefault("anthropic", {})["contextWindow"] = context_window
    body: dict[str, Any] = {
        "profileId": profile,
        "projectId": session.project,
        "pool": pool,
        "hostId": host,
        "system": system,
        "effort": effort,
        "maxTokens": max_tokens,
        "providerConfig": config or None,
        **_prompt(session, text, image or []),
    }
    run = _post(session.client, {name: value for name, value in body.items() if value is not None})
    if not wait:
        if session.output.as_json:
            session.output.json(run)
        else:
            print(run["id"])
        return
    deadline = time.monotonic() + timeout if timeout is not None else None
    if _is_for_here(session, run):
        _run_here(session, run)
    else:
        _watch(session.client, session.output, run["id"], deadline=deadline)


@command(runs, "list")
def list_runs(
    session: Session,
    state: Annotated[str | None, typer.Option(help="QUEUED, RUNNING, SUCCEEDED, FAILED or CANCELLED")] = None,
    auth_mode: Annotated[str | None, typer.Option(help="byok, metered, shared or host-session")] = None,
    profile: Annotated[str | None, typer.Option(help="Only this profile's")] = None,
    limit: Annotated[int, typer.Option(help="How many, the newest first", min=1)] = 20,
) -> None:
    """List runs, the newest first."""
    query = {"state": state, "authMode": auth_mode, "profileId": profile, "projectId": session.flags.project}
    session.output.table(session.client.list("runs", limit=limit, **query), COLUMNS)


@command(runs, "show")
def show_run(session: Session, run_id: Id) -> None:
    """Show a run, with its answer."""
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
    _watch(session.client, session.output, run_id, deadline=deadline)


@command(runs, "cancel")
def cancel_run(session: Session, run_id: Id) -> None:
    """Cancel a run. What it has used until then is charged."""
    run = session.client.post(at("runs", run_id, "cancel"))
    session.output.done(run, f"{run['id']}: {run['state']}")


def _post(client: Client, body: dict[str, Any]) -> dict[str, Any]:
    """Dispatch. If the answer is lost on the way, the same key finds the run that was made."""
    key = {"Idempotency-Key": secrets.token_hex(16)}
    try:
        run: dict[str, Any] = client.call("POST", "runs", body=body, headers=key, timeout_seconds=120)
    except ServerSilent:
        run = client.call("POST", "runs", body=body, headers=key, timeout_seconds=120)
    return run


def _prompt(session: Session, text: str, images: list[Path]) -> dict[str, Any]:
    if text == "-" and session.flags.token:
        raise Refused("INPUT_REQUIRED", "--input - and --token - cannot both read standard input.")
    asked = read_text(text)
    if not images:
        return {"input": asked}
    content = [*map(image_block, images), {"type": "text", "text": asked}]
    return {"messages": [{"role": "user", "content": content}]}


def _is_for_here(session: Session, run: dict[str, Any]) -> bool:
    context = session.context
    return run["authMode"] == "host-session" and context is not None and run["hostId"] == context.host_id


def _run_here(session: Session, run: dict[str, Any]) -> None:
    """Carry a host-session run out on this machine, unless a worker of it was faster."""
    output, client = session.output, session.client
    assert session.context is not None
    try:
        runner = logins.runner_for(session.context)
        lease = work.take(client, str(session.context.host_id), run_id=run["id"])
    except Refused:
        # Nothing waits for a login that is not there.
        with contextlib.suppress(Refused):
            client.post(at("runs", run["id"], "cancel"))
        raise
    if lease is None:
        _watch(client, output, run["id"], deadline=None)
        return
    writer = _Writer(output)
    ended = work.Work(client, lease, runner, on_text=writer.write).carry_out()
    writer.finish(ended)


def _watch(client: Client, output: Output, run_id: str, *, deadline: float | None) -> None:
    """Write the answer as it comes, and end as the run ends."""
    writer, waiting = _Writer(output), False
    try:
        for event in client.events(run_id, deadline=deadline):
            if event.kind == "delta":
                writer.write(event.data["text"])
            elif event.kind == "done":
                writer.finish(event.data)
            elif event.kind == "state" and event.data["state"] in ENDED:
                waiting = False
            elif event.kind == "state" and event.data["state"] == "QUEUED" and not waiting and sys.stderr.isatty():
                waiting = True
                output.note(f"{run_id} waits for its turn.")
    except KeyboardInterrupt:
        output.note(f"\nThe run goes on: rensei run watch {run_id}, or rensei run cancel {run_id}.")
        raise


class _Writer:
    """Writes an answer in pieces, and says at its end what it cost and how it went."""

    def __init__(self, output: Output) -> None:
        self._output = output
        self._written = ""

    def write(self, text: str) -> None:
        self._written += text
        if not self._output.as_json:
            self._output.text(text)

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
        """The pieces of a call that was begun again are not the answer: the run's own text is."""
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
