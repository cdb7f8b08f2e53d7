"""
Modal, the capacity provider: its address, its tokens, and its library, which is an extra of this package.

Modal has no other interface than the one of its library: https://modal.com/docs/guide/sandboxes
"""

import asyncio
import os
import re
import threading
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager
from functools import cache
from http import HTTPStatus
from importlib.util import find_spec
from types import ModuleType
from typing import Any

from catalog.providers import ProviderSpec
from integrations.capacity.account import CapacityAccount, Unreachable
from integrations.providers.base import Credential, KeyKindRefused
from rensei.core.secret import Secret

SPEC = ProviderSpec(
    id="modal",
    display_name="Modal",
    config_namespace="",
    auth_modes=(),
    requires_endpoint=False,
    category="Capacity",
    default_base_url_setting="RENSEI_MODAL_BASE_URL",
    key_page_url="https://modal.com/settings/tokens",
    dearest_search_picodollars=0,
    key_help="The id and the secret of a token, with a colon between them: ak-…:as-…",
)
REFUSED = frozenset({HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN})
# All sandboxes of this server are in one app of the workspace.
APP = "rensei"
NOT_INSTALLED = (
    "Modal's library is not installed on this server. Ask your operator to install it: pip install 'rensei[modal]'"
)
_TOKEN = re.compile(r"ak-[A-Za-z0-9]{1,100}:as-[A-Za-z0-9]{1,100}")
_STATUSES = {
    "UNAUTHENTICATED": HTTPStatus.UNAUTHORIZED,
    "PERMISSION_DENIED": HTTPStatus.FORBIDDEN,
    "NOT_FOUND": HTTPStatus.NOT_FOUND,
    "ALREADY_EXISTS": HTTPStatus.CONFLICT,
    "RESOURCE_EXHAUSTED": HTTPStatus.TOO_MANY_REQUESTS,
    "INVALID_ARGUMENT": HTTPStatus.BAD_REQUEST,
    "FAILED_PRECONDITION": HTTPStatus.BAD_REQUEST,
    "OUT_OF_RANGE": HTTPStatus.BAD_REQUEST,
    "UNAVAILABLE": HTTPStatus.SERVICE_UNAVAILABLE,
}


class ModalAccount(CapacityAccount):
    """A workspace at Modal, by a token: its id and its secret, which are made and replaced together."""

    spec = SPEC
    refused = REFUSED
    rejection = "Modal does not accept this token."

    def check_key(self, key: Secret, *, base_url: str = "") -> None:
        """:raises KeyKindRefused: if it is a key of another kind"""
        if not _TOKEN.fullmatch(key.reveal()):
            raise KeyKindRefused(
                reason="A token of Modal is its id and its secret with a colon between, as ak-…:as-…. "
                f"Make one at {SPEC.key_page_url}"
            )

    def ask(self, credential: Credential, *, seconds: float) -> int:
        if not is_installed():
            raise Unreachable(NOT_INSTALLED)
        return int(asyncio.run(_list_one(credential, seconds=seconds)))


def is_installed() -> bool:
    return find_spec("modal") is not None


_importing = threading.Lock()


def library() -> ModuleType:
    """Import Modal's library, which takes half a second, once."""
    with _importing:
        return _import()


@cache
def _import() -> ModuleType:
    """
    Import it without settings of its own from the environment and from the home folder, a token among them.

    None of them is for this server. The environment is changed once: the library and others read it in their threads.
    """
    for name in [name for name in os.environ if name.startswith("MODAL_")]:
        os.environ.pop(name, None)
    os.environ |= {
        "MODAL_CONFIG_PATH": os.devnull,
        "MODAL_DISABLE_API_PROXY": "1",
        # What is beyond a limit of the account is told at once.
        "MODAL_MAX_THROTTLE_WAIT": "0",
    }
    import modal

    return modal


def new_client(url: str, key: Secret) -> Any:
    """
    Make a client of an account, which is then opened and closed.

    Modal's own functions that make one take its address from the environment.
    """
    from modal_proto.api_pb2 import CLIENT_TYPE_CLIENT

    token_id, _, secret = key.reveal().partition(":")
    return library().Client(url, CLIENT_TYPE_CLIENT, (token_id, secret))


def connection_faults() -> tuple[type[Exception], ...]:
    """What the library raises: errors of its own, and those of what it is built on."""
    from grpclib.exceptions import GRPCError, StreamTerminatedError
    from h2.exceptions import ProtocolError
    from modal.exception import Error

    return (Error, GRPCError, StreamTerminatedError, ProtocolError, OSError, TimeoutError, asyncio.InvalidStateError)


def status_of(fault: Exception) -> HTTPStatus | None:
    """Return what Modal answered, as the status of HTTP that means it. None if it did not answer."""
    from modal.exception import InvalidError

    code = getattr(fault, "_grpc_status", None) or vars(fault).get("status")
    if code is None:
        # The library refuses it by itself.
        return HTTPStatus.BAD_REQUEST if isinstance(fault, InvalidError) else None
    return _STATUSES.get(code.name, HTTPStatus.INTERNAL_SERVER_ERROR)


@asynccontextmanager
async def opened(url: str, key: Secret) -> AsyncIterator[Any]:
    client = new_client(url, key)
    try:
        yield await client.__aenter__()
    finally:
        await client.close.aio()


async def _list_one(credential: Credential, *, seconds: float) -> HTTPStatus:
    """
    List one sandbox of an account, and return the status of the answer.

    :raises Unreachable: if there is none
    """
    status: HTTPStatus | None = None
    modal = library()
    try:
        # The library tries to connect for a minute.
        async with asyncio.timeout(seconds), opened(credential.base_url, credential.secret) as client:
            app = await modal.App.lookup.aio(APP, client=client, create_if_missing=True)
            async with aclosing(modal.Sandbox.list.aio(app_id=app.app_id, client=client)) as listed:
                async for _ in listed:
                    break
            return HTTPStatus.OK
    except connection_faults() as fault:
        status = status_of(fault)
    if status is None:
        raise Unreachable
    return status
