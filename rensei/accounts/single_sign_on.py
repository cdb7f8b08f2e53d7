"""
Sign-in with the organization's own accounts, by OpenID Connect: who is accepted, and how it begins.

https://openid.net/specs/openid-connect-core-1_0.html, https://docs.allauth.org/en/latest/socialaccount/adapter.html
"""

import hmac
import secrets
from typing import Any

import structlog
from allauth.account.models import EmailAddress
from allauth.account.utils import get_next_redirect_url
from allauth.core.exceptions import ImmediateHttpResponse
from allauth.socialaccount.adapter import DefaultSocialAccountAdapter, get_adapter
from allauth.socialaccount.helpers import render_authentication_error
from allauth.socialaccount.models import SocialApp, SocialLogin
from allauth.socialaccount.providers.base.constants import AuthProcess
from allauth.socialaccount.providers.oauth2.client import OAuth2Error
from allauth.socialaccount.providers.oauth2.views import OAuth2CallbackView
from allauth.socialaccount.providers.openid_connect.views import OpenIDConnectOAuth2Adapter
from django.conf import settings
from django.contrib.auth.decorators import login_not_required
from django.http import Http404, HttpRequest, HttpResponse
from django.shortcuts import redirect, render
from django.views.decorators.http import require_safe
from requests import RequestException, Session

from rensei.accounts import invitations, people, second_factor
from rensei.accounts.sessions import keep_for_a_while
from rensei.accounts.throttling import limit_sign_in
from rensei.core.proxies import client_address
from rensei.core.transactions import durable, leave_database
from rensei.orgs.models import User
from rensei.orgs.shapes import NAME_LENGTH

logger = structlog.get_logger()


class SocialAccountAdapter(DefaultSocialAccountAdapter):  # type: ignore[misc]
    """
    Accepts people whose address a provider has verified, if they have an account or an invitation.

    All others are refused, unless `RENSEI_OIDC_SIGN_UP` opens the server to all accounts of the provider.
    """

    def pre_social_login(self, request: HttpRequest, sociallogin: SocialLogin) -> None:
        """
        Reject user info about another person than the id token's, as OpenID Connect Core 5.3.2 requires.

        Reject operators too, for whom a provider alone is not sufficient: those with a second factor continue to it,
        and for those without one the issuer must be the one that is pinned to the account.
        """
        claims = sociallogin.account.extra_data
        told, signed = claims.get("userinfo"), claims.get("id_token")
        if told and signed and told.get("sub") != signed.get("sub"):
            logger.warning("single_sign_on_refused", reason="subjects differ", provider=sociallogin.account.provider)
            raise ImmediateHttpResponse(_refuse(request, "different"))
        user = sociallogin.user
        if user is not None and user.pk is not None and user.is_staff and not _may_be_operator(user, signed):
            logger.warning("single_sign_on_refused", reason="operator", provider=sociallogin.account.provider)
            raise ImmediateHttpResponse(_refuse(request, "operator"))

    def get_requests_session(self) -> Session:
        """Make the session for each of the library's calls to the provider."""
        leave_database()
        session: Session = super().get_requests_session()
        return session

    def authenticate_by_email(self, sociallogin: SocialLogin) -> tuple[User, str] | None:
        """Find the account whose address the provider has verified."""
        email = verified_email(sociallogin)
        if email is None:
            return None
        # The account's own address is authoritative. The library's rows may be older: operators change addresses.
        EmailAddress.objects.filter(email__iexact=email).exclude(user__email=email).delete()
        user = User.objects.filter(email=email).first()
        if user is None:
            return None
        # An account without a row was made by an operator, who confirmed its address. If a row says that the address
        # is unverified, the library removes the password, which may be another person's. So may tokens.
        if EmailAddress.objects.filter(user=user, email=email, verified=False).exists():
            with durable():
                people.end_programs(user)
        EmailAddress.objects.get_or_create(user=user, email=email, defaults={"verified": True, "primary": True})
        return user, email

    def is_open_for_signup(self, request: HttpRequest, sociallogin: SocialLogin) -> bool:
        email = verified_email(sociallogin)
        if email is None:
            raise ImmediateHttpResponse(_refuse(request, "unverified"))
        if not settings.RENSEI_OIDC_SIGN_UP and not invitations.is_expected(email):
            raise ImmediateHttpResponse(_refuse(request, "unknown", email=email))
        return True

    def populate_user(self, request: HttpRequest, sociallogin: SocialLogin, data: dict[str, Any]) -> User:
        user: User = sociallogin.user
        user.email = (data.get("email") or "").lower()
        name = str(data.get("name") or "").strip()[:NAME_LENGTH]
        user.name = name if name.isprintable() else ""
        return user

    def save_user(self, request: HttpRequest, sociallogin: SocialLogin, form: Any = None) -> User:
        user: User = super().save_user(request, sociallogin, form)
        invitations.accept_all(user, address=client_address(request))
        return user

    def on_authentication_error(
        self,
        request: HttpRequest,
        provider: Any,
        error: str | None = None,
        exception: Exception | None = None,
        extra_context: dict[str, Any] | None = None,
    ) -> None:
        """Log the kind of fault only, because the provider's answer may hold secrets."""
        logger.warning("single_sign_on_failed", error=error, fault=type(exception).__name__ if exception else None)


