"""
The gateway's bytes, to Anthropic and back, unchanged except for the key that signs them.

Sources: https://platform.claude.com/docs/en/api/messages and …/build-with-claude/streaming
"""

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import lru_cache
from typing import Any
from weakref import WeakValueDictionary

import aiohttp
from aiohttp.abc import AbstractStreamWriter
from django.conf import settings
from yarl import URL

from integrations.outbound import http as outbound
from integrations.outbound.destinations import BaseUrlRefused
from integrations.providers.anthropic import diagnoses as d
from integrations.providers.anthropic.answer_size import ANSWER_BYTES_FIXED, ANSWER_BYTES_MAX
from integrations.providers.anthropic.connection import (
    API_VERSION,
    rejection_of,
    signing_headers,
)
from integrations.providers.anthropic.errors import (
    diagnose,
    error_of,
    failure_of_answer,
    make_failure,
    parse_object,
    request_id_of,
)
from integrations.providers.anthropic.events import EventReader
from integrations.providers.anthropic.federation import tokens
from integrations.providers.anthropic.known_headers import HEADERS, without_undocumented
from integrations.providers.anthropic.reply import Reply
from integrations.providers.anthropic.upstreams import Upstreams
from integrations.providers.base import Answer, Credential, ProviderFailure
from rensei.core.limits import limit
from rensei.core.secret import Secret
from rensei.core.usage import UsagePart, total

# Of the caller's headers, only those that define the protocol are forwarded.
_FORWARDED_PREFIX = "anthropic-"
_FORWARDED = frozenset({"content-type", "user-agent"})
# Rensei decides which workspace pays.
_KEPT_BACK = frozenset({"anthropic-workspace-id"})
# A caller must not name the users of the platform's account.
_OF_THE_PLATFORM = frozenset({"anthropic-user-profile-id"})
# The headers returned to a caller besides Anthropic's own. All others belong to the connection or to other hosts.
_PASSED = frozenset(
    {b"content-type", b"content-encoding", b"request-id", b"retry-after", b"retry-after-ms", b"x-should-retry"}
)
_PASSED_PREFIX = b"anthropic-"
# A browser that opens this URL must not interpret the content as another type, nor store it.
_OWN = [(b"x-content-type-options", b"nosniff"), (b"cache-control", b"no-store")]
_JSON = "application/json"
_EVENTS = "text/event-stream"
# An answer about Rensei's own key does not concern the caller.
_ABOUT_OUR_KEY = frozenset({401, 407})
# Headers about the account of the signing key. If that is the platform's, they are not shown to the caller.
_OF_THE_ACCOUNT = (
    b"anthropic-organization-id",
    b"anthropic-workspace-id",
    # What is left of its limits depends on the use of all organizations.
    b"anthropic-ratelimit-",
    b"anthropic-priority-",
    b"anthropic-fast-",
)
_ERROR_BYTES_MAX = limit(
    256 * 1024,
    "bytes",
    what="Provider's error that the gateway reads",
    told="the caller: the error is told by its status alone",
)
EXCHANGES = limit(
    4,
    "at once",
    what="Exchanges of this server's identity for access tokens, each gateway process, and one of each organization",
    told="the caller: it waits for its turn",
)
# Almost every answer is smaller. What follows is counted with the bodies of the calls under way.
HELD_FROM = 1024 * 1024


