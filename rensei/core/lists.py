"""Lists in REST: the query with its filters, and cursor pages."""

from collections.abc import Mapping
from typing import Any, ClassVar

from django.core.exceptions import ValidationError
from django.db.models import QuerySet
from rest_framework import exceptions, pagination, serializers
from rest_framework.request import Request

from rensei.core.api import CamelSerializer, camel
from rensei.core.errors import FieldError, json_pointer

# The query parameters of every list.
PAGING = frozenset({"cursor", "pageSize"})


def query_of(request: Request) -> dict[str, str]:
    """
    Read the query by its documented names. As in a body, a name may be camelCase or snake_case, but not both.

    :raises FieldError: if a name is given twice
    """
    query: dict[str, str] = {}
    for name, values in request.query_params.lists():
        known = camel(name) if "_" in name else name
        if known in query or len(values) > 1:
            raise FieldError(pointer=f"/query{json_pointer(name)}", reason=f"{known} is given twice. Keep one.")
        query[known] = values[0]
    return query


def read_filters(form: type[serializers.Serializer[Any]], request: Request) -> dict[str, Any]:
    """
    Read the filters of a list, checked as strictly as a body. The view has refused names that it does not declare.

    :raises ValidationError: if the form rejects a value
    """
    known = form().fields
    query = form(data={name: value for name, value in query_of(request).items() if name in known})
    if not query.is_valid():
        raise serializers.ValidationError({"query": query.errors})
    fields: dict[str, Any] = query.validated_data
    return fields


class Filters(CamelSerializer):
    """The query of a list. Each parameter in `lookups` that has a value narrows the list by that look-up."""

    lookups: ClassVar[Mapping[str, str]] = {}

    @classmethod
    def narrow(cls, rows: QuerySet[Any], request: Request) -> QuerySet[Any]:
        """:raises ValidationError: if a parameter has a wrong value"""
        return cls.select(rows, read_filters(cls, request))

    @classmethod
    def select(cls, rows: QuerySet[Any], asked: Mapping[str, Any]) -> QuerySet[Any]:
        """Narrow a list by checked parameters."""
        return rows.filter(**{lookup: asked[name] for name, lookup in cls.lookups.items() if asked.get(name)})


class CursorPages(pagination.CursorPagination):
    """`{"next", "previous", "results"}`, newest first; stable while rows are added."""

    page_size = 50
    max_page_size = 200
    page_size_query_param = "pageSize"
    ordering: str | tuple[str, ...] = "-id"

    def paginate_queryset(self, queryset: Any, request: Request, view: Any = None) -> list[Any] | None:
        first = self.ordering if isinstance(self.ordering, str) else self.ordering[0]
        self._field = queryset.model._meta.get_field(first.removeprefix("-"))  # noqa: SLF001
        return super().paginate_queryset(queryset, request, view)

    def get_page_size(self, request: Request) -> int:
        """:raises FieldError: if the size is not a positive number; a size above the maximum is lowered to it"""
        asked = query_of(request).get("pageSize", str(self.page_size))
        if not (asked.isascii() and asked.isdecimal() and asked.strip("0")):
            raise FieldError(pointer="/query/pageSize", reason=f"pageSize is a number from 1 to {self.max_page_size}.")
        return self.max_page_size if len(asked) > len(str(self.max_page_size)) else min(int(asked), self.max_page_size)

    def decode_cursor(self, request: Request) -> Any:
        """:raises FieldError: if the cursor did not come from a page of this list"""
        try:
            cursor = super().decode_cursor(request)
            if cursor is not None and cursor.position is not None:
                self._field.to_python(cursor.position)
        except (exceptions.NotFound, ValidationError, ValueError) as fault:
            raise _strange_cursor() from fault
        if cursor is not None and not str(cursor.position).isprintable():
            raise _strange_cursor()
        return cursor

    def get_schema_operation_parameters(self, view: Any) -> list[dict[str, Any]]:
        size = {"type": "integer", "minimum": 1, "default": self.page_size}
        return [
            {
                "name": "cursor",
                "in": "query",
                "description": "From `next` or `previous` of another page, which hold it",
                "schema": {"type": "string", "format": "cursor"},
            },
            {
                "name": "pageSize",
                "in": "query",
                "description": f"Rows on a page; more than {self.max_page_size} is read as {self.max_page_size}",
                "schema": size,
            },
        ]

    def get_paginated_response_schema(self, schema: dict[str, Any]) -> dict[str, Any]:
        address = {
            "type": ["string", "null"],
            "format": "uri",
            "description": "The page's address; null: there is none",
        }
        return {
            "type": "object",
            "required": ["next", "previous", "results"],
            "properties": {"next": address, "previous": address, "results": schema},
        }


def _strange_cursor() -> FieldError:
    reason = "The cursor is not one of this list. Start again without it."
    return FieldError(pointer="/query/cursor", reason=reason)
