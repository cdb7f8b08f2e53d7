"""The endpoints for messages and for counting tokens: check, produce the requested fault, answer."""

import json
import secrets
from typing import Any

from rensei.simulator.answering import answer_stream, answer_whole
from rensei.simulator.call import Call
from rensei.simulator.directives import Directives, FaultDirective, read_directives
from rensei.simulator.errors import ApiError
from rensei.simulator.faults import REFUSALS, STREAM, TEXT, USAGE, FaultCounter, canonical_name, refusal_by_key
from rensei.simulator.hostile import HOSTILE, give_hostile_answer
from rensei.simulator.model_facts import Model
from rensei.simulator.prompt_cache import PromptCache, Segment, cut_prompt
from rensei.simulator.replies import compose_reply, falsify_usage, usage_of, with_odd_text
from rensei.simulator.threads import Threads
from rensei.simulator.validation import beta_names, check_headers, check_request


class Messages:
    def __init__(self) -> None:
        self._cache = PromptCache()
        self._faults = FaultCounter()
        self._threads = Threads()

    def reset(self) -> None:
        """Clear the prompt cache, the threads, and the counts of faults."""
        self._cache.clear()
        self._threads.clear()
        self._faults.clear()

    async def create(self, call: Call, raw: bytes) -> None:
        """
        Answer `POST /v1/messages`.

        :raises ApiError: if the request is refused
        """
        body, model, segments = self._check(call, raw, counts_only=False)
        call.logged.served_model = model.id
        if refusal := refusal_by_key(call.account.words, reach="messages"):
            raise refusal
        directives = read_directives(body["messages"])
        if directives.encoding is not None:
            call.exchange.compress(directives.encoding)
        fault = self._next_fault(call, directives, endpoint="messages")
        if fault and await _fail(call, fault):
            return

        message = self._compose(call, body, model=model, segments=segments, directives=directives)
        message["usage"] |= directives.usage
        self._threads.hold(body, message, key_sha256=call.account.key_sha256)
        _falsify(message, fault=fault)
        answer = answer_stream if body.get("stream") else answer_whole
        await answer(call, message, directives=directives, fault=fault)

    async def count(self, call: Call, raw: bytes) -> None:
        """
        Answer `POST /v1/messages/count_tokens`.

        :raises ApiError: if the request is refused
        """
        body, _, segments = self._check(call, raw, counts_only=True)
        directives = read_directives(body["messages"])
        fault = self._next_fault(call, directives, endpoint="count_tokens")
        if fault and await _fail(call, fault):
            return
        await call.exchange.answer_json(200, {"input_tokens": segments[-1].tokens_up_to_here}, headers=call.headers)

    def _check(self, call: Call, raw: bytes, *, counts_only: bool) -> tuple[dict[str, Any], Model, list[Segment]]:
        """Check a request, and return its body, the model that serves it, and its prompt in counted blocks."""
        headers = call.exchange.headers
        version = check_headers(headers)
        if headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
            raise ApiError(400, "The request must have the content-type application/json.")
        body = self._threads.whole(_parse(raw), key_sha256=call.account.key_sha256)
        betas = beta_names(headers)
        model = check_request(body, account=call.account, version=version, betas=betas, counts_only=counts_only)
        segments = cut_prompt(body, model=model, key_sha256=call.account.key_sha256)
        tokens = segments[-1].tokens_up_to_here
        if tokens > model.context_window:
            raise ApiError(400, f"prompt is too long: {tokens} tokens > {model.context_window} maximum")
        return body, model, segments

    def _next_fault(self, call: Call, directives: Directives, *, endpoint: str) -> FaultDirective | None:
        faults = [
            FaultDirective(name=canonical_name(fault.name), options=fault.options)
            for fault in directives.faults
            if fault.options.get("on", "messages") == endpoint
        ]
        return self._faults.next_fault(faults, key_sha256=call.account.key_sha256, prompt=directives.text)

    def _compose(
        self,
        call: Call,
        body: dict[str, Any],
        *,
        model: Model,
        segments: list[Segment],
        directives: Directives,
    ) -> dict[str, Any]:
        prompt = self._cache.use(segments, model=model)
        key_sha256 = call.account.key_sha256
        reply = compose_reply(body, model=model, directives=directives, prompt=prompt, key_sha256=key_sha256)
        return {
            "id": f"msg_{secrets.token_hex(12)}",
            "type": "message",
            "role": "assistant",
            "model": directives.serves or model.id,
            "content": [*directives.more_blocks, *reply.content],
            "stop_reason": reply.stop_reason,
            "stop_sequence": reply.stop_sequence,
            "stop_details": _stop_details(reply.stop_reason),
            "usage": usage_of(body, prompt=prompt, reply=reply),
        }


def _parse(raw: bytes) -> Any:
    try:
        body = json.loads(raw, parse_constant=_refuse_constant)
        if b"\\u" in raw:
            # Half of a surrogate pair can be written in JSON but is not text, and its tokens cannot be counted.
            json.dumps(body, ensure_ascii=False).encode()
    except (ValueError, RecursionError):
        raise ApiError(400, "The request body is not valid JSON.") from None
    return body


def _refuse_constant(name: str) -> None:
    # Python parses NaN and Infinity, which are not JSON.
    raise ValueError(f"{name} is not JSON.")


async def _fail(call: Call, fault: FaultDirective) -> bool:
    """Send the answer of a fault without a message; return False for one that only changes a message."""
    call.logged.faults.append(fault.name)
    if fault.name in REFUSALS:
        raise REFUSALS[fault.name].to_error(options=fault.options)
    if fault.name in HOSTILE:
        await give_hostile_answer(call.exchange, fault)
        return True
    if fault.name not in USAGE | STREAM | TEXT:
        # A misspelt fault must not be ignored, or a test would prove nothing.
        raise ApiError(400, f"The simulator does not know the fault '{fault.name}'.")
    return False


def _stop_details(stop_reason: str) -> dict[str, Any] | None:
    if stop_reason != "refusal":
        return None
    return {"type": "refusal", "category": "general_harms", "explanation": "A prompt asked for a refusal."}


def _falsify(message: dict[str, Any], *, fault: FaultDirective | None) -> None:
    if fault and fault.name == "nousage":
        del message["usage"]
    elif fault and fault.name in USAGE:
        message["usage"] = falsify_usage(message["usage"], fault=fault.name)
    elif fault and fault.name in TEXT:
        message["content"] = with_odd_text(message["content"])
