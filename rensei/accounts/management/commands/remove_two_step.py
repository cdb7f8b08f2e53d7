"""`manage.py remove_two_step`: restore access after the loss of an authenticator and its recovery codes."""

from argparse import ArgumentParser
from typing import Any

from django.core.management.base import BaseCommand, CommandError

from rensei.accounts import second_factor
from rensei.orgs.models import User


class Command(BaseCommand):
    help = (
        "Remove a person's two-step sign-in. Their password alone lets them in afterwards: make sure that it is them."
    )

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("email", help="the person's email address")

    def handle(self, *, email: str, **options: Any) -> None:
        user = User.objects.filter(email=email.strip().lower()).first()
        if user is None:
            raise CommandError(f"No account has the address {email}.")
        if not second_factor.remove(user, actor="manage.py remove_two_step"):
            raise CommandError(f"{user.email} has no two-step sign-in.")
        self.stdout.write(f"{user.email} signs in with the password alone now.")
