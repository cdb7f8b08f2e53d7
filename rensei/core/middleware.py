"""For every request: a request id, trusted proxy headers only, and no caching."""

from collections.abc import Callable

import structlog
from django.http import HttpRequest, HttpResponseBase

from rensei.core.ids import new_id
from rensei.core.proxies import is_trusted_proxy

HEADER = "X-Request-Id"
FORWARDED = ("HTTP_X_FORWARDED_PROTO", "HTTP_X_FORWARDED_FOR", "HTTP_X_FORWARDED_HOST", "HTTP_X_FORWARDED_PORT")


def request_id(
    get_response: Callable[[HttpRequest], HttpResponseBase],
) -> Callable[[HttpRequest], HttpResponseBase]:
    """Give each request a generated id, so that a caller cannot choose what the logs contain."""

    def middleware(request: HttpRequest) -> HttpResponseBase:
        with structlog.contextvars.bound_contextvars(request_id=_mark(request)):
            response = get_response(request)
        return _name(request, response)

    return middleware


def _mark(request: HttpRequest) -> str:
    request.id = new_id("req")  # type: ignore[attr-defined]
    return request.id  # type: ignore[attr-defined, no-any-return]


def _name(request: HttpRequest, response: HttpResponseBase) -> HttpResponseBase:
    response.headers[HEADER] = request.id  # type: ignore[attr-defined]
    for name, value in getattr(request, "limit_headers", {}).items():
        response.headers[name] = value
    return response


def forwarded(
    get_response: Callable[[HttpRequest], HttpResponseBase],
) -> Callable[[HttpRequest], HttpResponseBase]:
    """Remove the forwarding headers of a request, unless one of the listed proxies sent it."""

    def middleware(request: HttpRequest) -> HttpResponseBase:
        _distrust(request)
        return get_response(request)

    return middleware


def _distrust(request: HttpRequest) -> None:
    if not is_trusted_proxy(request.META.get("REMOTE_ADDR")):
        for name in FORWARDED:
            request.META.pop(name, None)


def no_store(
    get_response: Callable[[HttpRequest], HttpResponseBase],
) -> Callable[[HttpRequest], HttpResponseBase]:
    """Keep answers out of caches, unless the view sets another rule: most of them belong to one person."""

    def middleware(request: HttpRequest) -> HttpResponseBase:
        response = get_response(request)
        response.headers.setdefault("Cache-Control", "no-store")
        return response

    return middleware
