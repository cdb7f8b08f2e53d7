"""
The gateway's bytes, to Anthropic and back: as they are, but for whose key signs them.

Sources: https://platform.claude.com/docs/en/api/messages and …/build-with-claude/streaming
"""

import asyncio
import socket
from collections.abc import Iterable, Mapping
from typing import Any

import aiohttp
from aiohttp.abc import AbstractResolver, ResolveResult
from django.conf import settings
from yarl import URL

from integrations.outbound import http as outbound
from integrations.outbound.destinations import BaseUrlRefused, Destination, parse_url
from integrations.providers.anthropic import diagnoses as d
from integrations.providers.anthropic.connection import API_VERSION, is_operators
from integrations.providers.anthropic.errors import (
    diagnose,
    error_of,
    failure_of_answer,
    make_failure,
    parse_object,
    request_id_of,
)
from integrations.providers.anthropic.events import EventReader
from integrations.providers.anthropic.reply import Reply
from integrations.providers.base import Answer, Credential, ProviderFailure
from rensei.core.usage import Usage, UsagePart, total

# Of the caller's headers these say which dialect is spoken, and all others are the caller's own affair.
_FORWARDED_PREFIX = "anthropic-"
_FORWARDED = frozenset({"content-type", "user-agent"})
# Whose workspace pays is ours to say.
_KEPT_BACK = frozenset({"anthropic-workspace-id"})
# What a caller is told besides the headers of Anthropic's own. All others are of the hop, or of other hosts' making.
_PASSED = frozenset(
    {b"content-type", b"content-encoding", b"request-id", b"retry-after", b"retry-after-ms", b"x-should-retry"}
)
_PASSED_PREFIX = b"anthropic-"
# A browser that is led here makes nothing else of an answer than what it is called, and keeps nothing.
_OWN = [(b"x-content-type-options", b"nosniff"), (b"cache-control", b"no-store")]
_JSON = "application/json"
_EVENTS = "text/event-stream"
# What a provider says of the key that we sent is no matter between the caller and us.
_ABOUT_OUR_KEY = frozenset({401, 407})
# Headers that tell about the account whose key signed. Where that is the platform's, they are not the caller's.
_OF_THE_ACCOUNT = (
    b"anthropic-organization-id",
    b"anthropic-workspace-id",
    # What is left of its limits is what all others have used.
    b"anthropic-ratelimit-",
    b"anthropic-priority-",
    b"anthropic-fast-",
)
_URL_CHARACTERS_MAX = 300
_CONNECTIONS_MAX = 2000
_TENANTS_MAX = 200
_ERROR_BYTES_MAX = 256 * 1024
_MESSAGE_BYTES_MAX = 64 * 1024 * 1024


class Relay:
    """
    The connections of one server process to Anthropic.

    Those to the default address are shared. An address of an organization's own has connections of its own, so that
    nothing which an organization runs ever meets another one's call.
    """

    def __init__(self, *, idle_seconds: float) -> None:
        self._timeout = aiohttp.ClientTimeout(
            total=None, sock_connect=outbound.CONNECT_SECONDS_MAX, sock_read=idle_seconds
        )
        self._sessions: dict[str, aiohttp.ClientSession] = {}

    async def send(
        self, path: str, *, credential: Credential, headers: Mapping[str, str], body: bytes, attempt_id: str = ""
    ) -> aiohttp.ClientResponse:
        """
        Send a request, and return the answer as soon as its head is there.

        :param headers: what goes out besides the key, as `outgoing_headers` made it
        :raises ProviderFailure: if there is no answer at all
        """
        key = credential.secret.reveal()
        if not key.isascii() or not key.isprintable() or " " in key:
            raise make_failure(d.KEY_REJECTED, sent=False)
        own = {"authorization": f"Bearer {key}", "accept-encoding": "identity"}
        if attempt_id:
            own["x-rensei-attempt"] = attempt_id
        if credential.workspace_id:
            own["anthropic-workspace-id"] = credential.workspace_id
        base_url = credential.base_url or settings.RENSEI_ANTHROPIC_BASE_URL
        try:
            session = self._session(base_url, credential)
            return await session.post(
                URL(base_url + path, encoded=True), data=body, headers={**headers, **own}, allow_redirects=False
            )
        except BaseUrlRefused:
            raise make_failure(d.ADDRESS_REFUSED, sent=False) from None
        except (aiohttp.ClientError, outbound.AddressRefused, TimeoutError, OSError) as error:
            # `from None`: what aiohttp raises holds the request, and with it the key.
            raise _failure_of_transport(error) from None

    async def close(self) -> None:
        for session in self._sessions.values():
            await session.close()
        self._sessions.clear()

    def _session(self, base_url: str, credential: Credential) -> aiohttp.ClientSession:
        shared = is_operators(credential, base_url)
        name = "" if shared else f"{credential.id} {base_url}"
        session = self._sessions.pop(name, None)
        if session is None:
            destination = parse_url(
                base_url, characters_max=_URL_CHARACTERS_MAX, org_slug=credential.org_slug, is_operators=shared
            )
            if _is_number(destination.host):
                # A host that is an address is not resolved, so it is checked here.
                outbound.checked_addresses(destination)
            if len(self._sessions) >= _TENANTS_MAX:
                # The one that was not used for longest. Calls under way on it are read to their end first.
                _forget(self._sessions.pop(next(iter(self._sessions))))
            session = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(
                    resolver=_CheckedResolver(destination),
                    limit=_CONNECTIONS_MAX,
                    ssl=outbound.ssl_context(),
                    keepalive_timeout=30,
                ),
                cookie_jar=aiohttp.DummyCookieJar(),
                timeout=self._timeout,
                trust_env=False,
                auto_decompress=False,
                skip_auto_headers=("user-agent", "accept", "accept-encoding", "content-type"),
            )
        self._sessions[name] = session
        return session


