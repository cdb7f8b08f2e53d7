"""The guarded way out. No test here lets a packet leave the machine: names are resolved by a stub."""

import gzip
import http.server
import ipaddress
import socket
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import httpx2
import pytest

from integrations import checks
from integrations.outbound import destinations
from integrations.outbound import http as outbound
from tests.integrations.forbidden_urls import ALLOWED_ADDRESSES, BAD_FORM, FORBIDDEN_V4, FORBIDDEN_V6, ODD_NUMBERS


class Listener:
    """A server on loopback that counts who knocks."""

    def __init__(self, answer: Callable[[http.server.BaseHTTPRequestHandler], None] | None = None) -> None:
        self.hits: list[tuple[str, str]] = []
        listener = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                listener.hits.append((self.path, self.headers["host"]))
                if answer:
                    answer(self)
                else:
                    self.send_response(200)
                    self.end_headers()
                    self.wfile.write(b"secret")

            def log_message(self, *args: Any) -> None:
                pass

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.port = self._server.server_address[1]
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True)
        self._thread.start()

    def stop(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


@pytest.fixture
def listen() -> Iterator[Callable[..., Listener]]:
    started: list[Listener] = []

    def start(answer: Callable[..., None] | None = None) -> Listener:
        started.append(Listener(answer))
        return started[-1]

    yield start
    for listener in started:
        listener.stop()


@pytest.fixture
def names(monkeypatch: pytest.MonkeyPatch) -> dict[str, list[list[str]]]:
    """The answers of a name server, one list for each time it is asked; the last one stays."""
    answers: dict[str, list[list[str]]] = {}

    def resolve(host: str, port: int) -> list[str]:
        if host not in answers:
            raise socket.gaierror(socket.EAI_NONAME, "unknown")
        queue = answers[host]
        return queue.pop(0) if len(queue) > 1 else queue[0]

    monkeypatch.setattr(outbound, "resolve", resolve)
    return answers


@pytest.fixture(autouse=True)
def _no_allowlist(settings: Any) -> None:
    settings.RENSEI_OUTBOUND_ALLOWLIST = []


def _client(url: str, **options: Any) -> httpx2.Client:
    options = {"deadline": time.monotonic() + 5, "answer_bytes_max": 1000, **options}
    return outbound.http_client(url, **options)


def _check(url: str, org: str = "acme") -> str:
    return outbound.check_base_url(url, org_slug=org)


class TestCheckBaseUrl:
    @pytest.mark.parametrize("url", BAD_FORM + ODD_NUMBERS, ids=ascii)
    def test_refuses_what_is_no_plain_address(self, names, url):
        names["example.com"] = [["8.8.8.8"]]

        with pytest.raises(destinations.BaseUrlRefused):
            _check(url)

    @pytest.mark.parametrize("address", FORBIDDEN_V4 + FORBIDDEN_V6)
    def test_refuses_a_special_address_given_as_such(self, names, address):
        host = f"[{address}]" if ":" in address else address
        names[address] = [[address]]

        with pytest.raises(destinations.BaseUrlRefused, match="private or special"):
            _check(f"https://{host}/v1")

    @pytest.mark.parametrize("address", FORBIDDEN_V4 + FORBIDDEN_V6)
    def test_refuses_a_name_that_leads_to_a_special_address(self, names, address):
        names["gateway.example.com"] = [["8.8.8.8", address]]

        with pytest.raises(destinations.BaseUrlRefused, match="private or special"):
            _check("https://gateway.example.com")

    @pytest.mark.parametrize("name", ["localhost", "metadata.google.internal", "ip6-localhost", "rensei"])
    def test_refuses_a_local_name(self, names, name):
        names[name] = [["127.0.0.1"]]

        with pytest.raises(destinations.BaseUrlRefused):
            _check(f"https://{name}")

    def test_refuses_a_name_that_does_not_exist(self, names):
        with pytest.raises(destinations.BaseUrlRefused, match="cannot be found"):
            _check("https://nowhere.example.com")

    def test_does_not_repeat_the_address(self, names):
        with pytest.raises(destinations.BaseUrlRefused) as refused:
            _check("https://user:hunter2@example.com")

        assert "hunter2" not in refused.value.detail

    @pytest.mark.parametrize("address", ALLOWED_ADDRESSES)
    def test_takes_a_public_address(self, names, address):
        names["gateway.example.com"] = [[address]]

        assert _check("https://gateway.example.com") == "https://gateway.example.com"

    @pytest.mark.parametrize(
        ("given", "normal"),
        [
            ("https://Gateway.Example.com/", "https://gateway.example.com"),
            ("HTTPS://gateway.example.com:443/anthropic/", "https://gateway.example.com/anthropic"),
            ("https://gateway.example.com:8443/a/b", "https://gateway.example.com:8443/a/b"),
        ],
    )
    def test_returns_the_normal_form(self, names, given, normal):
        names["gateway.example.com"] = [["8.8.8.8"]]

        assert _check(given) == normal

    @pytest.mark.parametrize(
        "url", ["http://127.0.0.1:8800", "http://127.0.0.1:8800/other/path", "http://127.0.0.1:8801"]
    )
    def test_refuses_the_operators_upstream_and_its_host(self, settings, url):
        settings.RENSEI_ANTHROPIC_BASE_URL = "http://127.0.0.1:8800/anthropic"

        with pytest.raises(destinations.BaseUrlRefused):
            _check(url)

    def test_refuses_the_operators_upstream_though_it_is_public_or_listed(self, settings, names):
        settings.RENSEI_ANTHROPIC_BASE_URL = "https://llm.example.com"
        settings.RENSEI_OUTBOUND_ALLOWLIST = ["https://llm.example.com"]
        names["llm.example.com"] = [["8.8.8.8"]]

        with pytest.raises(destinations.BaseUrlRefused, match="Leave the base URL empty"):
            _check("https://LLM.example.com:443/v1")

    @pytest.mark.parametrize(
        ("entry", "url"),
        [
            ("http://gateway.internal:4000", "http://gateway.internal:4000/v1"),
            ("HTTP://10.1.2.3:4000/", "http://10.1.2.3:4000"),
            ("http://10.1.2.3", "http://10.1.2.3:80"),
            ("https://[fd00::5]:9000", "https://[fd00::5]:9000"),
            ("https://gateway.internal other acme", "https://gateway.internal"),
        ],
    )
    def test_takes_what_the_operator_listed(self, settings, entry, url):
        settings.RENSEI_OUTBOUND_ALLOWLIST = ["https://elsewhere.internal", entry]

        assert _check(url) == url.removesuffix(":80")

    @pytest.mark.parametrize(
        "url",
        [
            "https://gateway.internal:4000",
            "http://gateway.internal:4001",
            "http://gateway.internal",
            "http://other.gateway.internal:4000",
            "https://gateway.internal",
        ],
    )
    def test_refuses_another_port_scheme_or_host_than_listed(self, settings, names, url):
        settings.RENSEI_OUTBOUND_ALLOWLIST = ["http://gateway.internal:4000"]
        names["gateway.internal"] = names["other.gateway.internal"] = [["10.1.2.3"]]

        with pytest.raises(destinations.BaseUrlRefused):
            _check(url)

    @pytest.mark.parametrize("org", ["evil", "", "acm", "acme2"])
    def test_refuses_what_is_listed_for_other_organizations(self, settings, names, org):
        settings.RENSEI_OUTBOUND_ALLOWLIST = ["http://gateway.internal:4000 acme beta"]
        names["gateway.internal"] = [["10.1.2.3"]]

        with pytest.raises(destinations.BaseUrlRefused):
            _check("http://gateway.internal:4000", org)
        with pytest.raises(destinations.BaseUrlRefused):
            outbound.check_image_url("http://gateway.internal:4000/cat.png")

    @pytest.mark.parametrize(
        "entry", ["gateway.internal", "10.1.0.0/16", "*", "ftp://x", "https://a:99999 x", "https://a/v1", "http://"]
    )
    def test_reports_an_entry_that_lists_nothing(self, settings, entry):
        settings.RENSEI_OUTBOUND_ALLOWLIST = ["http://fine.internal:1", entry]

        assert [entry in str(found.msg) for found in checks.outbound_allowlist(None)] == [True]


class TestIsForbidden:
    @pytest.mark.parametrize("address", FORBIDDEN_V4 + FORBIDDEN_V6)
    def test_knows_the_special_networks(self, address):
        assert destinations.is_forbidden(ipaddress.ip_address(address))

    @pytest.mark.parametrize("address", ALLOWED_ADDRESSES)
    def test_lets_public_addresses_be(self, address):
        assert not destinations.is_forbidden(ipaddress.ip_address(address))

    def test_has_a_corpus_worth_the_name(self):
        assert len(set(BAD_FORM + ODD_NUMBERS + FORBIDDEN_V4 + FORBIDDEN_V6)) >= 150


class TestHttpClient:
    def test_reaches_the_address_that_was_checked(self, settings, listen):
        listener = listen()
        settings.RENSEI_OUTBOUND_ALLOWLIST = [f"http://127.0.0.1:{listener.port}"]
        url = f"http://127.0.0.1:{listener.port}"

        with _client(url) as client:
            answer = client.get(url + "/hello")

        assert answer.content == b"secret"
        assert listener.hits == [("/hello", f"127.0.0.1:{listener.port}")]

    def test_keeps_the_host_name_while_connecting_to_the_checked_address(self, settings, names, listen):
        listener = listen()
        settings.RENSEI_OUTBOUND_ALLOWLIST = [f"http://gateway.internal:{listener.port}"]
        names["gateway.internal"] = [["127.0.0.1"]]
        url = f"http://gateway.internal:{listener.port}"

        with _client(url) as client:
            client.get(url)

        assert listener.hits == [("/", f"gateway.internal:{listener.port}")]

    def test_is_not_fooled_by_a_name_that_changes_after_the_check(self, names, listen, monkeypatch):
        listener = listen()
        monkeypatch.setattr(destinations, "_PORTS", (443, 8443, listener.port))
        names["rebind.example.com"] = [["8.8.8.8"], ["127.0.0.1"]]
        url = _check(f"https://rebind.example.com:{listener.port}")

        with _client(url) as client, pytest.raises(outbound.AddressRefused):
            client.get(url)

        assert listener.hits == []

    @pytest.mark.parametrize("address", ["127.0.0.1", "::1", "::ffff:127.0.0.1", "169.254.169.254", "10.0.0.1"])
    def test_connects_to_nothing_if_one_address_of_many_is_forbidden(self, names, monkeypatch, address):
        tried: list[object] = []
        monkeypatch.setattr(socket, "create_connection", lambda *args, **options: tried.append(args))
        names["gateway.example.com"] = [["8.8.8.8", address]]

        with _client("https://gateway.example.com") as client, pytest.raises(outbound.AddressRefused):
            client.get("https://gateway.example.com/v1/models")

        assert tried == []

    def test_looks_the_name_up_only_once_for_a_connection(self, settings, names, listen):
        listener = listen()
        settings.RENSEI_OUTBOUND_ALLOWLIST = [f"http://gateway.internal:{listener.port}"]
        names["gateway.internal"] = [["127.0.0.1"], ["203.0.113.9"]]
        url = f"http://gateway.internal:{listener.port}"

        with _client(url) as client:
            assert client.get(url).status_code == 200

    def test_calls_no_other_host_than_its_own(self, settings, listen):
        trap, own = listen(), listen()
        settings.RENSEI_OUTBOUND_ALLOWLIST = [f"http://{host}:{own.port}" for host in ("127.0.0.1", "localhost")]

        with _client(f"http://localhost:{own.port}") as client, pytest.raises(outbound.AddressRefused):
            client.get(f"http://127.0.0.1:{trap.port}")
        with _client(f"http://127.0.0.1:{own.port}") as client, pytest.raises(outbound.AddressRefused):
            client.get(f"http://127.0.0.1:{trap.port}")

        assert trap.hits == []

    @pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
    def test_follows_no_redirect(self, settings, listen, status):
        trap = listen()

        def redirect(handler: http.server.BaseHTTPRequestHandler) -> None:
            handler.send_response(status)
            handler.send_header("location", f"http://127.0.0.1:{trap.port}/stolen")
            handler.end_headers()

        server = listen(redirect)
        settings.RENSEI_OUTBOUND_ALLOWLIST = [f"http://127.0.0.1:{server.port}"]
        url = f"http://127.0.0.1:{server.port}"

        with _client(url) as client:
            answer = client.get(url)

        assert answer.status_code == status
        assert trap.hits == []

    def test_reads_no_proxy_from_the_environment(self, settings, listen, monkeypatch):
        trap, server = listen(), listen()
        for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "HTTPS_PROXY"):
            monkeypatch.setenv(name, f"http://127.0.0.1:{trap.port}")
        settings.RENSEI_OUTBOUND_ALLOWLIST = [f"http://127.0.0.1:{server.port}"]
        url = f"http://127.0.0.1:{server.port}"

        with _client(url) as client:
            client.get(url)

        assert trap.hits == []
        assert len(server.hits) == 1

    def test_stops_reading_at_its_limit(self, settings, listen):
        def flood(handler: http.server.BaseHTTPRequestHandler) -> None:
            handler.send_response(200)
            handler.end_headers()
            try:
                for _ in range(1000):
                    handler.wfile.write(b"x" * 1000)
            except OSError:
                pass

        server = listen(flood)
        settings.RENSEI_OUTBOUND_ALLOWLIST = [f"http://127.0.0.1:{server.port}"]
        url = f"http://127.0.0.1:{server.port}"

        with _client(url, answer_bytes_max=5000) as client, pytest.raises(outbound.AnswerRefused):
            client.get(url)

    @pytest.mark.parametrize(
        ("encoding", "body"),
        [
            ("gzip", gzip.compress(b"short")[:-9] + b"\xff" * 20),
            ("gzip", gzip.compress(b" " * 20_000_000)),
            ("compress", b"\x1f\x9d"),
            ("gzip, br", b"\x1f\x8b"),
        ],
        ids=["damaged", "too long", "unknown", "two at once"],
    )
    def test_refuses_what_it_cannot_decompress_within_the_limit(self, settings, listen, encoding, body):
        server = listen(_compressed(encoding, body))
        settings.RENSEI_OUTBOUND_ALLOWLIST = [f"http://127.0.0.1:{server.port}"]
        url = f"http://127.0.0.1:{server.port}"

        with _client(url) as client, pytest.raises(outbound.AnswerRefused):
            client.get(url)

    @pytest.mark.parametrize("encoding", ["gzip", "GZIP ", "identity"])
    def test_decompresses_what_comes_compressed(self, settings, listen, encoding):
        body = b"what was asked for" if encoding == "identity" else gzip.compress(b"what was asked for")
        server = listen(_compressed(encoding, body))
        settings.RENSEI_OUTBOUND_ALLOWLIST = [f"http://127.0.0.1:{server.port}"]
        url = f"http://127.0.0.1:{server.port}"

        with _client(url) as client:
            assert client.get(url).content == b"what was asked for"

    def test_ends_at_the_deadline_however_the_answer_drips(self, settings, listen):
        def drip(handler: http.server.BaseHTTPRequestHandler) -> None:
            handler.send_response(200)
            handler.end_headers()
            try:
                for _ in range(100):
                    handler.wfile.write(b"x")
                    time.sleep(0.05)
            except OSError:
                pass

        server = listen(drip)
        settings.RENSEI_OUTBOUND_ALLOWLIST = [f"http://127.0.0.1:{server.port}"]
        url = f"http://127.0.0.1:{server.port}"
        began = time.monotonic()

        with _client(url, deadline=began + 0.3) as client, pytest.raises(outbound.DeadlinePassed):
            client.get(url)

        assert time.monotonic() - began < 2


