"""Host sessions on a real machine: its own login signs, and stays where it is."""

import hashlib
import json
import shutil
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from django.db import connection

from billing.models import CostEvent
from rensei.dispatch.models import Run
from tests import servers
from tests.architecture.rooms import ROOT
from tests.cli import logins
from tests.journeys.stack import Stack

CLAUDE = ROOT / ".venv/claude/node_modules/.bin/claude"
PATIENCE_SECONDS = 60


@pytest.fixture
def here(make_profile):
    """A profile whose runs are signed on the machine."""
    return make_profile(name="here", auth_modes=("host-session",))


@pytest.fixture
def console(machine, simulator):
    """The machine with a Console login. Gives the login's token."""
    token = logins.log_in_to_console(machine, base_url=simulator.url)
    machine.succeed("rensei setup")
    return token


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.1)


def end(process, number=signal.SIGINT) -> str:
    process.send_signal(number)
    return process.communicate(timeout=PATIENCE_SECONDS)[0]


def state() -> str:
    return Run.objects.get().state


class TestConsoleLogin:
    def test_is_found_by_setup_and_by_the_doctor(self, machine, console):
        assert machine.config()["contexts"][0]["login"] == "console"
        assert "login of the Anthropic SDK works" in machine.succeed("rensei doctor")

    def test_signs_a_dispatch_on_the_machine(self, machine, console, here, simulator):
        result = machine.run(f"rensei dispatch --profile {here} --input 'What is a vault?' --effort high")

        run = Run.objects.get()
        assert result.returncode == 0, result.stderr
        assert result.stdout == run.output_text + "\n"
        assert "host-session, paid by host-account" in result.stderr
        call = [one for one in simulator.requests() if one["path"] == "/v1/messages"][-1]
        assert call["key_sha256"] == hashlib.sha256(console.encode()).hexdigest()
        assert call["body"]["output_config"] == {"effort": "high"}
        line = CostEvent.objects.get()
        assert call["attempt_id"] == line.attempt_id
        assert (line.payer, line.billed, line.input_tokens) == ("host-account", False, call["usage"]["input_tokens"])

    def test_pays_whatever_the_shell_says(self, machine, console, here, simulator, make_key):
        other = make_key()

        machine.succeed(
            f"rensei dispatch --profile {here} --input Hello",
            ANTHROPIC_API_KEY=other,
            ANTHROPIC_BASE_URL=f"http://127.0.0.1:{servers.free_port()}",
            CLAUDE_CODE_OAUTH_TOKEN=other,
        )

        assert {one["key_sha256"] for one in simulator.requests()} == {hashlib.sha256(console.encode()).hexdigest()}

    @pytest.mark.parametrize(
        ("fault", "code"),
        [
            ("nocredit", "HOST_PLAN_EXHAUSTED"),
            ("oauthexpired", "HOST_LOGIN_MISSING"),
            ("ratelimited", "PROVIDER_RATE_LIMITED"),
            ("overloaded", "PROVIDER_OVERLOADED"),
            ("unprocessable", "PROVIDER_REJECTED"),
        ],
    )
    def test_that_is_refused_ends_the_run_with_its_reason(self, machine, console, here, fault, code):
        result = machine.run(f"rensei dispatch --profile {here} --input '[[fault:{fault}]] Hello'")

        assert result.returncode == 1
        assert Run.objects.get().error["code"] == code
        assert code in result.stderr

    def test_that_is_gone_is_said_to_be(self, machine, console, here):
        shutil.rmtree(machine.home / ".config/anthropic")

        result = machine.run(f"rensei dispatch --profile {here} --input Hello")

        assert result.returncode == 1
        assert "HOST_LOGIN_MISSING" in result.stderr
        assert "ant auth login" in result.stderr

    def test_never_leaves_the_machine(self, machine, console, here, server, simulator):
        door = Door(server)
        with door.open():
            move(machine, door.url)
            machine.succeed("rensei setup")
            machine.succeed(f"rensei dispatch --profile {here} --input Hello")

        assert b"lease/finish" in door.heard
        places = {
            "what the server was sent": bytes(door.heard),
            "the database": everything_stored(),
            "the logs and files of the server": everything_written(server),
            "what this command keeps": machine.everything_kept(),
        }
        for place, content in places.items():
            assert console.encode() not in content, place

    def test_would_be_found_where_it_is_searched_for(self, machine, console, server, acme):
        """The search itself works: a planted leak is found in each place."""
        acme.name = console
        acme.save()
        (server.folder / "planted.log").write_text(console)
        (machine.home / ".config/rensei/planted").write_text(console)

        found = [everything_stored(), everything_written(server), machine.everything_kept()]
        (server.folder / "planted.log").unlink()

        assert all(console.encode() in content for content in found)


class TestNoLogin:
    def test_is_said_before_anything_waits_for_it(self, machine, here):
        result = machine.run(f"rensei dispatch --profile {here} --input Hello")

        assert result.returncode == 1
        assert "HOST_LOGIN_MISSING" in result.stderr
        assert state() == "CANCELLED"

    def test_of_another_machine_is_refused_with_the_way_out(self, terminal, here):
        result = terminal.run(f"rensei dispatch --profile {here} --input Hello")

        assert result.returncode == 1
        assert result.stderr.startswith("HOST_SESSION_WRONG_MACHINE: ")


