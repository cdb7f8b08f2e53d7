"""
A stand-in for Modal: the control plane and the router of commands, by gRPC on one loopback port.

Both are the ones that Modal's library ships the descriptions of, and it is what the driver is built on. What is not
needed of them is answered as unimplemented.
"""

import asyncio
import base64
import json
import secrets
import subprocess
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

import grpclib.server
from grpclib import GRPCError, Status
from grpclib.protocol import H2Protocol
from modal_proto import api_pb2 as api
from modal_proto import task_command_router_pb2 as router
from modal_proto.api_grpc import ModalClientBase
from modal_proto.task_command_router_grpc import TaskCommandRouterBase

from tests.cloud_stand_in import Box, Command, Fault, StandIn
from tests.servers import LOOPBACK

STATUSES = {
    400: Status.INVALID_ARGUMENT,
    401: Status.UNAUTHENTICATED,
    403: Status.PERMISSION_DENIED,
    404: Status.NOT_FOUND,
    429: Status.RESOURCE_EXHAUSTED,
    500: Status.INTERNAL,
    # A sandbox that is gone is no longer found; the library repeats what a proxy refuses.
    502: Status.NOT_FOUND,
    503: Status.UNAVAILABLE,
}
SLIM = "im-slim"
Service = TypeVar("Service")


@dataclass(kw_only=True)
class Exec(Command):
    """A command by the number that its starter gave it, with what was written to its standard input so far."""

    written_to: int = 0


