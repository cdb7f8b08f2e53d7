"""One call to the Messages API, read as it arrives."""

import time
from collections.abc import Iterator, Mapping
from typing import Any

import httpx2

from integrations.outbound.http import Sockets
from integrations.providers.anthropic import diagnoses as d
from integrations.providers.anthropic.answer_size import answer_bytes_max, may_cite
from integrations.providers.anthropic.connection import Connection
from integrations.providers.anthropic.errors import diagnose, error_of, make_failure, parse_object, request_id_of
from integrations.providers.anthropic.events import read_events
from integrations.providers.anthropic.reply import Reply
from integrations.providers.anthropic.server_tools import placed_tools
from integrations.providers.anthropic.tokens import tokens_about
from integrations.providers.anthropic.unknown import unknown_in
from integrations.providers.base import Answer, Credential, ProviderFailure, StreamEvent, TextDelta, UsageReport
from rensei.core.usage import UsagePart, total


class MessageStream:
    """
    A call in progress.

    Nothing is sent before it is iterated. The connection is closed however the iteration ends.
    """

    def __init__(
        self, params: Mapping[str, Any], *, credential: Credential, attempt_id: str, timeout_seconds: float
    ) -> None:
        self._params = params
        self._credential = credential
        self._attempt_id = attempt_id
        self._deadline = time.monotonic() + timeout_seconds
        self._sockets = Sockets()
        self._reply = Reply(input_tokens_about=tokens_about(params))
        self._request_id = ""
        self._refused = False

    @property
    def is_under_way(self) -> bool:
        return self._sockets.has_sent and not self._refused

    def close(self) -> None:
        """Close the connection, from any thread. The iteration ends at once."""
        self._sockets.hang_up()

    def parts_so_far(self) -> tuple[UsagePart, ...]:
        """Return the usage of each model so far, estimated where it is not reported. Empty if nothing has arrived."""
        return self._reply.parts_so_far()

    def __iter__(self) -> Iterator[StreamEvent]:
        try:
            yield from self._events()
        except ProviderFailure as failure:
            self._refused = failure.status is not None and not self._reply.has_begun
            # A failure after we closed the connection is not a failure of the provider.
            if not self._sockets.hung_up:
                raise

    def _events(self) -> Iterator[StreamEvent]:
        if self._sockets.hung_up:
            return
        with Connection(
            self._credential,
            deadline=self._deadline,
            answer_bytes_max=self._answer_bytes_max(),
            attempt_id=self._attempt_id,
            sockets=self._sockets,
        ) as connection:
            if self._params.get("max_tokens") == 0:
                # A request that only fills the cache cannot be streamed, and returns no text.
                response = connection.post("/v1/messages", self._params)
                self._request_id = request_id_of(response.headers)
                self._reply.take_message(parse_object(response.content))
                if not self._reply.is_complete:
                    raise make_failure(d.NOT_THE_API, status=response.status_code, maybe_billed=True)
                answer = self._answer()
                yield UsageReport(usage=answer.usage, parts=answer.parts, request_id=self._request_id)
                yield answer
                return
            response = connection.post("/v1/messages", {**self._params, "stream": True}, stream=True)
            self._request_id = request_id_of(response.headers)
            if not response.headers.get("content-type", "").startswith("text/event-stream"):
                raise make_failure(d.NOT_THE_API, status=response.status_code, maybe_billed=True)
            try:
                yield from self._read(read_events(response.iter_bytes()))
            except httpx2.HTTPError as error:
                raise self._broken(error) from None
            if not self._reply.is_complete:
                raise self._broken(None)
        yield self._answer()

    def _answer_bytes_max(self) -> int:
        tools = [tool for _, tool in placed_tools(self._params)]
        return answer_bytes_max(
            self._params,
            tools,
            max_tokens=self._params.get("max_tokens", 0),
            has_unknown=bool(unknown_in(self._params).names),
            may_cite=may_cite(self._params),
        )

    def _read(self, events: Iterator[tuple[str, str]]) -> Iterator[StreamEvent]:
        for name, data in events:
            if self._sockets.hung_up:
                return
            if time.monotonic() >= self._deadline:
                raise self._failed(d.NO_ANSWER, provider_code="deadline")
            document = parse_object(data)
            if name == "error" or document.get("type") == "error":
                error = error_of(document) or {}
                raise self._failed(diagnose(status=200, error=error), error=error)
            if text := self._reply.take(document):
                yield TextDelta(text=text)
            if document.get("type") in ("message_start", "message_delta"):
                parts = self._reply.parts()
                yield UsageReport(usage=total(parts), parts=parts, request_id=self._request_id)
            if self._reply.is_complete:
                return

    def _answer(self) -> Answer:
        parts = self._reply.parts()
        return Answer(
            text=self._reply.text,
            content=self._reply.content(),
            stop_reason=self._reply.stop_reason,
            usage=total(parts),
            parts=parts,
            request_id=self._request_id,
            usage_estimated=any(part.estimated for part in parts),
        )

    def _broken(self, error: Exception | None) -> ProviderFailure:
        if time.monotonic() >= self._deadline:
            return self._failed(d.NO_ANSWER, provider_code="deadline")
        return self._failed(d.STREAM_BROKEN, provider_code=type(error).__name__.lower() if error else "")

    def _failed(self, diagnosis: d.Diagnosis, **facts: Any) -> ProviderFailure:
        """Build the failure of a stream that had begun, with what arrived. No retry after output has arrived."""
        return make_failure(
            diagnosis,
            status=200,
            retryable=diagnosis.retryable and not self._reply.output_seen and time.monotonic() < self._deadline,
            maybe_billed=True,
            output_seen=self._reply.output_seen,
            request_id=self._request_id,
            parts=self._reply.parts_so_far(),
            text=self._reply.text,
            **facts,
        )