class TestFetchImage:
    def test_fetches_the_bytes(self, settings, listen):
        server = listen()
        settings.RENSEI_OUTBOUND_ALLOWLIST = [f"http://127.0.0.1:{server.port}"]

        assert outbound.fetch_image(f"http://127.0.0.1:{server.port}/cat.png?size=1") == b"secret"

    def test_refuses_a_forbidden_address(self, names, listen):
        names["cats.example.com"] = [["127.0.0.1"]]

        with pytest.raises(outbound.Unreachable, match="private or special"):
            outbound.fetch_image("https://cats.example.com/cat.png")

    def test_says_that_it_follows_no_redirect(self, settings, listen):
        def redirect(handler: http.server.BaseHTTPRequestHandler) -> None:
            handler.send_response(302)
            handler.send_header("location", "http://169.254.169.254/")
            handler.end_headers()

        server = listen(redirect)
        settings.RENSEI_OUTBOUND_ALLOWLIST = [f"http://127.0.0.1:{server.port}"]

        with pytest.raises(outbound.Unreachable, match="redirects"):
            outbound.fetch_image(f"http://127.0.0.1:{server.port}/")


def _compressed(encoding: str, body: bytes) -> Callable[[http.server.BaseHTTPRequestHandler], None]:
    def answer(handler: http.server.BaseHTTPRequestHandler) -> None:
        handler.send_response(200)
        handler.send_header("content-encoding", encoding)
        handler.send_header("content-length", str(len(body)))
        handler.end_headers()
        handler.wfile.write(body)

    return answer
