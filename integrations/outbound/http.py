"""
The guarded HTTP client for outbound calls. It connects to checked addresses only.

An address is checked when it is saved, and again on connecting, after its name is resolved. The socket connects to
the checked address itself, so a name that resolves differently the second time has no effect.
"""

import contextlib
import ipaddress
import socket
import ssl
import time
from collections.abc import Callable, Iterable, Iterator
from functools import cache
from typing import Any

import httpcore2
import httpx2

from integrations.outbound.destinations import (
    BaseUrlRefused,
    Destination,
    is_forbidden,
    is_operators_upstream,
    parse_url,
)
from rensei.core import encodings
from rensei.core.computing import outside_of_turn
from rensei.core.limits import limit
from rensei.core.transactions import leave_database

CONNECT_SECONDS_MAX = limit(
    5.0, "seconds", what="Time in which an upstream accepts a connection", told="the caller: 503 `PROVIDER_UNAVAILABLE`"
)
IDLE_SECONDS_MAX = limit(
    60.0,
    "seconds",
    what="Time that a run waits for more of a provider's answer",
    told="the run: `PROVIDER_STREAM_BROKEN`, or it is tried again",
)
IMAGE_BYTES_MAX = limit(20 * 1024 * 1024, "bytes", what="Picture at an address", told="the run: 422 `INVALID_IMAGE`")
_IMAGE_SECONDS_MAX = limit(
    20.0, "seconds", what="Time in which a picture at an address is fetched", told="the run: 422 `INVALID_IMAGE`"
)
_URL_CHARACTERS_MAX = 300
_IMAGE_URL_CHARACTERS_MAX = limit(
    4000, "characters", what="Address of a picture", told="the caller: 422 `INVALID_IMAGE`"
)


class AddressRefused(httpx2.ConnectError):
    """The name resolved to an address that may not be called. Nothing was sent."""


class AnswerRefused(httpx2.ReadError):
    """The answer exceeds the size limit, or cannot be decompressed."""


class EncodingRefused(AnswerRefused):
    """The answer uses an unsupported compression."""


class DeadlinePassed(httpx2.ReadTimeout):
    """The time limit of the whole call has passed."""


class Unreachable(Exception):
    """An address could not be read. The text is ours, and contains at most the host."""


def check_base_url(url: str, *, org_slug: str) -> str:
    """
    Check an address to which an organization's key would be sent, and return it in its normal form.

    It resolves the name, so call it outside transactions.

    :raises BaseUrlRefused: with a reason that does not repeat the address
    """
    destination = parse_url(url, characters_max=_URL_CHARACTERS_MAX, org_slug=org_slug)
    if is_operators_upstream(destination):
        raise BaseUrlRefused(reason="This server calls that address by itself. Leave the base URL empty.")
    if "?" in url:
        raise BaseUrlRefused(reason="The base URL must not have a query. Leave out everything from the '?' on.")
    if not destination.trusted:
        try:
            checked_addresses(destination)
        except AddressRefused as refused:
            raise BaseUrlRefused(reason=str(refused)) from None
        except OSError:
            raise BaseUrlRefused(
                reason="The host name of the base URL cannot be found. Check its spelling, and that it is public."
            ) from None
    return destination.origin + destination.path.rstrip("/")


def check_image_url(url: str) -> None:
    """
    Check the format of an image's address, without network access.

    :raises BaseUrlRefused: with a reason that does not repeat the address
    """
    parse_url(url, characters_max=_IMAGE_URL_CHARACTERS_MAX)


def http_client(
    base_url: str,
    *,
    deadline: float,
    answer_bytes_max: int,
    sockets: "Sockets | None" = None,
    org_slug: str = "",
    is_operators: bool = False,
) -> httpx2.Client:
    """
    Create a client for one address.

    It follows no redirect, reads no proxy or netrc from the environment, and connects to checked addresses only.

    :param deadline: the `time.monotonic()` value at which every read ends
    :param sockets: records the open sockets, so that another thread can close the connection
    :param org_slug: the organization that gave the address
    :param is_operators: whether the operator gave it
    :raises BaseUrlRefused: if the address may not be called
    """
    destination = parse_url(
        base_url, characters_max=_IMAGE_URL_CHARACTERS_MAX, org_slug=org_slug, is_operators=is_operators
    )
    return httpx2.Client(
        transport=_GuardedTransport(
            destination, deadline=deadline, answer_bytes_max=answer_bytes_max, sockets=sockets or Sockets()
        ),
        timeout=httpx2.Timeout(IDLE_SECONDS_MAX, connect=CONNECT_SECONDS_MAX),
        headers={"accept-encoding": "identity"},
        follow_redirects=False,
        trust_env=False,
    )


