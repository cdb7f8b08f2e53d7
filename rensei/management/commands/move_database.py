"""`manage.py move_database`: move an installation from SQLite to PostgreSQL."""

from argparse import ArgumentParser
from typing import Any

from django.core.management.base import BaseCommand, CommandError

from rensei import database_move


class Command(BaseCommand):
    help = "Move everything from an SQLite database into the empty PostgreSQL database that DATABASE_URL names."

    # It checks the two databases itself, and the checks of models and addresses would only cost a second.
    requires_system_checks = ()

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("--from", dest="source", required=True, metavar="URL", help="such as sqlite:///var/…")

    def handle(self, *, source: str, **options: Any) -> None:
        try:
            moved = database_move.move(source, tell=self.stdout.write)
        except database_move.MoveRefused as refusal:
            raise CommandError(f"{refusal}\nNothing was moved.") from refusal
        for each in moved.unusable:
            self.stdout.write(f"A stored key cannot be used, nor could it before: {each}")
        self.stdout.write(f"Moved {moved.rows} row(s) of {len(moved.tables)} tables. The source is as it was.")
