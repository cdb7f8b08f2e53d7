"""What a sandbox of this machine isolates, seen from inside."""

import asyncio
import contextlib
import json
import os
import re
import secrets
import select
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from rensei.core.secret import Secret
from rensei.dispatch.pools import bubblewrap, seccomp
from rensei.dispatch.pools.bubblewrap import Bubblewrap
from rensei.dispatch.pools.driver import SandboxFault

MIB = 1024 * 1024


# What a sandbox may be created for, and what it can write to then.
PURPOSES: dict[str, tuple[dict[str, bool], list[str]]] = {
    "call": ({}, sorted(bubblewrap.FILES_MIB)),
    "agent": ({"for_agent": True}, sorted(bubblewrap.AGENT_FILES_MIB)),
    "claude-code": ({"for_agent": True, "with_claude_code": True}, sorted(bubblewrap.AGENT_FILES_MIB)),
}


def run_inside(
    program: bytes, arguments: Sequence[str] = (), *, lines_bytes_max: int = MIB, **purpose: bool
) -> tuple[str, list[str]]:
    """Run a program in a sandbox, and give its output, and the arguments of every process of this machine meanwhile."""

    async def carry() -> tuple[str, list[str]]:
        driver = Bubblewrap()
        box = await driver.create(
            secrets.token_hex(4),
            token=Secret("rsr_canary"),
            request_bytes_max=1,
            lines_bytes_max=lines_bytes_max,
            **purpose,
        )
        try:
            await box.start([*Bubblewrap.program_of("runner.py"), *arguments], files={"runner.py": program})
            commands = _commands()
            lines = [line.decode() async for line in box.follow()]
        finally:
            await box.destroy()
            await driver.close()
        return "".join(lines), commands

    return asyncio.run(carry())


def probe() -> str:
    async def ask() -> str:
        driver = Bubblewrap()
        try:
            return await driver.probe()
        finally:
            await driver.close()

    return asyncio.run(ask())


@pytest.fixture(scope="module")
def _can_isolate() -> None:
    """Leave these tests out, with the reason, where a worker would offer no sandboxes."""
    if refusal := probe():
        pytest.skip(f"No sandboxes here: {refusal}")


@pytest.mark.usefixtures("_can_isolate")
class TestASandbox:
    @pytest.mark.parametrize(("purpose", "writable"), PURPOSES.values(), ids=PURPOSES)
    def test_reaches_nothing_of_the_host(
        self, tmp_path: Path, settings: Any, purpose: dict[str, bool], writable: list[str]
    ) -> None:
        settings.RENSEI_CLAUDE_CODE = "/usr/bin/true"
        secret_file = tmp_path / "keyring.json"
        secret_file.write_text("secret")
        name = f"rensei-test-{secrets.token_hex(4)}"
        with socket.create_server(("127.0.0.1", 0)) as server, socket.socket(socket.AF_UNIX) as abstract:
            abstract.bind(f"\0{name}")
            abstract.listen()
            # The needle is passed reversed, or its own argument would be found.
            needle = "rsr_canary"[::-1]
            arguments = [str(server.getsockname()[1]), name, str(secret_file), needle]

            said, commands = run_inside((Path(__file__).parent / "probe_inside.py").read_bytes(), arguments, **purpose)

        found: dict[str, Any] = json.loads(said)
        assert found.pop("processes") <= 3
        assert found == {
            "host port": "ConnectionRefusedError",
            "internet": "OSError",
            "names": "gaierror",
            "abstract socket": "ConnectionRefusedError",
            "vsock": "PermissionError",
            "netlink": "PermissionError",
            "packet": "PermissionError",
            "alg": "PermissionError",
            "file of the server": "FileNotFoundError",
            "shadow": "FileNotFoundError",
            "devices": "FileNotFoundError",
            "sys": "FileNotFoundError",
            "write to usr": "OSError",
            "write to root": "OSError",
            "write to dev": "OSError",
            "write to claude code": False,
            "write beside": "OSError",
            "writable mounts": writable,
            "memory file": "PermissionError",
            "shared memory": -1,
            "message queue": -1,
            "workspace": "worked",
            "user": 1000,
            "rights": ["0000000000000000"],
            "environment": found["environment"],
            "needle": False,
        }
        assert set(found["environment"]) <= {"HOME", "PATH", "PWD", "LC_CTYPE"}
        assert not [command for command in commands if "rsr_canary" in command]

    def test_makes_no_namespaces(self) -> None:
        said, _ = run_inside(b"import ctypes; print(ctypes.CDLL(None).unshare(0x10000000))")

        assert said.strip() == "-1"

    def test_ends_with_what_it_started(self) -> None:
        program = (
            b"import os, time\nif os.fork() == 0:\n    os.setsid()\n    time.sleep(600)\nprint('left', flush=True)"
        )

        name = secrets.token_hex(8)

        said, meanwhile = run_inside(program, [name])

        assert said == "left\n"
        assert [command for command in meanwhile if name in command]
        assert not [command for command in _commands() if name in command]

    def test_that_writes_too_much_is_ended(self) -> None:
        with pytest.raises(SandboxFault, match="wrote too much"):
            run_inside(b"while True: print('x' * 1000)")
        with pytest.raises(SandboxFault, match="too long a line"):
            run_inside(b"import sys\nwhile True: sys.stdout.write('x' * 1000)")

    def test_cannot_fill_the_memory_with_files(self) -> None:
        said, _ = run_inside(b"open('/tmp/x', 'wb').write(bytes(65 * 1024 * 1024))")

        assert "No space left on device" in said

    def test_has_little_memory_and_few_processes(self) -> None:
        program = b"""
import os, sys, time
try:
    bytes(600 * 1024 * 1024)
except MemoryError:
    print("memory")
children = []
try:
    while True:
        child = os.fork()
        if not child:
            time.sleep(600)
            os._exit(0)
        children.append(child)
except BlockingIOError:
    print(len(children) < 16)
print(open("/proc/self/oom_score_adj").read().strip())
"""

        said, _ = run_inside(program)

        assert said.split() == ["memory", "True", "1000"]

    def test_sees_nothing_that_was_installed_beside_the_system(self) -> None:
        said, _ = run_inside(b"import os; print([os.listdir(name) for name in ('/usr/local', '/usr/src')])")

        assert said.strip() == "[[], []]"

    def test_keeps_its_files_off_the_disk(self) -> None:
        program = b"import time; print(open('/run/rensei/runner.py').read()); time.sleep(0.2)"
        found: list[str] = []

        async def carry() -> None:
            driver = Bubblewrap()
            box = await driver.create("disk", token=Secret(""), request_bytes_max=1, lines_bytes_max=MIB)
            await box.start(Bubblewrap.program_of("runner.py"), files={"runner.py": program})
            async for _ in box.follow():
                found.extend(path.name for path in bubblewrap._folder_of("disk").iterdir())
                break
            await box.destroy()
            await driver.close()

        asyncio.run(carry())

        assert found == ["relay.sock"]

    def test_leaves_no_folder(self) -> None:
        run_inside(b"")

        assert bubblewrap._folders("box") == []


