"""Connected providers, the platform's key pools, and what operators approved for them."""

from collections.abc import Collection
from datetime import datetime

from django.db import models
from django.db.models import Q, Value
from django.utils import timezone

from rensei.core.errors import StoredError
from rensei.core.ids import PublicIdField
from rensei.orgs.models import Org, OrgScopedQuerySet, User


class DefaultAddress(models.Model):
    """The address to which a provider's keys without a base URL of their own may be sent, as operators approved it."""

    provider = models.CharField(max_length=32, primary_key=True)
    base_url = models.CharField(max_length=300)
    approved_at = models.DateTimeField(default=timezone.now)

    class Meta:
        verbose_name_plural = "default addresses"

    def __str__(self) -> str:
        return f"{self.provider}: {self.base_url}"


class BreakGlass(models.Model):
    """
    What one operator asks for, and another one has to approve: an export of a key, or another default address.

    `target` is the id of the key, or the address. A request is used once; it never holds a key.
    """

    class Kind(models.TextChoices):
        EXPORT = "export", "Export a key"
        ADDRESS = "address", "Change the default address"

    id = PublicIdField(prefix="glass")
    kind = models.CharField(max_length=16, choices=Kind.choices)
    target = models.CharField(max_length=300)
    org = models.ForeignKey(Org, models.CASCADE, null=True, blank=True, related_name="+")
    provider = models.CharField(max_length=32)
    reason = models.CharField(max_length=500)
    asked_by = models.ForeignKey(User, models.SET_NULL, null=True, blank=True, related_name="+")
    asked_at = models.DateTimeField()
    approved_by = models.ForeignKey(User, models.SET_NULL, null=True, blank=True, related_name="+")
    approved_at = models.DateTimeField(null=True, blank=True)
    used_at = models.DateTimeField(null=True, blank=True)
    withdrawn_at = models.DateTimeField(null=True, blank=True)

    class Meta:
        verbose_name = "break-glass request"
        indexes = [models.Index(fields=["-asked_at"], name="break_glass_by_time")]

    def __str__(self) -> str:
        return f"{self.get_kind_display()}: {self.target}"


class Integration(models.Model):
    """
    A provider connected by an organization with its own key, or by an identity that the provider trusts.

    `status` is for information and blocks nothing. `model_list` is the provider's own list at the last successful test,
    as `[{"id", "displayName"}]`. `sealed_key` opens only for this row, version, provider, base URL and workspace.
    Without a stored key, it seals the ids of the federation, and `federation` shows them to people: a person who can
    only write to the database cannot direct the organization's calls to another account.
    """

    class Status(models.TextChoices):
        UNTESTED = "untested", "Untested"
        OK = "ok", "Working"
        FAILING = "failing", "Failing"

    id = PublicIdField(prefix="int")
    org = models.ForeignKey(Org, models.CASCADE, related_name="integrations")
    provider = models.CharField(max_length=32)
    name = models.CharField(max_length=120)
    sealed_key = models.BinaryField()
    secret_version = models.PositiveIntegerField(default=1)
    key_hint = models.CharField(max_length=40)
    federation: "models.JSONField[dict[str, str] | None, dict[str, str] | None]" = models.JSONField(
        null=True, blank=True, help_text="The ids at the provider by which it knows this server's identity; no secret"
    )
    fingerprint = models.CharField(max_length=64)
    # The version of the fingerprints' key.
    fingerprint_version = models.PositiveIntegerField(default=1)
    base_url = models.CharField(max_length=300, blank=True)
    workspace_id = models.CharField(max_length=120, blank=True)
    is_default = models.BooleanField(default=False)
    status = models.CharField(max_length=16, choices=Status.choices, default=Status.UNTESTED)
    tested_at = models.DateTimeField(null=True, blank=True)
    last_error: "models.JSONField[StoredError | None, StoredError | None]" = models.JSONField(
        null=True, blank=True, help_text="{code, detail, fix} of the last failure"
    )
    model_list = models.JSONField(default=list, blank=True)
    last_used_at = models.DateTimeField(null=True, blank=True)
    created_by = models.ForeignKey(User, models.SET_NULL, null=True, blank=True, related_name="+")
    created_at = models.DateTimeField(default=timezone.now)
    # When the present key was stored. Its owners are reminded of its age once, at `remind_at`.
    key_created_at = models.DateTimeField(default=timezone.now)
    remind_after_days = models.PositiveSmallIntegerField(null=True, blank=True)
    remind_at = models.DateTimeField(null=True, blank=True)
    reminded_at = models.DateTimeField(null=True, blank=True)
    # When the present key was first found in a run's input or output.
    leaked_at = models.DateTimeField(null=True, blank=True)

    # Set by `openings_kept.add_to`.
    last_opened_at: datetime | None
    opened_this_month: int

    objects = OrgScopedQuerySet.as_manager()

    # The fingerprints of a key that was sealed just now, by each version of their key: set by `credentials.seal_key`.
    fingerprints: Collection[str] = ()

    class Meta:
        constraints = [
            models.UniqueConstraint(fields=["org", "provider", "name"], name="integration_name_in_org"),
            models.UniqueConstraint(fields=["org", "fingerprint"], name="one_integration_per_key"),
            models.UniqueConstraint(
                fields=["org", "provider"], condition=Q(is_default=True), name="one_default_integration"
            ),
        ]
        indexes = [
            models.Index(fields=["remind_at"], condition=Q(reminded_at=None), name="integration_to_remind_of"),
        ]

    def __str__(self) -> str:
        return f"{self.name} ({self.key_hint})"

    @property
    def key_stored_at(self) -> datetime | None:
        """When the key was stored; None if there is a federation in its place."""
        return self.key_created_at if self.federation is None else None

    @property
    def key_age_days(self) -> int | None:
        """The age of the key in whole days; None if none is stored."""
        return None if self.federation is not None else (timezone.now() - self.key_created_at).days

    @property
    def is_old(self) -> bool:
        """Whether the key has reached the age at which its owners want to be reminded."""
        return self.federation is None and self.remind_at is not None and self.remind_at <= timezone.now()

    @property
    def listed_ids(self) -> list[str]:
        """The ids of the models that the provider listed in the key's last successful test."""
        return [model["id"] for model in self.model_list if isinstance(model.get("id"), str)]


