"""
The pool `modal`: sandboxes at Modal, of the workspace that the organization has connected.

Modal is spoken to by its library, whose event loop is a thread of its own. The library repeats requests and tries to
connect for a minute, so all that is asked of it has a deadline here. Each sandbox has a client, and each sweep: nothing
is shared by organizations.

No header can be added to the requests of a sandbox whose hosts are limited. So the token of the run is a file in it,
which its owner alone may read.
"""

import asyncio
import re
from collections.abc import AsyncIterator, Awaitable, Collection, Mapping, Sequence
from contextlib import aclosing, asynccontextmanager
from http import HTTPStatus
from typing import Any

from integrations.capacity import modal as account_api
from integrations.capacity.prices import Size
from rensei.core.limits import limit
from rensei.core.secret import Secret
from rensei.dispatch.pools import cloud
from rensei.dispatch.pools.cloud import REQUEST_SECONDS_MAX, TAG, WORKSPACE, Cloud, CloudBox, Found, OutcomeUnknown
from rensei.dispatch.pools.driver import Fault, SandboxFault

SECONDS_MAX = limit(
    24 * 3600,
    "seconds",
    what="Lifetime of a sandbox at Modal",
    told="the caller: 400 `VALIDATION_FAILED`; the run: `SANDBOX_LOST`",
)
# Modal's own image, which it builds in a workspace once.
_SLIM, _PYTHON = "debian-slim", "3.12"
_IMAGE_SECONDS = 300.0
_IMAGE = re.compile(rf"{_SLIM}|im-[A-Za-z0-9]{{1,60}}")
_REGION = re.compile(r"(?:[a-z]{2,12}(?:-[a-z0-9]{1,12}){0,3})?")
_ID = re.compile(r"sb-[A-Za-z0-9]{1,60}")
# Modal counts cores, which are two of what it and others call a vCPU.
_VCPUS_OF_CORE = 2
LISTED_MAX = 10_000
_LIST_SECONDS = 4 * REQUEST_SECONDS_MAX
_PIECES_WAITING, _WRITE_BYTES = 8, 1024 * 1024
# A program that ended so may have been ended with its sandbox.
_KILLED = frozenset({-1, 137})
# It runs as the program will, and packs out what it reads.
_UNPACK = """
import os, sys, tarfile
os.umask(0o077)
with tarfile.open(fileobj=sys.stdin.buffer, mode="r|gz") as archive:
    archive.extractall("/")
for folder in sys.argv[1:]:
    os.makedirs(folder, exist_ok=True)
"""


