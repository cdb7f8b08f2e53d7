"""Rate limits of REST requests: counted for each token, or for each person in an organization."""

from math import ceil
from typing import TYPE_CHECKING

from rest_framework.request import Request

from rensei.core.errors import RateLimited
from rensei.core.networks import counted_address
from rensei.core.proxies import client_address
from rensei.core.rates import headers_of
from rensei.core.throttling import WindowThrottle
from rensei.orgs.access import Access

if TYPE_CHECKING:
    # The views read their default throttles from here while they are being imported.
    from rest_framework.views import APIView


class ApiThrottle(WindowThrottle):
    """Every REST request. The headers of the answer report the caller's use of the limits."""

    scope = "api"

    def get_cache_key(self, request: Request, view: "APIView") -> str:
        return f"{self.scope}:{_caller(request)}"

    def allow_request(self, request: Request, view: "APIView") -> bool:
        is_allowed = super().allow_request(request, view)
        standings = [self.standing]
        if is_allowed and isinstance(request.auth, Access):
            # A refusal for one token uses nothing of its organization's limit.
            whole = OrgThrottle()
            is_allowed = whole.allow(f"{whole.scope}:{request.auth.org.pk}")
            standings.append(whole.standing)
            if not is_allowed:
                self.window = whole.window
        request._request.limit_headers = headers_of("requests", standings)  # type: ignore[attr-defined]  # noqa: SLF001 - DRF names it so
        return is_allowed


class OrgThrottle(WindowThrottle):
    """REST requests of all tokens and people of an organization."""

    scope = "org"


class SensitiveThrottle(WindowThrottle):
    """Requests that are costly, or usable for guessing: views with `throttle_scope = "sensitive"`."""

    scope = "sensitive"
    is_exact = True

    def get_cache_key(self, request: Request, view: "APIView") -> str | None:
        if getattr(view, "throttle_scope", None) != self.scope:
            return None
        return f"{self.scope}:{_caller(request)}"


def spend_sensitive(access: Access) -> None:
    """
    Count an operation that is costly or usable for guessing, at the moment in which it is done.

    For work after the checks of a form: input that they reject costs nothing, so it uses up nothing.

    :raises RateLimited: if the caller has done so too often
    """
    throttle = SensitiveThrottle()
    if not throttle.allow(f"{throttle.scope}:{_of_access(access)}"):
        seconds = max(1, ceil(throttle.wait()))
        raise RateLimited(seconds=seconds, extra={"retryAfter": seconds})


def _caller(request: Request) -> str:
    access = request.auth
    if not isinstance(access, Access):
        return f"address:{counted_address(client_address(request))}"
    return _of_access(access)


def _of_access(access: Access) -> str:
    if access.token is not None:
        return f"token:{access.token.pk}"
    return f"person:{access.user.pk}:{access.org.pk}"
