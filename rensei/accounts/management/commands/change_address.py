"""`manage.py change_address`: give a person's account another email address."""

from argparse import ArgumentParser
from typing import Any

from django.core.management.base import BaseCommand, CommandError

from rensei.accounts.people import change_address
from rensei.core.errors import RenseiError
from rensei.orgs.models import User


class Command(BaseCommand):
    help = (
        "Change the address with which a person signs in. Links to reset the password go to the new one afterwards: "
        "make sure that it is theirs. The earlier address is told by mail."
    )

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("email", help="the address of the account")
        parser.add_argument("new", help="the new address")

    def handle(self, *, email: str, new: str, **options: Any) -> None:
        user = User.objects.filter(email=email.strip().lower()).first()
        if user is None:
            raise CommandError(f"No account has the address {email}.")
        try:
            change_address(user, email=new, actor="manage.py change_address")
        except RenseiError as refusal:
            raise CommandError(refusal.detail) from refusal
        except OSError as fault:
            raise CommandError(
                f"Nothing was changed, as {user.email} could not be told by mail "
                f"({type(fault).__name__}). See EMAIL_URL."
            ) from fault
        self.stdout.write(f"The account of {email} has the address {new.strip().lower()} now.")
