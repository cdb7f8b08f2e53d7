"""
What the drivers of all clouds have in common.

A sandbox reaches the host of this server, and those that its pool allows. The provider adds the token of the run to its
requests to this server, outside of it, so that it holds no credential; where a provider cannot, the token is a file in
the sandbox.
"""

import asyncio
import io
import json
import math
import re
import tarfile
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any, ClassVar, NoReturn
from urllib.parse import urlsplit

import aiohttp
import structlog
from django.conf import settings

from integrations.capacity.account import ANSWER_BYTES_MAX
from integrations.capacity.prices import Size
from rensei.core.errors import FieldError, json_pointer
from rensei.core.limits import limit
from rensei.core.secret import Secret
from rensei.dispatch.pools.driver import (
    AGENT_LINE_BYTES_MAX,
    LINE_BYTES_MIN,
    Fault,
    GitLogin,
    Heard,
    Made,
    SandboxFault,
)

SECONDS_MIN = 60
# A run ends by itself at its deadline. A sandbox that is left ends this long after it.
SECONDS_AFTER = 60
REQUEST_SECONDS_MAX = limit(
    30.0,
    "seconds",
    what="Wait for an answer of the API of a capacity provider",
    told="the run: it ends with `SANDBOX_NOT_CREATED`",
)
HOSTS_MAX = limit(
    20, "hosts", what="Hosts that the sandboxes of a pool may reach", told="the caller: 400 `VALIDATION_FAILED`"
)
SLOTS_MAX = limit(1_000, "slots", what="Slots of a pool", told="the caller: 400 `VALIDATION_FAILED`")
# No wildcards, and no addresses: the last label has no digits only.
_HOST = re.compile(r"(?:[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?\.)+[a-z](?:[a-z0-9-]{0,61}[a-z0-9])?")
_HOST_CHARACTERS = 253
LIST_PAGES_MAX = 100
ORDER_SECONDS = 2.0
WORKSPACE = "/workspace"
# Without anything for so long, a connection is dead.
SILENT_SECONDS = 150.0
TAG = "rensei-sandbox"
# What the id of a row is made of.
_ROW_ID = re.compile(r"[A-Za-z0-9_-]{1,64}")
SAID_CHARACTERS = 1000
_REASON_CHARACTERS = 200
# What a shell answers where a command is missing, or is none.
_NO_COMMAND = frozenset({126, 127})
_FULL = frozenset({HTTPStatus.PAYMENT_REQUIRED, HTTPStatus.TOO_MANY_REQUESTS})

CONNECTION_FAULTS = (aiohttp.ClientError, TimeoutError, OSError)
TIMEOUT = aiohttp.ClientTimeout(total=REQUEST_SECONDS_MAX, sock_connect=10)
STREAM_TIMEOUT = aiohttp.ClientTimeout(total=None, sock_connect=10, sock_read=SILENT_SECONDS)

logger = structlog.get_logger(__name__)


class OutcomeUnknown(Exception):
    """
    It is not known whether the provider has done what it was asked, or it could not for the moment.

    `fault` is how a run ends whose sandbox is not created for it.
    """

    def __init__(self, reason: str, fault: Fault = Fault.NOT_CREATED) -> None:
        super().__init__(reason)
        self.reason = reason
        self.fault = fault


class LineTooLong(Exception):
    """A line is longer than any may be."""


@dataclass(frozen=True, kw_only=True)
class Found:
    """A sandbox as its provider lists it."""

    external_id: str
    tags: Mapping[str, Any]
    size: Size | None


@dataclass(frozen=True, kw_only=True)
class Setting:
    """A setting of a pool. `reason` says what is valid."""

    default: Any
    is_valid: Callable[[Any], bool]
    reason: str


def number(least: int, most: int, *, default: int) -> Setting:
    return Setting(
        default=default,
        is_valid=lambda value: type(value) is int and least <= value <= most,
        reason=f"It is a number from {least} to {most}.",
    )