class Tap:
    """Listens to an answer that goes by, for what it used and how it ended. It keeps no word of it."""

    def __init__(self, *, input_tokens_about: int, streams: bool, encoding: str = "") -> None:
        """:raises ProviderFailure: if the answer is compressed in a way that cannot be read here"""
        try:
            self._decode = outbound.decoder(encoding, bytes_max=_MESSAGE_BYTES_MAX)
        except outbound.EncodingRefused:
            raise make_failure(d.ENCODING_UNKNOWN, maybe_billed=True) from None
        self._reply = Reply(input_tokens_about=input_tokens_about, keeps_content=False)
        self._reader = EventReader() if streams else None
        self._message = bytearray()
        self._error: dict[str, Any] | None = None

    def take(self, chunk: bytes) -> None:
        """:raises AnswerRefused: if it is larger than any that there is, or cannot be decompressed"""
        if self._decode is not None:
            chunk = self._decode(chunk)
        if self._reader is None:
            if len(self._message) < _MESSAGE_BYTES_MAX:
                self._message += chunk
            return
        self._take_events(self._reader.feed(chunk))

    def _take_events(self, events: Iterable[tuple[str, str]]) -> None:
        for name, data in events:
            document = parse_object(data)
            if name == "error" or document.get("type") == "error":
                self._error = error_of(document) or {}
            else:
                self._reply.take(document)

    def usage_so_far(self) -> Usage | None:
        return self._reply.usage() if self._reply.has_usage else None

    def parts_so_far(self) -> tuple[UsagePart, ...]:
        return self._reply.parts() if self._reply.has_usage else ()

    @property
    def has_error(self) -> bool:
        """Tell whether the provider itself said that something went wrong."""
        return self._error is not None

    def answer(self, *, request_id: str) -> Answer:
        """
        Tell what the whole answer came to.

        :raises ProviderFailure: if it broke off, or ended with an error
        """
        if self._reader is None:
            self._reply.take_message(parse_object(bytes(self._message)))
        else:
            self._take_events(self._reader.close())
        if self._error is not None:
            raise self._failed(diagnose(status=200, error=self._error), error=self._error, request_id=request_id)
        if not self._reply.is_complete:
            raise self.broken(request_id=request_id)
        parts = self._reply.parts()
        return Answer(
            text="",
            content=[],
            stop_reason=self._reply.stop_reason,
            usage=total(parts),
            parts=parts,
            request_id=request_id,
            usage_estimated=any(part.estimated for part in parts),
        )

    def broken(self, *, request_id: str) -> ProviderFailure:
        """Build the failure of an answer that did not come to its end."""
        return self._failed(d.STREAM_BROKEN, request_id=request_id)

    def _failed(
        self, diagnosis: d.Diagnosis, *, request_id: str, error: Mapping[str, Any] | None = None
    ) -> ProviderFailure:
        return make_failure(
            diagnosis,
            error=error,
            status=200,
            retryable=diagnosis.retryable and not self._reply.output_seen,
            maybe_billed=True,
            output_seen=self._reply.output_seen,
            request_id=request_id,
            usage=self.usage_so_far(),
            parts=self.parts_so_far(),
        )


def outgoing_headers(headers: Mapping[str, str]) -> dict[str, str]:
    """Choose of a caller's headers (names in lower case) those that go on to Anthropic. A key is never among them."""
    chosen = {
        name: value
        for name, value in headers.items()
        if (name.startswith(_FORWARDED_PREFIX) and name not in _KEPT_BACK) or name in _FORWARDED
    }
    # Every client of Anthropic's sends these. A person with curl is not asked to know them.
    return {"anthropic-version": API_VERSION, "content-type": _JSON, **chosen}