class PlatformKey(models.Model):
    """
    A key of the operators' key pools. A shared pool's key names the models it serves and a cap on max tokens.

    `health` and `cooling_until` are about the whole key. `cooling_models` says until when the provider's limit for one
    model is reached, by the name of the limit; the key signs for other models meanwhile. `refused` holds, by the same
    names, the organization whose call was refused last, and when: one organization alone is no verdict about a key.
    """

    class Pool(models.TextChoices):
        METERED = "metered", "Metered"
        SHARED = "shared", "Shared"

    class Health(models.TextChoices):
        HEALTHY = "healthy", "Healthy"
        COOLING = "cooling", "Cooling down"
        QUARANTINED = "quarantined", "Quarantined"

    id = PublicIdField(prefix="key")
    provider = models.CharField(max_length=32)
    pool = models.CharField(max_length=16, choices=Pool.choices)
    name = models.CharField(max_length=120)
    sealed_key = models.BinaryField(editable=False)
    secret_version = models.PositiveIntegerField(default=1, editable=False)
    key_hint = models.CharField(max_length=40, editable=False)
    federation: "models.JSONField[dict[str, str] | None, dict[str, str] | None]" = models.JSONField(
        null=True, blank=True, editable=False
    )
    workspace_id = models.CharField(max_length=120, blank=True)
    weight = models.PositiveSmallIntegerField(default=1)
    active = models.BooleanField(default=True)
    model_ids = models.JSONField(default=list, blank=True, help_text="Models served; empty means all (metered only)")
    max_tokens_cap = models.PositiveIntegerField(null=True, blank=True)
    health = models.CharField(max_length=16, choices=Health.choices, default=Health.HEALTHY, editable=False)
    cooling_until = models.DateTimeField(null=True, blank=True, editable=False)
    cooling_models: "models.JSONField[dict[str, str], dict[str, str]]" = models.JSONField(
        default=dict, db_default=Value({}, models.JSONField()), blank=True, editable=False
    )
    refused: "models.JSONField[dict[str, list[str]], dict[str, list[str]]]" = models.JSONField(
        default=dict, db_default=Value({}, models.JSONField()), blank=True, editable=False
    )
    last_error: "models.JSONField[StoredError | None, StoredError | None]" = models.JSONField(
        null=True, blank=True, editable=False
    )
    created_at = models.DateTimeField(default=timezone.now, editable=False)
    key_created_at = models.DateTimeField("key stored at", default=timezone.now, editable=False)

    # The reason of an operator's pause, or None: from the kill switch, set by `platform_keys.healthy_keys`.
    paused_because: str | None
    # Set by `openings_kept.add_to`.
    last_opened_at: datetime | None
    opened_this_month: int

    class Meta:
        constraints = [models.UniqueConstraint(fields=["provider", "pool", "name"], name="platform_key_name_in_pool")]

    def __str__(self) -> str:
        return f"{self.provider} {self.pool}: {self.name} ({self.key_hint})"

    def coolings(self, now: datetime) -> dict[str, datetime]:
        """Return until when the key may not sign, by the name of the provider's limit. `""` is the whole key."""
        ends = {limit: datetime.fromisoformat(end) for limit, end in self.cooling_models.items()}
        if self.health == self.Health.COOLING and self.cooling_until is not None:
            ends[""] = self.cooling_until
        return {limit: end for limit, end in sorted(ends.items()) if end > now}

    def cools_until(self, rate_limit: str, now: datetime) -> datetime | None:
        """Return the end of the pause for calls under one of the provider's limits, or None if there is no pause."""
        ends = self.coolings(now)
        return max((ends[limit] for limit in ("", rate_limit) if limit in ends), default=None)

    @property
    def key_age_days(self) -> int | None:
        """The age of the key in whole days; None if none is stored."""
        return None if self.federation is not None else (timezone.now() - self.key_created_at).days