class TestClaudeProgram:
    def test_is_taken_only_when_the_person_says_so(self, machine):
        logins.install_stand_in(machine)

        machine.succeed("rensei setup")
        unasked = machine.config()["contexts"][0]["login"]
        machine.succeed("rensei setup --login claude-code")

        assert (unasked, machine.config()["contexts"][0]["login"]) == ("none", "claude-code")

    def test_gets_model_system_effort_length_and_prompt_and_nothing_else(self, machine, here):
        called = logins.install_stand_in(machine)
        machine.succeed("rensei setup --login claude-code")

        written = machine.succeed(
            f"rensei dispatch --profile {here} --input 'What is it?' "
            "--system 'Be brief.' --effort low --max-tokens 900",
            ANTHROPIC_API_KEY="not passed on",
        )

        call = json.loads(called.read_text())
        arguments = " ".join(call["arguments"])
        assert written == "Slow and steady.\n"
        assert call["prompt"] == "What is it?"
        assert call["folder"] == []
        assert "--model claude-sonnet-5-5 --system-prompt Be brief. --effort low" in arguments
        assert call["environment"]["CLAUDE_CODE_MAX_OUTPUT_TOKENS"] == "900"
        assert not {"ANTHROPIC_API_KEY", "RENSEI_API_URL", "RENSEI_AUTH_TOKEN"} & set(call["environment"])

    def test_is_not_given_what_it_cannot_honour(self, machine, here):
        from PIL import Image

        called = logins.install_stand_in(machine)
        machine.succeed("rensei setup --login claude-code")
        Image.new("RGB", (8, 8)).save(machine.home / "black.png")

        result = machine.run(f"rensei dispatch --profile {here} --input Hello --image black.png")

        assert result.returncode == 1
        assert "cannot take blocks of the kind image" in result.stderr
        assert not called.exists()
        assert not CostEvent.objects.exists()

    @pytest.mark.parametrize(
        ("error", "code"),
        [
            (("Claude AI usage limit reached|1764000000", 429), "HOST_PLAN_EXHAUSTED"),
            (("Invalid API key · Please run /login", None), "HOST_LOGIN_MISSING"),
            (("API Error: 529 Overloaded", 529), "PROVIDER_OVERLOADED"),
            (("API Error: 400 Nonsense", 400), "PROVIDER_REJECTED"),
        ],
    )
    def test_that_fails_ends_the_run_with_its_reason(self, machine, here, error, code):
        logins.install_stand_in(machine, error=error)
        machine.succeed("rensei setup --login claude-code")

        result = machine.run(f"rensei dispatch --profile {here} --input Hello")

        assert result.returncode == 1
        assert Run.objects.get().error["code"] == code

    @pytest.mark.parametrize(
        ("fault", "words"),
        [({"status": 1}, "is not logged in"), ({"version": "1.0.3"}, "is too old"), (None, "no `claude` program")],
    )
    def test_that_is_of_no_use_is_said_to_be(self, machine, fault, words):
        if fault is not None:
            logins.install_stand_in(machine, **fault)
        ended = machine.run("rensei setup --login claude-code")

        result = machine.run("rensei doctor")

        assert (ended.returncode, result.returncode) == (1, 1)
        assert words in ended.stdout
        assert words in result.stdout

    def test_of_anthropic_signs_a_dispatch(self, machine, here, simulator, server):
        """The real program, against the simulator: https://www.npmjs.com/package/@anthropic-ai/claude-code"""
        if not CLAUDE.exists():
            pytest.skip("`npm install --prefix .venv/claude @anthropic-ai/claude-code` installs the real program")
        (machine.programs / "claude").symlink_to(CLAUDE)
        token = logins.log_in_to_claude(machine, base_url=simulator.url)
        machine.succeed("rensei setup --login claude-code")

        written = machine.succeed(f"rensei dispatch --profile {here} --input 'What is a vault?' --system 'Be brief.'")

        call = [one for one in simulator.requests() if one["path"] == "/v1/messages"][-1]
        run = Run.objects.get()
        assert "This is the Anthropic simulator" in written
        assert call["key_sha256"] == hashlib.sha256(token.encode()).hexdigest()
        assert run.usage["output_tokens"] == call["usage"]["output_tokens"]
        for content in (everything_stored(), everything_written(server), machine.everything_kept()):
            assert token.encode() not in content