def incoming_headers(answer: aiohttp.ClientResponse, *, platform_key: bool) -> list[tuple[bytes, bytes]]:
    """List of an answer's headers those that go on to the caller, with those that every answer has."""
    return [
        (lower, value)
        for name, value in answer.raw_headers
        if ((lower := name.lower()) in _PASSED or lower.startswith(_PASSED_PREFIX))
        and not (platform_key and lower.startswith(_OF_THE_ACCOUNT))
    ] + _OWN


def is_answer(answer: aiohttp.ClientResponse) -> bool:
    """Tell whether it is what a call is made for, in one of the two forms that the API has."""
    return answer.status == 200 and answer.content_type in {_JSON, _EVENTS}


def is_refusal(answer: aiohttp.ClientResponse) -> bool:
    """Tell whether it is an error that the caller may read as it is. A redirect would lead the caller's token away."""
    return 400 <= answer.status < 600 and answer.status not in _ABOUT_OUR_KEY and answer.content_type == _JSON


async def read_whole(answer: aiohttp.ClientResponse) -> bytes:
    """
    Read an answer that comes at once when all of it is made.

    :raises aiohttp.ClientError, TimeoutError: if it does not come to its end
    :raises outbound.AnswerRefused: if it is larger than any that there is
    """
    body = bytearray()
    while chunk := await answer.content.readany():
        body += chunk
        if len(body) > _MESSAGE_BYTES_MAX:
            answer.close()
            raise outbound.AnswerRefused("The answer is larger than any that there is.")
    return bytes(body)


async def read_count(answer: aiohttp.ClientResponse) -> bytes:
    """:raises ProviderFailure: if an answer that costs nothing cannot be read to its end"""
    try:
        return await read_whole(answer)
    except (aiohttp.ClientError, outbound.AnswerRefused, TimeoutError, OSError) as error:
        raise _failure_of_transport(error) from None


async def read_failure(answer: aiohttp.ClientResponse) -> tuple[bytes, ProviderFailure]:
    """Read an answer whose status is not 200: its bytes, and what they mean."""
    body = b""
    try:
        while len(body) < _ERROR_BYTES_MAX and (chunk := await answer.content.readany()):
            body += chunk
    except (aiohttp.ClientError, TimeoutError):
        # What came is what there is; the status alone tells enough.
        answer.close()
    if not answer.content.at_eof():
        # Nobody reads the rest, and its connection serves nobody else.
        answer.close()
    return body, failure_of_answer(status=answer.status, body=_decoded(answer, body), headers=answer.headers)


def _decoded(answer: aiohttp.ClientResponse, body: bytes) -> bytes:
    """Decompress the body of an error, to learn what it means. Without it the status alone tells enough."""
    try:
        decode = outbound.decoder(answer.headers.get("content-encoding", ""), bytes_max=_ERROR_BYTES_MAX)
        return decode(body) if decode is not None else body
    except outbound.AnswerRefused:
        return b""


def request_id(answer: aiohttp.ClientResponse) -> str:
    return request_id_of(answer.headers)


class _CheckedResolver(AbstractResolver):
    """Gives the addresses of one host, all of which may be called, so that no connection goes elsewhere."""

    def __init__(self, destination: Destination) -> None:
        self._destination = destination

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        if host != self._destination.host:
            raise outbound.AddressRefused("This client calls one host only.")
        loop = asyncio.get_running_loop()
        found = await loop.run_in_executor(None, outbound.checked_addresses, self._destination)
        return [
            ResolveResult(
                hostname=host,
                host=address,
                port=port,
                family=socket.AF_INET6 if ":" in address else socket.AF_INET,
                proto=0,
                flags=socket.AI_NUMERICHOST,
            )
            for address in found
        ]

    async def close(self) -> None:
        """There is nothing to close."""


def _is_number(host: str) -> bool:
    return ":" in host or host.replace(".", "").isdigit()


def _failure_of_transport(error: Exception) -> ProviderFailure:
    """Translate a call that got no answer."""
    match error:
        case aiohttp.ClientConnectorError() | aiohttp.ConnectionTimeoutError():
            return make_failure(d.UNREACHABLE, sent=False)
        case outbound.AddressRefused():
            return make_failure(d.ADDRESS_REFUSED, sent=False)
        case TimeoutError():
            return make_failure(d.NO_ANSWER, maybe_billed=True)
        case _:
            return make_failure(d.CONNECTION_LOST, maybe_billed=True)


def _forget(session: aiohttp.ClientSession) -> None:
    task = asyncio.get_running_loop().create_task(session.close())
    _closing.add(task)
    task.add_done_callback(_closing.discard)


# A task that nobody refers to may be collected before it has run.
_closing: set[asyncio.Task[None]] = set()