class Server(grpclib.server.Server):
    """A server that knows its connections."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.transports: list[Any] = []

    def _protocol_factory(self) -> H2Protocol:
        protocol = super()._protocol_factory()
        begin = protocol.connection_made

        def connection_made(transport: Any) -> None:
            self.transports.append(transport)
            begin(transport)

        protocol.connection_made = connection_made  # type: ignore[method-assign]
        return protocol


class ModalStandIn(StandIn):
    provider = "modal"
    keys = (f"ak-{'a' * 22}:as-{'a' * 22}", f"ak-{'b' * 22}:as-{'b' * 22}")
    unknown_key = f"ak-{'c' * 22}:as-{'c' * 22}"
    adds_token = False
    folders = ("run", "workspace", "root", "tmp")
    home = "root"
    without_python = "im-withoutpython"
    images = (SLIM, without_python)
    seconds_max = 24 * 3600

    def __init__(self) -> None:
        self.names: dict[tuple[str, str], str] = {}
        # What happens to a request happens to its repetitions by the library too.
        self.fates: dict[Any, Fault | None] = {}
        self.answered: dict[Any, Any] = {}
        super().__init__()

    def reset(self) -> None:
        super().reset()
        # Those of clients that a test has left.
        self._in_loop(self._cut_connections())
        for kept in (self.names, self.fates, self.answered):
            kept.clear()

    def id_of(self, row_id: str) -> str:
        return f"sb-{secrets.token_hex(16)}V"

    async def _serve(self) -> int:
        control = {
            "AuthTokenGet": self.sign_in,
            "AppGetOrCreate": self.app,
            "EnvironmentGetOrCreate": self.environment,
            "ImageFromId": self.image,
            "ImageGetOrCreate": self.build,
            "SandboxCreateV2": self.create,
            "SandboxGetFromNameV2": self.lookup,
            "SandboxGetTaskIdV2": self.task,
            "SandboxGetCommandRouterAccess": self.access,
            "SandboxListV2": self.list,
            "SandboxTagsGetV2": self.tags,
            "SandboxTerminateV2": self.delete,
            "SandboxWaitV2": self.look,
        }
        inside = {
            "TaskExecStart": self.start,
            "TaskExecStdinWrite": self.write,
            "TaskExecStdioRead": self.output,
            "TaskExecWait": self.wait,
        }
        services = [self._service(ModalClientBase, control), self._service(TaskCommandRouterBase, inside)]
        self._server = Server(services)
        await self._server.start(LOOPBACK, 0)
        assert self._server._server is not None
        return int(self._server._server.sockets[0].getsockname()[1])

    async def _cut_connections(self) -> None:
        for transport in self._server.transports:
            transport.abort()
        self._server.transports.clear()

    async def _end_serving(self) -> None:
        self._server.close()
        await self._server.wait_closed()

    def _service(self, base: type[Service], methods: Mapping[str, Callable[..., Awaitable[Any]]]) -> Service:
        answers = {name: partial(self._answer, methods.get(name)) for name in base.__abstractmethods__}  # type: ignore[attr-defined]
        # As functions of a class, they would be given it.
        made: Service = type(base.__name__, (base,), {name: staticmethod(answer) for name, answer in answers.items()})()
        return made

    async def _answer(self, method: Callable[..., Awaitable[Any]] | None, stream: Any) -> None:
        if method is None:
            raise GRPCError(Status.UNIMPLEMENTED, "The stand-in does not have it")
        message, metadata = await stream.recv_message(), stream.metadata or {}
        kind = method.__name__
        repeated = metadata.get("x-idempotency-key") or (kind, *(str(value) for _, value in message.ListFields()))
        if repeated not in self.fates or kind == "output":
            self.fates[repeated] = self._take_fault(kind)
        fate = self.fates[repeated]
        if fate is not None and isinstance(fate.does, int):
            raise GRPCError(STATUSES.get(fate.does, Status.ABORTED), f"A fault was set: {fate.does}")
        if fate is not None and fate.does == "ignored":
            await asyncio.sleep(3600)
        if kind == "output":
            await self.output(message, stream)
            return
        asker = self._asker(message, metadata)
        try:
            if kind != "create" or repeated not in self.answered:
                self.answered[repeated] = await method(message, asker)
        finally:
            if fate is not None:
                await stream.cancel()
        if fate is None:
            await stream.send_message(self.answered[repeated])

    def _asker(self, message: Any, metadata: Mapping[str, Any]) -> str:
        """Return the key of a request, or the sandbox of one to the router."""
        if "authorization" in metadata:
            box = self.boxes.get(_read(metadata["authorization"].removeprefix("Bearer "))["sandbox"])
            if box is None or box.is_dead or message.task_id != _task_of(box):
                raise GRPCError(Status.NOT_FOUND, "Task not found")
            return box.id
        key = f"{metadata.get('x-modal-token-id')}:{metadata.get('x-modal-token-secret')}"
        if key not in self.keys:
            raise GRPCError(Status.UNAUTHENTICATED, "Token ID is malformed")
        return key

    def _own(self, sandbox_id: str, key: str) -> Box:
        box = self.boxes.get(sandbox_id)
        if box is None or box.key != key:
            raise GRPCError(Status.NOT_FOUND, f"Sandbox '{sandbox_id}' not found")
        return box

    # The control plane

    async def sign_in(self, _: Any, key: str) -> Any:
        return api.AuthTokenGetResponse(token=_token(key=key))

    async def app(self, asked: Any, key: str) -> Any:
        return api.AppGetOrCreateResponse(app_id=f"ap-{asked.app_name}")

    async def environment(self, _: Any, key: str) -> Any:
        settings = api.EnvironmentSettings(image_builder_version="2025.06")
        metadata = api.EnvironmentMetadata(name="main", settings=settings)
        return api.EnvironmentGetOrCreateResponse(environment_id="en-1", metadata=metadata)

    async def image(self, asked: Any, key: str) -> Any:
        if asked.image_id not in self.images:
            raise GRPCError(Status.NOT_FOUND, f"Image '{asked.image_id}' not found")
        return api.ImageFromIdResponse(image_id=asked.image_id)

    async def build(self, asked: Any, key: str) -> Any:
        assert "FROM python:3.12" in " ".join(asked.image.dockerfile_commands)
        result = api.GenericResult(status=api.GenericResult.GENERIC_STATUS_SUCCESS)
        return api.ImageGetOrCreateResponse(image_id=SLIM, result=result)

    async def create(self, asked: Any, key: str) -> Any:
        new = asked.definition
        name = (key, new.name)
        if new.name and name in self.names and not self.boxes[self.names[name]].is_dead:
            raise GRPCError(Status.ALREADY_EXISTS, f"Sandbox '{new.name}' exists")
        if new.timeout_secs > self.seconds_max:
            raise GRPCError(Status.INVALID_ARGUMENT, "timeout is above a day")
        allowed = new.network_access
        assert allowed.network_access_type == api.NetworkAccess.ALLOWLIST, "Everything would be allowed"
        resources = new.resources
        assert (resources.milli_cpu, resources.memory_mb) == (resources.milli_cpu_max, resources.memory_mb_max)
        size = {"vcpus": resources.milli_cpu // 500, "memoryMib": resources.memory_mb}
        box = await self._make(
            self.id_of(new.name),
            key=key,
            new={"resources": size, "regions": list(new.scheduler_placement.regions)},
            image=new.image_id,
            seconds=new.timeout_secs,
            tags={tag.tag_name: tag.tag_value for tag in asked.tags},
            rules={domain: {} for domain in allowed.allowed_domains},
        )
        self.names[name] = box.id
        access = api.CommandRouterAccess(url=self.url, jwt=_token(sandbox=box.id))
        return api.SandboxCreateV2Response(sandbox_id=box.id, task_id=_task_of(box), command_router_access=access)

    async def lookup(self, asked: Any, key: str) -> Any:
        box = self.boxes.get(self.names.get((key, asked.sandbox_name), ""))
        if box is None or box.is_dead:
            raise GRPCError(Status.NOT_FOUND, "Sandbox not found")
        return api.SandboxGetFromNameResponse(sandbox_id=box.id)

    async def task(self, asked: Any, key: str) -> Any:
        return api.SandboxGetTaskIdResponse(task_id=_task_of(self._own(asked.sandbox_id, key)))

    async def access(self, asked: Any, key: str) -> Any:
        box = self._own(asked.sandbox_id, key)
        return api.SandboxGetCommandRouterAccessResponse(url=self.url, jwt=_token(sandbox=box.id))

    async def list(self, asked: Any, key: str) -> Any:
        found = self.found(key, {tag.tag_name: tag.tag_value for tag in asked.tags})
        before = asked.before_timestamp or time.time() + 1
        newest = sorted((box for box in found if box.started_at < before), key=lambda box: -box.started_at)
        rows = [api.SandboxInfo(id=box.id, created_at=box.started_at) for box in newest[: self.page_size]]
        return api.SandboxListResponse(sandboxes=rows)

    async def tags(self, asked: Any, key: str) -> Any:
        # Its id here may be another than that by which it was made.
        box = next((box for box in self.boxes.values() if box.id == asked.sandbox_id), None)
        if box is None:
            raise GRPCError(Status.NOT_FOUND, "Sandbox not found")
        tags = [api.SandboxTag(tag_name=name, tag_value=value) for name, value in box.tags.items()]
        return api.SandboxTagsGetResponse(tags=tags)

    async def delete(self, asked: Any, key: str) -> Any:
        await self._kill(self._own(asked.sandbox_id, key))
        return api.SandboxTerminateResponse()

    async def look(self, asked: Any, key: str) -> Any:
        box = self._own(asked.sandbox_id, key)
        ended = api.GenericResult(status=api.GenericResult.GENERIC_STATUS_TERMINATED) if box.is_dead else None
        return api.SandboxWaitResponse(result=ended)

    # The router of commands

    async def start(self, asked: Any, sandbox_id: str) -> Any:
        box = self.boxes[sandbox_id]
        variables = {name: value for source in asked.secret_sources for name, value in source.env.contents.items()}
        process = self.run(
            box, list(asked.command_args), cwd=asked.workdir or "/", variables=variables, stdin=subprocess.PIPE
        )
        self.begin(box, Exec(id=asked.exec_id, box=box, process=process))
        return router.TaskExecStartResponse()

    async def write(self, asked: Any, sandbox_id: str) -> Any:
        command = self.commands[asked.exec_id]
        assert isinstance(command, Exec)
        assert command.process.stdin is not None
        new = asked.data[max(0, command.written_to - asked.offset) :]
        command.written_to += len(new)
        await asyncio.to_thread(_write, command.process.stdin, new, asked.eof)
        return router.TaskExecStdinWriteResponse()

    async def output(self, asked: Any, stream: Any) -> None:
        self._asker(asked, stream.metadata)
        name = ("stdout", "stderr")[asked.file_descriptor]
        left_out = asked.offset
        async for written, piece in self.commands[asked.exec_id].written():
            if written == name:
                new = piece[left_out:]
                left_out -= len(piece) - len(new)
                if new:
                    await stream.send_message(router.TaskExecStdioReadResponse(data=new))

    async def wait(self, asked: Any, sandbox_id: str) -> Any:
        command = self.commands[asked.exec_id]
        await command.end()
        if command.exit_code is None:
            raise GRPCError(Status.NOT_FOUND, "Task not found")
        return router.TaskExecWaitResponse(code=command.exit_code)


def _write(pipe: Any, content: bytes, is_end: bool) -> None:
    try:
        pipe.write(content)
        pipe.flush()
        if is_end:
            pipe.close()
    except (BrokenPipeError, ValueError):
        # The command has ended, or this was repeated.
        pass


def _task_of(box: Box) -> str:
    return f"ta-{box.id.removeprefix('sb-')}"


def _token(**claims: Any) -> str:
    """Make a token with claims, which nothing signs."""
    parts = [{"alg": "none"}, {"exp": int(time.time()) + 3600, **claims}]
    return ".".join(
        [*(base64.urlsafe_b64encode(json.dumps(part).encode()).decode().rstrip("=") for part in parts), "x"]
    )


def _read(token: str) -> dict[str, Any]:
    part = token.split(".")[1]
    claims: dict[str, Any] = json.loads(base64.urlsafe_b64decode(part + "=" * (-len(part) % 4)))
    return claims