class TestWorker:
    def dispatch(self, machine, profile: str, text: str = "Hello") -> str:
        return machine.succeed(f"rensei dispatch --profile {profile} --input '{text}' --no-wait").strip()

    def test_carries_out_what_waits_and_ends_with_ctrl_c(self, machine, console, here):
        self.dispatch(machine, here)

        worker = machine.start("rensei worker")
        wait_for(lambda: state() == "SUCCEEDED")
        written = end(worker)

        assert worker.returncode == 0
        assert "Stopped." in written

    def test_ends_the_run_under_way_before_it_stops(self, machine, here):
        called = logins.install_stand_in(machine, seconds=1)
        machine.succeed("rensei setup --login claude-code")
        self.dispatch(machine, here)

        worker = machine.start("rensei worker")
        wait_for(called.exists)
        written = end(worker, signal.SIGTERM)

        assert state() == "SUCCEEDED"
        assert "Finishing the run under way" in written

    def test_gives_a_run_up_at_a_second_ctrl_c(self, machine, here):
        called = logins.install_stand_in(machine, seconds=30)
        machine.succeed("rensei setup --login claude-code")
        self.dispatch(machine, here)

        worker = machine.start("rensei worker")
        wait_for(called.exists)
        worker.send_signal(signal.SIGINT)
        time.sleep(1)
        end(worker)

        assert worker.returncode == 130
        assert state() == "CANCELLED"

    def test_stops_a_run_that_is_cancelled_elsewhere(self, machine, here):
        called = logins.install_stand_in(machine, seconds=30)
        machine.succeed("rensei setup --login claude-code")
        run_id = self.dispatch(machine, here)

        worker = machine.start("rensei worker")
        wait_for(called.exists)
        machine.succeed(f"rensei run cancel {run_id}")
        wait_for(lambda: state() == "CANCELLED")
        end(worker)

    def test_stops_working_on_a_run_that_it_lost_and_says_so(self, machine, here):
        called = logins.install_stand_in(machine, seconds=30)
        machine.succeed("rensei setup --login claude-code")
        self.dispatch(machine, here)

        worker = machine.start("rensei worker")
        wait_for(called.exists)
        # What the reaper does to a worker that was silent for too long, and to one that comes back.
        Run.objects.update(epoch=99, lease_owner="somebody else")
        time.sleep(8)
        written = end(worker)

        assert "LEASE_LOST" in written

    def test_never_takes_the_run_of_another_worker(self, machine, console, here, simulator):
        workers = [machine.start("rensei worker") for _ in range(2)]
        for _ in range(4):
            self.dispatch(machine, here)

        wait_for(lambda: not Run.objects.exclude(state="SUCCEEDED").exists())
        for worker in workers:
            end(worker)

        assert len([one for one in simulator.requests() if one["path"] == "/v1/messages"]) == 4
        assert CostEvent.objects.count() == 4

    def test_survives_a_server_that_is_away(self, machine, here, server):
        called = logins.install_stand_in(machine, seconds=2)
        machine.succeed("rensei setup --login claude-code")
        self.dispatch(machine, here)
        door = Door(server)

        with door.open():
            move(machine, door.url)
            worker = machine.start("rensei worker")
            wait_for(called.exists)
        time.sleep(5)
        with door.open():
            wait_for(lambda: state() == "SUCCEEDED")
            written = end(worker)

        assert worker.returncode == 0, written


class Door:
    """An address that leads to the server, as long as it is open."""

    def __init__(self, server: Stack) -> None:
        self._server = (urlsplit(server.url).hostname, urlsplit(server.url).port)
        self._port = servers.free_port()
        self.url = f"http://{servers.LOOPBACK}:{self._port}"
        self.heard = bytearray()
        """Everything that came to the server through this door."""

    @contextmanager
    def open(self) -> Iterator[None]:
        inside: list[socket.socket] = []
        with socket.create_server((servers.LOOPBACK, self._port)) as listener:
            threading.Thread(target=self._let_in, args=(listener, inside), daemon=True).start()
            yield
            listener.shutdown(socket.SHUT_RDWR)
        for one in inside:
            one.close()

    def _let_in(self, listener: socket.socket, inside: list[socket.socket]) -> None:
        while True:
            try:
                guest, _ = listener.accept()
            except OSError:
                return
            host = socket.create_connection(self._server)
            inside += [guest, host]
            threading.Thread(target=self._carry, args=(guest, host, self.heard), daemon=True).start()
            threading.Thread(target=self._carry, args=(host, guest, bytearray()), daemon=True).start()

    def _carry(self, source: socket.socket, target: socket.socket, heard: bytearray) -> None:
        try:
            while data := source.recv(65536):
                heard += data
                target.sendall(data)
            target.shutdown(socket.SHUT_WR)
        except OSError:
            pass


def move(machine, url: str) -> None:
    """Have the machine reach the same server by another address."""
    document = machine.config()
    document["contexts"][0]["url"] = url
    machine.config_file.write_text(json.dumps(document))
    machine.variables["RENSEI_API_URL"] = url


def everything_stored() -> bytes:
    found: list[bytes] = []
    with connection.cursor() as cursor:
        for table in connection.introspection.table_names():
            cursor.execute(f'SELECT * FROM "{table}"')
            found.append(repr(cursor.fetchall()).encode())
    return b"".join(found)


def everything_written(server: Stack) -> bytes:
    return b"".join(path.read_bytes() for path in Path(server.folder).rglob("*") if path.is_file())
