"""
The pool `e2b`: sandboxes in E2B's cloud, of the account that the organization has connected.

A sandbox reaches the host of this server and no other. E2B adds the token of the run to its requests outside of it, so
that it holds no credential. What this file sends is the control API and envd's connect protocol in JSON:
https://e2b.dev/docs/api-reference and https://connectrpc.com/docs/protocol
"""

import asyncio
import base64
import json
import math
import re
import struct
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any, NoReturn
from urllib.parse import quote, urlencode, urlsplit

import aiohttp
import structlog

from integrations.capacity import e2b as account_api
from integrations.capacity.e2b import ANSWER_BYTES_MAX, KEY_HEADER, SANDBOXES_PATH
from integrations.capacity.prices import Size
from rensei.core.errors import FieldError, json_pointer
from rensei.core.limits import limit
from rensei.core.secret import Secret
from rensei.dispatch.models import CapacityPool
from rensei.dispatch.pools.driver import AGENT_LINE_BYTES_MAX, LINE_BYTES_MIN, Fault, Heard, Made, SandboxFault

PROVIDER_ID = CapacityPool.Provider.E2B.value
TEMPLATE = "base"
SECONDS_MAX = limit(
    24 * 3600,
    "seconds",
    what="Lifetime of a sandbox in a cloud",
    told="the caller: 400 `VALIDATION_FAILED`; the run: `SANDBOX_LOST`",
)
SECONDS, SECONDS_MIN = 3600, 60
# A run ends by itself at its deadline. A sandbox that is left ends this long after it.
SECONDS_AFTER = 60
REQUEST_SECONDS_MAX = limit(
    30.0,
    "seconds",
    what="Wait for an answer of the API of a capacity provider",
    told="the run: it ends with `SANDBOX_NOT_CREATED`",
)
LIST_PAGES_MAX = 100
ORDER_SECONDS = 2.0
INSIDE = "/run/rensei"
WORKSPACE, HOME = "/workspace", "/home/user"
_ENVD_PORT = 49983
# The user that every template has. It is not root, whose processes are those of the sandbox itself.
_USER = "user"
_KEEPALIVE_SECONDS = 50
# Without any frame for so long, the connection is dead.
_SILENT_SECONDS = 3.0 * _KEEPALIVE_SECONDS
_FRAME_BYTES_MAX = 8 * 1024 * 1024
_LAST = 0b10
_TEMPLATE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._/:-]{0,127}")
_ID = re.compile(r"[A-Za-z0-9-]{1,64}")
_REASON_CHARACTERS = 200
# What a shell answers where a command is missing, or is none.
_NO_COMMAND = frozenset({126, 127})
_TAG = "rensei-sandbox"

_TIMEOUT = aiohttp.ClientTimeout(total=REQUEST_SECONDS_MAX, sock_connect=10)

logger = structlog.get_logger(__name__)


class Passing(Exception):
    """It is not known whether E2B has done what it was asked, or it could not for the moment."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


@dataclass(frozen=True, kw_only=True)
class Account:
    """
    Where the sandboxes of a run are started: the account at E2B, and the configuration of the pool.

    `server_url` is the address of this server for them. `tags` name this installation and the organization.
    """

    key: Secret
    api_url: str
    server_url: str
    tags: Mapping[str, str]
    template: str = TEMPLATE
    seconds_max: int = SECONDS

    @property
    def seconds_of_program(self) -> float:
        """The part of a sandbox's lifetime after which its program is stopped, so that what it has made can be read."""
        return max(self.seconds_max - SECONDS_AFTER, self.seconds_max / 2)


