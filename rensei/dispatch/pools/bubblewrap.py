"""
The pool `sandbox`: sandboxes on the machine of the worker, made of namespaces by bubblewrap.

A sandbox has its own users, processes, network and files, and no network but the relay's socket. It ends with the
worker: the kernel kills its first process with the thread that started it. https://github.com/containers/bubblewrap
"""

import asyncio
import contextlib
import hashlib
import os
import re
import secrets
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import AsyncIterator, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import aiohttp
import structlog
from django.conf import settings

from rensei.core.limits import MIB, limit
from rensei.core.secret import Secret
from rensei.dispatch import agents
from rensei.dispatch.models import CapacityPool
from rensei.dispatch.pools import claude_code, seccomp
from rensei.dispatch.pools.driver import AGENT_LINE_BYTES_MAX, LINE_BYTES_MIN, Fault, GitLogin, Heard, SandboxFault
from rensei.dispatch.pools.relay import Relay

# Where a sandbox finds what was written for it, and the socket of the relay.
INSIDE = "/run/rensei"
PYTHONS = ("/usr/bin/python3", "/usr/local/bin/python3")
PROBE_SECONDS = 10.0
NOT_STARTED = "The sandbox could not be started."
# What a worker that is killed leaves of a probe is removed when no probe can be so old.
PROBE_LEFT_SECONDS = 600.0
MEMORY_MIB = limit(
    512, "MiB", what="Memory of each process in a sandbox", told="the run: its program gets no more, and usually ends"
)
PROCESSES_MAX = limit(16, "processes", what="Processes of a sandbox", told="the run: its program can start no more")
FILES_MIB = {"/tmp": 16, "/workspace": 64, "/dev/shm": 16}  # noqa: S108 - inside the sandbox
CPU_SECONDS_MAX = limit(
    300, "seconds", what="Processor time of each process in a sandbox", told="the run: its program is killed"
)
AGENT_MEMORY_MIB = limit(
    1536, "MiB", what="Memory of all processes of an agent together", told="the run: it ends with `SANDBOX_LOST`"
)
AGENT_PROCESS_MEMORY_MIB = limit(
    1024, "MiB", what="Memory of each process of an agent", told="the run: its program gets no more, and usually ends"
)
AGENT_PROCESSES_MAX = limit(
    64, "processes", what="Processes and threads of an agent", told="the run: its program can start no more"
)
AGENT_FILES_MIB = {"/tmp": 64, "/workspace": 256, "/home/agent": 64, "/dev/shm": 16}  # noqa: S108
CLAUDE_CODE_ADDRESS_MIB = limit(
    4096,
    "MiB",
    what="Addresses of each process of Claude Code, whose memory is that of an agent",
    told="the run: its program gets no more, and usually ends",
)
# Those of its runner, which has to end the others when they have used up theirs.
_RUNNER_PROCESSES = 16


@dataclass(frozen=True, kw_only=True)
class Room:
    """
    What a sandbox has: the limits of each process, the sizes of its folders, and the memory of all together.

    `line_bytes_max` is the longest line of its program, if that is less than all may have. `has_claude_code` says
    whether Claude Code is there.
    """

    limits: Mapping[str, int]
    files_mib: Mapping[str, int]
    memory_mib: int | None = None
    line_bytes_max: int | None = None
    home: str = "/workspace"
    has_claude_code: bool = False


FOR_CALL = Room(
    limits={
        "as": MEMORY_MIB * MIB,
        "nproc": PROCESSES_MAX,
        "cpu": CPU_SECONDS_MAX,
        "fsize": max(FILES_MIB.values()) * MIB,
        "nofile": 64,
        "core": 0,
    },
    files_mib=FILES_MIB,
)
FOR_AGENT = Room(
    limits={
        "as": AGENT_PROCESS_MEMORY_MIB * MIB,
        "nproc": AGENT_PROCESSES_MAX + _RUNNER_PROCESSES,
        "cpu": agents.SECONDS_MAX,
        "fsize": max(AGENT_FILES_MIB.values()) * MIB,
        "nofile": 256,
        "core": 0,
    },
    files_mib=AGENT_FILES_MIB,
    memory_mib=AGENT_MEMORY_MIB,
    line_bytes_max=AGENT_LINE_BYTES_MAX,
    home="/home/agent",
)


