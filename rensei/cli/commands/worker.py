"""`rensei worker`: carry out the runs that are queued for this machine."""

import signal
import time
from types import FrameType

from rensei.cli.app import app
from rensei.cli.config import Context
from rensei.cli.errors import Refused
from rensei.cli.machine import logins, work
from rensei.cli.output import Output
from rensei.cli.session import Session, command, note_versions

# The server answers as soon as there is a run. Ctrl-C waits for that answer, which may already contain a run.
WAIT_SECONDS = 5
PAUSE_SECONDS = 0.2
PAUSE_SECONDS_MAX = 15.0


@command(app, "worker")
def worker(session: Session) -> None:
    """
    Carry out the host-session runs that wait for this machine, until Ctrl-C.

    Ctrl-C lets the run under way end first; a second one gives it up. While the server is away it waits.
    """
    context = machine_of(session)
    runner = logins.runner_for(context)
    client, output = session.client, session.output
    output.note(f"{client.get('me')['host']['name']} waits for runs at {client.url}. Ctrl-C ends it.")
    note_versions(client, output)
    stop = _Stop(output)
    pause, was_silent = PAUSE_SECONDS, False
    while not stop.asked:
        try:
            lease = work.take_next(client, str(context.host_id), wait_seconds=WAIT_SECONDS)
            pause = PAUSE_SECONDS
            if was_silent:
                output.note("The server answers again.")
            was_silent = False
        except Refused as refused:
            if not refused.is_temporary:
                raise
            if not was_silent:
                output.note(f"{refused.detail} Trying again until it does.")
            was_silent, lease, pause = True, None, min(2 * pause, PAUSE_SECONDS_MAX)
        if lease is None:
            stop.sleep(pause)
            continue
        output.note(f"{lease.run['id']}: {lease.run['servedModel']}")
        try:
            stop.busy = True
            run = work.Work(client, lease, runner).carry_out()
        except Refused as refused:
            output.refusal(refused)
            continue
        finally:
            stop.busy = False
        error = run["error"] or {}
        output.note(f"{run['id']}: {run['state']}" + (f", {error['code']}: {error['detail']}" if error else ""))
    output.note("Stopped.")


def machine_of(session: Session) -> Context:
    """
    The stored sign-in of this machine.

    :raises Refused: if it is not registered, or another token than the machine's own is used
    """
    context = session.context
    if context is None or context.host_id is None or session.explicit_token:
        raise Refused(
            "HOST_SESSION_WRONG_MACHINE",
            "This machine is not registered, or the call uses a token that is not the machine's own.",
            fix="Run `rensei setup` here, and leave --token and RENSEI_AUTH_TOKEN out.",
        )
    return context


class _Stop:
    """Handles Ctrl-C: the first requests a stop, the second ends the run."""

    def __init__(self, output: Output) -> None:
        self.asked = False
        self.busy = False
        self._output = output
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._ask)

    def sleep(self, seconds: float) -> None:
        deadline = time.monotonic() + seconds
        while not self.asked and time.monotonic() < deadline:
            time.sleep(0.1)

    def _ask(self, number: int, frame: FrameType | None) -> None:
        if self.asked:
            raise KeyboardInterrupt
        self.asked = True
        if self.busy:
            self._output.note_from_signal("Finishing the run under way. Ctrl-C again gives it up.")
        else:
            self._output.note_from_signal("Stopping, which takes a few seconds.")
