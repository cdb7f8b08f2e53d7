"""Connections on which nothing more comes, at the real server: it closes each, and says why where it can."""

import contextlib
import os
import re
import socket
import subprocess
import sys
import threading
import time

import pytest

from rensei.core.asgi_limits import BODY_SECONDS, HEADER_SECONDS, SERVER_OPTIONS
from tests import servers
from tests.architecture.rooms import ROOT
from tests.attacks import sized

pytestmark = pytest.mark.attack

# With `make attack` the times are those of an installation.
APPLICATION = sized("tests.core.hasty:application", "rensei.asgi:application")
OPTIONS = sized(("--http=1", "--http1-header-read-timeout=1000"), SERVER_OPTIONS)
CLOSED_SECONDS_MAX = sized(60, 2 * (BODY_SECONDS + HEADER_SECONDS))


@pytest.fixture(scope="module")
def port(tmp_path_factory):
    folder, port = tmp_path_factory.mktemp("slow"), servers.free_port()
    environment = {**os.environ, "RENSEI_DATA_DIR": str(folder), "RENSEI_PUBLIC_URL": f"http://127.0.0.1:{port}"}
    command = [sys.executable, "-m", "granian", "--interface=asgi", f"--port={port}", *OPTIONS, "--no-ws", APPLICATION]
    with (folder / "log").open("wb") as log, subprocess.Popen(command, cwd=ROOT, env=environment, stdout=log) as server:
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline and server.poll() is None:
            with contextlib.suppress(OSError):
                socket.create_connection(("127.0.0.1", port)).close()
                break
        yield port
        server.terminate()


def said_until_closed(port, *pieces, trickle=b""):
    """Send what there is, then perhaps a byte again and again, and return what came until the server hung up."""
    with socket.create_connection(("127.0.0.1", port)) as connection:
        connection.settimeout(CLOSED_SECONDS_MAX)
        for piece in pieces:
            connection.sendall(piece)
        stop = threading.Event()

        def send_on():
            with contextlib.suppress(OSError):
                while not stop.wait(0.05):
                    connection.sendall(trickle)

        sender = threading.Thread(target=send_on)
        if trickle:
            sender.start()
        said = b""
        try:
            with contextlib.suppress(ConnectionResetError):
                while came := connection.recv(65536):
                    said += came
        finally:
            stop.set()
            if trickle:
                sender.join()
        return said


HEAD = b"POST /api/v1/device-codes HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
FORM = b"POST /accounts/login/ HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/x-www-form-urlencoded\r\n"


class TestAConnection:
    @pytest.mark.parametrize(
        "sent",
        [
            b"",
            b"GET /healthz HTTP/1.1\r\nHost: 127.0.0.1\r\n",
            b"PRI * HTTP/2.0\r\n",
            b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        ],
        ids=["silent", "half a head", "half a preface", "another protocol"],
    )
    def test_without_a_whole_head_is_closed(self, port, sent):
        said_until_closed(port, sent)

    def test_that_is_idle_after_a_request_is_closed(self, port):
        said = said_until_closed(port, b"GET /healthz HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")

        assert said.startswith(b"HTTP/1.1 200 ")

    @pytest.mark.parametrize("head", [HEAD, FORM], ids=["REST", "form"])
    @pytest.mark.parametrize("trickle", [b"", b" "], ids=["silent", "a byte at a time"])
    def test_with_a_body_that_does_not_come_is_told_so_and_closed(self, port, head, trickle):
        said = said_until_closed(port, head + b"Content-Length: 16000\r\n\r\n{", trickle=trickle)

        assert said.startswith(b"HTTP/1.1 408 ")
        assert b'"REQUEST_TOO_SLOW"' in said

    @pytest.mark.parametrize("head", [HEAD, FORM], ids=["REST", "form"])
    def test_with_a_body_too_long_for_an_address_without_login_is_told_so_at_once(self, port, head):
        said = said_until_closed(port, head + b"Content-Length: 16385\r\n\r\n")

        assert said.startswith(b"HTTP/1.1 413 ")
        assert b"larger than 16 kB" in said


class TestTheServer:
    @pytest.mark.parametrize("name", ["Procfile", "Dockerfile", "docs/operations.md"])
    def test_is_started_with_its_limits_everywhere(self, name):
        written = " ".join(SERVER_OPTIONS).replace("=", " ")

        # A list of JSON is the same words.
        assert written in " ".join(re.sub(r'",? ?"?', " ", (ROOT / name).read_text()).split())
