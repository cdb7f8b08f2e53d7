"""
Generic REST views of what an organization has: a list of objects, and one of them.

A view declares `Answer`, one object on the wire; `Body`, what a request may say; `Filter`, the query of its list; and
for each method what its caller needs (`scopes`), what it does (`does`, for the OpenAPI document) and its `refusals`.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

from django.db.models import QuerySet
from rest_framework import serializers, status
from rest_framework.request import Request
from rest_framework.response import Response

from rensei.core.api import read_body
from rensei.core.lists import CursorPages
from rensei.core.views import Endpoint
from rensei.orgs.access import Access, caller


class Resource(Endpoint):
    """What all of them share. `rows` selects what a caller may see, given the access and the ids of the URL."""

    does: ClassVar[Mapping[str, str]] = {}
    Answer: ClassVar[type[serializers.Serializer[Any]]]
    Body: ClassVar[type[serializers.Serializer[Any]]]
    rows: ClassVar[Callable[..., QuerySet[Any]]]

    def answers(self, access: Access, found: Sequence[Any]) -> Any:
        """Write objects as JSON."""
        return self.Answer(found, many=True).data

    def answer(self, access: Access, found: Any) -> Any:
        """Write one object as JSON."""
        return self.answers(access, [found])[0]

    def fields(self, request: Request) -> dict[str, Any]:
        """:raises ValidationError: if the body is not what `Body` declares"""
        return read_body(self.Body, request)


class Listed(Resource):
    """A list, in pages."""

    pagination_class = CursorPages

    def get(self, request: Request, **ids: str) -> Response:
        access, pages = caller(request), self.pagination_class()
        rows = self.narrow(self.rows(access, **ids), request)
        return pages.get_paginated_response(self.answers(access, pages.paginate_queryset(rows, request) or []))

    def narrow(self, rows: QuerySet[Any], request: Request) -> QuerySet[Any]:
        """:raises ValidationError: if the query is not what `Filter` declares"""
        return rows if self.Filter is None else self.Filter.narrow(rows, request)

    def created(self, request: Request, found: Any, **more: Any) -> Response:
        """Answer with a created object and its address."""
        answer = {**self.answer(caller(request), found), **more}
        location = {"Location": f"{request.path}/{answer['id']}"}
        return Response(answer, status=status.HTTP_201_CREATED, headers=location)


class Shown(Resource):
    """One object, which the URL names by one id. `key` is the field of that id."""

    key: ClassVar[str] = "pk"

    def find(self, access: Access, ids: Mapping[str, str]) -> Any:
        """:raises NotFound: if there is none, or the caller may not see it"""
        (value,) = ids.values()
        return self.rows(access).get_or_404(**{self.key: value})  # type: ignore[attr-defined]

    def get(self, request: Request, **ids: str) -> Response:
        return Response(self.answer(caller(request), self.find(caller(request), ids)))


class Changed(Shown):
    """`change` is the service that changes one: it takes the access, the object and the fields of the body."""

    change: ClassVar[Callable[..., Any]]

    def patch(self, request: Request, **ids: str) -> Response:
        access = caller(request)
        found = self.find(access, ids)
        return Response(self.answer(access, self.change(access, found, **self.fields(request))))


class Removed(Shown):
    """`remove` is the service that removes one: it takes the access and the object."""

    remove: ClassVar[Callable[..., Any]]

    def delete(self, request: Request, **ids: str) -> Response:
        self.remove(caller(request), self.find(caller(request), ids))
        return Response(status=status.HTTP_204_NO_CONTENT)