class Relay:
    """Sends the calls of one server process to Anthropic."""

    def __init__(self, *, idle_seconds: float) -> None:
        self._upstreams = Upstreams(idle_seconds=idle_seconds)
        self._exchanges = ThreadPoolExecutor(EXCHANGES, thread_name_prefix="token-exchange")
        self._exchange_turns: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()

    async def send(
        self,
        path: str,
        *,
        credential: Credential,
        headers: Mapping[str, str],
        body: bytes,
        attempt_id: str = "",
        on_sent: Callable[[], None] | None = None,
    ) -> aiohttp.ClientResponse:
        """
        Send a request, and return the answer as soon as its headers arrive.

        :param headers: the outgoing headers besides the key, as built by `outgoing_headers`
        :param on_sent: is called before the first byte is sent
        :raises ProviderFailure: if there is no answer
        """
        secret = credential.secret if credential.federation is None else await self._token(credential)
        own = signing_headers(credential, secret, attempt_id=attempt_id, betas=headers.get("anthropic-beta", ""))
        own["accept-encoding"] = "identity"
        base_url = credential.base_url or settings.RENSEI_ANTHROPIC_BASE_URL
        try:
            answer = await self._upstreams.of(credential).post(
                URL(base_url + path, encoded=True),
                data=_Watched(body, on_sent),
                headers={**headers, **own},
                allow_redirects=False,
            )
        except BaseUrlRefused:
            raise make_failure(d.ADDRESS_REFUSED, sent=False) from None
        except (aiohttp.ClientError, outbound.AddressRefused, TimeoutError, OSError) as error:
            # `from None`: aiohttp's exceptions contain the request, and with it the key.
            raise _failure_of_transport(error) from None
        if rejection := rejection_of(credential, secret, status=answer.status):
            answer.close()
            raise rejection
        return answer

    async def fetch_token(self, credential: Credential) -> bool:
        """
        Obtain the token of a federated credential before a call, and return whether that took a while.

        A failure is that of the call, which is sent right afterwards.
        """
        if tokens.at_hand(credential) is not None:
            return False
        with suppress(ProviderFailure):
            await self._token(credential)
        return True

    async def _token(self, credential: Credential) -> Secret:
        """
        Return a usable token of a federated credential, without waiting if there is one.

        :raises ProviderFailure: if none is given in exchange for this server's identity
        """
        token = tokens.at_hand(credential)
        if token is not None:
            return token
        async with self._exchange_turns.setdefault(credential.subject, asyncio.Lock()):
            return await asyncio.get_running_loop().run_in_executor(self._exchanges, tokens.obtain, credential)

    async def close(self) -> None:
        self._exchanges.shutdown(wait=False)
        await self._upstreams.close()


class _Watched(aiohttp.BytesPayload):
    """A body that tells when it is sent. The headers are sent together with its first bytes."""

    def __init__(self, body: bytes, on_sent: Callable[[], None] | None) -> None:
        super().__init__(body)
        self._on_sent = on_sent

    async def write_with_length(self, writer: AbstractStreamWriter, content_length: int | None) -> None:
        if self._on_sent is not None:
            self._on_sent()
        await super().write_with_length(writer, content_length)


class Tap:
    """Reads an answer as it passes, for its usage and how it ended. It stores none of its text."""

    def __init__(
        self,
        *,
        input_tokens_about: int,
        streams: bool,
        encoding: str = "",
        asked: Mapping[str, object] | None = None,
        bytes_max: int = ANSWER_BYTES_MAX,
    ) -> None:
        """:raises ProviderFailure: if the answer uses an unsupported compression"""
        self._bytes_max = self._bytes_left = bytes_max
        try:
            self._decode = outbound.decoder(encoding, bytes_max=bytes_max)
        except outbound.EncodingRefused:
            raise make_failure(d.ENCODING_UNKNOWN, maybe_billed=True) from None
        self._reply = Reply(input_tokens_about=input_tokens_about, keeps_content=False, asked=asked or {})
        self._reader = EventReader() if streams else None
        self._message = b""
        self._error: dict[str, Any] | None = None

    @property
    def waiting(self) -> int:
        """Return how many bytes the next piece completes, at most: an event is parsed when its last line arrives."""
        if self._decode is not None:
            return self._bytes_max
        return self._reader.size if self._reader is not None else len(self._message)

    def take(self, chunk: bytes) -> None:
        """:raises AnswerRefused: if it exceeds the size limit, or cannot be decompressed"""
        if self._decode is not None:
            chunk = self._decode(chunk)
        self._bytes_left -= len(chunk)
        if self._bytes_left < 0:
            raise outbound.AnswerRefused("The answer is larger than any that there is.")
        if self._reader is None:
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

    def _take_message(self, raw: bytes) -> None:
        """Read an answer that was not streamed, or its report alone if its content cannot be built."""
        if message := parse_object(raw):
            self._error = error_of(message) if message.get("type") == "error" else None
            self._reply.take_message(message)
        else:
            self._reply.take_message(_without_content(raw), unread_bytes=len(raw))

    def parts_so_far(self) -> tuple[UsagePart, ...]:
        """Return the usage of each model so far, estimated where it is not reported. Empty if nothing has arrived."""
        return self._reply.parts_so_far()

    @property
    def has_error(self) -> bool:
        """Return whether the provider itself reported an error."""
        return self._error is not None

    def answer(self, rest: bytes = b"", *, request_id: str) -> Answer:
        """
        Return the result of the whole answer, of which the rest is given here.

        :raises ProviderFailure: if it was cut off, or ended with an error
        """
        if rest:
            self.take(rest)
        if self._reader is None:
            self._take_message(self._message)
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

    def broken(self, *, request_id: str, gave_up: bool = False) -> ProviderFailure:
        """Build the failure of an answer that is incomplete."""
        return self._failed(d.STREAM_BROKEN, request_id=request_id, gave_up=gave_up)

    def _failed(
        self,
        diagnosis: d.Diagnosis,
        *,
        request_id: str,
        error: Mapping[str, Any] | None = None,
        gave_up: bool = False,
    ) -> ProviderFailure:
        return make_failure(
            diagnosis,
            gave_up=gave_up,
            error=error,
            status=200,
            retryable=diagnosis.retryable and not self._reply.output_seen,
            maybe_billed=True,
            output_seen=self._reply.output_seen,
            request_id=request_id,
            parts=self.parts_so_far(),
        )