def name(shape: re.Pattern[str], *, default: str, reason: str) -> Setting:
    return Setting(
        default=default,
        is_valid=lambda value: isinstance(value, str) and shape.fullmatch(value) is not None,
        reason=reason,
    )


def hosts() -> Setting:
    """Hosts that a sandbox may reach besides this server, by their public names: an address says not who is there."""
    return Setting(
        default=(), is_valid=_are_hosts, reason=f"It is a list of at most {HOSTS_MAX} public names of hosts."
    )


def common_settings() -> Mapping[str, Setting]:
    """Return the settings of each pool that starts sandboxes, also on the workers' own machines."""
    return {"slots": number(1, SLOTS_MAX, default=settings.RENSEI_POOL_SLOTS)}


def check_config(config: Mapping[str, Any], known: Mapping[str, Setting], *, what: str, pointer: str) -> None:
    """
    Check the settings of a pool.

    :raises FieldError: for the first that is unknown or invalid
    """
    for given in config:
        if given not in known:
            *others, last = (f"`{name}`" for name in known)
            names = f"{', '.join(others)} and {last}" if others else last
            raise FieldError(pointer=f"{pointer}{json_pointer(given)}", reason=f"{what} has {names} only.")
    for name, setting in known.items():
        if not setting.is_valid(config.get(name, setting.default)):
            raise FieldError(pointer=f"{pointer}/{name}", reason=setting.reason)


def _are_hosts(value: Any) -> bool:
    if not isinstance(value, list | tuple) or len(value) > HOSTS_MAX:
        return False
    return all(isinstance(each, str) and len(each) <= _HOST_CHARACTERS and _HOST.fullmatch(each) for each in value)


@dataclass(frozen=True, kw_only=True)
class Account:
    """
    Where the sandboxes of a run are started: the account at the provider, and all settings of the pool.

    `server_url` is the address of this server for them. `tags` name this installation and the organization.
    """

    key: Secret
    api_url: str
    server_url: str
    tags: Mapping[str, str]
    config: Mapping[str, Any]
    workspace_id: str = ""

    @property
    def seconds_max(self) -> int:
        return int(self.config["lifetimeSeconds"])

    @property
    def seconds_of_program(self) -> float:
        """The part of a sandbox's lifetime after which its program is stopped, so that what it has made can be read."""
        return max(self.seconds_max - SECONDS_AFTER, self.seconds_max / 2)


def open_session() -> aiohttp.ClientSession:
    """
    Open the connections of a worker to all clouds. Organizations share them, so no cookies are kept.

    Lengths are limited as they arrive: no answer may be compressed.
    """
    return aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=0),
        cookie_jar=aiohttp.DummyCookieJar(),
        headers={"accept-encoding": "identity"},
        auto_decompress=False,
        trust_env=False,
    )


