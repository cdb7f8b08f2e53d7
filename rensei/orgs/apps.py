import importlib

from django.apps import AppConfig


class OrgsConfig(AppConfig):
    name = "rensei.orgs"
    label = "orgs"

    def ready(self) -> None:
        # Importing it registers it.
        importlib.import_module("rensei.orgs.openapi")
