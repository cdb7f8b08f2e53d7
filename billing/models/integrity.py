"""The seals of ledger lines and audit events, their anchors, and the witnesses that keep them."""

from django.db import models
from django.db.models import Q

from rensei.orgs.models import Org, OrgScopedQuerySet


class LineToSeal(models.Model):
    """A ledger line without a seal. A trigger writes it in the line's own transaction, so none is missed."""

    event_id = models.CharField(max_length=40, primary_key=True)

    def __str__(self) -> str:
        return self.event_id


class LedgerSeal(models.Model):
    """
    One link of an organization's chain over its ledger lines. Links are added, never changed.

    `digest` covers the line, its place and the previous digest. The line's id is not a foreign key, so the seal of a
    deleted line remains as evidence.
    """

    org = models.ForeignKey(Org, models.PROTECT, related_name="seals")
    seq = models.PositiveBigIntegerField()
    event_id = models.CharField(max_length=40, unique=True)
    digest = models.CharField(max_length=64)
    sealed_at = models.DateTimeField()

    objects = OrgScopedQuerySet.as_manager()

    class Meta:
        constraints = [models.UniqueConstraint(fields=["org", "seq"], name="one_seal_per_place")]

    def __str__(self) -> str:
        return f"{self.org_id} {self.seq}"


class EventToSeal(models.Model):
    """An audit event without a seal. A trigger writes it in the event's own transaction."""

    event_id = models.BigIntegerField(primary_key=True)

    def __str__(self) -> str:
        return str(self.event_id)


class AuditSeal(models.Model):
    """
    One link of the chain over the audit events of all organizations. Links are added, never changed.

    `digest` covers the event, its place and the previous digest. The event's id is not a foreign key, as in
    `LedgerSeal`.
    """

    seq = models.PositiveBigIntegerField(unique=True)
    event_id = models.BigIntegerField(unique=True)
    digest = models.CharField(max_length=64)
    sealed_at = models.DateTimeField()

    def __str__(self) -> str:
        return str(self.seq)


class LedgerAnchor(models.Model):
    """
    The signed end of a chain at one moment: the number of sealed rows is `seq`, with the last digest.

    An anchor with an organization covers that organization's ledger, one without covers the audit log.
    All anchors form one chain, across those chains: `counter` is the number of an anchor, and `previous` is the
    digest of the previous anchor. Anchors signed before this chain was introduced have neither.

    `next_key` is the id of the key that signs from the next anchor on, where this one hands over to another key, and
    `old_key_known` says that others know the key that signed this one.
    """

    counter = models.PositiveBigIntegerField(null=True, unique=True)
    previous = models.CharField(max_length=64, blank=True)
    org = models.ForeignKey(Org, models.PROTECT, null=True, related_name="ledger_anchors")
    seq = models.PositiveBigIntegerField()
    digest = models.CharField(max_length=64)
    anchored_at = models.DateTimeField()
    signature = models.CharField(max_length=64)
    next_key = models.CharField(max_length=32, blank=True, default="", db_default="")
    old_key_known = models.BooleanField(default=False, db_default=False, editable=False)

    objects = OrgScopedQuerySet.as_manager()

    class Meta:
        constraints = [
            models.UniqueConstraint(fields=["org", "seq"], name="one_anchor_per_place"),
            # A hand-over is one more anchor at a place.
            models.UniqueConstraint(
                fields=["seq"], condition=Q(org=None, next_key=""), name="one_audit_anchor_per_place"
            ),
        ]
        # Which key signs is read for each receipt, and hand-overs are few among many anchors.
        indexes = [models.Index(fields=["next_key", "counter"], name="anchor_hand_over")]

    def __str__(self) -> str:
        return f"{self.org_id or 'audit'} {self.seq}"


class LedgerWitness(models.Model):
    """Which anchors an outside witness has received. It is no evidence: only what the witness itself holds is."""

    name = models.CharField(max_length=300, primary_key=True)
    counter = models.PositiveBigIntegerField(default=0)
    told_at = models.DateTimeField(null=True)
    last_error = models.CharField(max_length=200, blank=True)

    class Meta:
        verbose_name_plural = "ledger witnesses"

    def __str__(self) -> str:
        return self.name
