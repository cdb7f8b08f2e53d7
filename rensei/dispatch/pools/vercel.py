"""
The pool `vercel`: sandboxes at Vercel, of the team and project that the organization has connected.

What this file sends is the REST API of Vercel Sandbox, whose output of a program is lines of JSON:
https://vercel.com/docs/rest-api/sandboxes. All that is done in a sandbox names its session: a request that names the
sandbox would start one that has stopped anew, and with it the program.
"""

import asyncio
import json
import re
import signal
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from http import HTTPStatus
from typing import Any
from urllib.parse import urlencode

import structlog

from integrations.capacity import vercel as account_api
from integrations.capacity.prices import Size
from integrations.capacity.vercel import SANDBOXES_PATH, team_and_project
from rensei.core.limits import limit
from rensei.core.secret import Secret
from rensei.dispatch.pools import cloud
from rensei.dispatch.pools.cloud import (
    LIST_PAGES_MAX,
    WORKSPACE,
    CloudBox,
    Found,
    HttpCloud,
    LineTooLong,
    OutcomeUnknown,
)
from rensei.dispatch.pools.driver import Fault, GitLogin, SandboxFault

SECONDS_MAX = limit(
    5 * 3600,
    "seconds",
    what="Lifetime of a sandbox at Vercel",
    told="the caller: 400 `VALIDATION_FAILED`; the run: `SANDBOX_LOST`",
)
VCPUS = (1, 2, 4, 8)
_NEW_PATH = "/v3/sandboxes"
_IMAGE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._/:@-]{0,199}")
_ID = re.compile(r"[A-Za-z0-9_-]{1,128}")
_ENDED = frozenset({HTTPStatus.NOT_FOUND, HTTPStatus.GONE})
_ENDED_IT = "Vercel ended it."
# How long it may take from its creation until it runs, and how often that is looked at.
_READY_SECONDS = 60.0
_LOOK_SECONDS, _LOOK_SECONDS_MAX = 0.05, 0.5
_RECORD_BYTES_MAX = 8 * 1024 * 1024
# How often a connection to the output may break at once, and how long one lasts that did not.
_BREAKS_MAX, _STEADY_SECONDS = 3, 10.0
_AGAIN_SECONDS = 0.2
# Vercel has lost its connection to the sandbox, which may go on.
_STREAM_CLOSED = "sandbox_stream_closed"

logger = structlog.get_logger(__name__)