def fetch_image(url: str, *, seconds_max: float = _IMAGE_SECONDS_MAX) -> bytes:
    """
    Fetch the bytes of an image, regardless of the content type that its server states.

    :raises BaseUrlRefused: if the address may not be called
    :raises Unreachable: if the bytes cannot be read, or exceed the size limit of an image
    """
    deadline = time.monotonic() + min(seconds_max, _IMAGE_SECONDS_MAX)
    with http_client(url, deadline=deadline, answer_bytes_max=IMAGE_BYTES_MAX) as client:
        try:
            answer = client.get(url)
        except (AddressRefused, AnswerRefused) as refused:
            raise Unreachable(str(refused)) from None
        except httpx2.TimeoutException:
            raise Unreachable("Its server took too long to answer.") from None
        except httpx2.HTTPError:
            raise Unreachable("Its server could not be reached, or broke off.") from None
    if answer.is_redirect:
        raise Unreachable("Its server redirects elsewhere, which is not followed. Give the final address.")
    if not answer.is_success:
        raise Unreachable(f"Its server answered with status {answer.status_code}.")
    return answer.content


class Sockets:
    """The open sockets of a client. Any thread may call `hang_up`, which ends all waits on them."""

    def __init__(self) -> None:
        self._open: list[socket.socket] = []
        self.hung_up = False
        # Whether anything of a request was sent.
        self.has_sent = False

    def add(self, connection: socket.socket) -> None:
        self._open.append(connection)
        if self.hung_up:
            self.hang_up()

    def hang_up(self) -> None:
        self.hung_up = True
        for connection in self._open:
            # The plain socket's method: that of SSLSocket would remove state that the reading thread still uses.
            with contextlib.suppress(OSError):
                socket.socket.shutdown(connection, socket.SHUT_RDWR)


def resolve(host: str, port: int) -> list[str]:
    """List all addresses of a host name."""
    leave_database()
    return list(dict.fromkeys(str(found[4][0]) for found in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)))


def checked_addresses(destination: Destination) -> list[str]:
    """
    Resolve a host, and refuse it if any of its addresses may not be called.

    One such address is enough: a client could be made to fall back to it.

    :raises AddressRefused: if an address may not be called
    :raises OSError: if the name cannot be resolved
    """
    found = resolve(destination.host, destination.port)
    if destination.trusted:
        return found
    for text in found:
        address = ipaddress.ip_address(text.partition("%")[0])
        if is_forbidden(address):
            raise AddressRefused(
                "The host of the address is inside a private or special network. Use a public one, or ask the "
                "operator of this server to list it in RENSEI_OUTBOUND_ALLOWLIST."
            )
    return found


class _GuardedTransport(httpx2.HTTPTransport):
    """HTTP over connections to one destination, with a limit on the size of an answer."""

    def __init__(self, destination: Destination, *, deadline: float, answer_bytes_max: int, sockets: Sockets) -> None:
        # The parent would create a pool of its own, which resolves names itself.
        self._destination = destination
        self._deadline = deadline
        self._answer_bytes_max = answer_bytes_max
        self._pool = httpcore2.ConnectionPool(
            ssl_context=ssl_context(),
            network_backend=_CheckedBackend(destination, deadline=deadline, sockets=sockets),
        )

    def handle_request(self, request: httpx2.Request) -> httpx2.Response:
        if (request.url.host, request.url.scheme) != (self._destination.host, self._destination.scheme):
            raise AddressRefused("This client calls one host only.")
        leave_database()
        with _deadline_told(self._deadline):
            answer = super().handle_request(request)
        try:
            decode = decoder(answer.headers.get("content-encoding", ""), bytes_max=self._answer_bytes_max)
        except EncodingRefused:
            answer.close()
            raise
        if decode is not None:
            # The body passed on is decompressed, so its encoding and length differ.
            del answer.headers["content-encoding"]
            answer.headers.pop("content-length", None)
        assert isinstance(answer.stream, httpx2.SyncByteStream)
        stream = _BoundedStream(
            answer.stream, bytes_max=self._answer_bytes_max, deadline=self._deadline, decode=decode or _as_it_is
        )
        return httpx2.Response(answer.status_code, headers=answer.headers, stream=stream, extensions=answer.extensions)