class Modal(Cloud):
    """The driver of Modal."""

    provider_id = account_api.SPEC.id
    name = account_api.SPEC.display_name
    inside = "/run/rensei"
    image_setting = "image"
    refused = account_api.REFUSED
    adds_headers = False
    seconds_max = SECONDS_MAX
    settings = {
        image_setting: cloud.name(
            _IMAGE, default=_SLIM, reason=f"It is {_SLIM}, or the id of an image of the workspace: im-…."
        ),
        "lifetimeSeconds": cloud.number(cloud.SECONDS_MIN, SECONDS_MAX, default=3600),
        "egress": cloud.hosts(),
        "vcpus": cloud.number(1, 32, default=2),
        "memoryMib": cloud.number(512, 64 * 1024, default=2048),
        "region": cloud.name(_REGION, default="", reason="It is a region of Modal, as us-east or eu."),
    }

    def box(self, box_id: str, token: Secret, **limits: Any) -> CloudBox:
        return ModalBox(self, box_id, token, **limits)

    async def ids_of(self, box_id: str) -> Sequence[str]:
        return [found.external_id for found in await self.find_own({**self.account.tags, TAG: box_id})]

    async def find(self, tags: Mapping[str, str]) -> Sequence[Found]:
        async with self.client() as client:
            found: Sequence[Found] = await self.call(self._list(client, tags), seconds=_LIST_SECONDS)
            return found

    async def size(self, external_id: str) -> Size | None:
        """What was asked for is what it has: neither more is allotted to it nor may it use more."""
        return Size(vcpus=self.account.config["vcpus"], memory_mib=self.account.config["memoryMib"])

    async def remove(self, external_id: str) -> None:
        async with self.client() as client:
            await self.terminate(client, external_id)

    # What follows is for the sandboxes of this driver too.

    @asynccontextmanager
    async def client(self) -> AsyncIterator[Any]:
        client = await self.open()
        try:
            yield client
        finally:
            await client.close.aio()

    async def open(self) -> Any:
        """
        Open a client, which the caller closes.

        :raises SandboxFault, OutcomeUnknown: if Modal refuses, or does not answer
        """
        if not account_api.is_installed():
            raise SandboxFault(Fault.NOT_CREATED, account_api.NOT_INSTALLED)
        # The first import takes its time, and the other sandboxes would wait.
        await asyncio.to_thread(account_api.library)
        client = account_api.new_client(self.account.api_url, self.account.key)
        try:
            await self.call(client.__aenter__())
        except BaseException:
            await client.close.aio()
            raise
        return client

    async def call(
        self,
        work: Awaitable[Any],
        *,
        seconds: float = REQUEST_SECONDS_MAX,
        creates: bool = False,
        expected: Collection[int] = (),
    ) -> Any:
        """
        Do something with the library. None if Modal refuses it in a way that is expected.

        :param creates: whether it asks for a new sandbox
        :raises SandboxFault: if Modal refuses it otherwise
        :raises OutcomeUnknown: if it is not known what Modal did
        """
        try:
            async with asyncio.timeout(seconds):
                return await work
        except account_api.connection_faults() as fault:
            status, said = account_api.status_of(fault), str(fault)
        # Not where it was caught: such an error holds the request.
        if status is None:
            raise OutcomeUnknown(f"{self.name} does not answer.")
        if status not in expected:
            self.judge(status, {"message": said}, creates=creates)
        return None

    async def begin(self, client: Any, box_id: str) -> Any:
        """Create a sandbox. Modal creates one only for a name."""
        modal, config = account_api.library(), self.account.config
        app = await self._app(client)
        if config[self.image_setting] == _SLIM:
            image = modal.Image.debian_slim(python_version=_PYTHON)
            await self.call(image.build.aio(app), seconds=_IMAGE_SECONDS)
        else:
            image = modal.Image.from_id(config[self.image_setting], client=client)
        cores, memory = config["vcpus"] / _VCPUS_OF_CORE, config["memoryMib"]
        new = modal.Sandbox.create.aio(
            app=app,
            client=client,
            name=box_id,
            image=image,
            tags=dict(self.tags_of(box_id)),
            timeout=self.seconds,
            cpu=(cores, cores),
            memory=(memory, memory),
            region=config["region"] or None,
            outbound_domain_allowlist=list(dict.fromkeys([self.host, *config["egress"]])),
        )
        made = await self.call(new, creates=True, expected={HTTPStatus.CONFLICT})
        if made is None:
            try:
                made = await self.call(modal.Sandbox.from_name.aio(account_api.APP, box_id, client=client))
            except SandboxFault as fault:
                # It exists. This refusal is about reading it only.
                raise OutcomeUnknown(fault.reason) from fault
        if not _ID.fullmatch(made.object_id):
            raise OutcomeUnknown("Modal gave an answer that is not known.")
        return made

    async def terminate(self, client: Any, external_id: str) -> None:
        async def work() -> None:
            sandbox = await account_api.library().Sandbox.from_id.aio(external_id, client=client)
            await sandbox.terminate.aio()

        await self.call(work(), expected={HTTPStatus.NOT_FOUND})

    async def _app(self, client: Any) -> Any:
        modal = account_api.library()
        return await self.call(modal.App.lookup.aio(account_api.APP, client=client, create_if_missing=True))

    async def _list(self, client: Any, tags: Mapping[str, str]) -> Sequence[Found]:
        app = await self._app(client)
        listed = account_api.library().Sandbox.list.aio(app_id=app.app_id, tags=dict(tags), client=client)
        found: list[Found] = []
        async with aclosing(listed):
            async for sandbox in listed:
                if len(found) >= LISTED_MAX:
                    raise OutcomeUnknown("Modal lists more sandboxes than are read.")
                of_it = await self.call(sandbox.get_tags.aio(), expected={HTTPStatus.NOT_FOUND})
                if of_it is not None and _ID.fullmatch(sandbox.object_id):
                    found.append(Found(external_id=sandbox.object_id, tags=of_it, size=None))
        return found


