"""Connections on which nothing more comes, at the real server: it closes each, and says why where it can."""

import contextlib
import os
import re
import resource
import socket
import subprocess
import sys
import threading

import pytest

from rensei.core.asgi_limits import BODY_SECONDS, FILE_HANDLES, HEADER_SECONDS, SERVER_OPTIONS
from tests import servers
from tests.architecture.modules import ROOT
from tests.attacks import sized

pytestmark = pytest.mark.attack

# With `make attack` the times are those of an installation.
APPLICATION = sized("tests.core.hasty:application", "rensei.asgi:application")
OPTIONS = sized(("--http=1", "--http1-header-read-timeout=1000"), SERVER_OPTIONS)
CLOSED_SECONDS_MAX = sized(60, 2 * (BODY_SECONDS + HEADER_SECONDS))


@contextlib.contextmanager
def server(folder, options):
    """Start a server, and give its port."""
    port = servers.free_port()
    environment = {**os.environ, "RENSEI_DATA_DIR": str(folder), "RENSEI_PUBLIC_URL": f"http://127.0.0.1:{port}"}
    command = [sys.executable, "-m", "granian", "--interface=asgi", f"--port={port}", *options, "--no-ws", APPLICATION]
    with (
        (folder / "log").open("wb") as log,
        subprocess.Popen(command, cwd=ROOT, env=environment, stdout=log) as process,
    ):
        servers.wait_for_port(port, process)
        yield port
        process.terminate()


@pytest.fixture(scope="module")
def port(tmp_path_factory):
    with server(tmp_path_factory.mktemp("slow"), OPTIONS) as found:
        yield found


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


class TestManyConnections:
    """More than the 1,024 at which the server would take no more by itself."""

    @pytest.fixture
    def roomy(self):
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, min(hard, 4000)), hard))
        yield
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))

    def test_that_are_silent_keep_no_other_waiting(self, roomy, tmp_path):
        with server(tmp_path, SERVER_OPTIONS) as port, contextlib.ExitStack() as stack:
            for _ in range(1100):
                stack.enter_context(socket.create_connection(("127.0.0.1", port)))

            # The silent ones are closed after 30 s, which would let it in at last.
            with socket.create_connection(("127.0.0.1", port), timeout=HEADER_SECONDS / 2) as other:
                other.sendall(b"GET /healthz HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
                assert other.recv(100).startswith(b"HTTP/1.1 200 ")

    def test_get_the_file_handles_that_they_need(self):
        hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
        ask = (
            "import resource; from rensei.core.asgi_limits import take_file_handles; "
            f"resource.setrlimit(resource.RLIMIT_NOFILE, (1024, {hard})); take_file_handles(); "
            "print(resource.getrlimit(resource.RLIMIT_NOFILE)[0])"
        )

        done = subprocess.run([sys.executable, "-c", ask], cwd=ROOT, capture_output=True, text=True, check=True)

        assert int(done.stdout) == (FILE_HANDLES if hard == resource.RLIM_INFINITY else min(FILE_HANDLES, hard))


class TestTheServer:
    @pytest.mark.parametrize("name", ["Procfile", "Dockerfile", "docs/operations.md"])
    def test_is_started_with_its_limits_everywhere(self, name):
        written = " ".join(SERVER_OPTIONS).replace("=", " ")

        # A list of JSON is the same words.
        assert written in " ".join(re.sub(r'",? ?"?', " ", (ROOT / name).read_text()).split())
