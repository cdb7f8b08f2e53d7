"""`manage.py prepare`: everything that is required before the processes of this release may start."""

from argparse import ArgumentParser
from typing import Any

from django.core.management import call_command
from django.core.management.base import BaseCommand, CommandError

from catalog.datafile import DataFileInvalid
from catalog.services import load_catalog
from integrations.vault import kek_providers, keyring
from rensei import demo as demo_data
from rensei import static_files


class Command(BaseCommand):
    help = "Bring the database, the catalog, the vault's keyring and the static files up to date. Safe to repeat."
    # The checks of the models and addresses run in the processes that serve; here they would only cost a second.
    requires_system_checks = ()

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("--static-only", action="store_true", help="only collect the static files, for an image")
        parser.add_argument("--demo", action="store_true", help="add the demo's data, and dispatch its first run")

    def handle(self, *, demo: bool, static_only: bool, **options: Any) -> None:
        if static_only:
            static_files.collect()
            return
        call_command("migrate", interactive=False, skip_checks=True, verbosity=0)
        self._load_catalog()
        for path in kek_providers.keyring_paths():
            if keyring.ensure(path):
                self.stdout.write(f"Made a new vault keyring: {path}. Back it up with the database.")
        static_files.collect()
        if demo:
            self._add_demo_data()

    def _load_catalog(self) -> None:
        try:
            report = load_catalog()
        except DataFileInvalid as fault:
            raise CommandError(str(fault)) from fault
        news = {"added": report.created, "changed": report.updated, "priced": report.priced}
        counts = ", ".join(f"{len(models)} {what}" for what, models in news.items() if models)
        self.stdout.write(f"Catalog: {report.total} models, {counts or 'all up to date'}.")

    def _add_demo_data(self) -> None:
        shown_once = demo_data.create()
        for email, password in shown_once.passwords.items():
            self.stdout.write(f"Password of {email}: {password}")
        if shown_once.token:
            self.stdout.write(f"API token of {demo_data.OWNER}: {shown_once.token.reveal()}")
        if shown_once.passwords or shown_once.token:
            self.stdout.write("These are shown only now: Rensei keeps no readable copy of them.")
