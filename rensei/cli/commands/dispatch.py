"""`rensei dispatch`: call a model, by a profile."""

import contextlib
import secrets
import time
from pathlib import Path
from typing import Annotated, Any

import typer

from rensei.cli import completion
from rensei.cli.app import app
from rensei.cli.client import Client, at
from rensei.cli.commands.profiles import Effort, Pool, read_json
from rensei.cli.commands.runs import Writer, watch
from rensei.cli.errors import Refused, ServerSilent
from rensei.cli.inputs import image_block, read_text
from rensei.cli.machine import logins, work
from rensei.cli.session import Session, command


@command(app, "dispatch")
def dispatch(
    session: Session,
    prompt: Annotated[
        str | None,
        typer.Argument(metavar="PROMPT|-", help="What to ask; - reads standard input", show_default=False),
    ] = None,
    *,
    text: Annotated[
        str | None, typer.Option("--input", metavar="TEXT|-", help="What to ask, in place of PROMPT")
    ] = None,
    profile: Annotated[
        str | None,
        typer.Option(help="Id of the profile; else the default one", autocompletion=completion.profiles),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(
            "--model",
            "-m",
            help="In place of --profile: the profile that names this model, the default one of several",
            autocompletion=completion.models,
        ),
    ] = None,
    pool: Pool = None,
    host: Annotated[str | None, typer.Option(help="Machine of a host-session run; else this one")] = None,
    system: Annotated[str | None, typer.Option(help="System prompt")] = None,
    effort: Effort = None,
    max_tokens: Annotated[int | None, typer.Option(help="Longest answer, in tokens")] = None,
    max_cost: Annotated[str | None, typer.Option(metavar="USD", help="The most that the run may cost")] = None,
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
    asked = _one_prompt(prompt, text)
    if model is not None:
        if profile is not None:
            raise typer.BadParameter("give --model or --profile, not both.", param_hint="--model")
        profile = _profile_for(session, model)
    config = read_json(provider_config) if provider_config else {}
    if context_window is not None:
        config.setdefault("anthropic", {})["contextWindow"] = context_window
    body: dict[str, Any] = {
        "profileId": profile,
        "projectId": session.project,
        "pool": pool,
        "hostId": host,
        "system": system,
        "effort": effort.lower() if effort else None,
        "maxTokens": max_tokens,
        "maxCostUsd": max_cost,
        "providerConfig": config or None,
        **_prompt(session, asked, image or []),
    }
    run = post_run(session.client, {name: value for name, value in body.items() if value is not None})
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
        watch(session.client, session.output, run["id"], deadline=deadline)


def _one_prompt(prompt: str | None, text: str | None) -> str:
    """:raises BadParameter: unless the prompt was given exactly once"""
    if prompt is not None and text is not None:
        raise typer.BadParameter("give the prompt as PROMPT or as --input, not both.", param_hint="PROMPT")
    asked = prompt if text is None else text
    if asked is None:
        raise typer.BadParameter("say what to ask; - reads standard input.", param_hint="PROMPT")
    return asked


def _profile_for(session: Session, model: str) -> str:
    """
    Choose the profile for the model that `-m` names.

    :raises Refused: if no profile names the model, or several do and none of them is the default
    """
    entry = session.client.get(at("catalog", *model.split("/")))
    found = [
        one
        for one in session.client.list("profiles")["results"]
        if (one["provider"], one["modelId"]) == (entry["provider"], entry["modelId"])
        and one["projectId"] in (None, session.project)
    ]
    default = [one for one in found if one["isDefault"]]
    # The project's default has priority over that of the organization.
    chosen = sorted(default, key=lambda one: one["projectId"] is None)[:1] or found
    if not chosen:
        create = f"rensei profile create --name {entry['modelId']} --provider {entry['provider']}"
        raise Refused(
            "PROFILE_REQUIRED",
            f"No profile names the model {entry['modelId']}, so it is not known who would pay for it.",
            fix=f"Create one: {create} --model-id {entry['modelId']} --auth-modes byok",
        )
    if len(chosen) > 1:
        names = ", ".join(one["id"] for one in chosen)
        raise Refused(
            "PROFILE_REQUIRED",
            f"Several profiles name the model {entry['modelId']}: {names}.",
            fix="Choose one of them with --profile.",
        )
    return str(chosen[0]["id"])


def post_run(client: Client, body: dict[str, Any]) -> dict[str, Any]:
    """Dispatch. If the answer is lost, a repetition with the same key returns the run that was created."""
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
    """Carry out a host-session run on this machine, unless a worker of it has leased it before."""
    output, client = session.output, session.client
    assert session.context is not None
    try:
        runner = logins.runner_for(session.context)
        lease = work.take(client, str(session.context.host_id), run_id=run["id"])
    except Refused:
        # Without a login the run is not left waiting.
        with contextlib.suppress(Refused):
            client.post(at("runs", run["id"], "cancel"))
        raise
    if lease is None:
        watch(client, output, run["id"], deadline=None)
        return
    writer = Writer(output)
    ended = work.Work(client, lease, runner, on_text=writer.write).carry_out()
    writer.finish(ended)
