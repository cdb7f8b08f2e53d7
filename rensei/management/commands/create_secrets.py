"""`manage.py create_secrets`: the secrets of an installation of several containers, each in a file of its own."""

import secrets
from argparse import ArgumentParser
from pathlib import Path
from typing import Any
from urllib.parse import quote

from django.core.management.base import BaseCommand, CommandError

from billing.integrity import anchor_keys
from integrations.vault import keyring
from rensei import launcher
from rensei.core import private_files


class Command(BaseCommand):
    help = "Write SECRET_KEY, the vault's keyring, the anchor key and the database's password into a folder, once."
    requires_system_checks = ()

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("folder", type=Path)
        parser.add_argument("--database-host", default="postgres", help="default: %(default)s, as in compose.yaml")

    def handle(self, *, folder: Path, database_host: str, **options: Any) -> None:
        """Write all of them or none: a second keyring or password would not decrypt what the first one encrypted."""
        folder.mkdir(parents=True, exist_ok=True)
        if any(folder.iterdir()):
            raise CommandError(f"{folder} is not empty. Secrets are made once, and never replaced.")
        password = secrets.token_urlsafe(32)
        launcher.create_secret_key(folder / "secret_key")
        keyring.create(folder / "keyring.json")
        anchor_keys.create(folder / "ledger_anchor.key")
        private_files.create(folder / "postgres_password", password)
        private_files.create(
            folder / "database_url", f"postgres://rensei:{quote(password)}@{database_host}:5432/rensei"
        )
        self.stdout.write(
            f"Made {', '.join(sorted(path.name for path in folder.iterdir()))} in {folder}. Back them up."
        )
