"""`manage.py export_ledger`: write an organization's ledger, or the audit log, so that others can verify it."""

from argparse import ArgumentParser
from typing import Any

from django.core.management.base import BaseCommand, CommandError

from billing.integrity import sealed_export
from billing.integrity.chains import AUDIT, LEDGER
from rensei.orgs.models import Org


class Command(BaseCommand):
    help = (
        "Write the sealed lines of an organization's ledger, or all sealed audit events, with their seals and anchors. "
        "`python -m billing.integrity.sealed_file FILE --witness ANCHORS` verifies it without the database."
    )

    def add_arguments(self, parser: ArgumentParser) -> None:
        which = parser.add_mutually_exclusive_group(required=True)
        which.add_argument("--org", metavar="SLUG", help="the ledger of this organization")
        which.add_argument("--audit", action="store_true", help="the audit events of all organizations")

    def handle(self, *, org: str | None, audit: bool, **options: Any) -> None:
        if audit:
            lines = sealed_export.write(AUDIT, None)
        else:
            found = Org.objects.filter(slug=org).first()
            if found is None:
                raise CommandError(f"There is no organization {org}.")
            lines = sealed_export.write(LEDGER, found.pk)
        for line in lines:
            self.stdout.write(line, ending="")
