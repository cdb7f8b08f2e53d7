"""`manage.py create_org`: create an organization and its owner, and print an API token once."""

import json
import sys
from argparse import ArgumentParser
from typing import Any

from django.core.management.base import BaseCommand, CommandError

from rensei.accounts.people import create_org_with_owner
from rensei.core.errors import RenseiError
from rensei.core.secret import Secret
from rensei.orgs.access import for_member
from rensei.tokens.services import create_token


class Command(BaseCommand):
    help = "Create an organization, its owner's account where there is none, and an API token, which is shown once."

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("--name", required=True, help="such as Acme")
        parser.add_argument("--slug", required=True, help="its short name in addresses, such as acme")
        parser.add_argument("--owner", required=True, metavar="EMAIL", help="the owner's email address")
        parser.add_argument("--password-stdin", action="store_true", help="read a new owner's password from stdin")
        parser.add_argument("--json", action="store_true", help="print JSON")

    def handle(self, *, name: str, slug: str, owner: str, password_stdin: bool, **options: Any) -> None:
        password = Secret(sys.stdin.readline().rstrip("\r\n")) if password_stdin else None
        try:
            user, org = create_org_with_owner(name=name, slug=slug, owner_email=owner, password=password)
        except RenseiError as refusal:
            raise CommandError(refusal.detail) from refusal
        access = for_member(user=user, slug=org.slug)
        assert access is not None
        _, token = create_token(access, name="create_org")
        made = {"id": org.id, "slug": org.slug, "owner": user.email, "token": token.reveal()}
        if options["json"]:
            self.stdout.write(json.dumps(made))
            return
        self.stdout.write(f"Created {org.name} ({org.id}); its owner is {user.email}.")
        self.stdout.write(f"API token, shown only now: {made['token']}")
