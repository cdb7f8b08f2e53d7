from typing import Any, Protocol, Self

from django.db import models
from django.utils import timezone


class Organization(Protocol):
    """The part of an organization that its events use."""

    pk: Any


class AuditEventQuerySet(models.QuerySet[Any]):
    """Reads an organization's events through `for_org`."""

    def for_org(self, org: Organization) -> Self:
        return self.filter(org_id=org.pk)


class AuditEvent(models.Model):
    """
    Who did what to which object, from where. Written in the transaction of the change; never a secret.

    Events are added, never changed, and sealed by `billing.integrity.seals`. An event stores the plain ids of its
    organization and its person, which remain when those are deleted.
    """

    org_id = models.CharField(max_length=40, null=True, blank=True)  # noqa: DJ001 – null: no organization's
    user_id = models.BigIntegerField(null=True, blank=True)
    actor = models.CharField(max_length=254, help_text="Email of the person, or the command that acted")
    token_id = models.CharField(max_length=40, blank=True)
    action = models.CharField(max_length=64, help_text="noun.verb, such as integration.rotated")
    object_id = models.CharField(max_length=128)
    detail = models.JSONField(default=dict)
    address = models.GenericIPAddressField(null=True, blank=True)
    occurred_at = models.DateTimeField(default=timezone.now)

    objects = AuditEventQuerySet.as_manager()

    class Meta:
        indexes = [models.Index(fields=["org_id", "-id"], name="audit_by_org")]

    def __str__(self) -> str:
        return f"{self.action} {self.object_id}"
