"""`manage.py verify_ledger`: check that no ledger line or audit event was changed or deleted since it was sealed."""

import json
from argparse import ArgumentParser
from dataclasses import asdict
from pathlib import Path
from typing import Any

from django.core.management.base import BaseCommand, CommandError

from billing.integrity import verification, vouching
from billing.models import AuditSeal, LedgerAnchor, LedgerSeal


class Command(BaseCommand):
    help = "Walk the seals and anchors of the ledger and the audit log, and name the first bad row of each chain."

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
            raise CommandError(f"The ledger or the audit log differs from its seals: {count} difference(s).")
        if not as_json:
            lines, events, signed = (each.objects.count() for each in (LedgerSeal, AuditSeal, LedgerAnchor))
            self.stdout.write(
                f"{lines} sealed line(s), {events} sealed audit event(s) and {signed} anchor(s): nothing was changed."
            )
            for sentence in vouching.sentences(witnesses):
                self.stdout.write(sentence)