def for_claude_code() -> Room:
    """Return the room of an agent, with Claude Code in it, which reserves far more addresses than it uses memory."""
    limits = {**FOR_AGENT.limits, "as": CLAUDE_CODE_ADDRESS_MIB * MIB}
    return replace(FOR_AGENT, limits=limits, has_claude_code=True)


# As root, the worker gives each sandbox a user of its own, far from those that a system gives out.
FIRST_UID, UIDS = 0x70000000, 0x10000
_UID, _TAIL_LINES = 1000, 5
_OWN_MEMORY = re.compile(r"^Rss(?:Anon|Shmem):\s+(\d+) kB$", re.MULTILINE)
_FILES = {
    "passwd": b"agent:x:%d:%d::/workspace:/bin/sh\n" % (_UID, _UID),
    "group": b"agent:x:%d:\n" % _UID,
    "hosts": b"127.0.0.1 localhost\n",
    "nsswitch.conf": b"passwd: files\ngroup: files\nhosts: files\n",
}

logger = structlog.get_logger(__name__)


class Bubblewrap:
    """
    The driver. It is bound to the event loop of its worker.

    `probe` returns the reason why it cannot be used, or "". `list` returns the ids of the sandboxes that exist, and
    `destroy` removes one by its id, if it exists.
    """

    provider_id = CapacityPool.Provider.SANDBOX.value

    def __init__(self) -> None:
        # A connection that was kept may be closed by then, and what was sent on it may not be repeated.
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0, force_close=True),
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=10),
            auto_decompress=False,
            trust_env=False,
        )

    async def probe(self) -> str:
        """Start a sandbox that does nothing, and return the reason why this fails, or ""."""
        if not seccomp.is_supported():
            return f"sandboxes are offered on {seccomp.MACHINE} only."
        if shutil.which("bwrap") is None:
            return "bubblewrap is not installed (the package `bubblewrap`, version 0.8 or later)."
        if shutil.which("prlimit") is None:
            return "prlimit is not installed (the package `util-linux`)."
        if _python() is None:
            return f"a sandbox needs Python, as {' or '.join(PYTHONS)}."
        return await self._try(["/usr/bin/true"], room=FOR_CALL)

    async def probe_claude_code(self) -> str:
        """Start Claude Code in a sandbox, and return the reason why this fails, or ""."""
        if claude_code.find() is None:
            return "it is not installed on a worker, or not where RENSEI_CLAUDE_CODE says."
        return await self._try([claude_code.INSIDE, "--version"], room=for_claude_code(), says="Claude Code")

    async def _try(self, command: Sequence[str], *, room: Room, says: str = "") -> str:
        """Start a program in a sandbox that says something and ends, and return the reason why this fails, or ""."""
        folder = Path(tempfile.gettempdir(), f"{_prefix('probe')}{secrets.token_hex(4)}")
        box = LocalBox(folder, self._relay(Secret(""), request_bytes_max=1), lines_bytes_max=MIB, room=room)
        try:
            await box.start(command, files={})
            said = await asyncio.wait_for(_all_of(box.follow()), PROBE_SECONDS)
        except SandboxFault as fault:
            return fault.detail or fault.reason
        except TimeoutError:
            return "a sandbox did not start in time."
        finally:
            await box.destroy()
        return "" if box.exit_code == 0 and says in said else f"bubblewrap says: {said or 'nothing'}"

    async def create(
        self,
        box_id: str,
        *,
        token: Secret,
        request_bytes_max: int,
        lines_bytes_max: int,
        for_agent: bool = False,
        with_claude_code: bool = False,
        login: GitLogin | None = None,
    ) -> "LocalBox":
        assert login is None, "A dispatch that clones on a machine without a network is refused"
        relay = self._relay(token, request_bytes_max=request_bytes_max, for_agent=for_agent)
        room = FOR_AGENT if for_agent else FOR_CALL
        if with_claude_code:
            room = for_claude_code()
        return LocalBox(_folder_of(box_id), relay, lines_bytes_max=lines_bytes_max, room=room)

    @staticmethod
    def program_of(file: str) -> Sequence[str]:
        python = _python()
        assert python is not None, "The probe has found it"
        return [python, "-I", f"{INSIDE}/{file}"]

    async def list(self) -> Mapping[str, None]:
        """List the sandboxes of this installation on this machine by their folders."""
        for left in _folders("probe"):
            with contextlib.suppress(FileNotFoundError):
                if left.stat().st_mtime < time.time() - PROBE_LEFT_SECONDS:
                    shutil.rmtree(left, ignore_errors=True)
        return {folder.name.removeprefix(_prefix("box")): None for folder in _folders("box")}

    async def destroy(self, box_id: str) -> None:
        """Remove what a worker that died has left of a sandbox. Its processes died with the worker."""
        shutil.rmtree(_folder_of(box_id), ignore_errors=True)

    async def close(self) -> None:
        await self._session.close()

    def _relay(self, token: Secret, *, request_bytes_max: int, for_agent: bool = False) -> Relay:
        return Relay(
            self._session,
            server_url=settings.PUBLIC_URL,
            token=token,
            request_bytes_max=request_bytes_max,
            for_agent=for_agent,
        )


