"""`manage.py audit_ledger`: recompute the ledger from its lines, and list all differences."""

import json
from argparse import ArgumentParser
from dataclasses import asdict
from typing import Any

from django.core.management.base import BaseCommand, CommandError

from billing.integrity.differences import Difference
from rensei.dispatch.settlement import audit


class Command(BaseCommand):
    help = "Compare attempts, charges, runs, holds, roll-ups and seals, exactly. Fails if anything differs."

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument(
            "--json", dest="as_json", action="store_true", help="write each difference as a JSON object on one line"
        )

    def handle(self, *, as_json: bool, **options: Any) -> None:
        def tell(difference: Difference) -> None:
            self.stdout.write(json.dumps(asdict(difference)) if as_json else str(difference))

        result = audit.audit(tell)

        if result.difference_count:
            raise CommandError(f"The ledger does not agree: {result.difference_count} difference(s).")
        if not as_json:
            self.stdout.write(f"Everything agrees ({result.seconds:.1f} s).")
