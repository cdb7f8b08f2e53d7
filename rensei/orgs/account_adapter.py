"""How sign-in behaves: nobody signs up by themselves, people are invited."""

from allauth.account.adapter import DefaultAccountAdapter
from django.http import HttpRequest
from django.urls import reverse

from rensei.orgs.authentication import client_address

# Over a socket file, callers have no address.
NO_ADDRESS = "0.0.0.0"  # noqa: S104 – it names nobody, and nothing listens on it


class AccountAdapter(DefaultAccountAdapter):  # type: ignore[misc]
    def is_open_for_signup(self, request: HttpRequest) -> bool:
        return False

    def get_client_ip(self, request: HttpRequest) -> str:
        """Tell whom a rate limit counts: behind a proxy, everybody would otherwise be the same one."""
        return client_address(request) or NO_ADDRESS

    def get_password_change_redirect_url(self, request: HttpRequest) -> str:
        return reverse("account")
