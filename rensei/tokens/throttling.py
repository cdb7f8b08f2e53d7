"""Rate limits of REST and pages: counted for each token, or for each person in an organization."""

from math import ceil
from typing import TYPE_CHECKING

from django.http import HttpRequest
from rest_framework.request import Request

from rensei.core import request_places
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
    """Every request to REST and to an organization's pages. The headers report the caller's use of the limits."""

    scope = "api"

    def get_cache_key(self, request: Request, view: "APIView") -> str:
        return f"{self.scope}:{_caller(request)}"

    def allow_request(self, request: Request, view: "APIView") -> bool:
        access = request.auth if isinstance(request.auth, Access) else None
        key = self.get_cache_key(request, view)
        return self._admit(request._request, key, access)  # noqa: SLF001 - DRF names it so

    def require(self, request: HttpRequest, access: Access) -> None:
        """
        Admit the request of a page, as one of REST is admitted.

        :raises RateLimited: with the time to wait
        """
        if not self._admit(request, f"{self.scope}:{_of_access(access)}", access):
            seconds = max(1, ceil(self.wait()))
            raise RateLimited(seconds=seconds, extra={"retryAfter": seconds})

    def _admit(self, request: HttpRequest, key: str, access: Access | None) -> bool:
        """
        Count a request, and take a place for it among those of its organization that are under way.

        :raises RateLimited: if it waited for a place in vain
        """
        is_allowed = self.allow(key)
        standings = [self.standing]
        if is_allowed and access is not None:
            # A refusal for one token uses nothing of its organization's limit.
            whole = OrgThrottle()
            is_allowed = whole.allow(f"{whole.scope}:{access.org.pk}")
            standings.append(whole.standing)
            if not is_allowed:
                self.window = whole.window
        request.limit_headers = headers_of("requests", standings)  # type: ignore[attr-defined]
        if is_allowed and access is not None:
            request_places.take_of_org(request, access.org.pk)
        return is_allowed


class OrgThrottle(WindowThrottle):
    """Requests of all tokens and people of an organization."""

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
