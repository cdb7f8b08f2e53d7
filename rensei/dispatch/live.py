"""The doors that stay open: a dispatch that waits for its end, and the events of a run (ASGI)."""

import re
from typing import Any

from asgiref.sync import sync_to_async
from django.http import HttpRequest, HttpResponseBase, StreamingHttpResponse
from drf_spectacular.types import OpenApiTypes
from drf_spectacular.utils import extend_schema
from rest_framework.renderers import JSONRenderer
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.views import APIView

from rensei.core.errors import FieldError
from rensei.dispatch import presenters, watching
from rensei.dispatch.api import Runs, find_run
from rensei.dispatch.models import Run
from rensei.orgs.authentication import caller
from rensei.orgs.permissions import MembersRead

WAIT = re.compile(r"(?:^|,)\s*wait\s*=\s*\"?(\d{1,6})\"?\s*(?:,|;|$)")
WAIT_SECONDS_MAX = 60

_ends = watching.EndOfRuns()
_runs = Runs.as_view()


async def runs(request: HttpRequest, *args: Any, **kwargs: Any) -> HttpResponseBase:
    """
    Dispatch, and wait for the end where the caller prefers it (`Prefer: wait=N`, RFC 7240).

    The wait happens outside the REST view, so that it holds no thread.
    """
    response: Response = await sync_to_async(_runs)(request, *args, **kwargs)
    seconds = _wait_seconds(request)
    if response.status_code != 202 or seconds is None:
        return response
    run_id = response.data["id"]
    if await _ends.wait(run_id, seconds=seconds):
        run = await sync_to_async(Run.objects.select_related("project").get)(id=run_id)
        response = _again(response, presenters.run_body(run), status=200)
    response.headers["Preference-Applied"] = f"wait={seconds}"
    return response


# What the URL resolver, CSRF and the schema know a REST view by.
for name in ("cls", "initkwargs", "csrf_exempt", "login_required"):
    if hasattr(_runs, name):
        setattr(runs, name, getattr(_runs, name))


class EventStreamRenderer(JSONRenderer):
    """Lets a browser's EventSource in by what it accepts. Only a refusal is ever rendered: as JSON."""

    media_type = "text/event-stream"
    format = "events"


class Events(APIView):
    """The events of a run as a stream (`text/event-stream`). `Last-Event-ID` goes on where the last one ended."""

    permission_classes = [MembersRead]
    renderer_classes = [JSONRenderer, EventStreamRenderer]

    @extend_schema(responses={(200, "text/event-stream"): OpenApiTypes.STR})
    def get(self, request: Request, run_id: str) -> StreamingHttpResponse:
        run = find_run(caller(request), run_id)
        stream = watching.events(run.id, after=_last_event(request))
        response = StreamingHttpResponse(stream, content_type="text/event-stream")
        response.headers["Cache-Control"] = "no-cache, no-transform"
        response.headers["X-Accel-Buffering"] = "no"
        return response


def _wait_seconds(request: HttpRequest) -> int | None:
    found = WAIT.search(request.headers.get("Prefer", ""))
    return min(int(found[1]), WAIT_SECONDS_MAX) if found else None


def _again(response: Response, data: Any, *, status: int) -> Response:
    """The same answer with another body, rendered anew."""
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
