from importlib import import_module

from django.apps import AppConfig
from django.db.backends.signals import connection_created


class CoreConfig(AppConfig):
    name = "rensei.core"
    label = "core"

    def ready(self) -> None:
        from rensei.core.whole_numbers import add_functions

        # The import registers its check.
        import_module("rensei.core.checks")
        connection_created.connect(add_functions, dispatch_uid="core.add_functions")
