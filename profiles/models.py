"""Model profiles: the model, the allowed auth modes, and the effort."""

from django.db import models
from django.db.models import Q
from django.utils import timezone

from integrations.models import Integration
from rensei.orgs.models import Org, OrgScopedQuerySet, Project, User


class ModelProfile(models.Model):
    """
    A named way to call a model.

    `public_id` is `prof_` and the name in snake case, unique in the organization and frozen at creation.
    """

    class Scope(models.TextChoices):
        ORGANIZATION = "organization", "Organization"
        PROJECT = "project", "Project"

    class PromptCaching(models.TextChoices):
        EPHEMERAL = "ephemeral", "Ephemeral (5 minutes)"
        STATIC = "static", "Static (1 hour)"
        OFF = "off", "Off"

    org = models.ForeignKey(Org, models.CASCADE, related_name="profiles")
    public_id = models.CharField(max_length=80, editable=False)
    name = models.CharField(max_length=63)
    provider = models.CharField(max_length=32)
    model_id = models.CharField(max_length=128)
    auth_modes = models.JSONField(help_text="In order of preference")
    effort = models.CharField(max_length=8, blank=True)
    scope = models.CharField(max_length=16, choices=Scope.choices, default=Scope.ORGANIZATION)
    project = models.ForeignKey(Project, models.CASCADE, null=True, blank=True, related_name="profiles")
    integration = models.ForeignKey(Integration, models.PROTECT, null=True, blank=True, related_name="profiles")
    system = models.TextField(blank=True)
    max_tokens = models.PositiveIntegerField(null=True, blank=True)
    prompt_caching = models.CharField(max_length=16, choices=PromptCaching.choices, default=PromptCaching.EPHEMERAL)
    provider_config = models.JSONField(default=dict, blank=True)
    stored_bytes = models.PositiveBigIntegerField(default=0)
    is_default = models.BooleanField(default=False)
    created_by = models.ForeignKey(User, models.SET_NULL, null=True, blank=True, related_name="+")
    created_at = models.DateTimeField(default=timezone.now)
    updated_at = models.DateTimeField(default=timezone.now)

    objects = OrgScopedQuerySet.as_manager()

    class Meta:
        constraints = [
            models.UniqueConstraint(fields=["org", "public_id"], name="profile_id_in_org"),
            models.UniqueConstraint(
                fields=["org"], condition=Q(is_default=True, project=None), name="one_default_profile_per_org"
            ),
            models.UniqueConstraint(
                fields=["project"],
                condition=Q(is_default=True, project__isnull=False),
                name="one_default_profile_per_project",
            ),
            models.CheckConstraint(
                name="profile_project_fits_its_scope",
                condition=Q(scope="organization", project=None) | Q(scope="project", project__isnull=False),
            ),
        ]

    def __str__(self) -> str:
        return self.public_id
