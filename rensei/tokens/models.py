from django.db import models
from django.db.models import Value
from django.utils import timezone

from rensei.core.ids import PublicIdField
from rensei.orgs.models import Host, Membership, Org, OrgScopedQuerySet, Project, User


class ApiToken(models.Model):
    """
    A program's credential for one organization and member, optionally one project and machine.

    Only the SHA-256 of the token is stored: it is 256 random bits, so a slow hash would add nothing. `scopes` are those
    of `rensei.orgs.scopes`; `made_by` is the token that made this one, with which it ends, and `generation` counts the
    tokens before it in that chain. An empty list of networks allows any.
    """

    id = PublicIdField(prefix="tok")
    org = models.ForeignKey(Org, models.CASCADE, related_name="tokens")
    membership = models.ForeignKey(Membership, models.CASCADE, related_name="tokens")
    project = models.ForeignKey(Project, models.CASCADE, null=True, blank=True, related_name="tokens")
    host = models.ForeignKey(Host, models.CASCADE, null=True, blank=True, related_name="tokens")
    name = models.CharField(max_length=120)
    digest = models.CharField(max_length=64, unique=True, editable=False)
    hint = models.CharField(max_length=8, editable=False)
    scopes = models.JSONField(default=list)
    allowed_networks = models.JSONField(default=list, blank=True)
    # The ids of the caps that hold for the token's runs: its own, and those of the tokens that it was made with.
    caps = models.JSONField(default=list, blank=True, editable=False, db_default=Value([], models.JSONField()))
    made_by = models.ForeignKey("self", models.CASCADE, null=True, blank=True, related_name="made")
    generation = models.PositiveSmallIntegerField(default=0, editable=False)
    created_at = models.DateTimeField(default=timezone.now)
    expires_at = models.DateTimeField(null=True, blank=True)
    last_used_at = models.DateTimeField(null=True, blank=True)
    last_used_address = models.GenericIPAddressField(null=True, blank=True)
    revoked_at = models.DateTimeField(null=True, blank=True)
    # When it was first found in a run's input or output.
    leaked_at = models.DateTimeField(null=True, blank=True, editable=False)

    objects = OrgScopedQuerySet.as_manager()

    class Meta:
        verbose_name = "API token"

    def __str__(self) -> str:
        return f"{self.name} (…{self.hint})"


class DeviceCode(models.Model):
    """
    A machine's request to sign in, until a person approves it in a browser (RFC 8628).

    Both codes are stored as hashes. No token exists until the machine fetches it, which it can do once.
    """

    class State(models.TextChoices):
        PENDING = "PENDING", "Waiting for a person"
        APPROVED = "APPROVED", "Approved"
        DENIED = "DENIED", "Denied"
        USED = "USED", "Token handed out"

    device_digest = models.CharField(max_length=64, unique=True)
    user_digest = models.CharField(max_length=64, unique=True)
    host_name = models.CharField(max_length=120)
    address = models.GenericIPAddressField(null=True, help_text="Where the machine asked from")
    state = models.CharField(max_length=16, choices=State.choices, default=State.PENDING)
    approved_by = models.ForeignKey(User, models.CASCADE, null=True, related_name="+")
    org = models.ForeignKey(Org, models.CASCADE, null=True, related_name="+")
    created_at = models.DateTimeField()
    expires_at = models.DateTimeField(db_index=True)

    objects = OrgScopedQuerySet.as_manager()

    def __str__(self) -> str:
        return self.host_name
