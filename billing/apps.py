from django.apps import AppConfig

from rensei.orgs.signals import org_created


class BillingConfig(AppConfig):
    name = "billing"
    label = "billing"

    def ready(self) -> None:
        # Django does not allow importing models earlier.
        from billing.limits.entitlement import create_entitlement

        org_created.connect(create_entitlement, dispatch_uid="billing.create_entitlement")
