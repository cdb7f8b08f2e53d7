"""
The pool `e2b`: sandboxes in E2B's cloud, of the account that the organization has connected.

What this file sends is the control API and envd's connect protocol in JSON: https://e2b.dev/docs/api-reference and
https://connectrpc.com/docs/protocol
"""

import asyncio
import base64
import json
import re
import struct
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any
from urllib.parse import quote, urlencode

import aiohttp

from integrations.capacity import e2b as account_api
from integrations.capacity.e2b import SANDBOXES_PATH
from integrations.capacity.prices import Size
from rensei.core.limits import limit
from rensei.core.secret import Secret
from rensei.dispatch.pools import cloud
from rensei.dispatch.pools.cloud import LIST_PAGES_MAX, TAG, WORKSPACE, CloudBox, Found, HttpCloud, OutcomeUnknown
from rensei.dispatch.pools.driver import Fault, GitLogin, SandboxFault

SECONDS_MAX = limit(
    24 * 3600,
    "seconds",
    what="Lifetime of a sandbox at E2B",
    told="the caller: 400 `VALIDATION_FAILED`; the run: `SANDBOX_LOST`",
)
HOME = "/home/user"
_ENVD_PORT = 49983
# The user that every template has. It is not root, whose processes are those of the sandbox itself.
_USER = "user"
_KEEPALIVE_SECONDS = 50
_FRAME_BYTES_MAX = 8 * 1024 * 1024
_LAST = 0b10
# What reading an event raises that is not as the protocol has it.
_NOT_OF_ENVD = (ValueError, AttributeError, TypeError, RecursionError)
_TEMPLATE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._/:-]{0,127}")
_ID = re.compile(r"[A-Za-z0-9-]{1,64}")


class E2B(HttpCloud):
    """The driver of E2B."""

    provider_id = account_api.SPEC.id
    name = account_api.SPEC.display_name
    inside = "/run/rensei"
    image_setting = "template"
    refused = account_api.REFUSED
    seconds_max = SECONDS_MAX
    settings = {
        image_setting: cloud.name(_TEMPLATE, default="base", reason="It is the name or the id of a template at E2B."),
        "lifetimeSeconds": cloud.number(cloud.SECONDS_MIN, SECONDS_MAX, default=3600),
        "egress": cloud.hosts(),
    }

    def box(self, box_id: str, token: Secret, **limits: Any) -> CloudBox:
        return E2BBox(self, box_id, token, **limits)

    def signed(self) -> Mapping[str, str]:
        return account_api.signed(self.account.key)

    async def ids_of(self, box_id: str) -> Sequence[str]:
        return [found.external_id for found in await self.find_own({**self.account.tags, TAG: box_id})]

    async def find(self, tags: Mapping[str, str]) -> Sequence[Found]:
        found: list[Found] = []
        # E2B decodes the names and values once more than a form.
        metadata = urlencode({quote(name): quote(value) for name, value in tags.items()})
        query = {"metadata": metadata, "limit": "100"}
        for _ in range(LIST_PAGES_MAX):
            _, headers, rows = await self.ask("GET", f"{SANDBOXES_PATH}?{urlencode(query)}")
            if not isinstance(rows, list):
                # Nothing is known to be gone.
                raise OutcomeUnknown("E2B gave a list that is not known.")
            for row in rows:
                match row:
                    case {"sandboxID": str(external_id), "metadata": dict(of_it)} if _ID.fullmatch(external_id):
                        found.append(Found(external_id=external_id, tags=of_it, size=_size_in(row)))
            following = headers.get("x-next-token") or headers.get("X-Next-Token")
            if not following:
                return found
            query["nextToken"] = following
        raise OutcomeUnknown("E2B lists more sandboxes than are read.")

    async def size(self, external_id: str) -> Size | None:
        # The answer to the creation does not have it.
        _, _, row = await self.ask("GET", f"/sandboxes/{external_id}")
        return _size_in(row)

    async def remove(self, external_id: str) -> None:
        await self.ask("DELETE", f"/sandboxes/{external_id}", expected={HTTPStatus.NOT_FOUND})

    # What follows is for the sandboxes of this driver.

    async def begin(self, box_id: str, token: Secret, login: GitLogin | None) -> "Running":
        """Create a sandbox. E2B creates one only for an idempotency key."""
        new = {
            "templateID": self.account.config[self.image_setting],
            "timeout": self.seconds,
            "autoPause": False,
            "envVars": {},
            "metadata": self.tags_of(box_id),
            "network": {
                "allowPublicTraffic": False,
                "allowOut": list(dict.fromkeys([self.host, *self.account.config["egress"]])),
                "denyOut": ["0.0.0.0/0"],
                "rules": {
                    host: [{"transform": {"headers": added}}]
                    for host, added in self.added_headers(token, login).items()
                },
            },
        }
        headers = {"idempotency-key": box_id.replace("_", "-").lower()}
        _, _, made = await self.ask("POST", SANDBOXES_PATH, json=new, headers=headers, creates=True)
        return Running.of(made, self.account.api_url)

    async def envd(self, running: "Running", path: str, **sent: Any) -> aiohttp.ClientResponse:
        """
        Make a request to the program that E2B runs in each sandbox. The caller closes the answer.

        :raises SandboxFault: if the sandbox does not answer, or refuses
        """
        given = {"timeout": cloud.TIMEOUT, **sent, "headers": {**running.headers, **sent.get("headers", {})}}
        answer: aiohttp.ClientResponse | None = None
        with suppress(*cloud.CONNECTION_FAULTS):
            answer = await self._session.post(running.url + path, allow_redirects=False, **given)
        if answer is None:
            raise SandboxFault(Fault.DEAD, "It does not answer.")
        if answer.status >= HTTPStatus.MULTIPLE_CHOICES:
            status = answer.status
            answer.close()
            raise SandboxFault(Fault.DEAD, f"It answers with status {status}.")
        return answer


