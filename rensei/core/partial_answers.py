"""
Answers to failed requests for a part of a page: never a whole page in place of the part.

htmx puts an answer into the element that sent the request. A sign-in page or an error page there would replace a run,
a card or a form. Such a request gets the address of the sign-in page (`HX-Redirect`), or a notice above the page, and
the element is unchanged. https://htmx.org/reference/#response_headers
"""

from collections.abc import Callable
from http import HTTPStatus
from urllib.parse import urlencode, urlsplit

from django.conf import settings
from django.http import HttpRequest, HttpResponse, HttpResponseBase
from django.shortcuts import resolve_url
from django.template.loader import render_to_string
from django.utils.http import url_has_allowed_host_and_scheme

NOTICE = "#page-notice"
REDIRECTS = frozenset({301, 302, 303, 307, 308})
# A title and what to do, for answers without words of their own from `set_words`.
WORDS = {
    400: ("The server cannot read this request", "Reload the page and try again."),
    403: ("This is not allowed", "Your role may have changed. Reload the page to see what you may do."),
    404: ("This is no longer here", "It was removed, or you can no longer see it. Reload the page."),
    409: ("This has changed meanwhile", "Reload the page to see how it is now, and try again."),
    413: ("This is too large", "Send fewer or smaller files, or a shorter text."),
    429: ("Too many requests", "Wait a moment, and try again. Nothing that you typed is lost."),
    503: ("The server is busy or starting", "Try again in a moment. Nothing that you typed is lost."),
}
UNKNOWN = ("Something went wrong", "Try again in a moment, and tell your operator if it stays.")


def set_words(response: HttpResponse, *, title: str, detail: str) -> HttpResponse:
    """Attach the words of the notice that replaces this whole page."""
    response.notice = (title, detail)  # type: ignore[attr-defined]
    return response


def partial_answers(
    get_response: Callable[[HttpRequest], HttpResponseBase],
) -> Callable[[HttpRequest], HttpResponseBase]:
    """Replace whole pages that answer a failed request of htmx."""

    def middleware(request: HttpRequest) -> HttpResponseBase:
        return _for_part(request, get_response(request))

    return middleware


def _for_part(request: HttpRequest, response: HttpResponseBase) -> HttpResponseBase:
    if request.headers.get("HX-Request") != "true" or not isinstance(response, HttpResponse):
        return response
    if response.status_code in REDIRECTS:
        return _to_sign_in(request) if _leads_to_sign_in(response) else response
    # 422 is a form with its errors, from which the element selects its part.
    if response.status_code >= HTTPStatus.BAD_REQUEST and response.status_code != HTTPStatus.UNPROCESSABLE_ENTITY:
        return _notice(response) if _is_whole_page(response) else response
    return _notice(response) if hasattr(response, "notice") else response


def _leads_to_sign_in(response: HttpResponse) -> bool:
    return urlsplit(response.headers.get("Location", "")).path == resolve_url(settings.LOGIN_URL)


def _to_sign_in(request: HttpRequest) -> HttpResponse:
    """Redirect the browser to sign in, and from there back to the current page."""
    page = request.headers.get("HX-Current-URL", "")
    own = url_has_allowed_host_and_scheme(page, allowed_hosts={request.get_host()}, require_https=request.is_secure())
    address = urlsplit(page)
    back = address.path + (f"?{address.query}" if address.query else "") if own else "/"
    response = HttpResponse(status=HTTPStatus.UNAUTHORIZED)
    response.headers["HX-Redirect"] = f"{resolve_url(settings.LOGIN_URL)}?{urlencode({'next': back})}"
    return response


def _is_whole_page(response: HttpResponse) -> bool:
    return response.content[:200].lstrip()[:9].lower() == b"<!doctype"


def _notice(failed: HttpResponse) -> HttpResponse:
    title, detail = getattr(failed, "notice", None) or WORDS.get(failed.status_code, UNKNOWN)
    # Without the request, whose context is read from a database that may be unavailable.
    text = render_to_string("components/_failed_request.html", {"title": title, "detail": detail})
    response = HttpResponse(text, status=failed.status_code)
    for name in ("Retry-After", "Cache-Control"):
        if name in failed.headers:
            response.headers[name] = failed.headers[name]
    response.headers["HX-Retarget"] = NOTICE
    response.headers["HX-Reswap"] = "innerHTML"
    # The request may choose a part of the page that it expects, which a notice does not have.
    response.headers["HX-Reselect"] = "unset"
    response.cookies = failed.cookies
    return response
