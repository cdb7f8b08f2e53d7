"""The way in: the make targets, the locks, the example files, and how `manage.py start` begins and ends."""

import http.server
import os
import re
import secrets
import signal
import socket
import stat
import subprocess
import sys
import threading
import time
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import ClassVar

import pytest

from rensei import launcher
from rensei.launcher import LaunchFailed
from tests import servers
from tests.architecture.modules import ROOT
from tests.waiting import wait_until

MAKEFILE = (ROOT / "Makefile").read_text()
LOCKS = ["requirements.txt", "requirements-dev.txt", "requirements-key-services.txt"]
CLIENT_LOCKS = [f"tests/gateway/clients/{name}.txt" for name in ("libraries", "llm", "heavy")]


def pins(lock: str) -> dict[str, str]:
    """The locked packages of a file, each with everything that belongs to its entry."""
    entries = re.split(r"\n(?=\S)", (ROOT / lock).read_text().strip())
    return {re.split(r"[=\[ ]", entry)[0]: entry for entry in entries}


def named(*lists: list[str]) -> set[str]:
    """The names of the packages that lists of dependencies ask for."""
    return {re.split(r"[\[~=<> ]", line)[0].lower() for each in lists for line in each}


class TestMakefile:
    def test_help_lists_every_command(self):
        commands = set(re.findall(r"^\.PHONY: (.+)$", MAKEFILE, flags=re.MULTILINE))

        shown = subprocess.run(["make", "help"], cwd=ROOT, capture_output=True, text=True, check=True).stdout

        assert commands == set(re.findall(r"make (\w+) +\S", shown))
        assert {"demo", "run", "install", "test", "check", "help"} <= commands

    @pytest.mark.parametrize("document", ["README.md", "CONTRIBUTING.md", "docs/operations.md", ".ci/run"])
    def test_has_every_command_that_is_documented(self, document):
        named = set(re.findall(r"(?:^|`)make ([a-z]+)", (ROOT / document).read_text(), flags=re.MULTILINE))

        assert named
        assert named <= set(re.findall(r"^([a-z]+):", MAKEFILE, flags=re.MULTILINE))

    def test_names_the_python_that_is_missing(self, tmp_path):
        (tmp_path / "Makefile").write_text(MAKEFILE)
        (tmp_path / "requirements.txt").touch()
        tools = tmp_path / "bin"
        tools.mkdir()
        (tools / "sh").symlink_to("/bin/sh")
        make = next(f"{folder}/make" for folder in os.get_exec_path() if os.access(f"{folder}/make", os.X_OK))

        result = subprocess.run(
            [make, "install"], cwd=tmp_path, env={"PATH": str(tools)}, capture_output=True, text=True, check=False
        )

        assert result.returncode != 0
        assert "Rensei needs Python 3.11 or newer" in result.stderr

    def test_names_the_package_of_a_missing_venv(self, tmp_path):
        (tmp_path / "Makefile").write_text(MAKEFILE)
        (tmp_path / "requirements.txt").touch()
        # Debian's Python without python3-venv cannot import ensurepip.
        crippled = tmp_path / "python3"
        crippled.write_text(f'#!/bin/sh\ncase "$2" in *ensurepip*) exit 1;; esac\nexec {sys.executable} "$@"\n')
        crippled.chmod(0o755)

        result = subprocess.run(
            ["make", "install", f"PYTHON={crippled}"], cwd=tmp_path, capture_output=True, text=True, check=False
        )

        version = f"{sys.version_info.major}.{sys.version_info.minor}"
        assert result.returncode != 0
        assert f"apt-get install python{version}-venv" in result.stderr
        assert not (tmp_path / ".venv").exists()


class TestLocks:
    @pytest.mark.parametrize("lock", LOCKS + CLIENT_LOCKS)
    def test_pin_everything_with_hashes(self, lock):
        for name, entry in pins(lock).items():
            assert re.match(rf"{re.escape(name)}(\[\S+\])?==\S+", entry), entry[:80]
            assert re.search(r"--hash=sha256:[0-9a-f]{64}", entry), f"{name} has no hash"

    @pytest.mark.parametrize("lock", LOCKS + CLIENT_LOCKS)
    def test_name_no_address_to_load_from(self, lock):
        assert "://" not in (ROOT / lock).read_text()
        assert "index-url" not in (ROOT / lock).read_text()

    def test_of_the_tests_hold_what_runs_in_production(self):
        assert pins("requirements.txt").items() <= pins("requirements-dev.txt").items()

    def test_hold_every_dependency_of_the_project(self):
        project = tomllib.loads((ROOT / "pyproject.toml").read_text())
        extras = project["project"]["optional-dependencies"]
        always = named(project["project"]["dependencies"], extras["full"], extras["server"])

        assert always <= set(pins("requirements.txt"))
        assert named(*extras.values()) | always <= set(pins("requirements-key-services.txt"))

    def test_with_key_services_only_adds_to_what_every_installation_has(self):
        assert pins("requirements.txt").items() <= pins("requirements-key-services.txt").items()
        assert pins("requirements-key-services.txt").items() <= pins("requirements-dev.txt").items()


