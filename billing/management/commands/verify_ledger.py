"""`manage.py verify_ledger`: show that no line of the ledger was changed, moved or taken away since it was sealed."""

import json
from argparse import ArgumentParser
from dataclasses import asdict
from typing import Any

from django.core.management.base import BaseCommand, CommandError

from billing import verification
from billing.models import LedgerAnchor, LedgerSeal


class Command(BaseCommand):
    help = "Walk the ledger's seals and anchors, and name the first bad line of each organization."

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument(
            "--json", dest="as_json", action="store_true", help="write each difference as a JSON object on one line"
        )

    def handle(self, *, as_json: bool, **options: Any) -> None:
        count = 0
        for difference in verification.differences():
            count += 1
            self.stdout.write(json.dumps(asdict(difference)) if as_json else str(difference))
        if count:
            raise CommandError(f"The ledger differs from its seals: {count} difference(s).")
        if not as_json:
            sealed, signed = LedgerSeal.objects.count(), LedgerAnchor.objects.count()
            self.stdout.write(f"{sealed} sealed line(s) and {signed} anchor(s): nothing was changed.")