class Cloud(ABC):
    """
    A driver, for one account. It is bound to the event loop of its worker, and to the session of that.

    `inside` is the folder of a sandbox's own files. `settings` are those of a pool: `image_setting` is the name of the
    one that says what a sandbox is made of. A sandbox lives for `seconds_max` at most. `refused` are the statuses by
    which the provider says that the key is wrong. `adds_headers` is whether it can add headers to a sandbox's requests.
    """

    provider_id: ClassVar[str]
    name: ClassVar[str]
    inside: ClassVar[str]
    settings: ClassVar[Mapping[str, Setting]]
    image_setting: ClassVar[str]
    refused: ClassVar[Collection[int]]
    adds_headers: ClassVar[bool] = True
    seconds_max: ClassVar[int]

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
        self.account = account
        self._session = session
        self._seconds = seconds
        self._tags = tags or {}

    @classmethod
    def all_settings(cls) -> Mapping[str, Setting]:
        """Return the settings of a pool: those of its provider, and those of all that start sandboxes."""
        return {**cls.settings, **common_settings()}

    @classmethod
    def check_config(cls, config: Mapping[str, Any], *, pointer: str) -> None:
        """
        Check the settings of a pool.

        :raises FieldError: for the first that is unknown or invalid
        """
        check_config(config, cls.all_settings(), what=f"A pool at {cls.name}", pointer=pointer)

    @classmethod
    def complete(cls, config: Mapping[str, Any]) -> Mapping[str, Any]:
        """Return all settings of a pool: those that are given, and the others by default."""
        return {**{known: setting.default for known, setting in cls.all_settings().items()}, **config}

    def program_of(self, file: str) -> Sequence[str]:
        return ["/usr/bin/env", "python3", "-I", f"{self.inside}/{file}"]

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
    ) -> "CloudBox":
        assert not with_claude_code, "In a cloud, it is a program of the image"
        return self.box(
            box_id,
            token,
            lines_bytes_max=lines_bytes_max,
            line_bytes_max=AGENT_LINE_BYTES_MAX if for_agent else lines_bytes_max,
            for_agent=for_agent,
            login=login,
        )

    async def list(self) -> Mapping[str, Size | None]:
        """List the sandboxes of this installation and organization by the ids of their rows."""
        with _unknown_as_fault():
            found = await self.find_own(self.account.tags)
            return {each.tags[TAG]: each.size for each in found if _is_row_id(each.tags.get(TAG))}

    async def destroy(self, box_id: str) -> None:
        """Destroy a sandbox by the id of its row: the provider's own may not be known, if its answer was lost."""
        with _unknown_as_fault():
            for external_id in await self.ids_of(box_id):
                await self.remove(external_id)

    async def size_of(self, external_id: str) -> Size | None:
        """Return what the provider allots to a sandbox; None if it does not say now: nothing may wait for it long."""
        try:
            async with asyncio.timeout(ORDER_SECONDS):
                return await self.size(external_id)
        except (SandboxFault, OutcomeUnknown, TimeoutError):
            return None

    async def end(self, external_id: str) -> None:
        """:raises SandboxFault: if the provider does not destroy it"""
        with _unknown_as_fault():
            await self.remove(external_id)

    # What each driver does by itself. All of it raises `SandboxFault` if the provider refuses, and `OutcomeUnknown` if
    # it is not known what the provider did.

    @abstractmethod
    def box(self, box_id: str, token: Secret, **limits: Any) -> "CloudBox":
        """Make the object of a sandbox."""

    @abstractmethod
    async def ids_of(self, box_id: str) -> Sequence[str]:
        """Return the provider's ids of the sandbox of a row, if it may exist."""

    @abstractmethod
    async def find(self, tags: Mapping[str, str]) -> Sequence[Found]:
        """List the sandboxes with these tags, and others possibly."""

    @abstractmethod
    async def size(self, external_id: str) -> Size | None:
        """Return what the provider allots to a sandbox, as far as it says."""

    @abstractmethod
    async def remove(self, external_id: str) -> None:
        """Destroy a sandbox, if it exists."""

    # What the drivers use.

    async def find_own(self, tags: Mapping[str, str]) -> Sequence[Found]:
        """List the sandboxes with these tags, and no others."""
        return [each for each in await self.find(tags) if tags.items() <= each.tags.items()]

    @property
    def host(self) -> str:
        """The host that a sandbox calls with its token."""
        return urlsplit(self.account.server_url).hostname or ""

    def added_headers(self, token: Secret, login: GitLogin | None) -> Mapping[str, Mapping[str, str]]:
        """
        Return what the provider adds to requests of a sandbox, outside of it, by their hosts.

        A host that its pool no longer allows gets nothing.
        """
        added = {self.host: {"Authorization": f"Bearer {token.reveal()}"}}
        if login is not None and login.host in self.account.config["egress"] and login.host != self.host:
            added[login.host] = {"Authorization": login.header}
        return added

    @property
    def seconds(self) -> int:
        """How long a sandbox lives."""
        return min(self.account.seconds_max, math.ceil(self._seconds) + SECONDS_AFTER)

    def tags_of(self, box_id: str) -> Mapping[str, str]:
        return {**self.account.tags, **self._tags, TAG: box_id}

    def judge(self, status: int, body: Any, *, creates: bool = False) -> None:
        """:raises SandboxFault, OutcomeUnknown: if an answer is none to build on"""
        if status >= HTTPStatus.BAD_REQUEST:
            self._refuse(status, body, creates=creates)
        if status >= HTTPStatus.MULTIPLE_CHOICES:
            raise OutcomeUnknown(f"{self.name} redirects elsewhere, which is not followed.")

    def _refuse(self, status: int, body: Any, *, creates: bool) -> NoReturn:
        said = "."
        match body:
            case {"message": str(message)} | {"error": {"message": str(message)}} if message.isprintable():
                said = f": {message[:_REASON_CHARACTERS]}"
        if status in self.refused:
            raise SandboxFault(Fault.REFUSED, f"{self.name} does not accept the key of the organization.")
        if status in _FULL:
            raise SandboxFault(Fault.FULL, f"The account at {self.name} has reached a limit{said}")
        if status == HTTPStatus.NOT_FOUND and creates:
            named = self.account.config[self.image_setting]
            raise SandboxFault(
                Fault.NOT_CREATED, f"{self.name} has no {self.image_setting} '{named}' for this account."
            )
        if status == HTTPStatus.SERVICE_UNAVAILABLE:
            # A proxy may say it after the provider has created one.
            raise OutcomeUnknown(f"{self.name} has no room for another sandbox now.", Fault.FULL)
        if status < HTTPStatus.INTERNAL_SERVER_ERROR:
            does = "does not create it" if creates else "refuses a request about it"
            raise SandboxFault(Fault.NOT_CREATED, f"{self.name} {does}{said}")
        raise OutcomeUnknown(f"{self.name} answers with status {status}.")