class TestCheckPortIsFree:
    def test_says_which_port_is_taken_and_what_to_do(self):
        with socket.create_server((launcher.LOOPBACK, 0)) as listener:
            port = listener.getsockname()[1]

            with pytest.raises(LaunchFailed, match=rf"Port {port} is taken .* PORT="):
                launcher.check_port_is_free(port)

    def test_accepts_a_free_one(self):
        launcher.check_port_is_free(servers.free_port())

    def test_refuses_a_number_that_is_no_port(self):
        with pytest.raises(LaunchFailed, match="70000 is not a port"):
            launcher.check_port_is_free(70_000)


class TestDataDir:
    def test_is_closed_to_other_users(self, tmp_path):
        launcher.create_data_dir(tmp_path / "var")

        assert stat.S_IMODE((tmp_path / "var").stat().st_mode) == 0o700

    def test_is_closed_when_it_was_open(self, tmp_path):
        tmp_path.chmod(0o755)

        launcher.create_data_dir(tmp_path)

        assert stat.S_IMODE(tmp_path.stat().st_mode) == 0o700


class TestSecretKey:
    def test_is_random_and_readable_by_its_owner_only(self, tmp_path):
        one, two = tmp_path / "keys/one", tmp_path / "keys/two"
        one.parent.mkdir()

        launcher.create_secret_key(one)
        launcher.create_secret_key(two)

        assert stat.S_IMODE(one.stat().st_mode) == 0o600
        assert len(one.read_text()) >= 50
        assert one.read_text() != two.read_text()
        assert sorted(one.parent.iterdir()) == [one, two]

    def test_stays_at_a_second_start(self, tmp_path):
        path = tmp_path / "secret_key"
        launcher.create_secret_key(path)
        before = path.read_text()

        launcher.create_secret_key(path)

        assert path.read_text() == before


TOKEN = "the token of the metrics"


class AnswersInTurn(http.server.BaseHTTPRequestHandler):
    """A server that gives one answer after the other, and then the last one for ever."""

    answers: ClassVar[list[tuple[int, bytes]]] = []

    def do_GET(self) -> None:
        assert self.headers["Authorization"] == f"Bearer {TOKEN}"
        status, body = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *details: object) -> None:
        """Say nothing."""


@pytest.fixture
def answering() -> Iterator[Callable[..., int]]:
    """Serve these answers on a port of this machine."""
    servers_started = []

    def serve(*answers: tuple[int, bytes]) -> int:
        AnswersInTurn.answers = list(answers)
        server = http.server.ThreadingHTTPServer((launcher.LOOPBACK, 0), AnswersInTurn)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        servers_started.append(server)
        return server.server_port

    yield serve
    for server in servers_started:
        server.shutdown()
        server.server_close()


class TestWaitUntilReady:
    def test_returns_when_nothing_is_missing_any_more(self, answering):
        port = answering((503, b'{"ready": false, "missing": ["No worker."]}'), (200, b'{"ready": true}'))

        assert launcher.wait_until_ready(port=port, token=TOKEN, seconds_max=10) == ""

    def test_says_what_is_missing_when_the_time_is_over(self, answering):
        port = answering((503, b'{"ready": false, "missing": ["The vault is shut.", "No worker."]}'))

        assert launcher.wait_until_ready(port=port, token=TOKEN, seconds_max=0.2) == "The vault is shut. No worker."

    def test_says_that_nobody_answers(self):
        missing = launcher.wait_until_ready(port=servers.free_port(), token=TOKEN, seconds_max=0.2)

        assert missing == "The server does not answer."


STUBBORN = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); "
UP = "import time; print('up', flush=True); time.sleep(60)"
PARENT = (
    "import subprocess, sys; subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)', sys.argv[1]]); "
)


def start(name: str, script: str, mark: str = "") -> str:
    """A line that starts a child. The mark is an argument of it, by which the child can be found."""
    return f"processes.start({name!r}, sys.executable, '-c', {script!r}, {mark!r})"


