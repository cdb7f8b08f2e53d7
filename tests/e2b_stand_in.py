"""
A stand-in for E2B: its control API and envd's protocol on one loopback port, with sandboxes whose commands really run.

A sandbox is a folder, and each command in it runs in bubblewrap without a network. Its port 443 leads to the edge of
the stand-in, which lets requests to the allowed hosts pass and adds the headers of their rules, as E2B's does. The edge
takes the place of the internet too: it sends what is for a host to the address that a test gives for it.

It differs from E2B: all commands of a sandbox have one user, and its memory and processors have no limit.
"""

import asyncio
import base64
import contextlib
import datetime
import json
import os
import secrets
import shutil
import signal
import ssl
import struct
import subprocess
import tempfile
import threading
import time
from collections.abc import AsyncIterator, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, unquote

import aiohttp
from aiohttp import web

from tests.certificates import make_certificate
from tests.servers import LOOPBACK

SECONDS_MAX = 3600
TEMPLATES = ("base", "without-python")
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


@dataclass
class Box:
    """A sandbox: what it was created with, its folder and its commands."""

    id: str
    key: str
    new: dict[str, Any]
    folder: Path
    ends_at: float
    token: str = field(default_factory=lambda: secrets.token_hex(16))
    is_dead: bool = False
    commands: dict[int, subprocess.Popen[bytes]] = field(default_factory=dict)
    edge: web.AppRunner | None = None
    started_at: str = field(default_factory=lambda: datetime.datetime.now(datetime.UTC).isoformat())

    @property
    def root(self) -> Path:
        return self.folder / "root"

    def row(self) -> dict[str, Any]:
        return {
            "sandboxID": self.id,
            "templateID": self.new["templateID"],
            "clientID": "stand-in",
            "metadata": self.new.get("metadata", {}),
            "state": "running",
            "startedAt": self.started_at,
            "endAt": datetime.datetime.fromtimestamp(self.ends_at, datetime.UTC).isoformat(),
            "cpuCount": 2,
            "memoryMB": 512,
            "diskSizeMB": 1024,
            "envdVersion": "0.6.0",
        }


@dataclass(kw_only=True)
class Fault:
    """What happens to the next requests of one kind: a status, or `lost`, which is carried out and not answered."""

    method: str
    path: str
    does: int | str
    times: int = 1


