"""Sending of a finished message: whole or as a stream, with the delays and the break that the prompt requests."""

import json
from typing import Any

from rensei.simulator.call import Call
from rensei.simulator.directives import Directives, FaultDirective
from rensei.simulator.hostile import FOREVER_SECONDS, ConnectionCut, StreamEndedEarly
from rensei.simulator.request_log import LoggedRequest
from rensei.simulator.streaming import Event, error_event, stream_events

_BREAKS_A_WHOLE_ANSWER = ("truncate", "cut", "streamerror")


async def answer_whole(
    call: Call, message: dict[str, Any], *, directives: Directives, fault: FaultDirective | None
) -> None:
    """Send a message as one JSON document."""
    if directives.stall_after is not None:
        await call.exchange.wait(FOREVER_SECONDS)
    await call.exchange.wait(directives.delay_seconds)
    if fault and fault.name in _BREAKS_A_WHOLE_ANSWER:
        text = json.dumps(message).encode()
        await call.exchange.start(200, headers={"content-type": "application/json", **call.headers})
        await call.exchange.write(text[: len(text) // 2])
        raise ConnectionCut
    call.logged.usage, call.logged.usage_is_final = message.get("usage"), "usage" in message
    await call.exchange.answer_json(200, message, headers=call.headers)


async def answer_stream(
    call: Call, message: dict[str, Any], *, directives: Directives, fault: FaultDirective | None
) -> None:
    """Send a message as server-sent events."""
    if directives.stall_after == 0:
        await call.exchange.wait(FOREVER_SECONDS)
    content_type = "text/event-stream; charset=utf-8"
    await call.exchange.start(200, headers={"content-type": content_type, "cache-control": "no-cache", **call.headers})
    call.logged.status = 200

    unknown_events = fault is not None and fault.name == "unknownevents"
    for event in stream_events(message, more_deltas=directives.more_deltas, unknown_events=unknown_events):
        if event.is_delta and directives.delay_seconds:
            await call.exchange.wait(directives.delay_seconds)
        if directives.stall_after and _is_due(event, call.logged, after=directives.stall_after):
            await call.exchange.wait(FOREVER_SECONDS)
        if fault and _is_due(event, call.logged, after=fault.number("after", 1)):
            await _break_off(call, fault)
        await call.exchange.write(event.encode(line_end=directives.line_end))
        _note(event, call.logged)
    await call.exchange.write(b"", more=False)


async def _break_off(call: Call, fault: FaultDirective) -> None:
    """End a stream early, if the fault is one that does so, and in the way that it names."""
    match fault.name:
        case "streamerror":
            kind = fault.options.get("type", "overloaded_error")
            event = error_event(kind=kind, message="Overloaded", request_id=str(call.logged.request_id))
            call.logged.error_type = kind
            await call.exchange.write(event.encode(), more=False)
            raise StreamEndedEarly
        case "truncate":
            await call.exchange.write(b"", more=False)
            raise StreamEndedEarly
        case "cut":
            raise ConnectionCut


def _is_due(event: Event, logged: LoggedRequest, *, after: int) -> bool:
    """Whether so many deltas were sent, or the reply has no more of them."""
    return (event.is_delta and logged.deltas_sent >= after) or event.name == "message_delta"


def _note(event: Event, logged: LoggedRequest) -> None:
    """Record in the log what was sent to the client so far."""
    if event.is_delta:
        logged.deltas_sent += 1
    elif event.name == "message_start":
        logged.usage = event.data["message"].get("usage")
    elif event.name == "message_delta" and not logged.usage_is_final and "usage" in event.data:
        logged.usage = {**(logged.usage or {}), **event.data["usage"]}
        logged.usage_is_final = True
