"""What is answered where no view answers: a problem document under /api, a page elsewhere."""

from django.http import HttpRequest, HttpResponse
from django.views import defaults

from rensei.core.api import Internal, Invalid, problem_page
from rensei.core.errors import NotFound, NotPermitted, RenseiError

API = "/api/"


def bad_request(request: HttpRequest, exception: Exception) -> HttpResponse:
    return _problem(request, Invalid) or defaults.bad_request(request, exception)


def not_permitted(request: HttpRequest, exception: Exception) -> HttpResponse:
    return _problem(request, NotPermitted) or defaults.permission_denied(request, exception)


def not_found(request: HttpRequest, exception: Exception | None = None) -> HttpResponse:
    return _problem(request, NotFound) or defaults.page_not_found(request, exception or Exception("Not found"))


def server_error(request: HttpRequest) -> HttpResponse:
    return _problem(request, Internal) or defaults.server_error(request)


def _problem(request: HttpRequest, refusal: type[RenseiError]) -> HttpResponse | None:
    return problem_page(request, refusal()) if request.path.startswith(API) else None