class LocalBox:
    """A sandbox: its relay, the folder of the relay's socket, and its first process once it has started."""

    # This machine charges for none.
    made = None

    def __init__(self, folder: Path, relay: Relay, *, lines_bytes_max: int, room: Room = FOR_CALL) -> None:
        self.relay = relay
        self._folder = folder
        self._lines_bytes_max = lines_bytes_max
        self._line_bytes_max = room.line_bytes_max or lines_bytes_max
        self._room = room
        is_root = os.geteuid() == 0
        self._uid = FIRST_UID + secrets.randbelow(UIDS) if is_root else os.geteuid()
        # A process that is not root can give its sandboxes no other user, and need not.
        self._user: dict[str, Any] = {"user": self._uid, "group": self._uid, "extra_groups": ()} if is_root else {}
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def exit_code(self) -> int | None:
        return self._process.poll() if self._process is not None else None

    @property
    def heard(self) -> Heard:
        relay = self.relay
        return Heard(
            refusal=relay.refusal,
            cap_refusal=relay.cap_refusal,
            is_unreachable=relay.is_unreachable,
            is_cut=relay.is_cut,
        )

    async def start(self, arguments: Sequence[str], *, files: Mapping[str, bytes]) -> None:
        """
        Start a program. It finds the files and the relay's socket in `INSIDE`.

        It must be called in the loop's thread, with which the sandbox ends.

        :raises SandboxFault: if that fails
        """
        try:
            self._folder.mkdir(mode=0o700)
            await self.relay.open(self._folder / "relay.sock")
            self._give_away()
            self._process = self._start(arguments, files)
        except OSError as fault:
            raise SandboxFault(Fault.NOT_CREATED, NOT_STARTED, detail=f"{NOT_STARTED} {fault}") from fault

    def _give_away(self) -> None:
        """Make the folder and the socket those of the sandbox's user, and of no other."""
        socket = self._folder / "relay.sock"
        socket.chmod(0o600)
        for path in (socket, self._folder):
            os.chown(path, self._uid, -1)

    def _start(self, arguments: Sequence[str], files: Mapping[str, bytes]) -> "subprocess.Popen[bytes]":
        with contextlib.ExitStack() as opened:
            # They are never on a disk: a prompt would stay there after a worker that was killed.
            inside = {f"{INSIDE}/{name}": opened.enter_context(_in_memory(content)) for name, content in files.items()}
            inside |= {f"/etc/{name}": opened.enter_context(_in_memory(content)) for name, content in _FILES.items()}
            rules = opened.enter_context(_in_memory(seccomp.filter_program()))
            options = _options(self._folder / "relay.sock", files=inside, rules=rules, room=self._room)
            given = opened.enter_context(_in_memory("\0".join(options).encode()))
            limited = ["prlimit", *(f"--{name}={most}" for name, most in self._room.limits.items()), *arguments]
            command = [*_expendable(), "bwrap", "--args", str(given), "--", *limited]
            # The environment of bubblewrap itself can be read inside.
            return subprocess.Popen(  # noqa: S603 - the arguments are ours
                command,
                env={"PATH": os.defpath},
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                pass_fds=[*inside.values(), rules, given],
                start_new_session=True,
                **self._user,
            )

    async def follow(self) -> AsyncIterator[bytes]:
        """
        Yield the lines of the program until it has ended.

        :raises SandboxFault: if it writes too much
        """
        assert self._process is not None
        assert self._process.stdout is not None
        reader = asyncio.StreamReader(limit=self._line_bytes_max)
        loop = asyncio.get_running_loop()
        pipe, _ = await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), self._process.stdout)
        written = 0
        try:
            while line := await reader.readline():
                written += max(len(line), LINE_BYTES_MIN)
                if written > self._lines_bytes_max:
                    raise SandboxFault(Fault.DEAD, "Its program wrote too much.")
                yield line
        except ValueError as fault:
            raise SandboxFault(Fault.DEAD, "Its program wrote too long a line.") from fault
        finally:
            pipe.close()

    def require_memory(self) -> None:
        """:raises SandboxFault: if its processes use more than all of them together may"""
        if self._process is not None and self._room.memory_mib is not None:
            used = sum(map(_own_kib, _descendants(self._process.pid)))
            if used > self._room.memory_mib * 1024:
                raise SandboxFault(
                    Fault.DEAD, f"Its programs used more than {self._room.memory_mib} MiB of memory together."
                )

    async def order_stop(self) -> None:
        self.relay.order_stop()

    async def destroy(self) -> bool:
        """Kill everything in the sandbox, and remove its folder. What fails of it is logged, and swept later."""
        try:
            if self._process is not None:
                await asyncio.get_running_loop().run_in_executor(None, kill_whole, self._process)
                assert self._process.stdout is not None
                self._process.stdout.close()
            await self.relay.close()
            shutil.rmtree(self._folder, ignore_errors=True)
        except OSError:
            logger.exception("sandbox_not_removed")
        # Its processes end with the worker at the latest.
        return True