def _without_content(raw: bytes) -> dict[str, Any]:
    """
    Read the members of an answer before and after its content, which is nested too deeply or has too many values.

    What begins at a member's name and is a whole object to the end of the document is a part of the outermost object.
    """
    head, _, rest = raw.partition(b'"content"')
    message = parse_object(head.rstrip(b", \t\r\n") + b"}")
    for name in (b'"stop_reason"', b'"usage"'):
        place = rest.rfind(name)
        if place >= 0 and "usage" in (tail := parse_object(b"{" + rest[place:])):
            return message | tail
    return {}


def outgoing_headers(
    headers: Mapping[str, str],
    *,
    known_only: bool = False,
    documented_only: bool = False,
    platform_key: bool = False,
) -> dict[str, str]:
    """
    Select the caller's headers (names in lower case) that are forwarded to Anthropic. A key is never included.

    :param known_only: leave out unknown ones, which could change what a call costs
    :param documented_only: leave out betas of which nothing is documented, which could also run another model
    """
    kept_back = _KEPT_BACK | _OF_THE_PLATFORM if platform_key else _KEPT_BACK
    chosen = {
        name: value
        for name, value in headers.items()
        if (name.startswith(_FORWARDED_PREFIX) and name not in kept_back and (name in HEADERS or not known_only))
        or name in _FORWARDED
    }
    if documented_only and (betas := chosen.pop("anthropic-beta", None)) and (left := without_undocumented(betas)):
        chosen["anthropic-beta"] = left
    # Every Anthropic client sends these. A person with curl need not set them.
    return {"anthropic-version": API_VERSION, "content-type": _JSON, **chosen}


def incoming_headers(answer: aiohttp.ClientResponse, *, platform_key: bool) -> list[tuple[bytes, bytes]]:
    """
    Select the answer's headers that are returned to the caller, and add those that every answer has.

    Of several content types only the first is returned, which is the one that was checked.
    """
    passed = []
    has_type = False
    for name, value in answer.raw_headers:
        lower = name.lower()
        if not _is_passed(lower, platform_key=platform_key):
            continue
        if lower == b"content-type":
            if has_type:
                continue
            has_type = True
        passed.append((lower, value))
    return passed + _OWN


@lru_cache(maxsize=1024)
def _is_passed(name: bytes, *, platform_key: bool) -> bool:
    if platform_key and name.startswith(_OF_THE_ACCOUNT):
        return False
    return name in _PASSED or name.startswith(_PASSED_PREFIX)


