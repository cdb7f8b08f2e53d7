"""Authentication of REST callers: an API token, or the browser's session."""

from rest_framework.authentication import BaseAuthentication, SessionAuthentication, get_authorization_header
from rest_framework.exceptions import AuthenticationFailed, PermissionDenied
from rest_framework.request import Request

from rensei.core.errors import FieldError, RenseiError, Said
from rensei.core.networks import NetworkNotAllowed
from rensei.core.problems import NotAuthenticated
from rensei.core.proxies import client_address
from rensei.core.secret import token_digest
from rensei.orgs.access import Access, for_member
from rensei.orgs.models import Membership, User
from rensei.orgs.scopes import ANY, Needs, ScopeMissing
from rensei.tokens.look_up import TOKEN_PREFIX, for_token
from rensei.tokens.unknown_tokens import unknown_tokens

ORG_HEADER = "X-Rensei-Org"


class TokenAuthentication(BaseAuthentication):
    """`Authorization: Bearer rsk_live_…`. `request.auth` becomes the caller's `Access`."""

    refusals = (NotAuthenticated, ScopeMissing, NetworkNotAllowed)

    def authenticate(self, request: Request) -> tuple[User, Access] | None:
        access = access_of(get_authorization_header(request).decode("latin-1"), address=client_address(request))
        if access is None:
            return None
        access.require_scope(_needs(request), address=access.address)
        return access.user, access

    def authenticate_header(self, request: Request) -> str:
        return "Bearer"


class CsrfFailed(RenseiError):
    """A browser's request had no CSRF token of the page, so another site may have sent it."""

    code = "NOT_PERMITTED"
    status = 403
    title = "Not permitted"
    message = Said(
        "The request did not carry the CSRF token of the page.", "Send it as X-CSRFToken, or use an API token."
    )


class BrowserAuthentication(SessionAuthentication):
    """The browser's session, with CSRF. People of several organizations name one in `X-Rensei-Org`."""

    def authenticate(self, request: Request) -> tuple[User, Access] | None:
        signed_in = super().authenticate(request)
        if signed_in is None:
            return None
        user: User = signed_in[0]
        slug = request.headers.get(ORG_HEADER) or _only_org(user)
        access = for_member(user=user, slug=slug, address=client_address(request))
        if access is None:
            raise AuthenticationFailed
        return user, access

    def enforce_csrf(self, request: Request) -> None:
        """:raises CsrfFailed: unless the request comes from one of Rensei's pages"""
        try:
            super().enforce_csrf(request)
        except PermissionDenied as fault:
            raise CsrfFailed from fault


def access_of(authorization: str, *, address: str | None) -> Access | None:
    """
    Look up the API token in a header. Return None if there is none.

    :raises NotAuthenticated: if it is not a valid one
    :raises RateLimited: if this address sent too many unknown tokens
    """
    scheme, _, token = authorization.partition(" ")
    if scheme.lower() != "bearer":
        return None
    token = token.strip()
    if not token.startswith(TOKEN_PREFIX):
        raise NotAuthenticated
    digest = token_digest(token)
    unknown_tokens.require_look_up(digest, address=address)
    access = for_token(token=token, address=address)
    unknown_tokens.note(digest, found=access is not None, address=address)
    if access is None:
        raise NotAuthenticated
    return access


def _needs(request: Request) -> Needs | None:
    """
    Return what the route declares for this method: `scopes = {"GET": READ, …}`.

    OPTIONS returns no data, and the view refuses a method that it does not have: any scope suffices.
    """
    view, method = request.parser_context["view"], str(request.method)
    if method == "OPTIONS" or method not in view.allowed_methods:
        return ANY
    declared: dict[str, Needs] = getattr(view, "scopes", {})
    return declared.get("GET" if method == "HEAD" else method)


def _only_org(user: User) -> str:
    slugs: list[str] = list(Membership.objects.live().filter(user=user).values_list("org__slug", flat=True)[:2])
    if len(slugs) != 1:
        raise FieldError(pointer=f"/headers/{ORG_HEADER}", reason=f"Name the organization in the header {ORG_HEADER}.")
    return slugs[0]
