"""Connected providers, the platform's key pools, and the wrapped data keys that seal both."""

from collections.abc import Collection
from datetime import datetime

from django.db import models
from django.db.models import Q, Value
from django.utils import timezone

from rensei.core.errors import StoredError
from rensei.core.ids import PublicIdField
from rensei.orgs.models import Org, OrgScopedQuerySet, User


class DataKey(models.Model):
    """
    A data-encryption key, wrapped by the key-encryption key. Without an organization, it is the platform's.

    `kek_version` is the version of the key-encryption key where its provider tells it. Where it is not the one under
    which the data key was made, `rewrapped_at` is when that changed last: older backups have it under another one.

    The newest version of an owner seals; every version opens what it sealed. The platform's fingerprint key
    detects a key that is already connected, and seals nothing.
    """

    class Purpose(models.TextChoices):
        SEAL = "seal", "Seals credentials"
        FINGERPRINT = "fingerprint", "Recognises credentials"

    id = models.UUIDField(primary_key=True)
    org = models.ForeignKey(Org, models.CASCADE, null=True, blank=True, related_name="data_keys")
    purpose = models.CharField(max_length=16, choices=Purpose.choices, default=Purpose.SEAL)
    version = models.PositiveIntegerField(default=1)
    kek_id = models.CharField(max_length=255)
    kek_version = models.CharField(max_length=64, blank=True)
    wrapped = models.BinaryField()
    created_at = models.DateTimeField(default=timezone.now)
    rewrapped_at = models.DateTimeField(null=True, blank=True)

    class Meta:
        constraints = [
            models.UniqueConstraint(
                fields=["org", "purpose", "version"], condition=Q(org__isnull=False), name="data_key_per_org"
            ),
            models.UniqueConstraint(fields=["purpose", "version"], condition=Q(org=None), name="data_key_of_platform"),
        ]
        # A rotation goes through the keys of one key-encryption key, and asks whether any are left.
        indexes = [models.Index(fields=["kek_id", "kek_version", "id"], name="data_key_by_kek")]

    def __str__(self) -> str:
        return str(self.id)


class KeyCheck(models.Model):
    """
    A check value for each key-encryption key, which detects wrong bytes under a known id.

    `emptied_at` is when the last data key left it: backups of the database that are older need it.
    """

    kek_id = models.CharField(max_length=255, primary_key=True)
    value = models.BinaryField()
    created_at = models.DateTimeField(default=timezone.now)
    emptied_at = models.DateTimeField(null=True, blank=True)

    class Meta:
        verbose_name = "outer key"

    def __str__(self) -> str:
        return self.kek_id


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


class Rotation(models.Model):
    """
    A rotation of keys that workers carry out in batches: what it is, how far it is, and what could not be done.

    `left` was counted after the last batch, and `seconds` are those of all batches. `failed` names rows with the reason
    of each. What comes before the first batch was done at `begun_at`. A process has it until `leased_until`. There is
    one at a time, and no key is in any column.
    """

    class Kind(models.TextChoices):
        REWRAP = "re-wrap", "Re-wrap the data keys by the current outer key"
        VERIFY = "verify", "Unwrap every data key"
        FINGERPRINTS = "fingerprints", "Make the fingerprints anew, by a new key"

    class State(models.TextChoices):
        RUNNING = "running", "Under way"
        DONE = "done", "Done"
        FAILED = "failed", "Done, with failures"
        STOPPED = "stopped", "Stopped"

    id = PublicIdField(prefix="rot")
    kind = models.CharField(max_length=16, choices=Kind.choices)
    state = models.CharField(max_length=16, choices=State.choices, default=State.RUNNING)
    started_by = models.CharField(max_length=254)
    started_at = models.DateTimeField(default=timezone.now)
    begun_at = models.DateTimeField(null=True, blank=True)
    ended_at = models.DateTimeField(null=True, blank=True)
    done = models.PositiveIntegerField(default=0)
    left = models.PositiveIntegerField(default=0)
    seconds = models.FloatField(default=0)
    failed: "models.JSONField[dict[str, str], dict[str, str]]" = models.JSONField(default=dict, blank=True)
    position = models.CharField(max_length=64, blank=True)
    waiting = models.CharField(max_length=200, blank=True)
    leased_until = models.DateTimeField(null=True, blank=True)

    # Why it waits, in the process that found out.
    fault: Exception | None = None

    class Meta:
        constraints = [
            models.UniqueConstraint(fields=["state"], condition=Q(state="running"), name="one_rotation_at_a_time")
        ]

    def __str__(self) -> str:
        return f"{self.get_kind_display()}, {self.started_at:%Y-%m-%d %H:%M}"

    @property
    def rate(self) -> float:
        """How many were done in a second of work."""
        return self.done / max(self.seconds, 1e-6)

    @property
    def percent(self) -> int:
        """How much of it is done."""
        total = self.done + self.left
        return 100 * self.done // total if total else 100


