from django.db import models
from django.db.models import Q

from rensei.core.ids import PublicIdField
from rensei.orgs.models import Org, OrgScopedQuerySet, Role, User
from rensei.tokens.models import ApiToken


class Invitation(models.Model):
    """
    An invitation of an address to an organization, until it is accepted by the link that was mailed there.

    Only the SHA-256 of the link's secret is stored. A new link ends the earlier one.
    """

    id = PublicIdField(prefix="inv")
    org = models.ForeignKey(Org, models.CASCADE, related_name="invitations")
    email = models.EmailField()
    role = models.CharField(max_length=16, choices=Role.choices)
    digest = models.CharField(max_length=64, unique=True, editable=False)
    mailed = models.BooleanField(default=False, help_text="Whether the link was sent to the address only")
    invited_by = models.ForeignKey(User, models.SET_NULL, null=True, related_name="+")
    made_by = models.ForeignKey(ApiToken, models.SET_NULL, null=True, blank=True, related_name="invitations")
    created_at = models.DateTimeField()
    expires_at = models.DateTimeField()
    accepted_at = models.DateTimeField(null=True, blank=True)
    accepted_by = models.ForeignKey(User, models.SET_NULL, null=True, blank=True, related_name="+")
    revoked_at = models.DateTimeField(null=True, blank=True)

    objects = OrgScopedQuerySet.as_manager()

    class Meta:
        constraints = [
            models.UniqueConstraint(
                fields=["org", "email"],
                condition=Q(accepted_at=None, revoked_at=None),
                name="one_open_invitation_per_address",
            )
        ]

    def __str__(self) -> str:
        return self.email
