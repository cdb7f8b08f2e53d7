import importlib

from django.apps import AppConfig


class OrgsConfig(AppConfig):
    name = "rensei.orgs"
    label = "orgs"

    def ready(self) -> None:
        # Importing them registers them.
        for module in ("account_events", "checks", "openapi"):
            importlib.import_module(f"rensei.orgs.{module}")