def _options(socket: Path, *, files: Mapping[str, int], rules: int, room: Room) -> list[str]:
    """The arguments of bubblewrap. They are passed by a file, so that no list of processes shows them."""
    options = ["--unshare-user", "--unshare-all", "--disable-userns", "--uid", str(_UID), "--gid", str(_UID)]
    options += ["--hostname", "sandbox", "--die-with-parent", "--new-session", "--cap-drop", "ALL", "--clearenv"]
    options += ["--ro-bind", "/usr", "/usr", *_without_local(), *system_folders()]
    options += ["--dir", "/etc", "--ro-bind-try", "/etc/alternatives", "/etc/alternatives"]
    options += ["--proc", "/proc", "--dev", "/dev"]
    for path_inside, mib in room.files_mib.items():
        options += ["--size", str(mib * MIB), "--tmpfs", path_inside]
    options += ["--remount-ro", "/dev", "--dir", INSIDE, "--ro-bind", str(socket), f"{INSIDE}/relay.sock"]
    for place, file in files.items():
        options += ["--ro-bind-data", str(file), place]
    if room.has_claude_code:
        program = claude_code.find()
        if program is None:
            raise SandboxFault(Fault.NOT_CREATED, "Claude Code is no longer installed on the worker.")
        options += ["--ro-bind", str(program), claude_code.INSIDE]
    options += ["--setenv", "PATH", "/usr/local/bin:/usr/bin:/bin", "--setenv", "HOME", room.home]
    return [*options, "--chdir", "/workspace", "--remount-ro", "/", "--seccomp", str(rules)]


