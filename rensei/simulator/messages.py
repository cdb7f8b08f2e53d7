"""The messages endpoint and the count of tokens: check, fail as asked, answer."""

import json
import secrets
from typing import Any

from rensei.simulator.directives import Directives, FaultDirective, read_directives
from rensei.simulator.errors import ApiError
from rensei.simulator.exchange import Exchange
from rensei.simulator.faults import REFUSALS, STREAM, USAGE, FaultCounter, canonical_name, refusal_by_key
from rensei.simulator.hostile import HOSTILE, ConnectionCut, StreamEndedEarly, give_hostile_answer
from rensei.simulator.keys import Account
from rensei.simulator.models import Model
from rensei.simulator.prompt_cache import PromptCache, count_prompt
from rensei.simulator.replies import compose_reply, falsify_usage, usage_of
from rensei.simulator.request_log import LoggedRequest
from rensei.simulator.streaming import Event, error_event, stream_events
from rensei.simulator.validation import beta_names, check_headers, check_request

_FOREVER_SECONDS = 3600.0


class Messages:
    def __init__(self) -> None:
        self._cache = PromptCache()
        self._faults = FaultCounter()

    def reset(self) -> None:
        """Forget the prompt cache and how often faults were given."""
        self._cache.clear()
        self._faults.clear()

    async def create(
        self, exchange: Exchange, raw: bytes, *, account: Account, logged: LoggedRequest, headers: dict[str, str]
    ) -> None:
        """
        Answer `POST /v1/messages`.

        :raises ApiError: if the request is refused
        """
        body, model = self._check(exchange, raw, account=account, counts_only=False)
        logged.served_model = model.id
        if refusal := refusal_by_key(account.words, reach="messages"):
            raise refusal
        directives = read_directives(body["messages"])
        fault = self._next_fault(directives, account=account, endpoint="messages")
        if fault and await self._fail(exchange, fault, logged=logged):
            return

        message = self._compose(body, model=model, account=account, directives=directives, fault=fault)
        if body.get("stream"):
            await self._stream(exchange, message, directives=directives, fault=fault, logged=logged, headers=headers)
        else:
            await self._answer_whole(
                exchange, message, directives=directives, fault=fault, logged=logged, headers=headers
            )

    async def count(
        self, exchange: Exchange, raw: bytes, *, account: Account, logged: LoggedRequest, headers: dict[str, str]
    ) -> None:
        """
        Answer `POST /v1/messages/count_tokens`.

        :raises ApiError: if the request is refused
        """
        body, model = self._check(exchange, raw, account=account, counts_only=True)
        directives = read_directives(body["messages"])
        fault = self._next_fault(directives, account=account, endpoint="count_tokens")
        if fault and await self._fail(exchange, fault, logged=logged):
            return
        logged.status = 200
        await exchange.answer_json(200, {"input_tokens": count_prompt(body, model=model)}, headers=headers)

    def _check(
        self, exchange: Exchange, raw: bytes, *, account: Account, counts_only: bool
    ) -> tuple[dict[str, Any], Model]:
        version = check_headers(exchange.headers)
        if exchange.headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
            raise ApiError(400, "The request must have the content-type application/json.")
        try:
            body = json.loads(raw)
        except ValueError:
            raise ApiError(400, "The request body is not valid JSON.") from None
        betas = beta_names(exchange.headers)
        model = check_request(body, account=account, version=version, betas=betas, counts_only=counts_only)
        tokens = count_prompt(body, model=model)
        if tokens > model.context_window:
            raise ApiError(400, f"prompt is too long: {tokens} tokens > {model.context_window} maximum")
        return body, model

    def _next_fault(self, directives: Directives, *, account: Account, endpoint: str) -> FaultDirective | None:
        faults = [
            FaultDirective(name=canonical_name(fault.name), options=fault.options)
            for fault in directives.faults
            if fault.options.get("on", "messages") == endpoint
        ]
        return self._faults.next_fault(faults, key_sha256=account.key_sha256, prompt=directives.text)

    async def _fail(self, exchange: Exchange, fault: FaultDirective, *, logged: LoggedRequest) -> bool:
        """Give the answer of a fault that has no message; return False for one that spoils a message."""
        logged.faults.append(fault.name)
        if fault.name in REFUSALS:
            raise REFUSALS[fault.name].to_error(options=fault.options)
        if fault.name in HOSTILE:
            logged.status = await give_hostile_answer(exchange, fault)
            return True
        if fault.name not in USAGE | STREAM:
            raise ApiError(400, f"The simulator does not know the fault '{fault.name}'.")
        return False

    def _compose(
        self,
        body: dict[str, Any],
        *,
        model: Model,
        account: Account,
        directives: Directives,
        fault: FaultDirective | None,
    ) -> dict[str, Any]:
        prompt = self._cache.use(body, model=model, key_sha256=account.key_sha256)
        reply = compose_reply(body, model=model, directives=directives, prompt=prompt, key_sha256=account.key_sha256)
        usage = usage_of(body, prompt=prompt, output_tokens=reply.output_tokens, thinking_tokens=reply.thinking_tokens)
        message = {
            "id": f"msg_{secrets.token_hex(12)}",
            "type": "message",
            "role": "assistant",
            "model": model.id,
            "content": reply.content,
            "stop_reason": reply.stop_reason,
            "stop_sequence": reply.stop_sequence,
            "usage": usage,
        }
        if fault and fault.name == "nousage":
            del message["usage"]
        elif fault and fault.name in USAGE:
            message["usage"] = falsify_usage(usage, fault=fault.name)
        return message

    async def _answer_whole(
        self,
        exchange: Exchange,
        message: dict[str, Any],
        *,
        directives: Directives,
        fault: FaultDirective | None,
        logged: LoggedRequest,
        headers: dict[str, str],
    ) -> None:
        if directives.stall_after is not None:
            await exchange.wait(_FOREVER_SECONDS)
        await exchange.wait(directives.delay_seconds)
        if fault and fault.name in ("truncate", "cut"):
            text = json.dumps(message).encode()
            await exchange.start(200, headers={"content-type": "application/json", **headers})
            logged.status = 200
            await exchange.write(text[: len(text) // 2])
            raise ConnectionCut
        logged.status = 200
        logged.usage, logged.usage_is_final = message.get("usage"), True
        await exchange.answer_json(200, message, headers=headers)

    async def _stream(
        self,
        exchange: Exchange,
        message: dict[str, Any],
        *,
        directives: Directives,
        fault: FaultDirective | None,
        logged: LoggedRequest,
        headers: dict[str, str],
    ) -> None:
        if directives.stall_after == -1:
            await exchange.wait(_FOREVER_SECONDS)
        await exchange.start(
            200, headers={"content-type": "text/event-stream; charset=utf-8", "cache-control": "no-cache", **headers}
        )
        logged.status = 200
        unknown_events = fault is not None and fault.name == "unknownevents"
        for event in stream_events(message, unknown_events=unknown_events):
            if event.is_delta and directives.delay_seconds:
                await exchange.wait(directives.delay_seconds)
            if _is_due(event, logged, after=directives.stall_after):
                await exchange.wait(_FOREVER_SECONDS)
            if fault and _is_due(event, logged, after=fault.number("after", 1)):
                await self._break_off(exchange, fault, logged=logged)
            await exchange.write(event.encode())
            _note(event, logged)
        await exchange.write(b"", more=False)

    async def _break_off(self, exchange: Exchange, fault: FaultDirective, *, logged: LoggedRequest) -> None:
        """End a stream before its time, if the fault is one that does so, and in the way that it names."""
        match fault.name:
            case "streamerror":
                kind = fault.options.get("type", "overloaded_error")
                event = error_event(kind=kind, message="Overloaded", request_id=str(logged.request_id))
                logged.error_type = kind
                await exchange.write(event.encode(), more=False)
                raise StreamEndedEarly
            case "truncate":
                await exchange.write(b"", more=False)
                raise StreamEndedEarly
            case "cut":
                raise ConnectionCut


def _is_due(event: Event, logged: LoggedRequest, *, after: int | None) -> bool:
    """Tell whether so many deltas were sent, or the reply has no more of them."""
    if after is None or event.name in ("message_start", "ping"):
        return False
    return (event.is_delta and logged.deltas_sent >= after) or event.name == "message_delta"


def _note(event: Event, logged: LoggedRequest) -> None:
    """Keep in the log what the client was told so far."""
    if event.is_delta:
        logged.deltas_sent += 1
    elif event.name == "message_start":
        logged.usage = event.data["message"].get("usage")
    elif event.name == "message_delta" and "usage" in event.data:
        logged.usage = {**(logged.usage or {}), **event.data["usage"]}
        logged.usage_is_final = True
