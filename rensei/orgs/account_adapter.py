"""How sign-in behaves: nobody signs up by themselves, people are invited."""

from allauth.account.adapter import DefaultAccountAdapter
from django.http import HttpRequest

from rensei.orgs.authentication import client_address


class AccountAdapter(DefaultAccountAdapter):  # type: ignore[misc]
    def is_open_for_signup(self, request: HttpRequest) -> bool:
        return False

    def get_client_ip(self, request: HttpRequest) -> str:
        """Tell whom a rate limit counts: behind a proxy, everybody would otherwise be the same one."""
        return client_address(request) or ""
