"""
A stand-in for Vercel Sandbox: its REST API on one loopback port, with the output of commands as lines of JSON.

Vercel's own library accepts it too: `tests/dispatch/test_vercel_library.py`.
"""

import contextlib
import gzip
import io
import json
import secrets
import tarfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

from aiohttp import web

from tests.cloud_stand_in import WITH_CLAUDE_CODE, WITHOUT_PYTHON, Box, Command, StandIn, cut, send_signal

TEAM, PROJECT = "team_stand", "prj_stand"


@dataclass(kw_only=True)
class Ordered(Command):
    """A command as Vercel shows it."""

    order: Mapping[str, Any]

    def row(self) -> dict[str, Any]:
        return {
            "id": self.id,
            "name": self.order["command"],
            "args": self.order.get("args", []),
            "cwd": self.order.get("cwd") or "/vercel/sandbox",
            "sessionId": session_of(self.box),
            "exitCode": self.exit_code,
            "startedAt": int(1000 * self.box.started_at),
        }


class VercelStandIn(StandIn):
    provider = "vercel"
    keys = ("a" * 24, "b" * 24)
    unknown_key = "c" * 24
    workspace_id = f"{TEAM}/{PROJECT}"
    folders = ("vercel", "workspace", "home", "tmp")
    home = "vercel/sandbox"
    images = ("vercel/sandbox/universal:latest", WITHOUT_PYTHON, WITH_CLAUDE_CODE)
    seconds_max = 2700
    vcpus_max = 8
    # How many of the next records break the connection.
    cuts_output = 0

    def __init__(self) -> None:
        # Those that have been asked for once: a sandbox runs a moment after its creation.
        self.awake: set[str] = set()
        super().__init__()

    def reset(self) -> None:
        super().reset()
        self.cuts_output = 0
        self.awake.clear()

    def routes(self) -> Sequence[tuple[str, str, Callable[[web.Request], Any]]]:
        sandboxes, session = "/v2/sandboxes", "/v2/sandboxes/sessions/{session}"
        return [
            ("POST", "/v3/sandboxes", self.create),
            ("GET", sandboxes, self.list),
            ("GET", f"{sandboxes}/{{name}}", self.show),
            ("DELETE", f"{sandboxes}/{{name}}", self.delete),
            ("GET", session, self.look),
            ("POST", f"{session}/stop", self.stop),
            ("POST", f"{session}/extend-timeout", self.extend),
            ("POST", f"{session}/fs/write", self.write),
            ("POST", f"{session}/fs/read", self.read),
            ("POST", f"{session}/cmd", self.start),
            ("GET", f"{session}/cmd/{{command}}", self.wait),
            ("GET", f"{session}/cmd/{{command}}/logs", self.output),
            ("POST", f"{session}/cmd/{{command}}/kill", self.signal),
        ]

    def error(self, status: int, message: str, *, code: str = "error") -> web.Response:
        return web.json_response({"error": {"code": code, "message": message}}, status=status)

    def refusal(self, request: web.Request) -> web.Response | None:
        if _key_of(request) not in self.keys or request.query.get("teamId") != TEAM:
            return self.error(403, "Not authorized", code="forbidden")
        if "session" in request.match_info:
            box = self.boxes.get(request.match_info["session"].removeprefix("sbx_"))
            if box is None or box.key != _key_of(request):
                return self.error(404, "Not found", code="not_found")
            if box.is_dead:
                return self.error(410, "The sandbox has stopped", code="sandbox_stopped")
        return None

    def id_of(self, row_id: str) -> str:
        return row_id.replace("_", "-").lower()

    # Sandboxes

    async def create(self, request: web.Request) -> web.Response:
        new = await request.json()
        name, image = new.get("name") or secrets.token_hex(10), new.get("image") or self.images[0]
        if new["projectId"] != PROJECT or image not in self.images:
            return self.error(404, f"Image '{image}' not found", code="not_found")
        if not 1000 <= new.get("timeout", 300_000) <= 1000 * self.seconds_max:
            return self.error(400, "timeout is above the limit of the plan", code="bad_request")
        if not 1 <= new.get("resources", {}).get("vcpus", 2) <= self.vcpus_max:
            return self.error(400, "vcpus is above the limit of the plan", code="bad_request")
        if len(new.get("tags", {})) > 5:
            return self.error(400, "A sandbox has five tags at most", code="bad_request")
        if name in self.boxes:
            return self.error(409, f"Sandbox '{name}' exists", code="conflict")
        policy = new.get("networkPolicy", {}).get("allow", {})
        box = await self._make(
            name,
            key=_key_of(request),
            new=new,
            image=image,
            seconds=new.get("timeout", 300_000) / 1000,
            tags=new.get("tags", {}),
            rules={host: _added(rules) for host, rules in policy.items()},
        )
        return web.json_response(self._answer(box), status=201)

    async def list(self, request: web.Request) -> web.Response:
        name, _, value = request.query.get("tags", "").partition(":")
        found = self.found(_key_of(request), {name: value} if name else {})
        begin = int(request.query.get("cursor", "0"))
        end = begin + min(self.page_size, int(request.query.get("limit", "50")))
        following = str(end) if end < len(found) else None
        rows = [self._row(box) for box in found[begin:end]]
        return web.json_response({"sandboxes": rows, "pagination": {"count": len(rows), "next": following}})

    async def show(self, request: web.Request) -> web.Response:
        box = self._own(request)
        if box is None:
            return self.error(404, "Not found", code="not_found")
        if box.is_dead and request.query.get("resume") != "false":
            box.is_dead = False
            self.requests.append("revive")
        answer = web.json_response(self._answer(box))
        self.awake.add(box.id)
        return answer

    async def delete(self, request: web.Request) -> web.Response:
        box = self._own(request)
        if box is None or box.is_dead:
            return self.error(404, "Not found", code="not_found")
        await self._kill(box)
        return web.json_response(self._answer(box))

    def _own(self, request: web.Request) -> Box | None:
        assert request.query["projectId"] == PROJECT
        box = self.boxes.get(request.match_info["name"])
        return box if box is not None and box.key == _key_of(request) else None

    def _status(self, box: Box) -> str:
        return "stopped" if box.is_dead else "running" if box.id in self.awake else "pending"

    def _row(self, box: Box) -> dict[str, Any]:
        return {
            "name": box.id,
            "currentSessionId": session_of(box),
            "status": self._status(box),
            "image": box.image,
            "tags": box.tags,
            "vcpus": box.new.get("resources", {}).get("vcpus", 2),
            "memory": 2048 * box.new.get("resources", {}).get("vcpus", 2),
            "timeout": int(1000 * box.seconds),
            "createdAt": int(1000 * box.started_at),
        }

    def _session_row(self, box: Box) -> dict[str, Any]:
        return {"id": session_of(box), "status": self._status(box), "cwd": "/vercel/sandbox"}

    def _answer(self, box: Box) -> dict[str, Any]:
        return {"sandbox": self._row(box), "session": self._session_row(box), "routes": []}

    # A session

    def _inside(self, request: web.Request) -> Box:
        return self.boxes[request.match_info["session"].removeprefix("sbx_")]

    async def look(self, request: web.Request) -> web.Response:
        box = self._inside(request)
        answer = web.json_response({"session": self._session_row(box)})
        self.awake.add(box.id)
        return answer

    async def stop(self, request: web.Request) -> web.Response:
        box = self._inside(request)
        await self._kill(box)
        return web.json_response({"session": self._session_row(box)})

    async def extend(self, request: web.Request) -> web.Response:
        box = self._inside(request)
        box.ends_at += (await request.json())["duration"] / 1000
        return web.json_response({"session": self._session_row(box)})

    async def write(self, request: web.Request) -> web.Response:
        box, within = self._inside(request), PurePosixPath(request.headers["x-cwd"])
        with tarfile.open(fileobj=io.BytesIO(gzip.decompress(await request.read()))) as archive:
            for member in archive:
                path = box.within(str(within / member.name))
                path.parent.mkdir(parents=True, exist_ok=True)
                content = archive.extractfile(member)
                assert content is not None
                path.write_bytes(content.read())
                path.chmod(member.mode)
        return web.json_response({})

    async def read(self, request: web.Request) -> web.Response:
        asked = await request.json()
        path = self._inside(request).within(str(PurePosixPath(asked.get("cwd") or "/vercel/sandbox") / asked["path"]))
        if not path.is_file():
            return self.error(404, "File not found", code="not_found")
        return web.Response(body=path.read_bytes(), content_type="application/octet-stream")

    async def start(self, request: web.Request) -> web.StreamResponse:
        box, order = self._inside(request), await request.json()
        argv = [order["command"], *order.get("args", [])]
        process = self.run(box, argv, cwd=order.get("cwd"), variables=order.get("env") or {})
        command = Ordered(id=f"cmd_{secrets.token_hex(8)}", box=box, order=order, process=process)
        self.begin(box, command)
        if not order.get("logs"):
            return web.json_response({"command": command.row()})
        return await self._tell(request, command, is_framed=True)

    def _command(self, request: web.Request) -> Ordered:
        command = self.commands[request.match_info["command"]]
        assert isinstance(command, Ordered)
        return command

    async def wait(self, request: web.Request) -> web.Response:
        command = self._command(request)
        if request.query.get("wait") == "true":
            await command.end()
        if command.box.is_dead:
            return self.error(410, "The sandbox has stopped", code="sandbox_stopped")
        return web.json_response({"command": command.row()})

    async def output(self, request: web.Request) -> web.StreamResponse:
        return await self._tell(request, self._command(request), is_framed=False)

    async def _tell(self, request: web.Request, command: Ordered, *, is_framed: bool) -> web.StreamResponse:
        answer = web.StreamResponse(headers={"content-type": "application/x-ndjson"})
        await answer.prepare(request)
        # A command goes on without a listener.
        with contextlib.suppress(ConnectionError):
            if is_framed:
                await answer.write(_line({"command": command.row()}))
            async for name, piece in command.written():
                await answer.write(_line({"stream": name, "data": piece.decode(errors="replace")}))
                if self.cuts_output:
                    self.cuts_output -= 1
                    cut(request)
            if command.box.is_dead:
                await answer.write(_line({"stream": "error", "data": {"code": "sandbox_stopped", "message": "Over"}}))
            elif is_framed:
                await answer.write(_line({"command": command.row()}))
        return answer

    async def signal(self, request: web.Request) -> web.Response:
        command = self._command(request)
        if command.exit_code is None:
            send_signal(command.process, (await request.json())["signal"])
        return web.json_response({"command": command.row()})


def session_of(box: Box) -> str:
    return f"sbx_{box.id}"


def _key_of(request: web.Request) -> str:
    return request.headers.get("Authorization", "").removeprefix("Bearer ")


def _added(rules: Sequence[Mapping[str, Any]]) -> Mapping[str, str]:
    transforms = [transform for rule in rules for transform in rule.get("transform", [])]
    return {name: value for transform in transforms for name, value in transform["headers"].items()}


def _line(record: Mapping[str, Any]) -> bytes:
    return json.dumps(record).encode() + b"\n"
