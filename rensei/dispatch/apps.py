from importlib import import_module

from django.apps import AppConfig


class DispatchConfig(AppConfig):
    name = "rensei.dispatch"
    label = "dispatch"

    def ready(self) -> None:
        # The import registers its checks.
        import_module("rensei.dispatch.checks")
