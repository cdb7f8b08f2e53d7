"""Rate limits of sign-in by address."""

from collections.abc import Callable
from functools import wraps
from math import ceil
from typing import TYPE_CHECKING

from django.http import HttpRequest, HttpResponseBase
from django.shortcuts import render
from rest_framework.request import Request

from rensei.accounts.known_browsers import browser_of
from rensei.core.networks import counted_address
from rensei.core.proxies import client_address
from rensei.core.throttling import WindowThrottle

if TYPE_CHECKING:
    # The views read their default throttles while they are being imported.
    from rest_framework.views import APIView

Page = Callable[..., HttpResponseBase]


class SignInThrottle(WindowThrottle):
    """
    Tries to sign in from one address, before the limits for each account.

    A browser that has signed in to the account before is counted separately from the rest of its address.
    """

    scope = "sign-in"
    is_exact = True

    def get_cache_key(self, request: Request, view: "APIView | None") -> str:
        browser = browser_of(request, email=request.POST.get("login", ""))
        return f"{self.scope}:{browser or counted_address(client_address(request))}"


def limit_sign_in(method: str) -> Callable[[Page], Page]:
    """Limit an address's requests for a sign-in page per minute. The error of a further one says when to retry."""

    def decorate(view: Page) -> Page:
        @wraps(view)
        def limited(request: HttpRequest, *args: object, **kwargs: object) -> HttpResponseBase:
            throttle = SignInThrottle()
            if request.method == method and not throttle.allow_request(request, None):  # type: ignore[arg-type]
                seconds = max(1, ceil(throttle.wait()))
                refusal = render(request, "429.html", status=429)
                refusal.headers["Retry-After"] = str(seconds)
                return refusal
            return view(request, *args, **kwargs)

        return limited

    return decorate
