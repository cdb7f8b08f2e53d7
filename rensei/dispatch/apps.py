from importlib import import_module

from django.apps import AppConfig
from django.db.models.signals import post_migrate


class DispatchConfig(AppConfig):
    name = "rensei.dispatch"
    label = "dispatch"

    def ready(self) -> None:
        from rensei.dispatch.decision_changes import install_triggers

        # The import registers its checks.
        import_module("rensei.dispatch.checks")
        post_migrate.connect(install_triggers, sender=self, dispatch_uid="dispatch.install_triggers")