class TestTheProbe:
    def test_says_what_is_missing(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(bubblewrap, "PYTHONS", ("/nowhere/python3",))
        assert "needs Python" in probe()
        monkeypatch.setattr(bubblewrap.shutil, "which", lambda _: None)
        assert "bubblewrap is not installed" in probe()
        monkeypatch.setattr(seccomp.platform, "machine", lambda: "aarch64")
        assert "x86_64 only" in probe()

    def test_is_not_swept_by_another_worker(self) -> None:
        folder = Path(tempfile.gettempdir(), bubblewrap._prefix("probe") + secrets.token_hex(4))
        folder.mkdir()

        def swept() -> list[str]:
            async def ask() -> list[str]:
                driver = Bubblewrap()
                found = list(await driver.list())
                await driver.close()
                return found

            return asyncio.run(ask())

        assert folder.name not in str(swept())
        assert folder.exists()
        os.utime(folder, (0, 0))
        swept()
        assert not folder.exists()

    def test_names_its_installation(self, settings: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        before = bubblewrap._prefix("box")
        monkeypatch.setitem(settings.DATABASES["default"], "HOST", "db.other.example")

        assert bubblewrap._prefix("box") != before

    @pytest.mark.usefixtures("_can_isolate")
    def test_gives_the_words_of_bubblewrap(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(bubblewrap, "INSIDE", "/usr/nowhere")

        assert re.search("bubblewrap says: bwrap: .*Read-only file system", probe())


def _commands() -> list[str]:
    """Read the arguments of every process of this machine."""
    found = []
    for entry in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            found.append(entry.read_text())
    return found


@pytest.mark.usefixtures("_can_isolate")
class TestTheEnd:
    def test_of_a_sandbox_that_starts_at_that_moment_leaves_nothing(self) -> None:
        """What is left holds the pipe of its output."""
        for step in range(24):
            options = ["--unshare-all", "--die-with-parent", "--ro-bind", "/", "/"]
            started = subprocess.Popen(["bwrap", *options, "--", "sleep", "30"], stdout=subprocess.PIPE)
            assert started.stdout is not None
            time.sleep(step % 12 * 0.0007)

            bubblewrap.kill_whole(started)

            ended, _, _ = select.select([started.stdout], [], [], 5)
            started.stdout.close()
            assert ended

    def test_may_be_known_to_have_ended_at_that_moment(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Where its exit code is read elsewhere, there is none to wait for."""
        wait_for = os.waitid
        ended = subprocess.Popen(["/bin/sleep", "600"])

        def late(*args: int) -> object:
            ended.kill()
            ended.wait()
            return wait_for(*args)

        monkeypatch.setattr(os, "waitid", late)

        bubblewrap.kill_whole(ended)

        assert ended.returncode == -signal.SIGKILL
