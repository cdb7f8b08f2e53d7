"""What happens to every request: it gets an id, and loses what only a proxy of ours may say."""

from collections.abc import Awaitable, Callable

import structlog
from asgiref.sync import iscoroutinefunction, markcoroutinefunction
from django.http import HttpRequest, HttpResponseBase
from django.utils.decorators import sync_and_async_middleware

from rensei.core.ids import new_id
from rensei.core.proxies import is_trusted_proxy

HEADER = "X-Request-Id"
FORWARDED = ("HTTP_X_FORWARDED_PROTO", "HTTP_X_FORWARDED_FOR", "HTTP_X_FORWARDED_HOST", "HTTP_X_FORWARDED_PORT")


@sync_and_async_middleware
def request_id(
    get_response: Callable[[HttpRequest], HttpResponseBase | Awaitable[HttpResponseBase]],
) -> Callable[[HttpRequest], HttpResponseBase | Awaitable[HttpResponseBase]]:
    """Give each request an id of ours, so that a caller cannot choose what our logs say."""
    if iscoroutinefunction(get_response):

        async def middleware(request: HttpRequest) -> HttpResponseBase:
            with structlog.contextvars.bound_contextvars(request_id=_mark(request)):
                response = await get_response(request)
            return _name(request, response)

        markcoroutinefunction(middleware)
        return middleware

    def sync_middleware(request: HttpRequest) -> HttpResponseBase:
        with structlog.contextvars.bound_contextvars(request_id=_mark(request)):
            response = get_response(request)
        return _name(request, response)  # type: ignore[arg-type]

    return sync_middleware


def _mark(request: HttpRequest) -> str:
    request.id = new_id("req")  # type: ignore[attr-defined]
    return request.id  # type: ignore[attr-defined, no-any-return]


def _name(request: HttpRequest, response: HttpResponseBase) -> HttpResponseBase:
    response.headers[HEADER] = request.id  # type: ignore[attr-defined]
    for name, value in getattr(request, "limit_headers", {}).items():
        response.headers[name] = value
    return response


@sync_and_async_middleware
def forwarded(
    get_response: Callable[[HttpRequest], HttpResponseBase | Awaitable[HttpResponseBase]],
) -> Callable[[HttpRequest], HttpResponseBase | Awaitable[HttpResponseBase]]:
    """Take away what a request says of how it came here, unless one of the listed proxies sent it."""
    if iscoroutinefunction(get_response):

        async def middleware(request: HttpRequest) -> HttpResponseBase:
            _distrust(request)
            response: HttpResponseBase = await get_response(request)
            return response

        markcoroutinefunction(middleware)
        return middleware

    def sync_middleware(request: HttpRequest) -> HttpResponseBase:
        _distrust(request)
        return get_response(request)  # type: ignore[return-value]

    return sync_middleware


def _distrust(request: HttpRequest) -> None:
    if not is_trusted_proxy(request.META.get("REMOTE_ADDR")):
        for name in FORWARDED:
            request.META.pop(name, None)


@sync_and_async_middleware
def no_store(
    get_response: Callable[[HttpRequest], HttpResponseBase | Awaitable[HttpResponseBase]],
) -> Callable[[HttpRequest], HttpResponseBase | Awaitable[HttpResponseBase]]:
    """Keep every answer out of caches, unless its view decided otherwise: most of them belong to one person."""
    if iscoroutinefunction(get_response):

        async def middleware(request: HttpRequest) -> HttpResponseBase:
            response: HttpResponseBase = await get_response(request)
            response.headers.setdefault("Cache-Control", "no-store")
            return response

        markcoroutinefunction(middleware)
        return middleware

    def sync_middleware(request: HttpRequest) -> HttpResponseBase:
        response = get_response(request)
        assert isinstance(response, HttpResponseBase)
        response.headers.setdefault("Cache-Control", "no-store")
        return response

    return sync_middleware
