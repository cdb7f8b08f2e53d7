"""The wrapped data keys, the keys that wrap them, their rotation, and the openings of what they seal."""

from django.db import models
from django.db.models import Q
from django.utils import timezone

from rensei.core.ids import PublicIdField
from rensei.orgs.models import Org


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
