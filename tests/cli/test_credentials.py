"""No login leaves the machine, and only its own program opens it. Each search finds a leak that was planted, too."""

import shlex
import sys

import pytest

from rensei.celery import app
from rensei.dispatch.models import Run
from tests import servers
from tests.architecture.modules import ROOT
from tests.broker import ringing_through
from tests.cli import searching, tracing
from tests.cli.door import Door, move
from tests.cli.ending import PATIENCE_SECONDS, end
from tests.journeys.stack import start
from tests.waiting import wait_until

pytestmark = pytest.mark.outside

# Processes that are traced, and a server of their own, take their time on a busy machine.
SECONDS_MAX = 600
CONSOLE_LOGIN = ".config/anthropic/credentials/"
CLAUDE_LOGIN = ".claude/.credentials.json"
PLANTED = f"""
import pathlib
for name in ("{CONSOLE_LOGIN}default.json", "{CLAUDE_LOGIN}"):
    (pathlib.Path.home() / name).read_text()
"""


@pytest.fixture
def redis():
    with servers.start_redis() as url:
        yield url


@pytest.mark.redis
@pytest.mark.timeout(SECONDS_MAX)
class TestSearch:
    """A machine and a server, with a broker, that are listened to."""

    @pytest.fixture
    def find(self, machine, server, simulator_process, redis, tmp_path):
        """Gives the bytes of every place, as soon as it is asked."""
        folder, listener = tmp_path / "server", searching.Listener(redis)
        folder.mkdir()
        variables = {"CELERY_BROKER_URL": redis, "RENSEI_VAULT_KEYRING": str(server.keyring)}
        with (
            listener.listen(),
            start(folder=folder, simulator_url=simulator_process.url, variables=variables) as watched,
        ):
            door = Door(watched)
            with door.open():
                move(machine, door.url)
                yield lambda: {
                    "what the server was sent": bytes(door.heard),
                    "the broker and the cache": listener.hear(),
                    "the database": searching.everything_stored(),
                    "the logs and files of the server": searching.everything_written(watched),
                    "what this command keeps": machine.everything_kept(),
                }

    def test_finds_no_login_anywhere(self, machine, console, real_claude, here, make_profile, connected, find):
        for login in ("console", "claude-code"):
            machine.succeed(f"rensei setup --login {login}")
            machine.succeed(f"rensei dispatch --profile {here} --input Hello")
        machine.succeed(f"rensei dispatch --profile {make_profile()} --input Hello --no-wait")

        places = find()
        assert places["what the server was sent"].count(b"/lease/finish") == 2
        assert Run.objects.get(auth_mode="byok").id.encode() in places["the broker and the cache"]
        for place, content in places.items():
            assert console.encode() not in content, place
            assert real_claude.encode() not in content, place

    def test_finds_a_login_that_was_planted_in_each_place(
        self, machine, console, find, acme, redis, settings, tmp_path
    ):
        machine.succeed(f"curl -s $RENSEI_API_URL/api/v1/runs -d {console}")
        with ringing_through(redis, settings):
            app.send_task("planted", args=[console], queue="planted")
        acme.name = console
        acme.save()
        (tmp_path / "server/planted.log").write_text(console)
        (machine.home / ".config/rensei/planted").write_text(console)

        for place, content in find().items():
            assert console.encode() in content, place


@pytest.mark.strace
@pytest.mark.timeout(SECONDS_MAX)
class TestTrace:
    """Every call of the system that names the file of a login, of this command and of the server's processes."""

    @pytest.fixture
    def traces(self, tmp_path):
        folder = tmp_path / "traces"
        folder.mkdir()
        return folder

    @pytest.fixture
    def start_traced(self, machine, simulator_process, tmp_path, traces):
        """A server whose processes are traced, with the machine's own home. The command is traced as it starts."""
        machine.prepared = None

        def start_it(**variables):
            folder = tmp_path / "server"
            folder.mkdir()
            return start(
                folder=folder,
                simulator_url=simulator_process.url,
                variables={"HOME": str(machine.home), **variables},
                under=lambda name: tracing.command(traces / name),
            )

        return start_it

    def test_shows_that_only_its_own_program_opens_a_login(
        self, machine, console, real_claude, here, server, start_traced, traces
    ):
        def traced(name):
            return shlex.join(tracing.command(traces / name))

        with start_traced() as watched:
            move(machine, watched.url)
            for login in ("console", "claude-code"):
                machine.succeed(f"{traced(f'{login}-setup')} rensei setup --login {login}")
                machine.succeed(f"{traced(f'{login}-doctor')} rensei doctor")
                machine.succeed(f"{traced(f'{login}-dispatch')} rensei dispatch --profile {here} --input Hello")
                machine.succeed(f"rensei dispatch --profile {here} --input Hello --no-wait")
                worker = machine.start(f"{traced(f'{login}-worker')} rensei worker")
                wait_until(lambda: not Run.objects.exclude(state="SUCCEEDED").exists(), seconds=PATIENCE_SECONDS)
                end(worker)

        # Anthropic's own program looks at the login of Anthropic's SDK too.
        assert openers(traces, CONSOLE_LOGIN) - {"claude"} == {"the SDK's own process"}
        assert openers(traces, CLAUDE_LOGIN) == {"claude"}

    def test_finds_a_program_of_ours_that_was_made_to_open_them(
        self, machine, console, real_claude, server, start_traced, tmp_path, traces
    ):
        (tmp_path / "planted").mkdir()
        (tmp_path / "planted/sitecustomize.py").write_text(PLANTED)
        command = [*tracing.command(traces / "command"), sys.executable, "-P", "-m", "rensei.cli", "whoami"]

        machine.succeed(shlex.join(command), PYTHONPATH=f"{tmp_path / 'planted'}:{ROOT}")
        with start_traced(PYTHONPATH=str(tmp_path / "planted")):
            pass

        for login in (CONSOLE_LOGIN, CLAUDE_LOGIN):
            found = " ".join(openers(traces, login))
            for program in ("rensei.cli whoami", "granian", "manage.py worker"):
                assert program in found


def openers(traces, login):
    """Name the programs that touched a login."""
    touches = [touch for trace in traces.iterdir() for touch in tracing.touches(trace, login)]
    return {_name(touch.program) for touch in touches}


def _name(program):
    if "rensei.cli.machine.console_call" in program:
        return "the SDK's own process"
    if program and program[0].endswith("/claude"):
        return "claude"
    return " ".join(program)
