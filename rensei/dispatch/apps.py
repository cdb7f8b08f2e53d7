from importlib import import_module

from django.apps import AppConfig
from django.db.models.signals import post_migrate


class DispatchConfig(AppConfig):
    name = "rensei.dispatch"
    label = "dispatch"

    def ready(self) -> None:
        from billing.ledger import capacity
        from integrations.capacity import CAPACITY
        from rensei.dispatch.decision_changes import install_triggers
        from rensei.dispatch.token_spending import count_before
        from rensei.tokens.signals import cap_made

        capacity.PROVIDER_NAMES.update({spec.id: spec.display_name for spec in CAPACITY.values()})
        cap_made.connect(count_before, dispatch_uid="dispatch.count_before")
        # The import registers its checks.
        import_module("rensei.dispatch.checks")
        post_migrate.connect(install_triggers, sender=self, dispatch_uid="dispatch.install_triggers")
