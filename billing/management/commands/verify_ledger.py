"""`manage.py verify_ledger`: show that no line of the ledger was changed, moved or taken away since it was sealed."""

import json
from argparse import ArgumentParser
from dataclasses import asdict
from pathlib import Path
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

        parser.add_argument(
            "--witness",
            dest="witnesses",
            action="append",
            type=Path,
            default=[],
            metavar="FILE",
            help="a file of anchors as a witness holds them, one JSON object a line; may be repeated",
        )

    def handle(self, *, as_json: bool, witnesses: list[Path], **options: Any) -> None:
        if missing := [str(path) for path in witnesses if not path.is_file()]:
            raise CommandError(f"There is no file {', '.join(missing)}.")
        count = 0
        for difference in verification.differences(witnesses):
            count += 1
            self.stdout.write(json.dumps(asdict(difference)) if as_json else str(difference))
        if count:
            raise CommandError(f"The ledger differs from its seals: {count} difference(s).")
        if not as_json:
            sealed, signed = LedgerSeal.objects.count(), LedgerAnchor.objects.count()
            self.stdout.write(f"{sealed} sealed line(s) and {signed} anchor(s): nothing was changed.")
            for sentence in verification.vouchers():
                self.stdout.write(sentence)