class Vercel(HttpCloud):
    """The driver of Vercel Sandbox."""

    provider_id = account_api.SPEC.id
    name = account_api.SPEC.display_name
    # In the folder of the user that has every image of Vercel's.
    inside = "/vercel/sandbox/rensei"
    image_setting = "image"
    refused = account_api.REFUSED
    seconds_max = SECONDS_MAX
    settings = {
        image_setting: cloud.name(
            _IMAGE, default="vercel/sandbox/universal:latest", reason="It is the name of an image at Vercel."
        ),
        # Each plan allows the default.
        "lifetimeSeconds": cloud.number(cloud.SECONDS_MIN, SECONDS_MAX, default=2700),
        "egress": cloud.hosts(),
        "vcpus": cloud.Setting(
            default=2,
            is_valid=lambda value: type(value) is int and value in VCPUS,
            reason=f"It is one of {', '.join(map(str, VCPUS))}.",
        ),
    }

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._team, self._project = team_and_project(self.account.workspace_id)

    def box(self, box_id: str, token: Secret, **limits: Any) -> CloudBox:
        return VercelBox(self, box_id, token, **limits)

    def signed(self) -> Mapping[str, str]:
        return account_api.signed(self.account.key)

    async def ids_of(self, box_id: str) -> Sequence[str]:
        return [name_of(box_id)]

    async def find(self, tags: Mapping[str, str]) -> Sequence[Found]:
        found: list[Found] = []
        # A query filters by one tag, so that more may be found. The last is the narrowest.
        tag, value = list(tags.items())[-1]
        query = {"project": self._project, "tags": f"{tag}:{value}", "limit": "50"}
        for _ in range(LIST_PAGES_MAX):
            _, _, listed = await self.ask("GET", self.path(SANDBOXES_PATH, **query))
            match listed:
                case {"sandboxes": list(rows)}:
                    pass
                case _:
                    # Nothing is known to be gone.
                    raise OutcomeUnknown("Vercel gave a list that is not known.")
            for row in rows:
                match row:
                    case {"name": str(name), "tags": dict(of_it)} if _ID.fullmatch(name):
                        found.append(Found(external_id=name, tags=of_it, size=_size_in(row)))
            match listed:
                case {"pagination": {"next": str(following)}}:
                    query["cursor"] = following
                case _:
                    return found
        raise OutcomeUnknown("Vercel lists more sandboxes than are read.")

    async def size(self, external_id: str) -> Size | None:
        return _size_in((await self._show(external_id)).get("sandbox"))

    async def remove(self, external_id: str) -> None:
        path = self.path(f"{SANDBOXES_PATH}/{external_id}", projectId=self._project)
        await self.ask("DELETE", path, expected=_ENDED)

    async def _show(self, external_id: str) -> Mapping[str, Any]:
        """Ask for a sandbox, without starting a stopped one anew."""
        path = self.path(f"{SANDBOXES_PATH}/{external_id}", projectId=self._project, resume="false")
        _, _, shown = await self.ask("GET", path)
        return shown if isinstance(shown, dict) else {}

    # What follows is for the sandboxes of this driver.

    async def begin(self, box_id: str, token: Secret, login: GitLogin | None) -> str:
        """Create a sandbox, and return the id of its session. Vercel creates one only for a name."""
        added = self.added_headers(token, login)
        new = {
            "projectId": self._project,
            "name": name_of(box_id),
            "image": self.account.config[self.image_setting],
            "timeout": 1000 * self.seconds,
            "resources": {"vcpus": self.account.config["vcpus"]},
            "persistent": False,
            "networkPolicy": {
                "allow": {
                    **{host: [] for host in self.account.config["egress"]},
                    **{host: [{"transform": [{"headers": headers}]}] for host, headers in added.items()},
                }
            },
            "tags": self.tags_of(box_id),
        }
        status, _, made = await self.ask(
            "POST", self.path(_NEW_PATH), json=new, expected={HTTPStatus.CONFLICT}, creates=True
        )
        if status == HTTPStatus.CONFLICT:
            try:
                made = await self._show(name_of(box_id))
            except SandboxFault as fault:
                # It exists. This refusal is about reading it only.
                raise OutcomeUnknown(fault.reason) from fault
        match made:
            case {"session": {"id": str(session)}} | {"sandbox": {"currentSessionId": str(session)}}:
                if _ID.fullmatch(session):
                    return session
        raise OutcomeUnknown("Vercel gave an answer that is not known.")

    async def in_session(self, method: str, path: str, *, query: Mapping[str, str] | None = None, **sent: Any) -> Any:
        """Make a request to a session, and return the JSON of the answer."""
        url = self.path(f"{SANDBOXES_PATH}/sessions/{path}", **(query or {}))
        status, _, body = await self.ask(method, url, expected=_ENDED, **sent)
        if status in _ENDED:
            raise SandboxFault(Fault.DEAD, _ENDED_IT)
        return body

    async def log(self, path: str) -> AsyncIterator[Any]:
        """
        Yield what a program writes, from its beginning on, as records of its streams.

        :raises SandboxFault: if the sandbox ended, or Vercel refuses the request
        :raises OutcomeUnknown: if the connection broke
        """
        url = self.account.api_url + self.path(f"{SANDBOXES_PATH}/sessions/{path}")
        async with await self.open("GET", url, timeout=cloud.STREAM_TIMEOUT) as answer:
            if answer.status in _ENDED:
                raise SandboxFault(Fault.DEAD, _ENDED_IT)
            if answer.status != HTTPStatus.OK:
                self.judge(answer.status, await self.read(answer))
            try:
                async for line in cloud.lines_of(answer.content.iter_any(), bytes_max=_RECORD_BYTES_MAX):
                    record = json.loads(line)
                    match record:
                        case {"error": {"code": str(code)}} | {"stream": "error", "data": {"code": str(code)}}:
                            if code == _STREAM_CLOSED:
                                raise OutcomeUnknown("Vercel has lost its connection to it.")
                            raise SandboxFault(Fault.DEAD, _ENDED_IT)
                    yield record
            except (*cloud.CONNECTION_FAULTS, LineTooLong, ValueError, RecursionError):
                raise OutcomeUnknown("The connection to it was lost.") from None

    def path(self, path: str, **query: str) -> str:
        return f"{path}?{urlencode({'teamId': self._team, **query})}"