class HttpCloud(Cloud):
    """A driver of a provider with a REST API."""

    @abstractmethod
    def signed(self) -> Mapping[str, str]:
        """Return the headers of a request with the key of the account."""

    async def ask(
        self,
        method: str,
        path: str,
        *,
        expected: Collection[int] = (),
        creates: bool = False,
        headers: Mapping[str, str] | None = None,
        **sent: Any,
    ) -> tuple[int, Mapping[str, str], Any]:
        """
        Make a request with the key of the account, and return the status, the headers and the JSON of the answer.

        :param expected: refusals that are returned as well
        :param creates: whether it asks for a new sandbox
        :raises SandboxFault: if the provider refuses it otherwise
        :raises OutcomeUnknown: if it is not known what the provider did
        """
        async with await self.open(method, self.account.api_url + path, headers=headers, **sent) as answer:
            body = await self.read(answer)
            if answer.status not in expected:
                self.judge(answer.status, body, creates=creates)
            return answer.status, dict(answer.headers), body

    async def open(
        self, method: str, url: str, *, headers: Mapping[str, str] | None = None, **sent: Any
    ) -> aiohttp.ClientResponse:
        """
        Make a request with the key of the account. The caller judges the answer, and closes it.

        :raises OutcomeUnknown: if there is none
        """
        given = {"timeout": TIMEOUT, **sent, "headers": {**(headers or {}), **self.signed()}}
        with suppress(*CONNECTION_FAULTS):
            return await self._session.request(method, url, allow_redirects=False, **given)
        # Not where it was caught: such an error holds the request, and with it the key.
        raise OutcomeUnknown(f"{self.name} does not answer.")

    async def read(self, answer: aiohttp.ClientResponse) -> Any:
        """
        Read an answer. None if it is no JSON, or too long.

        :raises OutcomeUnknown: if it breaks off
        """
        with suppress(*CONNECTION_FAULTS):
            return await _read(answer)
        raise OutcomeUnknown(f"{self.name} does not answer.")