class E2B:
    """The driver, for one account. It is bound to the event loop of its worker, and to the session of that."""

    provider_id = PROVIDER_ID

    def __init__(
        self,
        session: aiohttp.ClientSession,
        account: Account,
        *,
        seconds: float = 0.0,
        tags: Mapping[str, str] | None = None,
    ) -> None:
        """
        :param seconds: how long the run of a sandbox may take
        :param tags: what its sandbox is marked with, beside the tags of the account
        """
        self._session = session
        self._account = account
        self._seconds = seconds
        self._tags = tags or {}

    def program_of(self, file: str) -> Sequence[str]:
        return ["/usr/bin/env", "python3", "-I", f"{INSIDE}/{file}"]

    async def create(
        self,
        box_id: str,
        *,
        token: Secret,
        request_bytes_max: int,
        lines_bytes_max: int,
        for_agent: bool = False,
        with_claude_code: bool = False,
    ) -> "E2BBox":
        assert not with_claude_code, "A dispatch of Claude Code to a cloud is refused"
        return E2BBox(
            self,
            box_id,
            new=self._new(box_id, token),
            server_url=self._account.server_url,
            lines_bytes_max=lines_bytes_max,
            line_bytes_max=AGENT_LINE_BYTES_MAX if for_agent else lines_bytes_max,
            for_agent=for_agent,
        )

    async def list(self) -> Mapping[str, Size | None]:
        """List the sandboxes of this installation and organization by the ids of their rows."""
        return {row["metadata"][_TAG]: _size_of(row) for row in await self._listed(self._account.tags)}

    async def destroy(self, box_id: str) -> None:
        """Destroy a sandbox by the id of its row: E2B's own may not be known, if its answer was lost."""
        for row in await self._listed({**self._account.tags, _TAG: box_id}):
            await self.end(row["sandboxID"])

    # What follows is for the sandboxes of this driver.

    async def begin(self, box_id: str, new: Mapping[str, Any]) -> "Running":
        """
        Create a sandbox. An answer that was lost is asked for again: E2B creates one only for an idempotency key.

        :raises SandboxFault: if E2B refuses
        :raises Passing: if it is not known whether it was created
        """
        headers = {"idempotency-key": box_id.replace("_", "-").lower()}
        try:
            made = await self.request("POST", SANDBOXES_PATH, json=new, headers=headers)
        except Passing:
            try:
                made = await self.request("POST", SANDBOXES_PATH, json=new, headers=headers)
            except SandboxFault as fault:
                # This is about the second request. The first may have created it.
                raise Passing(fault.reason) from fault
        return Running.of(made, self._account.api_url)

    async def size_of(self, external_id: str) -> Size | None:
        """Return what E2B allots to a sandbox; None if it does not say now. The answer to a creation does not."""
        try:
            return _size_of(await self.request("GET", f"/sandboxes/{external_id}"))
        except (SandboxFault, Passing):
            return None

    async def end(self, external_id: str) -> None:
        """:raises SandboxFault: if E2B does not destroy it"""
        try:
            await self.request("DELETE", f"/sandboxes/{external_id}", absent_is_fine=True)
        except Passing as fault:
            raise SandboxFault(Fault.DEAD, fault.reason) from None

    async def request(
        self,
        method: str,
        path: str,
        *,
        absent_is_fine: bool = False,
        headers: Mapping[str, str] | None = None,
        **sent: Any,
    ) -> Any:
        """
        Make a request with the key of the account.

        :raises SandboxFault: if E2B refuses it
        :raises Passing: if it is not known what E2B did
        """
        _, answer = await self._ask(method, path, absent_is_fine=absent_is_fine, headers=headers, **sent)
        return answer

    async def _ask(
        self,
        method: str,
        path: str,
        *,
        absent_is_fine: bool = False,
        headers: Mapping[str, str] | None = None,
        **sent: Any,
    ) -> tuple[Mapping[str, str], Any]:
        signed = {**(headers or {}), KEY_HEADER: self._account.key.reveal()}
        try:
            async with self._session.request(
                method, self._account.api_url + path, headers=signed, timeout=_TIMEOUT, allow_redirects=False, **sent
            ) as answer:
                body = await _read(answer)
                status = answer.status
                told = dict(answer.headers)
        except (aiohttp.ClientError, TimeoutError, OSError):
            # `from None`: the errors hold the request, and with it the key.
            raise Passing("E2B does not answer.") from None
        if absent_is_fine and status == HTTPStatus.NOT_FOUND:
            return told, None
        if status >= HTTPStatus.BAD_REQUEST:
            _refuse(status, body, template=self._account.template)
        if status >= HTTPStatus.MULTIPLE_CHOICES:
            raise Passing("E2B redirects elsewhere, which is not followed.")
        return told, body

    async def envd(
        self, running: "Running", method: str, path: str, *, headers: Mapping[str, str] | None = None, **sent: Any
    ) -> aiohttp.ClientResponse:
        """
        Make a request to the program that E2B runs in each sandbox. The caller closes the answer.

        :raises SandboxFault: if the sandbox does not answer, or refuses
        """
        timeout = sent.pop("timeout", _TIMEOUT)
        try:
            answer = await self._session.request(
                method,
                running.url + path,
                headers={**running.headers, **(headers or {})},
                timeout=timeout,
                allow_redirects=False,
                **sent,
            )
        except (aiohttp.ClientError, TimeoutError, OSError):
            raise SandboxFault(Fault.DEAD, "It does not answer.") from None
        if answer.status >= HTTPStatus.BAD_REQUEST:
            status = answer.status
            answer.close()
            raise SandboxFault(Fault.DEAD, f"It answers with status {status}.")
        return answer

    def _new(self, box_id: str, token: Secret) -> Mapping[str, Any]:
        account = self._account
        host = urlsplit(account.server_url).hostname or ""
        added = {"Authorization": f"Bearer {token.reveal()}"}
        return {
            "templateID": account.template,
            "timeout": min(account.seconds_max, math.ceil(self._seconds) + SECONDS_AFTER),
            "autoPause": False,
            "envVars": {},
            "metadata": {**account.tags, **self._tags, _TAG: box_id},
            "network": {
                "allowPublicTraffic": False,
                "allowOut": [host],
                "denyOut": ["0.0.0.0/0"],
                "rules": {host: [{"transform": {"headers": added}}]},
            },
        }

    async def _listed(self, tags: Mapping[str, str]) -> Sequence[Mapping[str, Any]]:
        """:raises SandboxFault: if E2B does not list them"""
        found: list[Mapping[str, Any]] = []
        # E2B decodes the names and values once more than a form.
        metadata = urlencode({quote(name): quote(value) for name, value in tags.items()})
        query = {"metadata": metadata, "limit": "100"}
        try:
            for _ in range(LIST_PAGES_MAX):
                headers, rows = await self._ask("GET", f"{SANDBOXES_PATH}?{urlencode(query)}")
                for row in _rows(rows):
                    match row:
                        case {"sandboxID": str(), "metadata": {"rensei-sandbox": str()}}:
                            found.append(row)
                following = headers.get("x-next-token") or headers.get("X-Next-Token")
                if not following:
                    break
                query["nextToken"] = following
        except Passing as fault:
            raise SandboxFault(Fault.NOT_CREATED, fault.reason) from None
        return found


