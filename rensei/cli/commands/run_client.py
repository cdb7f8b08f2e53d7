"""`rensei exec`: run a client of Anthropic's API, with this server's gateway and its own token."""

import os
import shutil
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import PurePath
from types import FrameType
from typing import Annotated

import typer

from rensei.cli.app import app
from rensei.cli.client import Client, at
from rensei.cli.errors import Refused
from rensei.cli.inputs import duration
from rensei.cli.machine.child import clean_environment
from rensei.cli.session import Session, command

NOT_FOUND = 127
_SIGNALS = (signal.SIGINT, signal.SIGTERM, *([signal.SIGHUP] if hasattr(signal, "SIGHUP") else []))


# Options after the program's name belong to the program.
@command(app, "exec", context_settings={"allow_interspersed_args": False})
def run_client(
    session: Session,
    program: Annotated[
        list[str], typer.Argument(metavar="-- CMD...", help="The program and its arguments", show_default=False)
    ],
    ttl: Annotated[str, typer.Option(metavar="TIME", help="Longest life of the token: 30m, 2h, 1d")] = "12h",
) -> None:
    """
    Run a client of Anthropic's API, such as claude, through the gateway.

    It gets ANTHROPIC_BASE_URL and a token in ANTHROPIC_AUTH_TOKEN, which opens the gateway only, is never shown, and
    is revoked as soon as the program ends, by itself or by a signal. The exit code is the program's.
    """
    try:
        expires_at = datetime.now(UTC) + duration(ttl)
    except (ValueError, OverflowError) as fault:
        raise typer.BadParameter("give a time such as 30m, 2h or 1d.", param_hint="--ttl") from fault
    # Checked first, so that no token is created without need.
    found = shutil.which(program[0])
    if found is None:
        session.output.note(f"PROGRAM_NOT_FOUND: {program[0]} is no program on the PATH.")
        raise typer.Exit(NOT_FOUND)
    client = session.client
    child = _Child()
    with child.signals(), _token(session, client, name=PurePath(found).name, expires_at=expires_at) as token:
        environment = _environment() | {"ANTHROPIC_BASE_URL": client.url, "ANTHROPIC_AUTH_TOKEN": token}
        code = child.run([found, *program[1:]], environment)
    raise typer.Exit(code)


def _environment() -> dict[str, str]:
    """The inherited environment without variables that would sign or route a call differently. Model names stay."""
    models = {name: value for name, value in os.environ.items() if name.startswith("ANTHROPIC_") and "MODEL" in name}
    return clean_environment() | models


@contextmanager
def _token(session: Session, client: Client, *, name: str, expires_at: datetime) -> Iterator[str]:
    """Make a token for the gateway, and revoke it at the end."""
    body = {
        "name": f"rensei exec {name}"[:120],
        "scopes": ["gateway"],
        "projectId": session.project,
        "expiresAt": expires_at.isoformat(),
    }
    made = client.post("tokens", body)
    try:
        yield made["token"]
    finally:
        try:
            client.delete(at("tokens", made["id"]))
        except Refused as refused:
            session.output.note(
                f"TOKEN_NOT_REVOKED: {made['id']} was not revoked: {refused.detail}\n"
                f"It ends by itself at {made['expiresAt']}. `rensei token revoke {made['id']}` ends it now."
            )


class _Child:
    """A program that uses this process's terminal, receives its signals, and determines its exit code."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        self._signals: list[int] = []

    @contextmanager
    def signals(self) -> Iterator[None]:
        """Pass signals on to the program, so that this process does not end before the token is revoked."""
        earlier = {number: signal.signal(number, self._pass_on) for number in _SIGNALS}
        try:
            yield
        finally:
            for number, handler in earlier.items():
                signal.signal(number, handler)

    def run(self, words: list[str], environment: dict[str, str]) -> int:
        """:raises OSError: if it cannot be started"""
        if self._signals:
            return 128 + self._signals[0]
        self._process = subprocess.Popen(words, env=environment)  # noqa: S603 - the person's own command
        for number in self._signals:
            self._process.send_signal(number)
        code = self._process.wait()
        return code if code >= 0 else 128 - code

    def _pass_on(self, number: int, frame: FrameType | None) -> None:
        if self._process is None:
            self._signals.append(number)
            return
        # A terminal sends Ctrl-C to the program itself.
        if number != signal.SIGINT or not os.isatty(0):
            self._process.send_signal(number)
