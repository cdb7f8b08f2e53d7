"""What all processes of one installation share: periodic jobs and the workers' heartbeats."""

from datetime import timedelta

from django.db import models


class DueJob(models.Model):
    """A periodic job. Any worker may take it; the lease prevents two from running it at once."""

    name = models.CharField(max_length=64, primary_key=True)
    due_at = models.DateTimeField()
    leased_until = models.DateTimeField(null=True)

    def __str__(self) -> str:
        return self.name


class WorkerHeartbeat(models.Model):
    """
    The last heartbeat of a worker process, for `/readyz` and the operators' front page.

    `sandbox_refusal` is the reason why the process starts no sandboxes, if it has found one, and `claude_code_refusal`
    why there is no Claude Code in them.
    """

    # After this time without one, a process counts as ended.
    SILENT_AFTER = timedelta(seconds=30)

    worker = models.CharField(max_length=64, primary_key=True)
    seen_at = models.DateTimeField()
    offers_sandboxes = models.BooleanField(default=False, db_default=False)
    sandbox_refusal = models.TextField(default="", db_default="")
    offers_claude_code = models.BooleanField(default=False, db_default=False)
    claude_code_refusal = models.TextField(default="", db_default="")

    def __str__(self) -> str:
        return self.worker


class UnknownName(models.Model):
    """
    An unknown name that a provider reported or a caller sent, with its number of occurrences.

    The processes add to it what `unknown.note_unknown` has counted. An operator marks it as seen after handling it;
    counting continues.
    """

    kind = models.CharField(max_length=40, help_text="What it is, such as usage_field")
    name = models.CharField(max_length=80, help_text="Its name as it came, cut")
    count = models.PositiveBigIntegerField(default=0)
    first_seen_at = models.DateTimeField()
    last_seen_at = models.DateTimeField()
    marked_at = models.DateTimeField(null=True, help_text="When an operator marked it as seen")
    marked_by = models.EmailField(blank=True)

    class Meta:
        constraints = [models.UniqueConstraint(fields=["kind", "name"], name="one_row_per_unknown_name")]

    def __str__(self) -> str:
        return f"{self.kind} {self.name}"


class WindowCount(models.Model):
    """How often something was done in a window of time, for rate limits. See `rate_store`."""

    key = models.CharField(max_length=160, primary_key=True)
    count = models.BigIntegerField()
    ends_at = models.FloatField(db_index=True, help_text="Seconds since 1970")

    def __str__(self) -> str:
        return self.key


class StoredValue(models.Model):
    """What the libraries store to protect accounts, such as used one-time codes. See `stored_cache`."""

    key = models.CharField(max_length=255, primary_key=True)
    value = models.TextField()
    expires_at = models.FloatField(db_index=True, help_text="Seconds since 1970")

    def __str__(self) -> str:
        return self.key
