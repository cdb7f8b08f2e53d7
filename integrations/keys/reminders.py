"""Reminders of the age of keys: each organization sets for each key when, and is told once."""

from datetime import datetime

from django.conf import settings

from integrations.keys import health
from integrations.models import Integration
from rensei.audit.record import record_system
from rensei.core import jobs
from rensei.core.clock import database_now
from rensei.core.querysets import pages
from rensei.core.transactions import durable

BATCH = 100


def remind() -> None:
    """Mail owners and admins of each key that has reached its age. Replacing it, or another age, begins anew."""
    now = database_now()
    due = Integration.objects.filter(remind_at__lte=now, reminded_at=None, federation__isnull=True)
    for page in pages(due.only("pk"), size=BATCH):
        jobs.for_each([one.pk for one in page], lambda key: _remind_of(key, now=now), job="remind-of-old-keys")


def _remind_of(integration_id: str, *, now: datetime) -> None:
    # Two workers at once, or a key that was replaced meanwhile: the condition is met once.
    with durable():
        due = Integration.objects.filter(pk=integration_id, remind_at__lte=now, reminded_at=None)
        if not due.update(reminded_at=now):
            return
        integration = Integration.objects.select_related("org").defer("sealed_key").get(pk=integration_id)
        record_system("job", "integration.reminded", object_id=integration.pk, org_id=integration.org_id)
    org = integration.org
    health.mail_managers(
        org,
        f"Rensei: the key '{integration.name}' of {org.name} is {(now - integration.key_created_at).days} days old",
        f"The key '{integration.name}' ({integration.key_hint}) was stored on {integration.key_created_at:%Y-%m-%d}, "
        f"and you wanted to be reminded after {integration.remind_after_days} days. Make another key at the provider "
        "and store it here; calls that are under way end with the old one:\n\n"
        f"{settings.PUBLIC_URL}/o/{org.slug}/settings/integrations/{integration.pk}/rotate\n",
    )
