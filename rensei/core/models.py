"""What every process of one installation shares: periodic jobs and the workers' heartbeats."""

from django.db import models


class DueJob(models.Model):
    """A periodic job. Any worker may take it; the lease keeps two from running it at once."""

    name = models.CharField(max_length=64, primary_key=True)
    due_at = models.DateTimeField()
    leased_until = models.DateTimeField(null=True)

    def __str__(self) -> str:
        return self.name


class WorkerHeartbeat(models.Model):
    """The last sign of life of a worker process, for `/readyz` and the operators' front page."""

    worker = models.CharField(max_length=64, primary_key=True)
    seen_at = models.DateTimeField()

    def __str__(self) -> str:
        return self.worker
