"""Starts the processes of one installation on this machine, monitors them, and stops them together."""

import contextlib
import http.client
import json
import os
import secrets
import signal
import socket
import subprocess
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Self

from rensei import layout
from rensei.core import private_files

LOOPBACK = "127.0.0.1"
_LOOK_EVERY_SECONDS = 0.1
_ASK_EVERY_SECONDS = 1.0
# A worker ends the calls under way, for which it takes up to 30 s; an interrupted call may be charged without a result.
_STOP_SECONDS_MAX = 40.0


class LaunchFailed(Exception):
    """Rensei cannot start or continue. The message is for the user."""


def check_port_is_free(port: int) -> None:
    """:raises LaunchFailed: if another process listens on the port"""
    with socket.socket() as listener:
        # Addresses of connections that have just ended do not count as taken.
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((LOOPBACK, port))
        except OverflowError as fault:
            raise LaunchFailed(f"{port} is not a port: choose one from 1024 to 65535.") from fault
        except OSError as fault:
            raise LaunchFailed(
                f"Port {port} is taken by another program. Choose another one, such as PORT={port + 100}."
            ) from fault


def create_data_dir(path: Path) -> None:
    """Create the folder of the database and the keys, without access for other users of this machine."""
    path.mkdir(parents=True, exist_ok=True)
    path.chmod(0o700)


def create_secret_key(path: Path) -> None:
    """Generate Django's `SECRET_KEY` once, in a file that is complete and private from its first moment."""
    # Another start may make one in the meantime.
    with contextlib.suppress(FileExistsError):
        if not path.exists():
            private_files.create(path, secrets.token_urlsafe(64))


def rotate_secret_key(path: Path, *, keep_old: bool) -> None:
    """
    Put another `SECRET_KEY` into its file, before the old one, which still verifies what it has signed.

    :raises OSError: if the file cannot be read or written
    """
    with private_files.locked(path):
        old = path.read_text().split() if keep_old else []
        private_files.replace(path, "".join(f"{key}\n" for key in (secrets.token_urlsafe(64), *old)))


def forget_old_secret_keys(path: Path) -> None:
    """
    Leave only the newest `SECRET_KEY` in its file.

    :raises OSError: if the file cannot be read or written
    """
    with private_files.locked(path):
        private_files.replace(path, f"{path.read_text().split()[0]}\n")


def wait_until_ready(*, port: int, token: str, seconds_max: float) -> str:
    """
    Wait until `/readyz` reports that everything is present.

    :param token: the token of `/metrics`, with which the server returns what is missing
    :return: an empty text, or what the server reports as missing when the time is over
    """
    deadline = time.monotonic() + seconds_max
    missing = "The server does not answer."
    while missing and time.monotonic() < deadline:
        try:
            missing = _ask_what_is_missing(port, token)
            # Every such answer costs a query or two, so the requests are paced.
            time.sleep(_ASK_EVERY_SECONDS if missing else 0)
        except (OSError, http.client.HTTPException):
            time.sleep(_LOOK_EVERY_SECONDS)
    return missing


def _ask_what_is_missing(port: int, token: str) -> str:
    connection = http.client.HTTPConnection(LOOPBACK, port, timeout=5)
    try:
        connection.request("GET", "/readyz", headers={"Authorization": f"Bearer {token}"})
        answer = connection.getresponse()
        body = answer.read()
    finally:
        connection.close()
    if answer.status == http.HTTPStatus.OK:
        return ""
    if answer.status == http.HTTPStatus.SERVICE_UNAVAILABLE:
        return " ".join(json.loads(body)["missing"])
    return f"The server answers {answer.status}; its log says why."


@dataclass(frozen=True, kw_only=True)
class Child:
    """A process that was started here, and its display name."""

    name: str
    process: subprocess.Popen[bytes]


class Processes:
    """
    The processes of an installation: when one of them ends, or this one receives a signal, all of them stop.

    Each child leads a process group of its own, so that Ctrl-C reaches only this process, which then stops the
    children. A child that does not stop in time, or before a second Ctrl-C, is killed with all that it has started.
    """

    def __init__(self, environment: Mapping[str, str]) -> None:
        self._environment = environment
        self._children: list[Child] = []
        self._signals = 0

    def __enter__(self) -> Self:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, self._ask_to_stop)
        return self

    def __exit__(self, *fault: object) -> None:
        self._stop()

    @property
    def stop_asked(self) -> bool:
        return self._signals > 0

    def start(self, name: str, *command: str) -> None:
        """Start a child that runs until everything stops."""
        self._children.append(self._spawn(name, command))

    def run(self, name: str, *command: str) -> bool:
        """
        Run a child to its end.

        :return: False if everything is to stop
        :raises LaunchFailed: if it fails, or if another child ends in the meantime
        """
        child = self._spawn(name, command)
        self._children.append(child)
        while not self.stop_asked:
            if child.process.poll() is not None:
                self._children.remove(child)
                if child.process.returncode != 0:
                    raise LaunchFailed(f"{name} failed {_how_it_ended(child.process.returncode)}")
                return True
            self._check_children(besides=child)
            time.sleep(_LOOK_EVERY_SECONDS)
        return False

    def watch(self) -> None:
        """
        Wait until this process receives a signal to stop.

        :raises LaunchFailed: if a child ends before that
        """
        while not self.stop_asked:
            self._check_children()
            time.sleep(_LOOK_EVERY_SECONDS)

    def _spawn(self, name: str, command: tuple[str, ...]) -> Child:
        # A child gets a pipe that this process never writes to: it must not read the terminal's input,
        # and a child that watches the pipe detects the end of this process, by any cause.
        # The current folder may contain a `catalog` package, which the web server would load.
        process = subprocess.Popen(  # noqa: S603 - the commands are written in this program
            command,
            cwd=layout.home(),
            env=dict(self._environment),
            stdin=subprocess.PIPE,
            start_new_session=True,
        )
        return Child(name=name, process=process)

    def _ask_to_stop(self, number: int, frame: FrameType | None) -> None:
        self._signals += 1

    def _check_children(self, *, besides: Child | None = None) -> None:
        """
        :param besides: a child that is awaited: it may end between two checks, and `run` checks its result
        :raises LaunchFailed: if a child that has to continue has ended
        """
        for child in self._children:
            if child is not besides and child.process.poll() is not None:
                ended = _how_it_ended(child.process.returncode)
                raise LaunchFailed(f"{child.name} has stopped by itself, so the rest stops too {ended}")

    def _stop(self) -> None:
        """Signal all children to stop, and kill those that do not, or all at once after a second Ctrl-C."""
        waiting = [child for child in reversed(self._children) if child.process.poll() is None]
        for child in waiting:
            child.process.terminate()
        signals_before = self._signals
        deadline = time.monotonic() + _STOP_SECONDS_MAX
        while waiting and time.monotonic() < deadline and self._signals == signals_before:
            time.sleep(_LOOK_EVERY_SECONDS)
            waiting = [child for child in waiting if child.process.poll() is None]
        for child in self._children:
            # A child that has ended may have left other processes, so its whole group is killed.
            with contextlib.suppress(ProcessLookupError):
                os.killpg(child.process.pid, signal.SIGKILL)
            child.process.wait()


def _how_it_ended(code: int) -> str:
    """Describe how a process ended and where its reason is. A killed process could not write any."""
    if code >= 0:
        return f"(exit code {code}). The reason is above."
    ended = f"({signal.Signals(-code).name})."
    if -code == signal.SIGKILL:
        return f"{ended} It was killed, so it gave no reason: the system does that where memory runs out."
    return ended
