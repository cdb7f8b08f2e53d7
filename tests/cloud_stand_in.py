"""
What the stand-ins for clouds have in common: sandboxes whose commands really run, and the edge of the cloud.

A sandbox is a folder, and each command in it runs in bubblewrap without a network. Its port 443 leads to the edge of
the stand-in, which lets requests to the allowed hosts pass and adds the headers of their rules, as a cloud's does. The
edge takes the place of the internet too: it sends what is for a host to the address that a test gives for it.

It differs from a cloud: all commands of a sandbox have one user, and its memory and processors have no limit.
"""

import asyncio
import contextlib
import datetime
import os
import secrets
import shutil
import ssl
import subprocess
import tempfile
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import aiohttp
from aiohttp import web

from rensei.dispatch.pools.bubblewrap import children_of, kill_whole, system_folders
from tests.certificates import make_certificate
from tests.servers import LOOPBACK

WITHOUT_PYTHON = "without-python"
# An image that has Claude Code, if the stand-in is told where it is.
WITH_CLAUDE_CODE = "claude"
_UID = "0"
_HOP_BY_HOP = {"connection", "content-length", "transfer-encoding", "host", "keep-alive"}

# The first process of a command: it leads connections to port 443 outside, starts the command and passes on SIGTERM. It
# is number 1 of its namespace, so that the command cannot kill it.
_INIT = """
import os, signal, socket, subprocess, sys, threading

def pump(source, target):
    try:
        while piece := source.recv(65536):
            target.sendall(piece)
    except OSError:
        pass
    for end, how in ((source, socket.SHUT_RD), (target, socket.SHUT_WR)):
        try:
            end.shutdown(how)
        except OSError:
            pass

def lead(listener):
    while True:
        inner, _ = listener.accept()
        outer = socket.socket(socket.AF_UNIX)
        outer.connect("/edge.sock")
        for pair in ((inner, outer), (outer, inner)):
            threading.Thread(target=pump, args=pair, daemon=True).start()

threading.Thread(target=lead, args=(socket.create_server(("127.0.0.1", 443)),), daemon=True).start()
try:
    command = subprocess.Popen(sys.argv[1:])
except OSError:
    os._exit(127)
signal.signal(signal.SIGTERM, lambda number, frame: command.send_signal(number))
code = command.wait()
os._exit(code if code >= 0 else 128 - code)
"""


@dataclass(kw_only=True)
class Box:
    """
    A sandbox: what it was created with, its folder and its commands.

    `rules` are the hosts that it may reach, and the headers that are added to requests to each.
    """

    id: str
    key: str
    new: Mapping[str, Any]
    image: str
    seconds: float
    tags: Mapping[str, str]
    rules: Mapping[str, Mapping[str, str]]
    folder: Path
    is_dead: bool = False
    commands: dict[Any, subprocess.Popen[bytes]] = field(default_factory=dict)
    edge: web.AppRunner | None = None
    secret: str = field(default_factory=lambda: secrets.token_hex(16))
    started_at: float = field(default_factory=time.time)

    def __post_init__(self) -> None:
        self.ends_at = self.started_at + self.seconds

    @property
    def root(self) -> Path:
        return self.folder / "root"

    def within(self, path: str) -> Path:
        """Return where a file of the sandbox is."""
        found = (self.root / path.lstrip("/")).resolve()
        assert found.is_relative_to(self.root), path
        return found


@dataclass(kw_only=True)
class Command:
    """A command, and all that it has written so far, which is told from the beginning to each who asks."""

    id: str
    box: Box
    process: "subprocess.Popen[bytes]"
    records: list[tuple[str, bytes]] = field(default_factory=list)
    exit_code: int | None = None
    changed: asyncio.Condition = field(default_factory=asyncio.Condition)
    # Without a reference, a task may be lost.
    noting: "asyncio.Task[None] | None" = None

    @property
    def is_over(self) -> bool:
        return self.exit_code is not None or self.box.is_dead

    async def written(self) -> AsyncIterator[tuple[str, bytes]]:
        """Yield what it writes and the names of the streams, from the beginning until it ends."""
        place = 0
        while True:
            async with self.changed:
                await self.changed.wait_for(lambda told=place: len(self.records) > told or self.is_over)
                new, is_over = self.records[place:], self.is_over
            place += len(new)
            for record in new:
                yield record
            if is_over and place == len(self.records):
                return

    async def end(self) -> None:
        async with self.changed:
            await self.changed.wait_for(lambda: self.is_over)

    async def note(self) -> None:
        try:
            async for record in output_of(self.process):
                async with self.changed:
                    self.records.append(record)
                    self.changed.notify_all()
            code = await asyncio.to_thread(self.process.wait)
        finally:
            # At the end of the stand-in too, while a command goes on.
            if self.process.stdin is not None:
                with contextlib.suppress(OSError):
                    self.process.stdin.close()
        async with self.changed:
            if not self.box.is_dead:
                self.exit_code = code
            self.changed.notify_all()