@dataclass(frozen=True, kw_only=True)
class Running:
    """A sandbox that E2B has created: its id there, and where and how its envd is reached."""

    external_id: str
    url: str
    headers: Mapping[str, str]

    @classmethod
    def of(cls, made: Any, api_url: str) -> "Running":
        """:raises Passing: if the answer names no sandbox"""
        match made:
            case {"sandboxID": str(external_id)} if _ID.fullmatch(external_id):
                pass
            case _:
                raise Passing("E2B gave an answer that is not known.")
        headers = {
            "E2b-Sandbox-Id": external_id,
            "E2b-Sandbox-Port": str(_ENVD_PORT),
            "Keepalive-Ping-Interval": str(_KEEPALIVE_SECONDS),
        }
        if isinstance(token := made.get("envdAccessToken"), str):
            headers["X-Access-Token"] = token
        # The two names of E2B's own cloud; an address of another installation serves both.
        return cls(external_id=external_id, url=api_url.replace("//api.", "//sandbox.", 1), headers=headers)


class E2BBox:
    """A sandbox at E2B. Its files are those of root, and its program is the user's."""

    # It calls the gateway without a relay of the worker.
    relay = None
    heard = Heard()
    made: Made | None = None

    def __init__(
        self,
        driver: E2B,
        box_id: str,
        *,
        new: Mapping[str, Any],
        server_url: str,
        lines_bytes_max: int,
        line_bytes_max: int,
        for_agent: bool,
    ) -> None:
        self.exit_code: int | None = None
        self._driver = driver
        self._box_id = box_id
        self._new = new
        self._server_url = server_url
        self._lines_bytes_left = lines_bytes_max
        self._line_bytes_max = line_bytes_max
        self._for_agent = for_agent
        self._running: Running | None = None
        # Between the request to create it and the answer.
        self._may_exist = False
        self._stream: aiohttp.ClientResponse | None = None
        self._pid: int | None = None
        self._said = b""

    async def start(self, arguments: Sequence[str], *, files: Mapping[str, bytes]) -> None:
        """:raises SandboxFault: if E2B creates no sandbox, or its program cannot be started"""
        self._may_exist = True
        try:
            self._running = running = await self._driver.begin(self._box_id, self._new)
        except SandboxFault:
            self._may_exist = False
            raise
        except Passing as fault:
            raise SandboxFault(Fault.NOT_CREATED, fault.reason) from fault
        self.made = Made()
        # It holds the token.
        self._new = {}
        try:
            for name, content in {**files, "gateway": self._server_url.encode()}.items():
                await self._write(f"{INSIDE}/{name}", content)
            if self._for_agent:
                command = f"mkdir -p {WORKSPACE} && chown {_USER}: {WORKSPACE}"
                stream = await self._begin(["/bin/sh", "-c", command], user="root", cwd="/")
                async for _ in self._frames(stream):
                    pass
            self._stream = await self._begin(arguments, user=_USER, cwd=WORKSPACE if self._for_agent else HOME)
        except SandboxFault as fault:
            raise SandboxFault(Fault.NOT_CREATED, f"The sandbox could not be prepared. {fault.reason}") from fault
        self.made = Made(size=await self._driver.size_of(running.external_id))
        logger.info("e2b_sandbox_started", external_id=running.external_id)

    async def follow(self) -> AsyncIterator[bytes]:
        """
        Yield the lines of the program until it has ended.

        :raises SandboxFault: if the sandbox ended before it, or it writes too much
        """
        assert self._stream is not None
        begun = bytearray()
        async for written in self._frames(self._stream):
            first, *others = written.split(b"\n")
            begun += first
            for following in others:
                yield self._counted(bytes(begun) + b"\n")
                begun = bytearray(following)
            self._require_length(len(begun))
        if begun:
            yield self._counted(bytes(begun))
        if self.exit_code in _NO_COMMAND:
            raise SandboxFault(Fault.NOT_CREATED, "The template has no Python 3, or not on its path.")

    def _counted(self, line: bytes) -> bytes:
        """:raises SandboxFault: if the program has written too much with it"""
        self._require_length(len(line))
        self._lines_bytes_left -= max(len(line), LINE_BYTES_MIN)
        if self._lines_bytes_left < 0:
            raise SandboxFault(Fault.DEAD, "Its program wrote too much.")
        return line

    def _require_length(self, size: int) -> None:
        if size > self._line_bytes_max:
            raise SandboxFault(Fault.DEAD, "Its program wrote too long a line.")

    def require_memory(self) -> None:
        """A template has its own memory, which the sandbox cannot exceed."""

    async def order_stop(self) -> None:
        if self._running is None or self._pid is None or not self._for_agent:
            return
        order = {"process": {"pid": self._pid}, "signal": "SIGNAL_SIGTERM"}
        # If it is not obeyed, the sandbox is ended soon.
        with suppress(SandboxFault, TimeoutError):
            async with asyncio.timeout(ORDER_SECONDS):
                answer = await self._driver.envd(self._running, "POST", "/process.Process/SendSignal", json=order)
                answer.close()

    async def destroy(self) -> bool:
        if self._stream is not None:
            self._stream.close()
        try:
            if self._running is not None:
                if self.made == Made():
                    self.made = Made(size=await self._driver.size_of(self._running.external_id))
                await self._driver.end(self._running.external_id)
            elif self._may_exist:
                await self._driver.destroy(self._box_id)
                # It may not be listed yet.
                return False
        except SandboxFault as fault:
            logger.warning("e2b_sandbox_not_destroyed", reason=fault.reason)
            return False
        return True

    async def _write(self, path: str, content: bytes) -> None:
        assert self._running is not None
        query = urlencode({"path": path, "username": "root"})
        form = aiohttp.FormData()
        form.add_field("file", content, filename=path, content_type="application/octet-stream")
        answer = await self._driver.envd(self._running, "POST", f"/files?{query}", data=form)
        answer.close()

    async def _begin(self, arguments: Sequence[str], *, user: str, cwd: str) -> aiohttp.ClientResponse:
        assert self._running is not None
        command, *others = arguments
        process = {"cmd": command, "args": others, "envs": {"HOME": HOME}, "cwd": cwd}
        content = json.dumps({"process": process, "stdin": False}).encode()
        return await self._driver.envd(
            self._running,
            "POST",
            "/process.Process/Start",
            data=struct.pack(">BI", 0, len(content)) + content,
            headers={
                "content-type": "application/connect+json",
                "connect-protocol-version": "1",
                "authorization": f"Basic {base64.b64encode(f'{user}:'.encode()).decode()}",
            },
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=10, sock_read=_SILENT_SECONDS),
        )

    async def _frames(self, stream: aiohttp.ClientResponse) -> AsyncIterator[bytes]:
        """
        Yield what a process writes to its standard output, and note its number and its exit code.

        :raises SandboxFault: if it cannot be seen how it ended
        """
        self.exit_code = self._pid = None
        try:
            while self.exit_code is None:
                flags, size = struct.unpack(">BI", await stream.content.readexactly(5))
                if size > _FRAME_BYTES_MAX:
                    break
                event = json.loads(await stream.content.readexactly(size))
                if flags & _LAST:
                    break
                match event.get("event"):
                    case {"start": {"pid": int(pid)}}:
                        self._pid = pid
                    case {"data": {"stdout": str(data)}}:
                        yield base64.b64decode(data)
                    case {"data": {"stderr": str(data)}}:
                        self._said = (self._said + base64.b64decode(data))[-1000:]
                    case {"end": dict(end)}:
                        # A zero is left out.
                        self.exit_code = int(end.get("exitCode", 0))
        except (aiohttp.ClientError, asyncio.IncompleteReadError, TimeoutError, OSError, ValueError, AttributeError):
            pass
        finally:
            stream.close()
        if self.exit_code is None:
            raise SandboxFault(Fault.DEAD, "E2B ended it, or the connection to it was lost.")
        if self.exit_code != 0:
            logger.info("e2b_program_failed", exit_code=self.exit_code, said=self._said.decode(errors="replace"))