def run_launcher(*lines: str) -> "subprocess.Popen[str]":
    """Run some lines with `processes` in a process of their own, because signals are for the whole process."""
    script = ["import sys", "from rensei.launcher import LaunchFailed, Processes", "try:"]
    script += ["    with Processes({}) as processes:", *(f"        {line}" for line in lines)]
    script += ["except LaunchFailed as fault:", "    sys.exit(str(fault))"]
    return subprocess.Popen(
        [sys.executable, "-c", "\n".join(script)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def left_behind(mark: str, launcher_pid: int) -> list[str]:
    found = subprocess.run(["pgrep", "-f", mark], capture_output=True, text=True, check=False).stdout.split()
    return [pid for pid in found if int(pid) != launcher_pid]


class TestProcesses:
    @pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
    def test_stop_with_everything_they_started(self, number):
        mark = secrets.token_hex(8)
        with run_launcher(start("The child", PARENT + UP, mark), "processes.watch()") as process:
            assert process.stdout.readline() == "up\n"
            # The words of a program can be read a moment after it has begun.
            wait_until(lambda: len(left_behind(mark, process.pid)) == 2)

            process.send_signal(number)

            assert process.wait(timeout=20) == 0
            assert not left_behind(mark, process.pid)

    def test_stop_when_one_of_them_dies_and_say_which(self):
        mark = secrets.token_hex(8)
        lines = [start("The idler", UP, mark), start("The web server", "raise SystemExit(3)"), "processes.watch()"]
        with run_launcher(*lines) as process:
            _, complaint = process.communicate(timeout=20)

            assert process.returncode == 1
            assert "The web server has stopped by itself, so the rest stops too (exit code 3)" in complaint
            assert "The reason is above." in complaint
            assert not left_behind(mark, process.pid)

    def test_promise_no_reason_of_one_that_was_killed(self):
        killed = "import os, signal; os.kill(os.getpid(), signal.SIGKILL)"
        with run_launcher(start("The web server", killed), "processes.watch()") as process:
            _, complaint = process.communicate(timeout=20)

            assert "so the rest stops too (SIGKILL). It was killed" in complaint
            assert "above" not in complaint

    def test_say_which_step_failed(self):
        with run_launcher("processes.run('The preparation', sys.executable, '-c', 'raise SystemExit(1)')") as process:
            _, complaint = process.communicate(timeout=20)

            assert "The preparation failed (exit code 1)" in complaint

    def test_take_the_end_of_an_awaited_child_for_its_end_whenever_it_comes(self):
        # Without a pause between two looks, the end of about every second child falls between them.
        steps = "[processes.run('The preparation', sys.executable, '-S', '-c', '') for step in range(20)]"
        lines = ["import time", "time.sleep = lambda seconds: None", f"assert all({steps})"]
        with run_launcher(*lines) as process:
            _, complaint = process.communicate(timeout=60)

            assert process.returncode == 0, complaint

    def test_kill_one_that_will_not_stop_at_a_second_signal(self):
        mark = secrets.token_hex(8)
        with run_launcher(start("The child", STUBBORN + UP, mark), "processes.watch()") as process:
            assert process.stdout.readline() == "up\n"

            process.send_signal(signal.SIGINT)
            time.sleep(1)
            assert process.poll() is None
            process.send_signal(signal.SIGINT)

            assert process.wait(timeout=10) == 0
            assert not left_behind(mark, process.pid)


class TestSkips:
    SKIPS: ClassVar[dict[str, str]] = {
        "test_of_a_test": "import pytest\ndef test_it(): pytest.skip('for a reason')",
        "test_by_a_mark": "import pytest\n@pytest.mark.skip(reason='for a reason')\ndef test_it(): pass",
        "test_of_a_file": "import pytest\npytest.skip('for a reason', allow_module_level=True)",
    }

    def run_pytest(self, folder: Path, *, require_all: str) -> "subprocess.CompletedProcess[str]":
        for name, text in self.SKIPS.items():
            (folder / f"{name}.py").write_text(text)
        command = [sys.executable, "-m", "pytest", "-rA", "-p", "tests.machine", "-p", "no:cacheprovider"]
        return subprocess.run(
            [*command, "--continue-on-collection-errors", "-c", os.devnull, "--rootdir", str(folder), str(folder)],
            cwd=ROOT,
            # No other plugin is loaded, which takes longer than these tests.
            env={"PATH": os.environ["PATH"], "RENSEI_REQUIRE_ALL": require_all, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"},
            capture_output=True,
            text=True,
            check=False,
        )

    def test_fail_where_every_test_has_to_run(self, tmp_path):
        result = self.run_pytest(tmp_path, require_all="1")

        assert result.returncode not in {0, 5}, result.stdout
        for name in self.SKIPS:
            said = re.search(
                rf"^{name}\S* was skipped, and here every test has to run: (.*)$", result.stdout, re.MULTILINE
            )
            assert said, result.stdout
            assert "for a reason" in said[1]

    def test_are_let_through_elsewhere(self, tmp_path):
        result = self.run_pytest(tmp_path, require_all="")

        assert result.returncode == 0, result.stdout
        assert "3 skipped" in result.stdout


class TestStart:
    def test_refuses_a_taken_port_in_one_sentence(self, tmp_path):
        with socket.create_server((launcher.LOOPBACK, 0)) as listener:
            port = listener.getsockname()[1]

            result = subprocess.run(
                [sys.executable, "manage.py", "start", "--port", str(port)],
                cwd=ROOT,
                env={"PATH": os.environ["PATH"], "RENSEI_DATA_DIR": str(tmp_path / "var")},
                capture_output=True,
                text=True,
                check=False,
            )

        assert result.returncode == 1
        assert result.stderr.strip() == (
            f"CommandError: Port {port} is taken by another program. Choose another one, such as PORT={port + 100}."
        )
        assert not (tmp_path / "var").exists()
