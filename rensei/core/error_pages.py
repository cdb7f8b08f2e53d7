"""Answers outside of views: a problem document under /api, a page elsewhere."""

import sys
from http import HTTPStatus

from django.conf import settings
from django.core.exceptions import DisallowedHost
from django.http import HttpRequest, HttpResponse
from django.shortcuts import render
from django.utils.http import url_has_allowed_host_and_scheme
from django.views import defaults

from rensei.core.errors import DATABASE_FAULTS, FieldError, NotFound, NotPermitted, RenseiError, database_refusal
from rensei.core.partial_answers import set_words
from rensei.core.problems import Internal, problem_page, refusal_headers

API = "/api/"
ADMIN = "/admin/"
EXPIRED = "It was open for too long, or you have signed in again since. Nothing was changed. Reload it and try again."


def bad_request(request: HttpRequest, exception: Exception) -> HttpResponse:
    if not isinstance(exception, DisallowedHost):
        reason = "The server cannot read this request. Check its address and its headers."
        return _problem(request, FieldError(pointer="", reason=reason)) or defaults.bad_request(request, exception)
    reason = (
        "This server does not answer to the host name of the request. "
        "Use its own address, or have its operator add the name to RENSEI_ALLOWED_HOSTS."
    )
    problem = _problem(request, FieldError(pointer="/headers/Host", reason=reason))
    return problem or render(request, "wrong_host.html", {"public_url": settings.PUBLIC_URL}, status=400)


def not_permitted(request: HttpRequest, exception: Exception) -> HttpResponse:
    if request.path.startswith(ADMIN) and request.user.is_authenticated and not request.user.is_staff:
        return render(request, "operators_only.html", status=403)
    return _problem(request, NotPermitted()) or defaults.permission_denied(request, exception)


def csrf_failure(request: HttpRequest, reason: str = "") -> HttpResponse:
    """Answer a form without a valid CSRF token, for example one that was open for too long."""
    page = request.headers.get("Referer", "")
    ours = url_has_allowed_host_and_scheme(page, allowed_hosts={request.get_host()}, require_https=request.is_secure())
    context = {"back": page if ours else "/"}
    if problem := _problem(request, NotPermitted()):
        return problem
    expired = render(request, "403_csrf.html", context, status=HTTPStatus.FORBIDDEN)
    return set_words(expired, title="The page has expired", detail=EXPIRED)


def not_found(request: HttpRequest, exception: Exception | None = None) -> HttpResponse:
    return _problem(request, NotFound()) or defaults.page_not_found(request, exception or Exception("Not found"))


def server_error(request: HttpRequest) -> HttpResponse:
    # Django calls this while it handles the exception, and does not pass it as an argument.
    fault = sys.exception()
    refusal = database_refusal(fault) if isinstance(fault, DATABASE_FAULTS) else fault
    if isinstance(refusal, RenseiError):
        # Without the request, whose context processors read the database.
        return _problem(request, refusal) or refused_page(None, refusal)
    return _problem(request, Internal()) or defaults.server_error(request)


def refused_page(request: HttpRequest | None, refusal: RenseiError) -> HttpResponse:
    """Show a refusal without the frame of an organization, which would take more work."""
    page = render(request, "refused.html", {"refusal": refusal}, status=refusal.status)
    for name, value in refusal_headers(refusal).items():
        page.headers[name] = value
    return set_words(page, title=refusal.title, detail=refusal.detail)


def _problem(request: HttpRequest, refusal: RenseiError) -> HttpResponse | None:
    return problem_page(request, refusal) if request.path.startswith(API) else None