def check_config(config: Mapping[str, Any], *, pointer: str) -> None:
    """
    Check the settings of a pool.

    :raises FieldError: for the first that is unknown or invalid
    """
    for name in config:
        if name not in {"template", "lifetimeSeconds"}:
            raise FieldError(
                pointer=f"{pointer}{json_pointer(name)}",
                reason="A pool at E2B has `template` and `lifetimeSeconds` only.",
            )
    template, seconds = config.get("template", TEMPLATE), config.get("lifetimeSeconds", SECONDS)
    if not isinstance(template, str) or not _TEMPLATE.fullmatch(template):
        raise FieldError(pointer=f"{pointer}/template", reason="It is the name or the id of a template at E2B.")
    if type(seconds) is not int or not SECONDS_MIN <= seconds <= SECONDS_MAX:
        raise FieldError(
            pointer=f"{pointer}/lifetimeSeconds", reason=f"It is a number from {SECONDS_MIN} to {SECONDS_MAX}."
        )


async def _read(answer: aiohttp.ClientResponse) -> Any:
    """Read an answer of the API. None if it is no JSON, or too long."""
    read = b""
    async for piece in answer.content.iter_any():
        read += piece
        if len(read) > ANSWER_BYTES_MAX:
            return None
    try:
        return json.loads(read) if read else None
    except ValueError:
        return None


