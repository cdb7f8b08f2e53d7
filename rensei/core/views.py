"""The base of every REST view, which ignores no query parameter of a request, and the OpenAPI document."""

import difflib
from collections.abc import Collection
from itertools import islice
from threading import Lock
from typing import Any, ClassVar

from django.http import HttpResponse
from drf_spectacular.views import SpectacularJSONAPIView
from rest_framework import serializers
from rest_framework.request import Request
from rest_framework.views import APIView

from rensei.core.api import camel
from rensei.core.errors import ERRORS_MAX
from rensei.core.lists import PAGING, Filters, query_of

# What other APIs call a parameter, and the names that it may have here.
ELSEWHERE = {
    "limit": ("pageSize",),
    "perPage": ("pageSize",),
    "size": ("pageSize",),
    "page": ("cursor",),
    "offset": ("cursor",),
    "after": ("cursor",),
    "before": ("cursor",),
    "status": ("state",),
    "model": ("servedModel",),
    "search": ("q",),
    "query": ("q",),
    "since": ("from", "createdAfter"),
    "start": ("from", "createdAfter"),
    "until": ("to", "createdBefore"),
    "end": ("to", "createdBefore"),
}
_generating = Lock()
_generated: list[str | bytes] = []
# A longer name is not compared with those that are known.
COMPARED_LENGTH_MAX = 40


class Endpoint(APIView):
    """
    An address of the REST interface.

    `Filter` declares the query of the methods in `filtered`, and `pagination_class` adds the parameters of pages to
    GET. A request with any other parameter is refused once its caller is known to be permitted.
    """

    Filter: ClassVar[type[Filters] | None] = None
    filtered: ClassVar[Collection[str]] = ("GET",)

    def initial(self, request: Request, *args: Any, **kwargs: Any) -> None:
        super().initial(request, *args, **kwargs)
        method = "GET" if request.method == "HEAD" else str(request.method)
        if request.query_params and method in self.allowed_methods and method != "OPTIONS":
            _require_known(request, self._parameters(method))

    def _parameters(self, method: str) -> set[str]:
        known: set[str] = set()
        if self.Filter is not None and method in self.filtered:
            known |= set(self.Filter().fields)
        if getattr(self, "pagination_class", None) is not None and method == "GET":
            known |= PAGING
        return known


class Document(Endpoint, SpectacularJSONAPIView):
    """The OpenAPI document. It is public, and the same for all callers: it describes the API, and contains no data."""

    authentication_classes = ()

    def _get_schema_response(self, request: Request) -> HttpResponse:
        """Generate it once in a process: it takes more than a second of CPU, and needs no login."""
        with _generating:
            if not _generated:
                answer = super()._get_schema_response(request)  # type: ignore[no-untyped-call]
                _generated.append(self.renderer_classes[0]().render(answer.data))
        return HttpResponse(_generated[0], content_type=self.renderer_classes[0].media_type)


def _require_known(request: Request, known: Collection[str]) -> None:
    """
    :raises ValidationError: if the query has a parameter that is not known
    :raises FieldError: if it has one twice
    """
    unknown = (name for name in request.query_params if (camel(name) if "_" in name else name) not in known)
    if errors := {name: [_unknown(name, known)] for name in islice(unknown, ERRORS_MAX)}:
        raise serializers.ValidationError({"query": errors})
    query_of(request)


def _unknown(name: str, known: Collection[str]) -> str:
    if not known:
        return "This query parameter is not known here, and no other is. Remove it."
    meant = _meant(camel(name), known)
    question = f" Did you mean {meant}?" if meant else ""
    return f"This query parameter is not known here.{question} Known: {', '.join(sorted(known))}."


def _meant(name: str, known: Collection[str]) -> str | None:
    for there in ELSEWHERE.get(name, ()):
        if there in known:
            return there
    by_lower = {one.lower(): one for one in sorted(known)}
    near = difflib.get_close_matches(name[:COMPARED_LENGTH_MAX].lower(), by_lower, n=1)
    return by_lower[near[0]] if near else None
