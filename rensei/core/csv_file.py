"""CSV files that are written row by row, so that a million lines use no more memory than one page of them."""

import csv
from collections.abc import AsyncIterator, Iterable, Iterator, Sequence

from asgiref.sync import sync_to_async
from django.http import HttpRequest, StreamingHttpResponse
from rest_framework.request import Request

from rensei.core.request_threads import leave_thread
from rensei.core.transactions import leave_database

# A spreadsheet interprets a cell that begins with one of these as a formula:
# https://owasp.org/www-community/attacks/CSV_Injection
FORMULA = ("=", "+", "-", "@", "\t", "\r")


class _Line:
    """The target of `csv.writer`: returns the finished line."""

    def write(self, text: str) -> str:
        return text


def write(header: Sequence[str], pages: Iterable[Iterable[Sequence[object]]]) -> Iterator[str]:
    """Write the header, then each page of rows as one piece of text."""
    writer = csv.writer(_Line())
    yield writer.writerow(header)
    for page in pages:
        yield "".join(writer.writerow(row) for row in page)


def cell(value: str | None) -> str:
    """Write a text so that a spreadsheet interprets it as text."""
    return f"'{value}" if value and value.startswith(FORMULA) else value or ""


def answer(request: HttpRequest | Request, parts: Iterator[str], *, filename: str) -> StreamingHttpResponse:
    """Stream the pieces as a file, each as soon as it is written."""
    served_by_asgi = hasattr(request, "scope")
    return StreamingHttpResponse(
        _async(parts) if served_by_asgi else parts,
        content_type="text/csv; charset=utf-8",
        headers={"Content-Disposition": f'attachment; filename="{filename}"'},
    )


async def _async(parts: Iterator[str]) -> AsyncIterator[str]:
    """
    Yield the pieces one by one: ASGI would read a plain iterator to its end before it sends a byte.

    While a piece is sent, neither a connection nor a thread is held: a reader may take any time for it.
    """
    while (part := await sync_to_async(_next)(parts)) is not None:
        leave_thread()
        yield part


def _next(parts: Iterator[str]) -> str | None:
    try:
        return next(parts, None)
    finally:
        leave_database()