@dataclass(frozen=True, kw_only=True)
class Running:
    """A sandbox that E2B has created: its id there, and where and how its envd is reached."""

    external_id: str
    url: str
    headers: Mapping[str, str]

    @classmethod
    def of(cls, made: Any, api_url: str) -> "Running":
        """:raises OutcomeUnknown: if the answer names no sandbox"""
        match made:
            case {"sandboxID": str(external_id)} if _ID.fullmatch(external_id):
                pass
            case _:
                raise OutcomeUnknown("E2B gave an answer that is not known.")
        headers = {
            "E2b-Sandbox-Id": external_id,
            "E2b-Sandbox-Port": str(_ENVD_PORT),
            "Keepalive-Ping-Interval": str(_KEEPALIVE_SECONDS),
        }
        if isinstance(token := made.get("envdAccessToken"), str):
            headers["X-Access-Token"] = token
        # The two names of E2B's own cloud; an address of another installation serves both.
        return cls(external_id=external_id, url=api_url.replace("//api.", "//sandbox.", 1), headers=headers)


class E2BBox(CloudBox):
    """A sandbox at E2B. Its files are those of root, and its program is the user's."""

    _running: Running
    _pid: int | None = None

    def __init__(self, driver: E2B, box_id: str, token: Secret, **limits: Any) -> None:
        super().__init__(driver, box_id, token, **limits)
        self._driver = driver

    async def begin(self, token: Secret) -> str:
        self._running = await self._driver.begin(self._box_id, token, self.login)
        return self._running.external_id

    async def prepare(self, files: Mapping[str, bytes]) -> None:
        for path, content in files.items():
            await self._write(path, content)
        if self.for_agent:
            command = f"mkdir -p {WORKSPACE} && chown {_USER}: {WORKSPACE}"
            self._stream = await self._start(["/bin/sh", "-c", command], user="root", cwd="/")
            async for _ in self.output():
                pass
            if self.exit_code != 0:
                raise SandboxFault(Fault.DEAD, f"The folder {WORKSPACE} could not be made.")

    async def run(self, arguments: Sequence[str]) -> None:
        self._stream = await self._start(arguments, user=_USER, cwd=WORKSPACE if self.for_agent else HOME)

    async def terminate(self) -> None:
        if self._pid is not None:
            order = {"process": {"pid": self._pid}, "signal": "SIGNAL_SIGTERM"}
            answer = await self._driver.envd(self._running, "/process.Process/SendSignal", json=order)
            answer.close()

    async def _write(self, path: str, content: bytes) -> None:
        query = urlencode({"path": path, "username": "root"})
        form = aiohttp.FormData()
        form.add_field("file", content, filename=path, content_type="application/octet-stream")
        answer = await self._driver.envd(self._running, f"/files?{query}", data=form)
        answer.close()

    async def _start(self, arguments: Sequence[str], *, user: str, cwd: str) -> aiohttp.ClientResponse:
        command, *others = arguments
        process = {"cmd": command, "args": others, "envs": {"HOME": HOME}, "cwd": cwd}
        content = json.dumps({"process": process, "stdin": False}).encode()
        return await self._driver.envd(
            self._running,
            "/process.Process/Start",
            data=struct.pack(">BI", 0, len(content)) + content,
            headers={
                "content-type": "application/connect+json",
                "connect-protocol-version": "1",
                "authorization": f"Basic {base64.b64encode(f'{user}:'.encode()).decode()}",
            },
            timeout=cloud.STREAM_TIMEOUT,
        )

    async def output(self) -> AsyncIterator[bytes]:
        """Yield what a process writes to its standard output, and note its number and its exit code."""
        assert self._stream is not None
        self.exit_code = self._pid = None
        try:
            while self.exit_code is None:
                flags, size = struct.unpack(">BI", await self._stream.content.readexactly(5))
                if size > _FRAME_BYTES_MAX:
                    break
                event = json.loads(await self._stream.content.readexactly(size))
                if flags & _LAST:
                    break
                match event.get("event"):
                    case {"start": {"pid": int(pid)}}:
                        self._pid = pid
                    case {"data": {"stdout": str(data)}}:
                        yield base64.b64decode(data)
                    case {"data": {"stderr": str(data)}}:
                        self.note_stderr(base64.b64decode(data).decode(errors="replace"))
                    case {"end": dict(end)}:
                        # A zero is left out.
                        self.exit_code = int(end.get("exitCode", 0))
        except (*cloud.CONNECTION_FAULTS, asyncio.IncompleteReadError, *_NOT_OF_ENVD):
            pass
        finally:
            self._stream.close()


def _size_in(row: Any) -> Size | None:
    return cloud.size_in(row, vcpus="cpuCount", memory_mib="memoryMB")
