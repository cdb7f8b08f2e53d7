"""A stand-in for E2B: its control API and envd's protocol on one loopback port. E2B's own library accepts it too."""

import asyncio
import base64
import contextlib
import json
import secrets
import signal
import struct
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any
from urllib.parse import parse_qsl, unquote

import aiohttp
from aiohttp import web

from tests.cloud_stand_in import WITH_CLAUDE_CODE, WITHOUT_PYTHON, Box, StandIn, cut, output_of, send_signal, time_of


class E2BStandIn(StandIn):
    provider = "e2b"
    keys = (f"e2b_{'a' * 40}", f"e2b_{'b' * 40}")
    unknown_key = f"e2b_{'c' * 40}"
    folders = ("run", "workspace", "home", "tmp")
    home = "home/user"
    images = ("base", WITHOUT_PYTHON, WITH_CLAUDE_CODE)
    seconds_max = 3600

    def __init__(self) -> None:
        self.idempotent: dict[str, str] = {}
        super().__init__()

    def reset(self) -> None:
        super().reset()
        self.idempotent.clear()

    def routes(self) -> Sequence[tuple[str, str, Callable[[web.Request], Any]]]:
        return [
            ("POST", "/v2/sandboxes", self.create),
            ("GET", "/v2/sandboxes", self.list),
            ("GET", "/sandboxes/{id}", self.show),
            ("DELETE", "/sandboxes/{id}", self.delete),
            ("POST", "/sandboxes/{id}/timeout", self.extend),
            ("GET", "/health", self.health),
            ("GET", "/files", self.read),
            ("POST", "/files", self.write),
            ("POST", "/process.Process/Start", self.start),
            ("POST", "/process.Process/SendSignal", self.signal),
        ]

    def error(self, status: int, message: str) -> web.Response:
        return web.json_response({"code": status, "message": message}, status=status)

    def refusal(self, request: web.Request) -> web.Response | None:
        if request.path.startswith(("/files", "/process.", "/health")):
            return self._refusal_inside(request)
        return None if request.headers.get("X-API-KEY") in self.keys else self.error(401, "Invalid API key")

    def id_of(self, row_id: str) -> str:
        return f"i{secrets.token_hex(10)}"

    # The control API

    async def create(self, request: web.Request) -> web.Response:
        new = await request.json()
        once = request.headers.get("Idempotency-Key", "")
        if once in self.idempotent:
            return self._created(self.boxes[self.idempotent[once]])
        if new["templateID"] not in self.images:
            return self.error(404, f"template '{new['templateID']}' not found")
        if not 1 <= new.get("timeout", 15) <= self.seconds_max:
            return self.error(400, "Timeout cannot be greater than 1 hours")
        network = new.get("network", {})
        assert not network.get("allowOut") or network.get("denyOut") == ["0.0.0.0/0"], "By itself it denies nothing"
        box = await self._make(
            self.id_of(""),
            key=request.headers["X-API-KEY"],
            new=new,
            image=new["templateID"],
            seconds=new.get("timeout", 15),
            tags=new.get("metadata", {}),
            rules={host: _added(network, host) for host in network.get("allowOut", [])},
        )
        if once:
            self.idempotent[once] = box.id
        return self._created(box)

    def _created(self, box: Box) -> web.Response:
        row = {name: value for name, value in _row(box).items() if name not in {"cpuCount", "memoryMB"}}
        return web.json_response({**row, "envdAccessToken": box.secret, "domain": None}, status=201)

    async def list(self, request: web.Request) -> web.Response:
        # Quoted, then encoded as a form, then as the value of a parameter.
        wanted = {unquote(name): unquote(value) for name, value in parse_qsl(request.query.get("metadata", ""))}
        rows = [_row(box) for box in self.found(request.headers["X-API-KEY"], wanted)]
        begin = int(request.query.get("nextToken", "0"))
        end = begin + min(self.page_size, int(request.query.get("limit", "100")))
        headers = {"x-next-token": str(end)} if end < len(rows) else {}
        return web.json_response(rows[begin:end], headers=headers)

    async def show(self, request: web.Request) -> web.Response:
        box = self._own(request)
        return web.json_response({**_row(box), "envdAccessToken": box.secret}) if box else self.error(404, "not found")

    async def delete(self, request: web.Request) -> web.Response:
        box = self._own(request)
        if box is None:
            return self.error(404, "not found")
        await self._kill(box)
        return web.Response(status=204)

    async def extend(self, request: web.Request) -> web.Response:
        box = self._own(request)
        if box is None:
            return self.error(404, "not found")
        box.ends_at = time.time() + (await request.json())["timeout"]
        return web.Response(status=204)

    def _own(self, request: web.Request) -> Box | None:
        box = self.boxes.get(request.match_info["id"])
        return box if box and not box.is_dead and box.key == request.headers["X-API-KEY"] else None

    # envd

    def _inside(self, request: web.Request) -> Box:
        return self.boxes[request.headers["E2b-Sandbox-Id"]]

    def _refusal_inside(self, request: web.Request) -> web.Response | None:
        box = self.boxes.get(request.headers.get("E2b-Sandbox-Id", ""))
        if box is None or box.is_dead:
            return self.error(502, "The sandbox was not found")
        return None if request.headers.get("X-Access-Token") == box.secret else self.error(401, "unauthenticated")

    async def health(self, request: web.Request) -> web.Response:
        return web.Response(status=204)

    async def write(self, request: web.Request) -> web.Response:
        content = b""
        if request.content_type.startswith("multipart/"):
            async for part in await request.multipart():
                assert isinstance(part, aiohttp.BodyPartReader)
                content = bytes(await part.read())
        else:
            content = await request.read()
        path = self._inside(request).within(request.query["path"])
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        path.chmod(0o644)
        return web.json_response([{"name": path.name, "type": "file", "path": request.query["path"]}])

    async def read(self, request: web.Request) -> web.Response:
        path = self._inside(request).within(request.query["path"])
        if not path.is_file():
            return self.error(404, "path not found")
        return web.Response(body=path.read_bytes(), content_type="application/octet-stream")

    async def start(self, request: web.Request) -> web.StreamResponse:
        box = self._inside(request)
        body = await request.read()
        process = json.loads(body[5:])["process"]
        argv = [process["cmd"], *process.get("args", [])]
        command = self.run(box, argv, cwd=process.get("cwd"), variables=process.get("envs", {}))
        box.commands[command.pid] = command
        answer = web.StreamResponse(headers={"content-type": "application/connect+json"})
        await answer.prepare(request)
        await answer.write(_frame({"event": {"start": {"pid": command.pid}}}))
        async for name, piece in output_of(command):
            # A command goes on without a listener.
            with contextlib.suppress(ConnectionError):
                await answer.write(_frame({"event": {"data": {name: base64.b64encode(piece).decode()}}}))
        code = await asyncio.to_thread(command.wait)
        if box.is_dead:
            cut(request)
            return answer
        # A zero is the default of the protocol, which is left out.
        end = {"exited": True, "status": f"exit status {code}", **({"exitCode": code} if code else {})}
        with contextlib.suppress(ConnectionError):
            await answer.write(_frame({"event": {"end": end}}))
            await answer.write(_frame({}, flags=2))
        return answer

    async def signal(self, request: web.Request) -> web.Response:
        order = await request.json()
        command = self._inside(request).commands.get(order["process"]["pid"])
        if command is None or command.poll() is not None:
            return web.json_response({"code": "not_found", "message": "no such process"}, status=404)
        send_signal(command, {"SIGNAL_SIGTERM": signal.SIGTERM, "SIGNAL_SIGKILL": signal.SIGKILL}[order["signal"]])
        return web.json_response({})


def _row(box: Box) -> dict[str, Any]:
    return {
        "sandboxID": box.id,
        "templateID": box.image,
        "clientID": "stand-in",
        "metadata": box.tags,
        "state": "running",
        "startedAt": time_of(box.started_at),
        "endAt": time_of(box.ends_at),
        "cpuCount": 2,
        "memoryMB": 512,
        "diskSizeMB": 1024,
        "envdVersion": "0.6.0",
    }


def _added(network: Mapping[str, Any], host: str) -> Mapping[str, str]:
    rules = network.get("rules", {}).get(host, [])
    return {name: value for rule in rules for name, value in rule["transform"]["headers"].items()}


def _frame(message: Mapping[str, Any], *, flags: int = 0) -> bytes:
    content = json.dumps(message).encode()
    return struct.pack(">BI", flags, len(content)) + content