@dataclass(kw_only=True)
class Fault:
    """
    What happens to the next requests of one kind: a status, or `lost`, which is carried out and not answered, or
    `ignored`, which is neither.
    """

    on: str
    does: int | str
    times: int = 1


class StandIn:
    """
    It runs in a thread with an event loop of its own. What tests read and set, they may at any time.

    The name of the method that answers a request is its kind, as in `Fault`.
    """

    provider: ClassVar[str]
    keys: ClassVar[Sequence[str]]
    # What the key is bound to, and the parts of a sandbox that its commands may write to.
    workspace_id: ClassVar[str] = ""
    folders: ClassVar[Sequence[str]]
    home: ClassVar[str]
    images: ClassVar[Sequence[str]]
    without_python: ClassVar[str] = WITHOUT_PYTHON
    # Whether it adds the token of a run to requests from a sandbox; a file in the sandbox holds it otherwise.
    adds_token: ClassVar[bool] = True
    # A key of the right form that the provider does not know.
    unknown_key: ClassVar[str]
    seconds_max: ClassVar[int]

    def __init__(self) -> None:
        self.boxes: dict[str, Box] = {}
        self.commands: dict[str, Command] = {}
        self.faults: list[Fault] = []
        # Where the edge sends what is for a host, and what passed it: (host, method, path, headers as they left).
        self.hosts: dict[str, str] = {}
        self.passed: list[tuple[str, str, str, Mapping[str, str]]] = []
        self.claude_code: Path | None = None
        # The kinds of the requests so far.
        self.requests: list[str] = []
        self.page_size = 100
        self.filters = True
        self.folder = Path(tempfile.mkdtemp(prefix=f"{self.provider}-stand-in-"))
        self.folder.chmod(0o755)
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name=f"{self.provider}-stand-in", daemon=True)
        self._thread.start()
        self._in_loop(self._open())

    # What each stand-in does by itself.

    def routes(self) -> Sequence[tuple[str, str, Callable[[web.Request], Any]]]:
        raise NotImplementedError

    def error(self, status: int, message: str) -> web.Response:
        raise NotImplementedError

    def refusal(self, request: web.Request) -> web.Response | None:
        """Refuse a request without a valid key."""
        raise NotImplementedError

    def id_of(self, row_id: str) -> str:
        """Return the id of a new sandbox."""
        raise NotImplementedError

    # What tests use.

    @property
    def url(self) -> str:
        return f"http://{LOOPBACK}:{self._port}"

    @property
    def key(self) -> str:
        return self.keys[0]

    def live(self) -> list[Box]:
        return [box for box in list(self.boxes.values()) if not box.is_dead]

    def kill(self, box: Box) -> None:
        """End a sandbox as a cloud does at its end of life."""
        self._in_loop(self._kill(box))

    def copy(self, box: Box, *, row_id: str) -> Box:
        """Make a sandbox like another, for another row."""
        tags = {**box.tags, "rensei-sandbox": row_id}
        made = {"key": box.key, "new": box.new, "image": box.image, "seconds": 600, "tags": tags, "rules": box.rules}
        return self._in_loop(self._make(self.id_of(row_id), **made))

    def certify(self, *, is_trusted: bool = True, hours_until: float = 0) -> None:
        """Let the edge show another certificate, which new sandboxes trust or not, and which is valid from then on."""
        self._certificate = _certificate(
            self.folder, "*.example.com", hours_until=hours_until, replaces_authority=is_trusted
        )
        self._is_certified = is_trusted and not hours_until

    def reset(self) -> None:
        if not self._is_certified:
            self.certify()
        for box in self.live():
            self.kill(box)
        for kept in (self.boxes, self.commands, self.faults, self.passed, self.requests, self.hosts):
            kept.clear()
        self.page_size = 100
        self.filters = True

    def close(self) -> None:
        self.reset()
        self._in_loop(self._close())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()
        shutil.rmtree(self.folder, ignore_errors=True)

    def _in_loop(self, work: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(timeout=30)

    async def _open(self) -> None:
        self._session = aiohttp.ClientSession(auto_decompress=False, connector=aiohttp.TCPConnector(force_close=True))
        self.certify()
        self._port = await self._serve()
        self._ending = asyncio.ensure_future(self._end_old())

    async def _serve(self) -> int:
        """Begin to answer, and return the port."""
        application = web.Application(client_max_size=64 * 1024 * 1024, middlewares=[self._judge])
        for method, path, answer in self.routes():
            application.router.add_route(method, path, answer)
        self._runner = web.AppRunner(application, access_log=None, shutdown_timeout=0.1)
        await self._runner.setup()
        site = web.TCPSite(self._runner, LOOPBACK, 0)
        await site.start()
        return int(self._runner.addresses[0][1])

    async def _end_serving(self) -> None:
        await self._runner.cleanup()

    async def _close(self) -> None:
        self._ending.cancel()
        await self._end_serving()
        await self._session.close()
        others = asyncio.all_tasks() - {asyncio.current_task()}
        if others:
            _, late = await asyncio.wait(others, timeout=5)
            for task in late:
                task.cancel()
            await asyncio.gather(*late, return_exceptions=True)
        # What still reads from a command would be destroyed without its loop.
        await self._loop.shutdown_asyncgens()

    async def _end_old(self) -> None:
        while True:
            await asyncio.sleep(0.1)
            for box in self.live():
                if box.ends_at <= time.time():
                    await self._kill(box)

    def _take_fault(self, kind: str) -> Fault | None:
        """Note a request, and return what happens to it."""
        self.requests.append(kind)
        found = next((each for each in self.faults if each.on == kind), None)
        if found is not None:
            found.times -= 1
            if not found.times:
                self.faults.remove(found)
        return found

    @web.middleware
    async def _judge(self, request: web.Request, handler: Any) -> web.StreamResponse:
        kind = request.match_info.handler.__name__
        found = self._take_fault(kind)
        if found is not None:
            if isinstance(found.does, int):
                return self.error(found.does, f"A fault was set: {found.does}")
            if found.does == "ignored":
                while request.transport is not None:  # noqa: ASYNC110 - it has no event
                    await asyncio.sleep(0.02)
                return web.Response()
        answer = self.refusal(request) or await handler(request)
        if found is not None:
            cut(request)
        if isinstance(answer, web.Response) and answer.body:
            # As the edge of a cloud may, if the answer may be compressed.
            answer.enable_compression()
        return answer

    # Sandboxes

    async def _make(self, box_id: str, **made: Any) -> Box:
        folder = Path(tempfile.mkdtemp(dir=self.folder))
        box = Box(id=box_id, folder=folder, **made)
        for name in (*self.folders, self.home):
            (box.root / name).mkdir(parents=True, exist_ok=True)
        await self._open_edge(box)
        self.boxes[box.id] = box
        return box

    def found(self, key: str, tags: Mapping[str, str]) -> list[Box]:
        """The sandboxes of an account that have these tags, as far as they exist, or all of it if it filters none."""
        return [box for box in self.live() if box.key == key and (not self.filters or tags.items() <= box.tags.items())]

    async def _kill(self, box: Box) -> None:
        box.is_dead = True
        for command in box.commands.values():
            await asyncio.to_thread(kill_whole, command)
        if box.edge is not None:
            await box.edge.cleanup()
            box.edge = None
        for each in list(self.commands.values()):
            async with each.changed:
                each.changed.notify_all()
        shutil.rmtree(box.folder, ignore_errors=True)

    def begin(self, box: Box, command: Command) -> None:
        """Follow a command, so that what it writes is told to each who asks."""
        self.commands[command.id] = command
        box.commands[command.id] = command.process
        command.noting = asyncio.ensure_future(command.note())

    def run(
        self,
        box: Box,
        command: Sequence[str],
        *,
        cwd: str | None,
        variables: Mapping[str, str],
        stdin: int = subprocess.DEVNULL,
    ) -> "subprocess.Popen[bytes]":
        hosts = {"localhost", *box.rules}
        (box.folder / "hosts").write_text(f"127.0.0.1 {' '.join(sorted(hosts))}\n")
        (box.folder / "passwd").write_text(f"user:x:{_UID}:{_UID}::/{self.home}:/bin/sh\n")
        (box.folder / "group").write_text(f"user:x:{_UID}:\n")
        options = ["--unshare-all", "--as-pid-1", "--uid", _UID, "--gid", _UID, "--die-with-parent", "--new-session"]
        # For the port below 1024. Network and capability are those of its own namespaces.
        options += ["--cap-add", "CAP_NET_BIND_SERVICE", "--clearenv", "--ro-bind", "/usr", "/usr"]
        options += [*system_folders(), "--proc", "/proc", "--dev", "/dev", "--dir", "/etc/ssl/certs"]
        options += ["--ro-bind-try", "/etc/alternatives", "/etc/alternatives"]
        for name in self.folders:
            options += ["--bind", str(box.root / name), f"/{name}"]
        for name in ("hosts", "passwd", "group"):
            options += ["--ro-bind", str(box.folder / name), f"/etc/{name}"]
        options += ["--ro-bind", str(box.folder / "edge.sock"), "/edge.sock"]
        # As a cloud's own authority is known in its images.
        options += ["--ro-bind", str(self.folder / "authority.pem"), "/etc/ssl/certs/ca-certificates.crt"]
        if box.image == self.without_python and "python3" in command:
            command = ["/nowhere"]
        if box.image == WITH_CLAUDE_CODE and self.claude_code is not None:
            options += ["--ro-bind", str(self.claude_code), "/opt/bin/claude"]
        for name, value in {
            "PATH": "/opt/bin:/usr/local/bin:/usr/bin:/bin",
            "HOME": f"/{self.home}",
            **variables,
        }.items():
            options += ["--setenv", name, value]
        options += ["--chdir", cwd or f"/{self.home}"]
        return subprocess.Popen(
            ["bwrap", *options, "--", "/usr/bin/python3", "-c", _INIT, *command],
            stdin=stdin,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env={"PATH": os.defpath},
        )

    # The edge

    async def _open_edge(self, box: Box) -> None:
        async def passes(request: web.Request) -> web.StreamResponse:
            return await self._pass(box, request)

        application = web.Application(client_max_size=64 * 1024 * 1024)
        application.router.add_route("*", "/{path:.*}", passes)
        box.edge = web.AppRunner(application, access_log=None, shutdown_timeout=0.1)
        await box.edge.setup()
        await web.UnixSite(box.edge, str(box.folder / "edge.sock"), ssl_context=self._certificate).start()

    async def _pass(self, box: Box, request: web.Request) -> web.StreamResponse:
        host = request.host.partition(":")[0]
        if host not in box.rules or host not in self.hosts:
            cut(request)
            return web.Response(status=502)
        headers = {name: value for name, value in request.headers.items() if name.lower() not in _HOP_BY_HOP}
        added = box.rules[host]
        headers = {name: value for name, value in headers.items() if name.lower() not in map(str.lower, added)} | added
        self.passed.append((host, request.method, request.path, headers))
        body = await request.read()
        async with self._session.request(
            request.method, self.hosts[host] + request.path_qs, data=body, headers=headers, allow_redirects=False
        ) as answer:
            passed = {name: value for name, value in answer.headers.items() if name.lower() not in _HOP_BY_HOP}
            response = web.StreamResponse(status=answer.status, headers=passed)
            await response.prepare(request)
            with contextlib.suppress(ConnectionError):
                async for piece in answer.content.iter_any():
                    await response.write(piece)
            return response


AnyStandIn = TypeVar("AnyStandIn", bound=StandIn)


@contextlib.contextmanager
def running(of: type[AnyStandIn]) -> Iterator[AnyStandIn]:
    stand_in = of()
    try:
        yield stand_in
    finally:
        stand_in.close()


def cut(request: web.Request) -> None:
    if request.transport is not None:
        request.transport.abort()


def time_of(seconds: float) -> str:
    return datetime.datetime.fromtimestamp(seconds, datetime.UTC).isoformat()


def send_signal(command: "subprocess.Popen[bytes]", number: int) -> None:
    """Send a signal to the first process of a command, which passes it on."""
    for first in children_of(command.pid):
        os.kill(first, number)


async def output_of(command: "subprocess.Popen[bytes]") -> AsyncIterator[tuple[str, bytes]]:
    """Yield what a command writes, in the order of its arrival, with the name of the stream."""
    pieces: asyncio.Queue[tuple[str, bytes] | None] = asyncio.Queue()
    loop = asyncio.get_running_loop()

    async def read(name: str, pipe: Any) -> None:
        reader = asyncio.StreamReader()
        transport, _ = await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), pipe)
        try:
            while piece := await reader.read(32 * 1024):
                await pieces.put((name, piece))
        finally:
            transport.close()
            await pieces.put(None)

    reading = [
        asyncio.ensure_future(read(name, pipe))
        for name, pipe in (("stdout", command.stdout), ("stderr", command.stderr))
    ]
    for _ in reading:
        while (piece := await pieces.get()) is not None:
            yield piece
    await asyncio.gather(*reading)


def _certificate(folder: Path, host: str, *, hours_until: float, replaces_authority: bool) -> ssl.SSLContext:
    """Make a certificate of a host, signed by itself."""
    public, private = make_certificate(host, hours_until=hours_until)
    if replaces_authority:
        (folder / "authority.pem").write_bytes(public)
    (folder / "edge.pem").write_bytes(public + private)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(folder / "edge.pem")
    return context