class CheckingAdapter(OpenIDConnectOAuth2Adapter):  # type: ignore[misc]
    """
    Checks the signature of every id token, and that it was made for the sign-in of this browser.

    OpenID Connect Core 3.1.3.7 lets a client rely on TLS instead of the signature, and the library does for a token
    that it has fetched itself. The check costs one request for the provider's keys, and also protects against an
    intermediary. The library sends and checks no nonce (2.1 and 3.1.3.7.11).
    """

    nonce = ""

    def get_access_token_data(self, *args: Any, **options: Any) -> Any:
        data = super().get_access_token_data(*args, **options)
        self.did_fetch_access_token = False
        return data

    def complete_login(self, request: HttpRequest, app: SocialApp, token: Any, **options: Any) -> SocialLogin:
        """:raises OAuth2Error: if there is no id token, or it is that of another sign-in"""
        login: SocialLogin = super().complete_login(request, app, token, **options)
        told = str((login.account.extra_data.get("id_token") or {}).get("nonce", ""))
        if not self.nonce or not hmac.compare_digest(told.encode(), self.nonce.encode()):
            raise OAuth2Error("The id token was made for another sign-in.")
        return login


class Callback(OAuth2CallbackView):  # type: ignore[misc]
    """Passes the adapter the nonce that is stored with the state of the sign-in, in the browser's session."""

    def _get_state(self, request: HttpRequest, provider: Any) -> tuple[dict[str, Any] | None, HttpResponse | None]:
        state, answer = super()._get_state(request, provider)
        self.adapter.nonce = str((state or {}).get("nonce", ""))
        return state, answer


def verified_email(sociallogin: SocialLogin) -> str | None:
    """Read the address that the provider declares as verified, in lower case."""
    claims = sociallogin.account.extra_data
    told = claims.get("userinfo") or claims.get("id_token") or {}
    # The specification requires a boolean, and some providers send a string.
    email = told.get("email")
    verified = told.get("email_verified") is True or told.get("email_verified") == "true"
    return str(email).lower() if email and verified else None


@login_not_required
@require_safe
@limit_sign_in("GET")
def begin(request: HttpRequest, provider_id: str) -> HttpResponse:
    """
    Redirect to the provider's own sign-in.

    This is a link and not a form, because the content security policy follows a form's redirects and would stop them
    at the provider. Another site must not start it unseen: a request that a browser marks so gets the sign-in page.
    """
    if request.headers.get("Sec-Fetch-Site") == "cross-site":
        return redirect("account_login")
    try:
        provider = get_adapter(request).get_provider(request, provider_id)
    except SocialApp.DoesNotExist as absent:
        raise Http404 from absent
    nonce = secrets.token_urlsafe(32)
    keep_for_a_while(request)
    try:
        answer: HttpResponse = provider.redirect(
            request,
            process=AuthProcess.LOGIN,
            next_url=get_next_redirect_url(request),
            auth_params={**provider.get_auth_params(), "nonce": nonce},
            nonce=nonce,
        )
    except RequestException as fault:
        answer = render_authentication_error(request, provider, exception=fault)
    return answer


@login_not_required
@require_safe
@limit_sign_in("GET")
def complete(request: HttpRequest, provider_id: str) -> HttpResponse:
    """Process the provider's answer, and sign the person in."""
    try:
        answer: HttpResponse = Callback.adapter_view(CheckingAdapter(request, provider_id))(request)
    except SocialApp.DoesNotExist as absent:
        raise Http404 from absent
    return answer


def _may_be_operator(user: User, claims: dict[str, Any] | None) -> bool:
    """Check whether a provider's statement, with the later steps, is sufficient for an operator."""
    issuer = str((claims or {}).get("iss", "")).rstrip("/")
    return second_factor.is_set_up(user) or bool(issuer and issuer == user.single_sign_on_issuer.rstrip("/"))


def _refuse(request: HttpRequest, reason: str, *, email: str = "") -> HttpResponse:
    return render(request, "socialaccount/refused.html", {"reason": reason, "email": email}, status=403)
