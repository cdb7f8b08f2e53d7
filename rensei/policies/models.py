from django.db import models
from django.db.models import Q
from django.utils import timezone

from rensei.orgs.models import Org, OrgScopedQuerySet, Project


class AccessPolicy(models.Model):
    """
    The auth modes that the system, an organization or a project allows, as the stored document.

    `matrix` is `{"<modelId | provider | *>": {"<mode>": {"allowed": true | false}}}`.
    """

    class Scope(models.TextChoices):
        SYSTEM = "system", "System"
        ORGANIZATION = "organization", "Organization"
        PROJECT = "project", "Project"

    scope = models.CharField(max_length=16, choices=Scope.choices)
    org = models.ForeignKey(Org, models.CASCADE, null=True, blank=True, related_name="access_policies")
    project = models.ForeignKey(Project, models.CASCADE, null=True, blank=True, related_name="access_policies")
    matrix = models.JSONField(default=dict, blank=True)
    updated_at = models.DateTimeField(default=timezone.now)

    objects = OrgScopedQuerySet.as_manager()

    class Meta:
        verbose_name_plural = "access policies"
        constraints = [
            models.UniqueConstraint(fields=["scope"], condition=Q(scope="system"), name="one_system_policy"),
            models.UniqueConstraint(fields=["org"], condition=Q(scope="organization"), name="one_policy_per_org"),
            models.UniqueConstraint(fields=["project"], condition=Q(scope="project"), name="one_policy_per_project"),
            models.CheckConstraint(
                name="policy_owner_fits_its_scope",
                condition=Q(scope="system", org=None, project=None)
                | Q(scope="organization", org__isnull=False, project=None)
                | Q(scope="project", org__isnull=False, project__isnull=False),
            ),
        ]

    def __str__(self) -> str:
        return f"{self.scope} policy {self.org_id or ''} {self.project_id or ''}".strip()
