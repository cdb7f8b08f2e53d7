"""
Watches every socket that our code opens in the test process, whichever library does it: none while its thread holds a
connection to the database. A test that is one transaction itself always holds one, and is passed over.
"""

import sys
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
from django.db import connection

ROOT = Path(__file__).parents[1]
OURS = tuple(f"{ROOT / package}/" for package in ("rensei", "integrations", "billing", "catalog", "profiles"))
# The stand-in for the provider, the command, and what starts the server are no part of the server.
NOT_THE_SERVER = tuple(str(ROOT / path) for path in ("rensei/simulator/", "rensei/cli/", "rensei/launcher.py"))
EVENTS = {"socket.connect", "socket.getaddrinfo"}

made: list[str] = []
with_a_connection: list[str] = []


def _watch(event: str, args: tuple[Any, ...]) -> None:
    # A module's names are None while the interpreter ends.
    if EVENTS and event in EVENTS and (place := _caller(sys._getframe(1))):
        made.append(f"{event} from {place}")
        if holds_a_connection():
            with_a_connection.append(f"{event} from {place}")


def holds_a_connection() -> bool:
    blocks: list[Any] = connection.atomic_blocks
    in_test = connection.in_atomic_block and all(block._from_testcase for block in blocks)
    return connection.connection is not None and not in_test


def _caller(frame: FrameType | None) -> str:
    """Find the innermost place in our code, if there is one."""
    while frame is not None:
        name = frame.f_code.co_filename
        if name.startswith(OURS) and not name.startswith(NOT_THE_SERVER):
            return f"{name.removeprefix(f'{ROOT}/')}:{frame.f_lineno}"
        frame = frame.f_back
    return ""


sys.addaudithook(_watch)


@pytest.fixture(autouse=True)
def _no_call_out_with_a_connection() -> Iterator[None]:
    made.clear()
    with_a_connection.clear()
    yield
    assert with_a_connection == []