def system_folders() -> Iterator[str]:
    """Distributions place these differently: as links into /usr, or as folders."""
    for name in ("bin", "sbin", "lib", "lib64"):
        path = Path("/", name)
        if path.is_symlink():
            yield from ("--symlink", str(path.readlink()), str(path))
        elif path.is_dir():
            yield from ("--ro-bind", str(path), str(path))


def _descendants(pid: int) -> Iterator[int]:
    """List a process and all below it, as far as they still exist."""
    waiting = [pid]
    while waiting:
        each = waiting.pop()
        yield each
        for children in Path(f"/proc/{each}/task").glob("*/children"):
            with contextlib.suppress(OSError):
                waiting += map(int, children.read_text().split())


def _own_kib(pid: int) -> int:
    """
    Return the KiB of memory that a process has beside files of the disk, or 0 if it has ended.

    Memory that processes share counts for each of them, and so do files in memory that they have mapped.
    """
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return 0
    return sum(map(int, _OWN_MEMORY.findall(status)))


def _without_local() -> list[str]:
    """Hide what an administrator has put into /usr: a server may be installed there, with its configuration."""
    options = []
    python = _python() or ""
    for name in ("/usr/local", "/usr/src"):
        path = Path(name)
        if not path.is_dir() or path.is_symlink():
            continue
        options += ["--size", str(MIB), "--tmpfs", name]
        if python.startswith(f"{name}/"):
            for folder in ("bin", "lib"):
                options += ["--ro-bind", f"{name}/{folder}", f"{name}/{folder}"]
        options += ["--remount-ro", name]
    return options


def _expendable() -> Sequence[str]:
    """The command before one that should wait for the server's turn, and be killed first where memory ends."""
    return ["nice", "-n", "19", *(["choom", "-n", "1000", "--"] if shutil.which("choom") else [])]


def kill_whole(process: "subprocess.Popen[bytes]") -> None:
    """
    Kill bubblewrap and what it has started, which may be at that moment.

    The first process of a sandbox dies with bubblewrap only from a moment after its start on. So bubblewrap is stopped
    before: then its children are known, and no more come to be.
    """
    if process.poll() is None:
        process.send_signal(signal.SIGSTOP)
        # Its exit code may have been read meanwhile.
        with contextlib.suppress(ChildProcessError):
            os.waitid(os.P_PID, process.pid, os.WSTOPPED | os.WEXITED | os.WNOWAIT)
        for child in children_of(process.pid):
            with contextlib.suppress(ProcessLookupError):
                os.kill(child, signal.SIGKILL)
        process.kill()
    process.wait()


def children_of(pid: int) -> list[int]:
    with contextlib.suppress(OSError):
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    return []


@contextlib.contextmanager
def _in_memory(content: bytes) -> Iterator[int]:
    """Give a file that is in no folder."""
    file = os.memfd_create("sandbox")
    try:
        with open(file, "wb", closefd=False) as writing:
            writing.write(content)
        os.lseek(file, 0, os.SEEK_SET)
        yield file
    finally:
        os.close(file)


def _folder_of(box_id: str) -> Path:
    return Path(tempfile.gettempdir(), _prefix("box") + box_id)


def _folders(kind: str) -> Collection[Path]:
    return list(Path(tempfile.gettempdir()).glob(_prefix(kind) + "*"))


def _prefix(kind: str) -> str:
    """Name the folders of this installation, since several may use one machine."""
    database = settings.DATABASES["default"]
    place = ":".join(str(part) for part in (settings.DATA_DIR, *map(database.get, ("HOST", "PORT", "NAME"))))
    return f"rensei-{hashlib.sha256(place.encode()).hexdigest()[:8]}-{kind}-"


def _python() -> str | None:
    return next((path for path in PYTHONS if os.access(path, os.X_OK)), None)


async def _all_of(lines: AsyncIterator[bytes]) -> str:
    said = [line.decode(errors="replace").strip() async for line in lines]
    return " ".join(said[-_TAIL_LINES:])