class ModalBox(CloudBox):
    """A sandbox at Modal, and the client for it."""

    _sandbox: Any = None
    _process: Any = None
    _client: Any = None

    def __init__(self, driver: Modal, box_id: str, token: Secret, **limits: Any) -> None:
        super().__init__(driver, box_id, token, **limits)
        self._driver = driver
        self._reading: list[asyncio.Task[None]] = []

    async def begin(self, token: Secret) -> str:
        if self._client is None:
            self._client = await self._driver.open()
        self._sandbox = await self._driver.begin(self._client, self._box_id)
        return str(self._sandbox.object_id)

    async def prepare(self, files: Mapping[str, bytes]) -> None:
        packed = cloud.archive(files, secret={f"{self._driver.inside}/{name}" for name in ("token", "git-login")})
        folders = [WORKSPACE] if self.for_agent else []
        process = await self._start(["/usr/bin/env", "python3", "-I", "-c", _UNPACK, *folders], cwd="/")
        for place in range(0, len(packed), _WRITE_BYTES):
            process.stdin.write(packed[place : place + _WRITE_BYTES])
            if place + _WRITE_BYTES >= len(packed):
                process.stdin.write_eof()
            await self._driver.call(process.stdin.drain.aio())
        code = await self._driver.call(process.wait.aio())
        self.require_python(code)
        if code != 0:
            raise SandboxFault(Fault.DEAD, "Its files could not be written.")

    async def run(self, arguments: Sequence[str]) -> None:
        self._process = await self._start(arguments, cwd=WORKSPACE if self.for_agent else "/")

    async def output(self) -> AsyncIterator[bytes]:
        """Yield what the program writes to its standard output, and note its exit code."""
        # One that has no room waits, and so does Modal.
        pieces: asyncio.Queue[tuple[str, bytes] | None] = asyncio.Queue(_PIECES_WAITING)
        self._reading = [
            asyncio.ensure_future(self._read(name, stream, pieces))
            for name, stream in (("stdout", self._process.stdout), ("stderr", self._process.stderr))
        ]
        try:
            for _ in range(len(self._reading)):
                while (piece := await pieces.get()) is not None:
                    name, content = piece
                    if name == "stdout":
                        yield content
                    else:
                        self.note_stderr(content.decode(errors="replace"))
            self.exit_code = await self._find_exit_code()
        finally:
            self._stop_reading()

    async def terminate(self) -> None:
        # Nothing sends a signal to a program. The runner of an agent looks for this file.
        if self._process is not None:
            await self._start(["/bin/sh", "-c", f": > {self._driver.inside}/stop"], cwd="/")

    async def destroy(self) -> bool:
        self._stop_reading()
        try:
            return await super().destroy()
        finally:
            if self._client is not None:
                client, self._client = self._client, None
                if self._sandbox is not None:
                    await self._sandbox.detach.aio()
                await client.close.aio()

    async def _start(self, arguments: Sequence[str], *, cwd: str) -> Any:
        return await self._driver.call(self._sandbox.exec.aio(*arguments, workdir=cwd, text=False))

    async def _read(self, name: str, stream: Any, pieces: "asyncio.Queue[tuple[str, bytes] | None]") -> None:
        try:
            async for piece in stream:
                await pieces.put((name, piece))
        except account_api.connection_faults() as fault:
            cloud.logger.info("cloud_output_interrupted", stream=name, fault=type(fault).__name__)
        await pieces.put(None)

    async def _find_exit_code(self) -> int | None:
        """Return how the program ended. None if that is not known, or its sandbox ended before it."""
        try:
            code: int | None = await self._driver.call(self._process.wait.aio(), expected={HTTPStatus.NOT_FOUND})
            if code in _KILLED and await self._driver.call(self._sandbox.poll.aio()) is not None:
                return None
        except (OutcomeUnknown, SandboxFault):
            return None
        return code

    def _stop_reading(self) -> None:
        for task in self._reading:
            task.cancel()