def decoder(encoding: str, *, bytes_max: int) -> Callable[[bytes], bytes] | None:
    """
    Create a function that decompresses an answer piece by piece. Return None if the answer is not compressed.

    :raises EncodingRefused: if the encoding is not supported
    """
    if encoding.strip().lower() in {"", "identity"}:
        return None
    try:
        decoding = encodings.Decoder(encoding, bytes_max=bytes_max)
    except encodings.EncodingUnknown:
        raise EncodingRefused("The answer is compressed in a way that this server cannot read.") from None

    def decode(chunk: bytes) -> bytes:
        try:
            return decoding.feed(chunk)
        except encodings.TooLong:
            raise AnswerRefused("The answer is larger than this server reads.") from None
        except encodings.Damaged:
            raise AnswerRefused("The answer cannot be decompressed.") from None

    return decode


def _as_it_is(chunk: bytes) -> bytes:
    return chunk


class _BoundedStream(httpx2.SyncByteStream):
    """The bytes of an answer, up to a limit."""

    def __init__(
        self,
        stream: httpx2.SyncByteStream,
        *,
        bytes_max: int,
        deadline: float,
        decode: Callable[[bytes], bytes],
    ) -> None:
        self._stream = stream
        self._bytes_left = bytes_max
        self._deadline = deadline
        self._decode = decode

    def __iter__(self) -> Iterator[bytes]:
        with _deadline_told(self._deadline):
            for chunk in self._stream:
                self._bytes_left -= len(chunk)
                if self._bytes_left < 0:
                    raise AnswerRefused("The answer is larger than this server reads.")
                yield self._decode(chunk)

    def close(self) -> None:
        self._stream.close()


@contextlib.contextmanager
def _deadline_told(deadline: float) -> Iterator[None]:
    """Distinguish the deadline of the whole call from the time-out of one wait."""
    try:
        yield
    except (httpx2.ReadTimeout, httpx2.WriteTimeout):
        if time.monotonic() >= deadline:
            raise DeadlinePassed("The time for the whole call is over.") from None
        raise


class _CheckedBackend(httpcore2.NetworkBackend):
    """Opens connections to checked addresses. TLS and HTTP still use the host name."""

    def __init__(self, destination: Destination, *, deadline: float, sockets: Sockets) -> None:
        self._destination = destination
        self._deadline = deadline
        self._sockets = sockets

    def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore2.NetworkStream:
        if (host, port) != (self._destination.host, self._destination.port):
            raise AddressRefused("This client calls one host only.")
        try:
            addresses = checked_addresses(self._destination)
        except OSError:
            raise httpcore2.ConnectError("The host name cannot be found.") from None
        backend = httpcore2.SyncBackend()
        failure: Exception = httpcore2.ConnectError("The host name has no address.")
        for address in addresses:
            try:
                with outside_of_turn():
                    stream = backend.connect_tcp(address, port, timeout=timeout, socket_options=socket_options)
            except (httpcore2.ConnectError, httpcore2.ConnectTimeout) as error:
                failure = error
                continue
            return _WatchedStream(stream, deadline=self._deadline, sockets=self._sockets)
        raise failure


class _WatchedStream(httpcore2.NetworkStream):
    """A connection in which every wait ends at the deadline, or when another thread closes it."""

    def __init__(self, stream: httpcore2.NetworkStream, *, deadline: float, sockets: Sockets) -> None:
        self._stream = stream
        self._deadline = deadline
        self._sockets = sockets
        sockets.add(stream.get_extra_info("socket"))

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        left = self._until_deadline(timeout, httpcore2.ReadTimeout)
        with outside_of_turn():
            return self._stream.read(max_bytes, timeout=left)

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        self._sockets.has_sent = True
        self._stream.write(buffer, timeout=self._until_deadline(timeout, httpcore2.WriteTimeout))

    def close(self) -> None:
        self._stream.close()

    def start_tls(
        self, ssl_context: ssl.SSLContext, server_hostname: str | None = None, timeout: float | None = None
    ) -> httpcore2.NetworkStream:
        secured = self._stream.start_tls(ssl_context, server_hostname=server_hostname, timeout=timeout)
        return _WatchedStream(secured, deadline=self._deadline, sockets=self._sockets)

    def get_extra_info(self, info: str) -> Any:
        return self._stream.get_extra_info(info)

    def _until_deadline(self, timeout: float | None, error: Callable[[str], Exception]) -> float:
        left = self._deadline - time.monotonic()
        if left <= 0:
            raise error("The time for the whole call is over.")
        return min(left, timeout if timeout is not None else left)


@cache
def ssl_context() -> ssl.SSLContext:
    # Loading the certificate authorities takes tens of milliseconds, and each call creates a client.
    return ssl.create_default_context()