class StandIn:
    """It runs in a thread with an event loop of its own. What tests read and set, they may at any time."""

    def __init__(self) -> None:
        self.keys = {f"e2b_{'a' * 40}", f"e2b_{'b' * 40}"}
        self.boxes: dict[str, Box] = {}
        self.faults: list[Fault] = []
        # Where the edge sends what is for a host, and what passed it: (host, method, path, headers as they left).
        self.hosts: dict[str, str] = {}
        self.passed: list[tuple[str, str, str, Mapping[str, str]]] = []
        self.requests: list[tuple[str, str]] = []
        self.page_size = 100
        self.idempotent: dict[str, str] = {}
        self.folder = Path(tempfile.mkdtemp(prefix="e2b-stand-in-"))
        self.folder.chmod(0o755)
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="e2b-stand-in", daemon=True)
        self._thread.start()
        self._in_loop(self._open())

    @property
    def url(self) -> str:
        return f"http://{LOOPBACK}:{self._port}"

    @property
    def key(self) -> str:
        return min(self.keys)

    def live(self) -> list[Box]:
        return [box for box in list(self.boxes.values()) if not box.is_dead]

    def kill(self, box: Box) -> None:
        """End a sandbox as E2B does at its end of life."""
        self._in_loop(self._kill(box))

    def reset(self) -> None:
        for box in self.live():
            self.kill(box)
        for kept in (self.boxes, self.faults, self.passed, self.requests, self.idempotent, self.hosts):
            kept.clear()

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
        self._certificate = _certificate(self.folder, "rensei.example.com")
        application = web.Application(client_max_size=64 * 1024 * 1024, middlewares=[self._judge])
        add = application.router.add_route
        add("POST", "/v2/sandboxes", self._create)
        add("GET", "/v2/sandboxes", self._list)
        add("GET", "/sandboxes/{id}", self._show)
        add("DELETE", "/sandboxes/{id}", self._delete)
        add("POST", "/sandboxes/{id}/timeout", self._extend)
        add("GET", "/health", self._health)
        add("GET", "/files", self._read)
        add("POST", "/files", self._write)
        add("POST", "/process.Process/Start", self._start)
        add("POST", "/process.Process/SendSignal", self._signal)
        self._runner = web.AppRunner(application, access_log=None, shutdown_timeout=0.1)
        await self._runner.setup()
        site = web.TCPSite(self._runner, LOOPBACK, 0)
        await site.start()
        self._port: int = self._runner.addresses[0][1]
        self._ending = asyncio.ensure_future(self._end_old())

    async def _close(self) -> None:
        self._ending.cancel()
        await self._runner.cleanup()
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

    # The control API

    @web.middleware
    async def _judge(self, request: web.Request, handler: Any) -> web.StreamResponse:
        self.requests.append((request.method, request.path))
        is_envd = request.path.startswith(("/files", "/process.", "/health"))
        found = next((each for each in self.faults if _concerns(each, request)), None)
        if found is not None:
            found.times -= 1
            if not found.times:
                self.faults.remove(found)
            if isinstance(found.does, int):
                return _error(found.does, f"A fault was set: {found.does}")
        if not is_envd and request.headers.get("X-API-KEY") not in self.keys:
            return _error(401, "Invalid API key")
        answer = await handler(request)
        if found is not None:
            _cut(request)
        return answer

    async def _create(self, request: web.Request) -> web.Response:
        new = await request.json()
        once = request.headers.get("Idempotency-Key", "")
        if once in self.idempotent:
            return self._created(self.boxes[self.idempotent[once]])
        if new["templateID"] not in TEMPLATES:
            return _error(404, f"template '{new['templateID']}' not found")
        if not 1 <= new.get("timeout", 15) <= SECONDS_MAX:
            return _error(400, "Timeout cannot be greater than 1 hours")
        folder = Path(tempfile.mkdtemp(dir=self.folder))
        box = Box(
            id=f"i{secrets.token_hex(10)}",
            key=request.headers["X-API-KEY"],
            new=new,
            folder=folder,
            ends_at=time.time() + new.get("timeout", 15),
        )
        for name in ("run", "workspace", "home/user", "tmp"):
            (box.root / name).mkdir(parents=True)
        await self._open_edge(box)
        self.boxes[box.id] = box
        if once:
            self.idempotent[once] = box.id
        return self._created(box)

    def _created(self, box: Box) -> web.Response:
        row = {name: value for name, value in box.row().items() if name not in {"cpuCount", "memoryMB"}}
        return web.json_response({**row, "envdAccessToken": box.token, "domain": None}, status=201)

    async def _list(self, request: web.Request) -> web.Response:
        # Quoted, then encoded as a form, then as the value of a parameter.
        wanted = {unquote(name): unquote(value) for name, value in parse_qsl(request.query.get("metadata", ""))}
        own = [box for box in self.live() if box.key == request.headers["X-API-KEY"]]
        rows = [box.row() for box in own if wanted.items() <= box.new.get("metadata", {}).items()]
        begin = int(request.query.get("nextToken", "0"))
        end = begin + min(self.page_size, int(request.query.get("limit", "100")))
        headers = {"x-next-token": str(end)} if end < len(rows) else {}
        return web.json_response(rows[begin:end], headers=headers)

    async def _show(self, request: web.Request) -> web.Response:
        box = self._own(request)
        return web.json_response({**box.row(), "envdAccessToken": box.token}) if box else _error(404, "not found")

    async def _delete(self, request: web.Request) -> web.Response:
        box = self._own(request)
        if box is None:
            return _error(404, "not found")
        await self._kill(box)
        return web.Response(status=204)

    async def _extend(self, request: web.Request) -> web.Response:
        box = self._own(request)
        if box is None:
            return _error(404, "not found")
        box.ends_at = time.time() + (await request.json())["timeout"]
        return web.Response(status=204)

    def _own(self, request: web.Request) -> Box | None:
        box = self.boxes.get(request.match_info["id"])
        return box if box and not box.is_dead and box.key == request.headers["X-API-KEY"] else None

    async def _kill(self, box: Box) -> None:
        box.is_dead = True
        for command in box.commands.values():
            if command.poll() is None:
                command.kill()
        for command in box.commands.values():
            await asyncio.to_thread(command.wait)
        if box.edge is not None:
            await box.edge.cleanup()
        shutil.rmtree(box.folder, ignore_errors=True)

    # envd

    def _inside(self, request: web.Request) -> Box | web.Response:
        box = self.boxes.get(request.headers.get("E2b-Sandbox-Id", ""))
        if box is None or box.is_dead:
            return web.json_response({"code": 502, "message": "The sandbox was not found"}, status=502)
        if request.headers.get("X-Access-Token") != box.token:
            return _error(401, "unauthenticated")
        return box

    async def _health(self, request: web.Request) -> web.Response:
        box = self._inside(request)
        return box if isinstance(box, web.Response) else web.Response(status=204)

    async def _write(self, request: web.Request) -> web.Response:
        box = self._inside(request)
        if isinstance(box, web.Response):
            return box
        content = b""
        if request.content_type.startswith("multipart/"):
            async for part in await request.multipart():
                assert isinstance(part, aiohttp.BodyPartReader)
                content = bytes(await part.read())
        else:
            content = await request.read()
        path = _within(box, request.query["path"])
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        path.chmod(0o644)
        return web.json_response([{"name": path.name, "type": "file", "path": request.query["path"]}])

    async def _read(self, request: web.Request) -> web.Response:
        box = self._inside(request)
        if isinstance(box, web.Response):
            return box
        path = _within(box, request.query["path"])
        if not path.is_file():
            return _error(404, "path not found")
        return web.Response(body=path.read_bytes(), content_type="application/octet-stream")

    async def _start(self, request: web.Request) -> web.StreamResponse:
        box = self._inside(request)
        if isinstance(box, web.Response):
            return box
        body = await request.read()
        process = json.loads(body[5:])["process"]
        command = self._run(box, process)
        answer = web.StreamResponse(headers={"content-type": "application/connect+json"})
        await answer.prepare(request)
        await answer.write(_frame({"event": {"start": {"pid": command.pid}}}))
        async for name, piece in _output(command):
            # A command goes on without a listener.
            with contextlib.suppress(ConnectionError):
                await answer.write(_frame({"event": {"data": {name: base64.b64encode(piece).decode()}}}))
        code = await asyncio.to_thread(command.wait)
        if box.is_dead:
            _cut(request)
            return answer
        # A zero is the default of the protocol, which is left out.
        end = {"exited": True, "status": f"exit status {code}", **({"exitCode": code} if code else {})}
        with contextlib.suppress(ConnectionError):
            await answer.write(_frame({"event": {"end": end}}))
            await answer.write(_frame({}, flags=2))
        return answer

    async def _signal(self, request: web.Request) -> web.Response:
        box = self._inside(request)
        if isinstance(box, web.Response):
            return box
        order = await request.json()
        command = box.commands.get(order["process"]["pid"])
        if command is None or command.poll() is not None:
            return web.json_response({"code": "not_found", "message": "no such process"}, status=404)
        number = {"SIGNAL_SIGTERM": signal.SIGTERM, "SIGNAL_SIGKILL": signal.SIGKILL}[order["signal"]]
        for first in _children(command.pid):
            os.kill(first, number)
        return web.json_response({})

    def _run(self, box: Box, process: Mapping[str, Any]) -> "subprocess.Popen[bytes]":
        hosts = {"localhost", *box.new.get("network", {}).get("allowOut", [])}
        (box.folder / "hosts").write_text(f"127.0.0.1 {' '.join(sorted(hosts))}\n")
        (box.folder / "passwd").write_text(f"user:x:{_UID}:{_UID}::/home/user:/bin/sh\n")
        (box.folder / "group").write_text(f"user:x:{_UID}:\n")
        options = ["--unshare-all", "--as-pid-1", "--uid", _UID, "--gid", _UID, "--die-with-parent", "--new-session"]
        # For the port below 1024. Network and capability are those of its own namespaces.
        options += ["--cap-add", "CAP_NET_BIND_SERVICE", "--clearenv", "--ro-bind", "/usr", "/usr"]
        for name in ("bin", "sbin", "lib", "lib64"):
            if Path("/", name).is_symlink():
                options += ["--symlink", str(Path("/", name).readlink()), f"/{name}"]
            elif Path("/", name).is_dir():
                options += ["--ro-bind", f"/{name}", f"/{name}"]
        options += ["--proc", "/proc", "--dev", "/dev", "--dir", "/etc/ssl/certs"]
        options += ["--ro-bind-try", "/etc/alternatives", "/etc/alternatives"]
        for name in ("run", "workspace", "home", "tmp"):
            options += ["--bind", str(box.root / name), f"/{name}"]
        for name in ("hosts", "passwd", "group"):
            options += ["--ro-bind", str(box.folder / name), f"/etc/{name}"]
        options += ["--ro-bind", str(box.folder / "edge.sock"), "/edge.sock"]
        # As E2B's own authority is known in its templates.
        options += ["--ro-bind", str(self.folder / "authority.pem"), "/etc/ssl/certs/ca-certificates.crt"]
        variables = {"PATH": "/usr/local/bin:/usr/bin:/bin", **process.get("envs", {})}
        if box.new["templateID"] == "without-python" and "python3" in process["args"]:
            process = {**process, "cmd": "/nowhere"}
        for name, value in variables.items():
            options += ["--setenv", name, value]
        options += ["--chdir", process.get("cwd") or "/home/user"]
        command = ["bwrap", *options, "--", "/usr/bin/python3", "-c", _INIT, process["cmd"], *process.get("args", [])]
        started = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env={"PATH": os.defpath}
        )
        box.commands[started.pid] = started
        return started

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
        host, network = request.host.partition(":")[0], box.new["network"]
        if host not in network["allowOut"] or host not in self.hosts:
            _cut(request)
            return web.Response(status=502)
        headers = {name: value for name, value in request.headers.items() if name.lower() not in _HOP_BY_HOP}
        for rule in network.get("rules", {}).get(host, []):
            added = rule["transform"]["headers"]
            headers = {name: value for name, value in headers.items() if name.lower() not in map(str.lower, added)}
            headers |= added
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