def _rows(body: Any) -> list[Any]:
    """:raises Passing: if an answer is no list, so that nothing is known to be gone"""
    if not isinstance(body, list):
        raise Passing("E2B gave a list that is not known.")
    return body


def _size_of(row: Any) -> Size | None:
    match row:
        case {"cpuCount": int(vcpus), "memoryMB": int(memory)} if vcpus > 0 and memory > 0:
            return Size(vcpus=vcpus, memory_mib=memory)
    return None


def _refuse(status: int, body: Any, *, template: str) -> NoReturn:
    """:raises SandboxFault, Passing: what a refusal of E2B means"""
    message = body.get("message") if isinstance(body, dict) else None
    said = f": {message[:_REASON_CHARACTERS]}" if isinstance(message, str) and message.isprintable() else "."
    if status in account_api.REFUSED:
        raise SandboxFault(Fault.REFUSED, "E2B does not accept the key of the organization.")
    if status == HTTPStatus.TOO_MANY_REQUESTS:
        raise SandboxFault(Fault.FULL, f"The account at E2B has reached a limit{said}")
    if status == HTTPStatus.NOT_FOUND:
        raise SandboxFault(Fault.NOT_CREATED, f"E2B has no template '{template}' for this account.")
    if status == HTTPStatus.SERVICE_UNAVAILABLE:
        raise SandboxFault(Fault.FULL, "E2B has no room for another sandbox now.")
    if status < HTTPStatus.INTERNAL_SERVER_ERROR:
        raise SandboxFault(Fault.NOT_CREATED, f"E2B does not create it{said}")
    raise Passing(f"E2B answers with status {status}.")
