"""Rules of sign-in: no self-service sign-up, people are invited."""

from types import SimpleNamespace
from typing import Any
from urllib.parse import urlsplit

from allauth.account.adapter import DefaultAccountAdapter
from allauth.core import context as library
from django.conf import settings
from django.contrib.auth import authenticate
from django.contrib.auth.base_user import AbstractBaseUser
from django.http import HttpRequest, HttpResponse
from django.urls import reverse

from rensei.accounts import known_browsers, sign_in_tries
from rensei.core.proxies import client_address
from rensei.core.transactions import leave_database
from rensei.orgs.models import User

# Over a socket file, callers have no address.
NO_ADDRESS = "0.0.0.0"  # noqa: S104 – a placeholder, on which nothing listens


class AccountAdapter(DefaultAccountAdapter):  # type: ignore[misc]
    def authenticate(self, request: HttpRequest, **credentials: Any) -> AbstractBaseUser | None:
        """Check a password, with equal work for existing and unknown accounts."""
        email = str(credentials.get("email", "")).strip().lower()
        tried = sign_in_tries.begin(request, email=email)
        if not tried.is_allowed:
            raise self.validation_error("too_many_login_attempts")
        user = authenticate(request, **{**credentials, "email": email})
        if user is not None:
            sign_in_tries.take_back(tried)
        return user

    def post_login(self, request: HttpRequest, user: User, **options: Any) -> HttpResponse:
        response: HttpResponse = super().post_login(request, user, **options)
        known_browsers.remember(request, response, email=user.email)
        return response

    def set_password(self, user: User, password: str) -> None:
        super().set_password(user, password)
        sign_in_tries.forgive(library.request, email=user.email)

    def is_open_for_signup(self, request: HttpRequest) -> bool:
        return False

    def get_client_ip(self, request: HttpRequest) -> str:
        """Return the address that rate limits count: behind a proxy, all callers would otherwise have the same one."""
        return client_address(request) or NO_ADDRESS

    def get_password_change_redirect_url(self, request: HttpRequest) -> str:
        return reverse("account")

    def send_mail(self, template_prefix: str, email: str, context: dict[str, Any]) -> None:
        """
        Send a mail whose links lead to the public address.

        The library builds them from the `Host` header, so the sender of a request could choose where the links of
        a mail to another person lead.
        """
        # A mail without a request contains no link built from one.
        asked_at = library.request.build_absolute_uri("/") if library.request is not None else None
        public = {
            name: _moved(value, asked_at) if asked_at and isinstance(value, str) else value
            for name, value in context.items()
        }
        host = urlsplit(settings.PUBLIC_URL).netloc
        leave_database()
        super().send_mail(template_prefix, email, {**public, "current_site": SimpleNamespace(name=host, domain=host)})

    def format_email_subject(self, subject: str) -> str:
        return f"[{urlsplit(settings.PUBLIC_URL).netloc}] {subject}"


def _moved(text: str, asked_at: str) -> str:
    return f"{settings.PUBLIC_URL}/{text.removeprefix(asked_at)}" if text.startswith(asked_at) else text
