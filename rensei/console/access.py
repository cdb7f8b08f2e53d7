"""The access check of every page: the person, the organization, and the handling of refusals."""

from collections.abc import Callable
from functools import wraps
from math import ceil
from typing import Any, Concatenate, ParamSpec, TypeVar, cast

from django.contrib import messages
from django.contrib.auth.decorators import login_required
from django.http import Http404, HttpRequest, HttpResponse, HttpResponseBase
from django.shortcuts import redirect, render
from django.template.loader import render_to_string
from django.views.decorators.cache import never_cache

from rensei.core.error_pages import refused_page
from rensei.core.errors import NotFound, RateLimited, RenseiError
from rensei.core.partial_answers import set_words
from rensei.core.proxies import client_address
from rensei.orgs.access import Access, LastingOwnersOnly, OwnersOnly, for_member
from rensei.orgs.models import Role, User
from rensei.orgs.services import members
from rensei.tokens.throttling import ApiThrottle, SensitiveThrottle

P = ParamSpec("P")
R = TypeVar("R")


class PageRequest(HttpRequest):
    """A request of a signed-in member, with the access that `page` looked up; `auth` is its name in REST."""

    access: Access
    auth: Access
    user: User
    htmx: Any


def page(view: Callable[Concatenate[PageRequest, P], HttpResponseBase]) -> Callable[..., HttpResponseBase]:
    """
    Open a page to the members of the organization in its address.

    All others receive the page of an address that does not exist; a member, for an object that does not exist, receives
    it within the frame of the organization. A refusal that the view does not handle is shown as a separate page, with
    its fix. Pages have the rates of REST, and share its places for requests under way.
    """

    @never_cache
    @login_required
    @wraps(view)
    def checked(visitor: HttpRequest, /, *args: P.args, **kwargs: P.kwargs) -> HttpResponseBase:
        assert isinstance(visitor.user, User)
        slug = str(kwargs.pop("org"))
        access = for_member(user=visitor.user, slug=slug, address=client_address(visitor))
        if access is None:
            raise Http404
        request = cast(PageRequest, visitor)
        request.access = request.auth = access
        try:
            ApiThrottle().require(request, access)
        except RateLimited as refusal:
            return refused_page(request, refusal)
        try:
            return view(request, *args, **kwargs)
        except (NotFound, Http404) as absent:
            if request.htmx:
                raise Http404 from absent
            return render(request, "console/not_found.html", status=404)
        except RenseiError as refusal:
            return refused(request, refusal)

    return checked


def refused(request: PageRequest, refusal: RenseiError) -> HttpResponse:
    """Show a refusal as a separate page, with the refusal's status."""
    owners = None
    if isinstance(refusal, (OwnersOnly, LastingOwnersOnly)):
        owners = members(request.access).filter(role=Role.OWNER, ends_at=None)
    context = {"refusal": refusal, "owners": owners}
    page = render(request, "console/refused.html", context, status=refusal.status)
    return set_words(page, title=refusal.title, detail=refusal.detail)


def attempt(
    request: PageRequest, action: Callable[[], object], *, done: str, back: str, args: tuple[str, ...] = ()
) -> HttpResponse:
    """Carry out the action of a button and return to its page, with a sentence on the result."""
    try:
        action()
    except NotFound:
        raise
    except RenseiError as refusal:
        say_refusal(request, refusal)
    else:
        messages.success(request, done)
    return redirect(f"console:{back}", request.access.org.slug, *args)


def say_refusal(request: PageRequest, refusal: RenseiError) -> None:
    """Show a refusal, with its fix, above the next page."""
    messages.error(request, render_to_string("components/_refusal_message.html", {"refusal": refusal}, request))


class _Costly:
    """The object from which the throttle reads the name of its rate."""

    throttle_scope = "sensitive"


def sensitive(view: Callable[Concatenate[PageRequest, P], R]) -> Callable[Concatenate[PageRequest, P], R]:
    """
    Limit how often one person may make a request that has a cost or could be used for guessing, together with REST.

    :raises RateLimited: with the time to wait
    """

    @wraps(view)
    def limited(request: PageRequest, /, *args: P.args, **kwargs: P.kwargs) -> R:
        throttle = SensitiveThrottle()
        if request.method == "POST" and not throttle.allow_request(request, _Costly()):  # type: ignore[arg-type]
            raise RateLimited(seconds=max(1, ceil(throttle.wait())))
        return view(request, *args, **kwargs)

    return limited
