"""`manage.py load_catalog`: update the catalog from the data files, and print the changes."""

from typing import Any

from django.core.management.base import BaseCommand, CommandError

from catalog.datafile import DataFileInvalid
from catalog.services import load_catalog


class Command(BaseCommand):
    help = "Load the models and prices of catalog/data/*.json. Safe to run at every start."

    def handle(self, *args: Any, **options: Any) -> None:
        try:
            report = load_catalog()
        except DataFileInvalid as fault:
            raise CommandError(str(fault)) from fault

        for model_id in report.created:
            self.stdout.write(f"added   {model_id}")
        for model_id, fields in report.updated.items():
            self.stdout.write(f"changed {model_id}: {', '.join(fields)}")
        for model_id, days in report.priced.items():
            self.stdout.write(f"priced  {model_id} from {', '.join(days)}")
        self.stdout.write(f"{report.total} models in the catalog's data{'' if report.changed else ', all up to date'}.")
