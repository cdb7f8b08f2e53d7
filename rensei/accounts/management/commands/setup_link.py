"""`manage.py setup_link`: print a new link to create the first account."""

from typing import Any

from django.core.management.base import BaseCommand, CommandError

from rensei.accounts import setup


class Command(BaseCommand):
    help = "Print a link under which the first account of this server is made. It works once and ends earlier ones."

    def handle(self, **options: Any) -> None:
        link = setup.link()
        if link is None:
            raise CommandError("There is an account here already, so there is nothing left to set up.")
        self.stdout.write(link)