class CloudBox(ABC):
    """A sandbox in a cloud. It calls the gateway without a relay of the worker."""

    relay = None
    heard = Heard()
    made: Made | None = None

    def __init__(
        self,
        cloud: Cloud,
        box_id: str,
        token: Secret,
        *,
        lines_bytes_max: int,
        line_bytes_max: int,
        for_agent: bool,
        login: GitLogin | None = None,
    ) -> None:
        self.exit_code: int | None = None
        # The provider's id, once it is known.
        self.external_id: str | None = None
        self.for_agent = for_agent
        self.login = login
        self._cloud = cloud
        self._box_id = box_id
        self._token = token
        self._lines_bytes_left = lines_bytes_max
        self._line_bytes_max = line_bytes_max
        # Between the request to create it and the answer.
        self._may_exist = False
        self._stream: aiohttp.ClientResponse | None = None
        # The end of what its program wrote to its standard error, for the log.
        self._said = ""

    async def start(self, arguments: Sequence[str], *, files: Mapping[str, bytes]) -> None:
        """:raises SandboxFault: if the provider creates no sandbox, or its program cannot be started"""
        self._may_exist = True
        try:
            self.external_id = await self._begin_once()
        except SandboxFault:
            self._may_exist = False
            raise
        except OutcomeUnknown as fault:
            raise SandboxFault(fault.fault, fault.reason) from fault
        self.made = Made()
        contents = {f"{self._cloud.inside}/{file}": content for file, content in files.items()}
        if not self._cloud.adds_headers:
            contents[f"{self._cloud.inside}/token"] = self._token.reveal().encode()
            if self.login is not None:
                contents[f"{self._cloud.inside}/git-login"] = self.login.file
        self._token, self.login = Secret(""), None
        contents[f"{self._cloud.inside}/gateway"] = self._cloud.account.server_url.encode()
        try:
            await self.prepare(contents)
            await self.run(arguments)
        except (SandboxFault, OutcomeUnknown) as fault:
            raise SandboxFault(Fault.NOT_CREATED, f"The sandbox could not be prepared. {fault.reason}") from fault
        self.made = Made(size=await self._cloud.size_of(self.external_id))
        logger.info("cloud_sandbox_started", provider=self._cloud.provider_id, external_id=self.external_id)

    async def _begin_once(self) -> str:
        """Create the sandbox. An answer that was lost is asked for again: the provider creates one for it only."""
        try:
            return await self.begin(self._token)
        except OutcomeUnknown:
            try:
                return await self.begin(self._token)
            except SandboxFault as fault:
                # This is about the second request. The first may have created it.
                raise OutcomeUnknown(fault.reason) from fault

    async def follow(self) -> AsyncIterator[bytes]:
        """
        Yield the lines of the program until it has ended.

        :raises SandboxFault: if the sandbox ended before it, or it writes too much
        """
        try:
            async for line in lines_of(self.output(), bytes_max=self._line_bytes_max):
                self._count(len(line))
                yield line
        except LineTooLong:
            raise SandboxFault(Fault.DEAD, "Its program wrote too long a line.") from None
        if self.exit_code is None:
            raise SandboxFault(Fault.DEAD, f"{self._cloud.name} ended it, or the connection to it was lost.")
        if self.exit_code != 0:
            logger.info("cloud_program_failed", exit_code=self.exit_code, said=self._said)
        self.require_python(self.exit_code)

    def require_python(self, exit_code: int) -> None:
        """:raises SandboxFault: if a program ended because there is no Python that would start it"""
        if exit_code in _NO_COMMAND:
            raise SandboxFault(
                Fault.NOT_CREATED, f"The {self._cloud.image_setting} has no Python 3, or not on its path."
            )

    def require_memory(self) -> None:  # noqa: B027 - the same for all
        """A sandbox in a cloud has its own memory, which it cannot exceed."""

    async def order_stop(self) -> None:
        if self.external_id is None or not self.for_agent:
            return
        # If it is not obeyed, the sandbox is ended soon.
        with suppress(SandboxFault, OutcomeUnknown, TimeoutError):
            async with asyncio.timeout(ORDER_SECONDS):
                await self.terminate()

    async def destroy(self) -> bool:
        if self._stream is not None:
            self._stream.close()
        try:
            if self.external_id is not None:
                if self.made is not None and self.made.size is None:
                    self.made = Made(size=await self._cloud.size_of(self.external_id))
                await self._cloud.end(self.external_id)
            elif self._may_exist:
                await self._cloud.destroy(self._box_id)
                # It may not be listed yet.
                return False
        except SandboxFault as fault:
            logger.warning("cloud_sandbox_not_destroyed", provider=self._cloud.provider_id, reason=fault.reason)
            return False
        return True

    def note_stderr(self, said: str) -> None:
        """
        Keep the end of what the program writes to its standard error.

        :raises SandboxFault: if it writes too much
        """
        self._count(len(said.encode(errors="replace")))
        self._said = (self._said + said)[-SAID_CHARACTERS:]

    def _count(self, written: int) -> None:
        """:raises SandboxFault: if its program has written more than it may"""
        self._lines_bytes_left -= max(written, LINE_BYTES_MIN)
        if self._lines_bytes_left < 0:
            raise SandboxFault(Fault.DEAD, "Its program wrote too much.")

    # What each driver does by itself. It raises `SandboxFault` and `OutcomeUnknown` as `Cloud` does.

    @abstractmethod
    async def begin(self, token: Secret) -> str:
        """Create the sandbox, and return the provider's id. For one row, the provider creates one only."""

    @abstractmethod
    async def prepare(self, files: Mapping[str, bytes]) -> None:
        """Write the files, and make the folder of an agent."""

    @abstractmethod
    async def run(self, arguments: Sequence[str]) -> None:
        """Start the program."""

    @abstractmethod
    def output(self) -> AsyncIterator[bytes]:
        """Yield what it writes to its standard output, and set `exit_code` if it was seen how it ended."""

    @abstractmethod
    async def terminate(self) -> None:
        """Tell the program to end."""


