"""REST conventions: camelCase, JSON bodies and their limits."""

from functools import cached_property
from itertools import islice
from typing import Any

from rest_framework import parsers, serializers
from rest_framework.metadata import BaseMetadata
from rest_framework.negotiation import DefaultContentNegotiation
from rest_framework.request import Request

from rensei.core.errors import (
    ERRORS_MAX,
    RenseiError,
    Said,
)
from rensei.core.json_body import LARGE_WORK, read_object, work_of
from rensei.core.json_check import check_apart
from rensei.core.limits import limit
from rensei.core.shares import ThreadTurns
from rensei.core.transactions import leave_database

DEFAULT_BODY_LIMIT = limit(
    1024 * 1024, "bytes", what="Body of a REST request", told="the caller: 413 `REQUEST_TOO_LARGE`"
)
ANONYMOUS_BODY_LIMIT = limit(
    16 * 1024,
    "bytes",
    what="Body of a request without a login, or to an address that needs none, forms included",
    told="the caller: 413 `REQUEST_TOO_LARGE`",
)
LARGE_BODY_LIMIT = limit(
    32 * 1024 * 1024,
    "bytes",
    what="Body of a dispatch, of a machine's answer and of a gateway call",
    told="the caller: 413 `REQUEST_TOO_LARGE`",
)


def camel(name: str) -> str:
    head, *tail = name.split("_")
    return head + "".join(part.capitalize() for part in tail)


class CamelSerializer(serializers.Serializer[Any]):
    """
    A serializer whose declared names are camelCase on the wire and snake_case inside.

    A request may spell a declared name either way, but not both; undeclared names are rejected.
    Only declared names are converted, so the keys of a caller's own JSON are unchanged.
    """

    def get_fields(self) -> dict[str, serializers.Field[Any, Any, Any, Any]]:
        fields = {}
        for name, field in super().get_fields().items():
            if camel(name) != name and field.source is None:
                field.source = name
            fields[camel(name)] = field
        return fields

    def to_internal_value(self, data: Any) -> Any:
        if isinstance(data, dict):
            data = self._to_camel(data)
        return super().to_internal_value(data)

    def _to_camel(self, data: dict[str, Any]) -> dict[str, Any]:
        known: dict[str, Any] = {}
        errors: dict[str, Any] = {}
        for key, value in data.items():
            if len(errors) == ERRORS_MAX:
                break
            name = camel(key) if "_" in key else key
            field = self.fields.get(name)
            if field is None or field.read_only:
                errors[key] = [self._unknown]
            elif name in known:
                errors[key] = [f"This field is given twice, as {name} and in snake_case. Keep one."]
            elif wrong := _wrong_value(field, value):
                errors[key] = wrong
            else:
                known[name] = value
        if errors:
            raise serializers.ValidationError(errors)
        return known

    @cached_property
    def _unknown(self) -> str:
        known = [name for name, field in self.fields.items() if not field.read_only]
        if not known:
            return "This field is not known here, and no other is. Remove it."
        return f"This field is not known here. Known: {', '.join(sorted(known))}."


def _wrong_value(field: Any, value: Any) -> Any:
    """
    Name what is wrong with the JSON type or the length of a value. The framework would read "1" as a number, 1 as a
    text and "yes" as true, so two readers of one body could interpret it differently.
    """
    if value is None:
        return None
    if isinstance(field, serializers.ListField) and isinstance(value, list):
        wrongs = ((place, wrong) for place, one in enumerate(value) if (wrong := _wrong_value(field.child, one)))
        return dict(islice(wrongs, ERRORS_MAX)) or None
    for kind, (types, words) in _JSON_TYPES.items():
        if isinstance(field, kind) and not (
            isinstance(value, types) and (bool in types or not isinstance(value, bool))
        ):
            return [words]
    # Before surrounding white space is removed, as the OpenAPI document counts the length.
    longest = getattr(field, "max_length", None)
    if isinstance(value, str) and longest is not None and len(value) > longest:
        return [f"Use at most {longest} characters."]
    return None


_JSON_TYPES: dict[type[serializers.Field[Any, Any, Any, Any]], tuple[tuple[type, ...], str]] = {
    serializers.BooleanField: ((bool,), "Give true or false."),
    serializers.IntegerField: ((int, float), "Give a whole number, without quotes."),
    serializers.CharField: ((str,), "Give a text, in quotes."),
    serializers.ChoiceField: ((str,), "Give a text, in quotes."),
}


class AllowedMethods(BaseMetadata):
    """The answer to OPTIONS: `Allow` only. What the methods accept is in the OpenAPI document."""

    def determine_metadata(self, request: Request, view: Any) -> dict[str, Any]:
        return {}


class OptionalText(serializers.CharField):
    """A text of an answer; null where it is empty."""

    def __init__(self, **options: Any) -> None:
        super().__init__(allow_null=True, **options)

    def to_representation(self, value: str) -> str | None:  # type: ignore[override]
        return value or None


def read_body(form: type[serializers.Serializer[Any]], request: Request) -> dict[str, Any]:
    """:raises ValidationError: if the body of a request is not what the form declares"""
    body = form(data=request.data)
    body.is_valid(raise_exception=True)
    fields: dict[str, Any] = body.validated_data
    return fields


class AlwaysJson(DefaultContentNegotiation):
    """Answers in JSON for any `Accept`, so that every client can read an error."""

    def select_renderer(self, request: Request, renderers: Any, format_suffix: str | None = None) -> Any:
        return renderers[0], renderers[0].media_type


class RequestTooLarge(RenseiError):
    """The body is larger than this address accepts."""

    code = "REQUEST_TOO_LARGE"
    status = 413
    title = "Request too large"
    message = Said("The body is larger than {size}.", "Send less, or smaller images.")

    def __init__(self, *, limit: int) -> None:
        kilobytes = limit // 1024
        super().__init__(size=f"{kilobytes // 1024} MB" if kilobytes >= 1024 else f"{kilobytes} kB")


large_bodies = ThreadTurns(
    limit(
        2,
        "at once",
        what="REST bodies over 64 KiB, or about 1,000 values, that are read, each process, and one at a time of each "
        "organization",
        told="the caller: it waits for its turn",
    )
)


class JSONBodyParser(parsers.BaseParser):
    """Reads a JSON body up to the view's `body_limit`, and no further."""

    media_type = "application/json"

    def parse(self, stream: Any, media_type: str | None = None, parser_context: Any = None) -> Any:
        most = getattr((parser_context or {}).get("view"), "body_limit", DEFAULT_BODY_LIMIT)
        body = stream.read(most + 1)
        if len(body) > most:
            raise RequestTooLarge(limit=most)
        if work_of(body) <= LARGE_WORK:
            return read_object(body)
        leave_database()
        org = getattr(getattr((parser_context or {}).get("request"), "auth", None), "org", None)
        with large_bodies.of(org.pk if org is not None else ""):
            check_apart(body, is_stored=True)
            return read_object(body)