class IssuerKey(models.Model):
    """
    A private key with which this server signs identity tokens, as an OIDC issuer. Its id is the `kid` of the tokens.

    The newest one whose `signs_from` has passed signs. The public keys are derived from the sealed private ones and are
    not stored, so that a row which a writer of the database adds is not published.
    """

    id = models.CharField(primary_key=True, max_length=43)
    version = models.PositiveIntegerField(unique=True)
    sealed_key = models.BinaryField(editable=False)
    signs_from = models.DateTimeField()
    created_at = models.DateTimeField(default=timezone.now)

    def __str__(self) -> str:
        return self.id


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


class KeyOpeningQuerySet(models.QuerySet["KeyOpening"]):
    """Reads the openings for an organization through `for_org`."""

    def for_org(self, org: Org) -> "KeyOpeningQuerySet":
        return self.filter(org_id=org.pk)


class KeyOpening(models.Model):
    """
    One opening of a sealed record: a key, an issuer's key or a secret of two-step sign-in.

    Rows are added and never changed, and are deleted only by age. `org_id` is the organization whose record it is, or
    for which a record of the platform was opened. Ids are plain, and remain when what they name is deleted.
    """

    class Reason(models.TextChoices):
        DISPATCH = "dispatch", "A run of the queue"
        GATEWAY = "gateway", "A call through the gateway"
        COUNT = "count", "Counting tokens at the gateway"
        TEST = "test", "Test Connection"
        CHANGE = "change", "A change of its settings"
        ROTATION = "rotation", "A new data key"
        MOVE = "move", "A move to another database"
        IDENTITY = "identity", "Signing an identity token"
        PUBLISHING = "publishing", "Publishing the public keys"
        SIGN_IN = "sign-in", "Two-step sign-in"
        FINGERPRINT = "fingerprint", "Making its fingerprint"
        EXPORT = "export", "An export that two operators agreed on"
        UNKNOWN = "unknown", "Not explained"

    id = PublicIdField(prefix="open")
    opened_at = models.DateTimeField()
    record_id = models.CharField(max_length=64, help_text="Id of the integration, platform key or other record")
    version = models.PositiveIntegerField()
    org_id = models.CharField(max_length=40, null=True, blank=True)  # noqa: DJ001 – null: no organization's
    reason = models.CharField(max_length=16, choices=Reason.choices)
    run_id = models.CharField(max_length=40, blank=True)
    actor = models.CharField(max_length=254, blank=True, help_text="Email of a person, or the command or job")
    token_id = models.CharField(max_length=40, blank=True)
    process = models.CharField(max_length=120)

    objects = KeyOpeningQuerySet.as_manager()

    class Meta:
        indexes = [
            models.Index(fields=["record_id", "opened_at"], name="opening_of_record"),
            models.Index(fields=["org_id", "opened_at"], name="opening_by_org"),
            models.Index(fields=["opened_at"], name="opening_by_time"),
            models.Index(fields=["opened_at"], condition=Q(reason="unknown"), name="opening_unexplained"),
        ]

    def __str__(self) -> str:
        return f"{self.record_id} {self.opened_at:%Y-%m-%d %H:%M:%S}"


class KeyOpeningDay(models.Model):
    """How often a record was opened on a day (UTC) that is over. It outlives the openings that it counts."""

    record_id = models.CharField(max_length=64)
    day = models.DateField()
    count = models.PositiveIntegerField()
    last_opened_at = models.DateTimeField()

    class Meta:
        constraints = [models.UniqueConstraint(fields=["record_id", "day"], name="openings_of_day")]
        indexes = [models.Index(fields=["last_opened_at"], name="openings_counted_to")]

    def __str__(self) -> str:
        return f"{self.record_id} {self.day}"