def is_answer(answer: aiohttp.ClientResponse) -> bool:
    """Return whether it is a successful answer, in one of the API's two formats."""
    return answer.status == 200 and answer.content_type in {_JSON, _EVENTS}


def is_refusal(answer: aiohttp.ClientResponse) -> bool:
    """Return whether it is an error to pass on unchanged. A redirect would send the caller's API token elsewhere."""
    return 400 <= answer.status < 600 and answer.status not in _ABOUT_OUR_KEY and answer.content_type == _JSON


async def read_piece(answer: aiohttp.ClientResponse) -> bytes:
    """
    Read what has arrived, or wait for more. Empty at the end.

    :raises aiohttp.ClientError, TimeoutError: if the connection failed, and all that arrived before has been read
    """
    try:
        return await answer.content.readany()
    except (aiohttp.ClientError, TimeoutError):
        # aiohttp raises at once what happened while nothing was being read. What arrived before it is billed.
        if unread := answer.content._read_nowait(-1):  # noqa: SLF001 - the public method raises it too
            return unread
        raise


async def read_whole(
    answer: aiohttp.ClientResponse, *, bytes_max: int, hold: Callable[[int], Awaitable[None]] | None = None
) -> bytes:
    """
    Read an answer that is not streamed.

    :param hold: awaited for what arrives after the first `HELD_FROM` bytes, with its size
    :raises aiohttp.ClientError, TimeoutError: if it is incomplete
    :raises outbound.AnswerRefused: if it exceeds the size limit
    """
    pieces, size = [], 0
    while chunk := await answer.content.readany():
        pieces.append(chunk)
        if hold is not None and (over := size + len(chunk) - HELD_FROM) > 0:
            await hold(min(over, len(chunk)))
        size += len(chunk)
        if size > bytes_max:
            answer.close()
            raise outbound.AnswerRefused("The answer is larger than any that there is.")
    return b"".join(pieces)


async def read_count(answer: aiohttp.ClientResponse) -> bytes:
    """:raises ProviderFailure: if an answer that is free of charge cannot be read completely"""
    try:
        return await read_whole(answer, bytes_max=ANSWER_BYTES_FIXED)
    except (aiohttp.ClientError, outbound.AnswerRefused, TimeoutError, OSError) as error:
        raise _failure_of_transport(error) from None


async def read_failure(answer: aiohttp.ClientResponse) -> tuple[bytes, ProviderFailure]:
    """Read an answer whose status is not 200. Return its bytes and their meaning."""
    body = b""
    try:
        while len(body) < _ERROR_BYTES_MAX and (chunk := await read_piece(answer)):
            body += chunk
    except (aiohttp.ClientError, TimeoutError):
        # The received part is used. The status alone is sufficient.
        answer.close()
    if not answer.content.at_eof():
        # The rest is not read, so the connection cannot be reused.
        answer.close()
    return body, failure_of_answer(status=answer.status, body=_decoded(answer, body), headers=answer.headers)


def _decoded(answer: aiohttp.ClientResponse, body: bytes) -> bytes:
    """Decompress the body of an error, to interpret it. Without the body, the status alone is sufficient."""
    try:
        decode = outbound.decoder(answer.headers.get("content-encoding", ""), bytes_max=_ERROR_BYTES_MAX)
        return decode(body) if decode is not None else body
    except outbound.AnswerRefused:
        return b""


def request_id(answer: aiohttp.ClientResponse) -> str:
    return request_id_of(answer.headers)


def _failure_of_transport(error: Exception) -> ProviderFailure:
    """Translate a call that received no answer."""
    match error:
        case aiohttp.ClientConnectorError() | aiohttp.ConnectionTimeoutError():
            return make_failure(d.UNREACHABLE, sent=False)
        case outbound.AddressRefused():
            return make_failure(d.ADDRESS_REFUSED, sent=False)
        case TimeoutError():
            return make_failure(d.NO_ANSWER, maybe_billed=True)
        case _:
            return make_failure(d.CONNECTION_LOST, maybe_billed=True)