def archive(files: Mapping[str, bytes], *, secret: Collection[str] = ()) -> bytes:
    """
    Pack files, without compressing them: the event loop would stand still meanwhile.

    :param secret: those that their owner alone may read
    """
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz", compresslevel=0) as opened:
        for path, content in files.items():
            member = tarfile.TarInfo(path.lstrip("/"))
            member.size, member.mode = len(content), 0o600 if path in secret else 0o644
            opened.addfile(member, io.BytesIO(content))
    return packed.getvalue()


def size_in(row: Any, *, vcpus: str, memory_mib: str) -> Size | None:
    """Read the size of a sandbox from the fields of an answer."""
    match (row.get(vcpus), row.get(memory_mib)) if isinstance(row, dict) else None:
        case (int(processors), int(memory)) if processors > 0 and memory > 0:
            return Size(vcpus=processors, memory_mib=memory)
    return None


def _is_row_id(tag: Any) -> bool:
    return isinstance(tag, str) and _ROW_ID.fullmatch(tag) is not None


@contextmanager
def _unknown_as_fault() -> Iterator[None]:
    """:raises SandboxFault: also if it is not known what the provider did"""
    try:
        yield
    except OutcomeUnknown as fault:
        raise SandboxFault(Fault.DEAD, fault.reason) from None


async def lines_of(pieces: AsyncIterator[bytes], *, bytes_max: int) -> AsyncIterator[bytes]:
    """
    Divide what arrives in pieces into lines.

    :raises LineTooLong: if one is longer than it may be
    """
    begun = bytearray()
    async for piece in pieces:
        first, *others = piece.split(b"\n")
        begun += first
        for following in others:
            begun += b"\n"
            if len(begun) > bytes_max:
                raise LineTooLong
            yield bytes(begun)
            begun = bytearray(following)
        if len(begun) > bytes_max:
            raise LineTooLong
    if begun:
        yield bytes(begun)


async def _read(answer: aiohttp.ClientResponse) -> Any:
    """Read an answer of the API. None if it is no JSON, or too long."""
    read = b""
    async for piece in answer.content.iter_any():
        read += piece
        if len(read) > ANSWER_BYTES_MAX:
            return None
    try:
        return json.loads(read) if read else None
    except (ValueError, RecursionError):
        return None
