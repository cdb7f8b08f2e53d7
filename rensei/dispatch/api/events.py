"""Long requests (ASGI): a dispatch that waits for its end, a machine that waits for a run, and event streams."""

import asyncio
import re
import time
from collections.abc import Callable
from functools import wraps
from typing import Any

from asgiref.sync import sync_to_async
from django.http import HttpRequest, HttpResponseBase, StreamingHttpResponse
from drf_spectacular.utils import extend_schema
from rest_framework.renderers import JSONRenderer
from rest_framework.request import Request
from rest_framework.response import Response

from rensei.core.errors import FieldError, RateLimited
from rensei.core.json_body import read_json
from rensei.core.limits import limit
from rensei.core.problems import problem_page
from rensei.core.shares import Share
from rensei.core.views import Endpoint
from rensei.dispatch.api import long_polling
from rensei.dispatch.api.event_streams import Stream
from rensei.dispatch.api.open_streams import TooManyStreams, stream_places
from rensei.dispatch.api.runs import Runs
from rensei.dispatch.host_sessions.api import HostLease
from rensei.dispatch.queries import find_run, run_to_show
from rensei.dispatch.wire import RunAnswer, RunEventAnswer
from rensei.orgs.access import caller
from rensei.orgs.permissions import MembersRead
from rensei.orgs.scopes import READ_OR_RUNS
from rensei.tokens.still_open import Caller

WAIT = re.compile(r"(?:^|,)\s*wait\s*=\s*\"?(\d{1,6})\"?\s*(?:,|;|$)")
WAIT_SECONDS_MAX = limit(
    60, "seconds", what="Time that `Prefer: wait` waits for the end of a run", told="the caller: the run as it is then"
)
# Two workers of a machine may wake up for one run. The worker that did not get it pauses before the next attempt.
REST_SECONDS = 0.5

WAITS_MAX = limit(
    400,
    "requests",
    what="Requests that wait for the end of a run, or for a run for a machine, each organization and process",
    told="the caller: the answer for the run comes at once, without `Preference-Applied`; "
    "a machine gets 429 `RATE_LIMITED` with `retry-after`",
)
FULL_SECONDS = 5

waits = Share(WAITS_MAX)
_ends = long_polling.Poller(long_polling.ended_among)
_work = long_polling.Poller(long_polling.hosts_with_work)
_runs = Runs.as_view()
_lease = HostLease.as_view()


# The URL resolver, CSRF and the schema recognize a REST view by the attributes copied here.
@wraps(_runs)
async def runs(request: HttpRequest, *args: Any, **kwargs: Any) -> HttpResponseBase:
    """Dispatch, and wait for the end if the caller requests it."""
    response: Response = await sync_to_async(_runs)(request, *args, **kwargs)
    return await wait_if_preferred(request, response, ends=_ends, body=_run_body)


async def wait_if_preferred(
    request: HttpRequest, response: Response, *, ends: long_polling.Poller, body: Callable[[str], Any]
) -> Response:
    """
    Wait for the end if the caller requests it (`Prefer: wait=N`, RFC 7240), and respond with the final state.

    The wait is outside the REST view, so that it holds no database connection. It holds a thread.
    """
    seconds = _wait_seconds(request)
    if response.status_code != 202 or seconds is None:
        return response
    begun = response.data["id"]
    with waits.taken(_org_id(response)) as may_wait:
        if not may_wait:
            # A preference may be ignored, and the answer shows it by the missing header.
            return response
        await long_polling.begin_to_wait(request)
        if await ends.wait(begun, seconds=seconds):
            response = _again(response, await sync_to_async(body)(begun), status=200)
    response.headers["Preference-Applied"] = f"wait={seconds}"
    return response


@wraps(_lease)
async def lease(request: HttpRequest, *args: Any, **kwargs: Any) -> HttpResponseBase:
    """
    Lease a run to a machine. If there is none, wait for one as long as the machine's request allows.

    The caller is authenticated again after each wait, so a machine that was revoked meanwhile gets no run.
    """
    body = request.body  # Read once, so that the view can be called again.
    response: Response = await sync_to_async(_lease)(request, *args, **kwargs)
    if response.status_code != 204:
        return response
    asked = read_json(body) if body else {}
    named = asked.get("runId") or asked.get("run_id")
    seconds = 0 if named else int(asked.get("wait", 0))
    if not seconds:
        return response
    with waits.taken(_org_id(response)) as may_wait:
        if not may_wait:
            # After an answer without a run, a machine would ask again at once.
            return problem_page(request, RateLimited(seconds=FULL_SECONDS, extra={"retryAfter": FULL_SECONDS}))
        until = time.monotonic() + seconds
        while response.status_code == 204 and (left := until - time.monotonic()) > 0:
            await long_polling.begin_to_wait(request)
            if not await _work.wait(kwargs["host_id"], seconds=left):
                break
            response = await sync_to_async(_lease)(request, *args, **kwargs)
            if response.status_code == 204:
                await asyncio.sleep(REST_SECONDS)
    return response


class EventStreamRenderer(JSONRenderer):
    """Accept the media type that a browser's EventSource requests. Only refusals are rendered, as JSON."""

    media_type = "text/event-stream"
    format = "events"


class Events(Endpoint):
    permission_classes = [MembersRead]
    scopes = {"GET": READ_OR_RUNS}
    refusals = {"GET": (TooManyStreams,)}
    renderer_classes = [JSONRenderer, EventStreamRenderer]

    @extend_schema(responses={(200, "text/event-stream"): RunEventAnswer})
    def get(self, request: Request, run_id: str) -> StreamingHttpResponse:
        """Follow the events of a run as a stream. `Last-Event-ID` goes on where the last one ended."""
        access, after = caller(request), _last_event(request)
        run = find_run(access, run_id)
        place = stream_places.take(access)
        stream = Stream(run.id, caller=Caller.of(access, request._request), after=after, place=place)  # noqa: SLF001 - DRF names it so
        response = StreamingHttpResponse(stream, content_type="text/event-stream")
        response.headers["Cache-Control"] = "no-cache, no-transform"
        response.headers["X-Accel-Buffering"] = "no"
        return response


def _org_id(response: Response) -> str:
    org_id: str = caller(vars(response)["renderer_context"]["request"]).org.pk
    return org_id


def _wait_seconds(request: HttpRequest) -> int | None:
    found = WAIT.search(request.headers.get("Prefer", ""))
    return min(int(found[1]), WAIT_SECONDS_MAX) if found else None


def _run_body(run_id: str) -> dict[str, Any]:
    return RunAnswer(run_to_show(run_id)).data


def _again(response: Response, data: Any, *, status: int) -> Response:
    """Return the response with another body, rendered again."""
    fresh = Response(data, status=status, headers=dict(response.headers))
    for attribute in ("accepted_renderer", "accepted_media_type", "renderer_context"):
        setattr(fresh, attribute, getattr(response, attribute))
    del fresh.headers["Content-Length"]
    fresh.render()
    return fresh


def _last_event(request: Request) -> int:
    given = request.headers.get("Last-Event-ID", "0").strip()
    if not (given.isascii() and given.isdecimal() and len(given) < 10):
        raise FieldError(pointer="/headers/Last-Event-ID", reason="It is the `id` of an event of this run.")
    return int(given)
