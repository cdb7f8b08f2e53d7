"""The ASGI endpoint that runs a workflow and waits for its end by long polling."""

from collections.abc import Collection
from functools import wraps
from typing import Any

from asgiref.sync import sync_to_async
from django.db import close_old_connections
from django.http import HttpRequest, HttpResponseBase
from rest_framework.response import Response

from rensei.dispatch.api.events import wait_if_preferred
from rensei.dispatch.api.long_polling import Poller
from rensei.workflows import services
from rensei.workflows.api import WorkflowRuns
from rensei.workflows.models import WorkflowRun
from rensei.workflows.wire import WorkflowRunDetailAnswer

_view = WorkflowRuns.as_view()


# The URL resolver, CSRF and the schema recognize a REST view by the attributes copied here.
@wraps(_view)
async def workflow_runs(request: HttpRequest, *args: Any, **kwargs: Any) -> HttpResponseBase:
    """Run a workflow, and wait for its end if the caller prefers that, as for a dispatch."""
    response: Response = await sync_to_async(_view)(request, *args, **kwargs)
    return await wait_if_preferred(request, response, ends=_ends, body=_body)


def _ended_among(workflow_run_ids: Collection[str]) -> list[str]:
    close_old_connections()
    found = WorkflowRun.objects.filter(id__in=workflow_run_ids, state__in=WorkflowRun.ENDED)
    return list(found.values_list("id", flat=True))


def _body(workflow_run_id: str) -> dict[str, Any]:
    return WorkflowRunDetailAnswer(services.workflow_runs_to_show().get(id=workflow_run_id)).data


_ends = Poller(_ended_among)