@contextlib.contextmanager
def running() -> Iterator[StandIn]:
    stand_in = StandIn()
    try:
        yield stand_in
    finally:
        stand_in.close()


def _concerns(fault: Fault, request: web.Request) -> bool:
    return fault.method == request.method and request.path.startswith(fault.path)


def _cut(request: web.Request) -> None:
    if request.transport is not None:
        request.transport.abort()


def _error(status: int, message: str) -> web.Response:
    return web.json_response({"code": status, "message": message}, status=status)


def _frame(message: Mapping[str, Any], *, flags: int = 0) -> bytes:
    content = json.dumps(message).encode()
    return struct.pack(">BI", flags, len(content)) + content


def _within(box: Box, path: str) -> Path:
    found = (box.root / path.lstrip("/")).resolve()
    assert found.is_relative_to(box.root), path
    return found


def _children(pid: int) -> list[int]:
    with contextlib.suppress(OSError):
        return [int(each) for each in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    return []


async def _output(command: "subprocess.Popen[bytes]") -> AsyncIterator[tuple[str, bytes]]:
    """Yield what a command writes, in the order of its arrival, with the name of the stream."""
    pieces: asyncio.Queue[tuple[str, bytes] | None] = asyncio.Queue()
    loop = asyncio.get_running_loop()

    async def read(name: str, pipe: Any) -> None:
        reader = asyncio.StreamReader()
        transport, _ = await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), pipe)
        while piece := await reader.read(32 * 1024):
            await pieces.put((name, piece))
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


def _certificate(folder: Path, host: str) -> ssl.SSLContext:
    """Make a certificate of a host, signed by itself."""
    public, private = make_certificate(host)
    (folder / "authority.pem").write_bytes(public)
    (folder / "edge.pem").write_bytes(public + private)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(folder / "edge.pem")
    return context