class VercelBox(CloudBox):
    """A sandbox at Vercel. The provider's id is its name, and what is done in it is done in its session."""

    _session: str
    _command: str | None = None

    def __init__(self, driver: Vercel, box_id: str, token: Secret, **limits: Any) -> None:
        super().__init__(driver, box_id, token, **limits)
        self._driver = driver

    async def begin(self, token: Secret) -> str:
        self._session = await self._driver.begin(self._box_id, token, self.login)
        return name_of(self._box_id)

    async def prepare(self, files: Mapping[str, bytes]) -> None:
        await self._await_start()
        await self._driver.in_session(
            "POST",
            f"{self._session}/fs/write",
            data=cloud.archive(files),
            headers={"x-cwd": "/", "content-type": "application/gzip"},
        )
        if self.for_agent:
            # The user of an image is not known.
            script = f"mkdir -p {WORKSPACE} && chmod 1777 {WORKSPACE}"
            command = await self._start(["/bin/sh", "-c", script], sudo=True)
            if await self._exit_code(command) != 0:
                raise SandboxFault(Fault.DEAD, f"The folder {WORKSPACE} could not be made.")

    async def run(self, arguments: Sequence[str]) -> None:
        self._command = await self._start(arguments, **({"cwd": WORKSPACE} if self.for_agent else {}))

    async def output(self) -> AsyncIterator[bytes]:
        """
        Yield what the program writes to its standard output, and note its exit code.

        The connection to it may break while the program goes on. Then it is opened again, and what was yielded already
        is left out.
        """
        assert self._command is not None
        yielded = heard = breaks = 0
        while self.exit_code is None and breaks <= _BREAKS_MAX:
            if breaks:
                await asyncio.sleep(_AGAIN_SECONDS * 2**breaks)
            begun, place, said = time.monotonic(), 0, 0
            try:
                async for record in self._driver.log(f"{self._session}/cmd/{self._command}/logs"):
                    match record:
                        case {"stream": "stdout", "data": str(text)}:
                            new = text[max(0, yielded - place) :]
                            place += len(text)
                            if new:
                                yielded, breaks = place, 0
                                yield new.encode(errors="replace")
                        case {"stream": "stderr", "data": str(text)}:
                            new = text[max(0, heard - said) :]
                            said += len(text)
                            if new:
                                heard = said
                                self.note_stderr(new)
                self.exit_code = await self._exit_code(self._command)
            except OutcomeUnknown as fault:
                logger.info("cloud_output_interrupted", reason=fault.reason)
            except SandboxFault as fault:
                if fault.fault is not Fault.FULL:
                    raise
            breaks = 1 if time.monotonic() - begun >= _STEADY_SECONDS else breaks + 1

    async def terminate(self) -> None:
        if self._command is not None:
            path = f"{self._session}/cmd/{self._command}/kill"
            await self._driver.in_session("POST", path, json={"signal": int(signal.SIGTERM)})

    async def _await_start(self) -> None:
        """:raises SandboxFault: if it ended instead"""
        until, pause = time.monotonic() + _READY_SECONDS, _LOOK_SECONDS
        while True:
            match await self._driver.in_session("GET", self._session):
                case {"session": {"status": "running"}}:
                    return
                case {"session": {"status": "pending"}} if time.monotonic() < until:
                    await asyncio.sleep(pause)
                    pause = min(2 * pause, _LOOK_SECONDS_MAX)
                case _:
                    raise SandboxFault(Fault.DEAD, "It did not start.")

    async def _start(self, arguments: Sequence[str], **options: Any) -> str:
        command, *others = arguments
        order = {"command": command, "args": others, **options}
        match await self._driver.in_session("POST", f"{self._session}/cmd", json=order):
            case {"command": {"id": str(number)}} if _ID.fullmatch(number):
                return number
        raise OutcomeUnknown("Vercel gave an answer that is not known.")

    async def _exit_code(self, command: str) -> int | None:
        """Wait for the end of a command. None if it has not ended, or that is not known."""
        match await self._driver.in_session("GET", f"{self._session}/cmd/{command}", query={"wait": "true"}):
            case {"command": {"exitCode": int(code)}}:
                return code
        return None


def name_of(box_id: str) -> str:
    """Return the name of the sandbox of a row, which is its id at Vercel."""
    return box_id.replace("_", "-").lower()


def _size_in(row: Any) -> Size | None:
    return cloud.size_in(row, vcpus="vcpus", memory_mib="memory")
