"""Encrypted connections: the address is the checked one, the name is what the certificate must carry."""

import contextlib
import socket
import ssl
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest

from integrations.outbound import http as outbound
from tests.certificates import make_certificate

HOST = "gateway.example.com"


class TlsServer:
    """Answers every request with 204, and remembers which names it was asked for."""

    def __init__(self, certificate: Path) -> None:
        self.names: list[str | None] = []
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate)
        context.sni_callback = lambda connection, name, own: self.names.append(name)
        self._context = context
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._listener.settimeout(0.1)
        self.port: int = self._listener.getsockname()[1]
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def stop(self) -> None:
        self._stopped.set()
        self._thread.join()
        self._listener.close()

    def _serve(self) -> None:
        while not self._stopped.is_set():
            with contextlib.suppress(OSError):
                plain, _ = self._listener.accept()
                with plain, self._context.wrap_socket(plain, server_side=True) as connection:
                    connection.recv(65536)
                    connection.sendall(b"HTTP/1.1 204 No Content\r\n\r\n")


@pytest.fixture
def certificate(tmp_path: Path) -> Path:
    """A certificate for the host, signed by itself, with its key."""
    file = tmp_path / "certificate.pem"
    file.write_bytes(b"".join(make_certificate(HOST)))
    return file


@pytest.fixture
def server(certificate: Path) -> Iterator[TlsServer]:
    running = TlsServer(certificate)
    yield running
    running.stop()


@pytest.fixture(autouse=True)
def _loopback(settings: Any, monkeypatch: pytest.MonkeyPatch, server: TlsServer) -> None:
    settings.RENSEI_OUTBOUND_ALLOWLIST = [f"https://{host}:{server.port}" for host in (HOST, "other.example.com")]
    monkeypatch.setattr(outbound, "resolve", lambda host, port: ["127.0.0.1"])


def _get(url: str) -> int:
    with outbound.http_client(url, deadline=time.monotonic() + 5, answer_bytes_max=1000) as client:
        return client.get(url).status_code


class TestHttpClient:
    def test_asks_for_the_name_and_checks_the_certificate_against_it(self, server, certificate, monkeypatch):
        trusting = ssl.create_default_context(cafile=str(certificate))
        monkeypatch.setattr(outbound, "ssl_context", lambda: trusting)

        assert _get(f"https://{HOST}:{server.port}") == 204
        assert server.names == [HOST]

    def test_refuses_a_certificate_for_another_name(self, server, certificate, monkeypatch):
        trusting = ssl.create_default_context(cafile=str(certificate))
        monkeypatch.setattr(outbound, "ssl_context", lambda: trusting)

        with pytest.raises(httpx2.ConnectError):
            _get(f"https://other.example.com:{server.port}")

    def test_refuses_a_certificate_that_nobody_vouches_for(self, server):
        with pytest.raises(httpx2.ConnectError):
            _get(f"https://{HOST}:{server.port}")
