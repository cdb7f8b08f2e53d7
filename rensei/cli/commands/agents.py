"""`rensei agent`: programs that work in a sandbox, and call the model as often as they need."""

import base64
import shlex
import time
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Annotated, Any

import typer

from rensei.cli import completion
from rensei.cli.app import group
from rensei.cli.client import Client, at
from rensei.cli.commands.dispatch import post_run
from rensei.cli.commands.profiles import Pool
from rensei.cli.commands.runs import watch
from rensei.cli.errors import Refused
from rensei.cli.inputs import read_secret, read_text
from rensei.cli.session import Session, command

agents = group("agent", help="Programs that work in a sandbox, and call the model as often as they need.")


@command(agents, "run")
def run_agent(
    session: Session,
    prompt: Annotated[str, typer.Argument(metavar="PROMPT|-", help="The task; - reads standard input")],
    *,
    max_cost: Annotated[str, typer.Option(metavar="USD", help="The most that the run may cost")],
    profile: Annotated[
        str | None,
        typer.Option(help="Id of the profile; else the default one", autocompletion=completion.profiles),
    ] = None,
    pool: Pool = "sandbox",
    program: Annotated[
        str | None,
        typer.Option(metavar="CMD", help="A program and its arguments, as a shell divides them; else Claude Code"),
    ] = None,
    git: Annotated[
        str | None, typer.Option(metavar="URL", help="A repository that is cloned into /workspace, in a cloud")
    ] = None,
    ref: Annotated[str | None, typer.Option(help="Branch, tag or commit of it")] = None,
    git_token: Annotated[
        bool, typer.Option("--git-token", help="Ask for a deploy token, or read it from standard input")
    ] = False,
    git_user: Annotated[
        str | None, typer.Option(metavar="NAME", help="User name of the token, if it needs one")
    ] = None,
    upload: Annotated[Path | None, typer.Option(metavar="DIR", help="Its files are put into /workspace")] = None,
    download: Annotated[Path | None, typer.Option(metavar="DIR", help="Where to put the files that are kept")] = None,
    output: Annotated[
        list[str] | None,
        typer.Option(metavar="PATTERN", help="Files to keep, such as out/**; may be repeated. All with --download"),
    ] = None,
    max_tokens: Annotated[int | None, typer.Option(help="Longest answer of each call, in tokens")] = None,
    max_turns: Annotated[int | None, typer.Option(help="Turns after which Claude Code ends")] = None,
    program_timeout: Annotated[int | None, typer.Option(metavar="SECONDS", help="Longest time of the program")] = None,
    timeout: Annotated[float | None, typer.Option(metavar="SECONDS", help="Wait no longer than this")] = None,
) -> None:
    """
    Let Claude Code, or a program of your own, work on a task in a sandbox. What it writes arrives as it comes: its text
    on standard output, its log on standard error. A program of your own reads the task from its standard input, and
    finds the model's address in ANTHROPIC_BASE_URL.

    The files that are kept are downloaded however the run ends. Ends with 0 where the program did.
    """
    if git is None and (ref is not None or git_token or git_user is not None):
        raise typer.BadParameter("name a repository with --git.", param_hint="--git")
    if git_token and prompt == "-":
        raise typer.BadParameter("standard input is the task already.", param_hint="--git-token")
    repository: dict[str, Any] = {
        "url": git,
        "ref": ref,
        "token": read_secret("The deploy token") if git_token else None,
        "username": git_user,
    }
    agent: dict[str, Any] = {
        "git": {name: value for name, value in repository.items() if value is not None} or None,
        "program": _divided(program) if program is not None else "claude-code",
        "files": list(_files_of(upload)) if upload is not None else [],
        "outputs": output or (["**"] if download is not None else []),
        "maxTurns": max_turns,
        "timeoutSeconds": program_timeout,
    }
    body: dict[str, Any] = {
        "profileId": profile,
        "projectId": session.project,
        "pool": pool,
        "maxCostUsd": max_cost,
        "maxTokens": max_tokens,
        "input": read_text(prompt),
        "agent": {name: value for name, value in agent.items() if value is not None},
    }
    run = post_run(session.client, {name: value for name, value in body.items() if value is not None})
    deadline = time.monotonic() + timeout if timeout is not None else None
    try:
        watch(session.client, session.output, run["id"], deadline=deadline)
    except Refused:
        _download(session.client, run["id"], download)
        raise
    _download(session.client, run["id"], download)


def _divided(program: str) -> list[str]:
    """:raises BadParameter: if a quotation is not closed, or nothing is given"""
    try:
        divided = shlex.split(program)
    except ValueError as fault:
        raise typer.BadParameter(f"{fault}.", param_hint="--program") from fault
    if not divided:
        raise typer.BadParameter("name a program.", param_hint="--program")
    return divided


def _files_of(folder: Path) -> Iterator[dict[str, str]]:
    """
    Read the files below a folder, without following links.

    :raises Refused: if one cannot be read
    """
    if not folder.is_dir():
        raise Refused("FILE_UNREADABLE", f"{folder} is no folder.")
    for path in sorted(folder.rglob("*")):
        if path.is_symlink() or not path.is_file():
            continue
        try:
            content = path.read_bytes()
        except OSError as fault:
            raise Refused("FILE_UNREADABLE", f"{path} cannot be read: {fault.strerror}.") from fault
        name = path.relative_to(folder).as_posix()
        try:
            text = content.decode()
        except UnicodeDecodeError:
            text = "\0"
        if "\0" in text:
            yield {"path": name, "content": base64.b64encode(content).decode(), "encoding": "base64"}
        else:
            yield {"path": name, "content": text}


def _download(client: Client, run_id: str, folder: Path | None) -> None:
    """
    Write the files that an agent has left into a folder, if one is given.

    :raises Refused: if one cannot be written there
    """
    if folder is None:
        return
    kept = (client.get(at("runs", run_id))["agent"] or {}).get("files", [])
    for file in kept:
        parts = PurePosixPath(file["path"]).parts
        place = folder.joinpath(*parts)
        # A link in the folder could lead out of it, and a server may be wrong. Git runs commands that its files name.
        if {"..", ".git"} & {part.casefold() for part in parts} or not place.resolve().is_relative_to(folder.resolve()):
            raise Refused("FILE_UNREADABLE", f"{file['path']} leads out of {folder}, or is git's.")
        with client.stream("GET", at("runs", run_id, "files", file["id"]), body=None, query={}, headers={}) as answer:
            content = answer.read()
        try:
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_bytes(content)
        except OSError as fault:
            raise Refused("FILE_UNREADABLE", f"{place} cannot be written: {fault.strerror}.") from fault
