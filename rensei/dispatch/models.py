"""Runs, their attempts, inputs and events, and capacity pools. The run table is the queue."""

from typing import Self

from django.db import models
from django.db.models import F, Q, Value
from django.db.models.expressions import RawSQL
from django.db.models.functions import Coalesce
from django.utils import timezone

from rensei.core.auth_modes import PLATFORM_MODES, AuthMode, Payer
from rensei.core.errors import StoredError
from rensei.core.ids import PublicIdField
from rensei.core.usage import Usage
from rensei.core.whole_numbers import WholeNumberField
from rensei.orgs.models import Host, Membership, Org, OrgScopedQuerySet, Project, User


class CapacityPool(models.Model):
    """A capacity pool, where runs execute. `local` is built in and needs no row."""

    class Provider(models.TextChoices):
        LOCAL = "local", "Local"
        SANDBOX = "sandbox", "Sandbox"
        E2B = "e2b", "E2B"
        VERCEL = "vercel", "Vercel"
        MODAL = "modal", "Modal"

    id = PublicIdField(prefix="pool")
    org = models.ForeignKey(Org, models.CASCADE, related_name="pools")
    name = models.SlugField(max_length=63)
    provider_id = models.CharField(max_length=16, choices=Provider.choices)
    config = models.JSONField(default=dict, blank=True)
    active = models.BooleanField(default=True)
    created_at = models.DateTimeField(default=timezone.now)

    objects = OrgScopedQuerySet.as_manager()

    class Meta:
        constraints = [models.UniqueConstraint(fields=["org", "name"], name="pool_name_in_org")]

    def __str__(self) -> str:
        return self.name


# In the form of the index `run_live_in_org`: SQLite uses a partial index only if no parameter stands for a state.
_LIVE = RawSQL("dispatch_run.state IN ('QUEUED', 'RUNNING')", (), output_field=models.BooleanField())


class RunQuerySet(OrgScopedQuerySet["Run"]):
    """A query set of runs, with methods to choose those that have not ended and to load them for a list."""

    def live(self) -> Self:
        """Choose the runs that are queued or running. Only those are read, however many have ended."""
        return self.filter(_LIVE)

    def listed(self) -> Self:
        """Defer the fields that no list shows: an output or a trace can be megabytes long."""
        return self.defer("output_text", "output_content", "agent_result", "trace", "prices")

    def for_table(self) -> Self:
        """Load what a row of a table shows: also the person, the project and, as `excerpt`, the prompt's beginning."""
        return self.listed().select_related("project", "created_by").annotate(excerpt=F("input__search_entry__excerpt"))


# The runs that a server worker may claim, and those that it has claimed. The SQL of `fair_order.py` repeats both.
_WAITING = Q(state="QUEUED") & ~Q(auth_mode="host-session")
_UNDER_WAY = Q(state="RUNNING", via="queue") & ~Q(auth_mode="host-session")
_PROJECT_NUMBER = Coalesce(F("project_id"), Value(0))


class Run(models.Model):
    """
    One dispatched call to a model: its decision, its place in the queue, its outcome.

    A gateway run is never queued: the server process that serves its caller holds its lease, and neither its prompt
    nor its output is stored. The payer and the mode are fixed at dispatch. `epoch` is the fencing token: a worker
    that lost its lease can no longer change the run. `prices` are the price bands frozen at dispatch (null: unpriced).
    """

    class State(models.TextChoices):
        QUEUED = "QUEUED", "Queued"
        RUNNING = "RUNNING", "Running"
        SUCCEEDED = "SUCCEEDED", "Succeeded"
        FAILED = "FAILED", "Failed"
        CANCELLED = "CANCELLED", "Cancelled"

    class Via(models.TextChoices):
        QUEUE = "queue", "Queue"
        GATEWAY = "gateway", "Gateway"

    ENDED = frozenset({State.SUCCEEDED, State.FAILED, State.CANCELLED})

    id = PublicIdField(prefix="run")
    # Each call writes its row in every index without a condition twice, so there are few of these.
    org = models.ForeignKey(Org, models.CASCADE, related_name="runs", db_index=False)
    project = models.ForeignKey(Project, models.SET_NULL, null=True, blank=True, related_name="runs", db_index=False)
    created_by = models.ForeignKey(User, models.SET_NULL, null=True, blank=True, related_name="+")
    # The id of the caller's API token, which the run outlives. Empty: a person in a browser.
    token_id = models.CharField(max_length=40, blank=True, default="", db_default="")
    # The ids of the caps that hold for the run. Some of them may have been removed since.
    caps = models.JSONField(default=list, db_default=Value([], models.JSONField()))
    profile_id = models.CharField(max_length=80, blank=True)
    profile_name = models.CharField(max_length=63, blank=True)
    provider = models.CharField(max_length=32)
    # The name in the profile or the request: the id of the requested model, or another name of it.
    asked_model_id = models.CharField(max_length=160, blank=True)
    model_id = models.CharField(max_length=128)
    served_model_id = models.CharField(max_length=128)
    auth_mode = models.CharField(max_length=16, choices=AuthMode.choices)
    payer = models.CharField(max_length=32, choices=Payer.choices)
    credential_id = models.CharField(max_length=40, blank=True)
    pool = models.CharField(max_length=63, default="local")
    # Whether a sandbox carries it out. Those and the other runs are claimed separately.
    in_sandbox = models.BooleanField(default=False, db_default=False)
    # Whether that sandbox is one of a capacity provider's; then a worker needs no isolation of its own.
    in_cloud = models.BooleanField(default=False, db_default=False)
    # Whether a program calls for it, as often as it needs. Its definition is a part of the input.
    is_agent = models.BooleanField(default=False, db_default=False)
    # What the caller lets the run cost, and the most that one of its calls may cost. Null: the caller has not said.
    max_cost_picodollars = models.BigIntegerField(null=True)
    call_picodollars_at_most = models.BigIntegerField(null=True)
    via = models.CharField(max_length=8, choices=Via.choices, default=Via.QUEUE)
    host = models.ForeignKey(Host, models.SET_NULL, null=True, blank=True, related_name="runs", db_index=False)
    effort = models.CharField(max_length=8, blank=True)
    effort_applied = models.JSONField(default=dict)
    max_tokens = models.PositiveIntegerField()
    context_window_tokens = models.PositiveIntegerField(null=True)
    metadata = models.JSONField(default=dict)
    trace = models.JSONField(default=list)
    prices = models.JSONField(null=True)

    state = models.CharField(max_length=16, choices=State.choices, default=State.QUEUED)
    cancel_requested_at = models.DateTimeField(null=True)
    epoch = models.PositiveIntegerField(default=0)
    lease_owner = models.CharField(max_length=64, blank=True)
    lease_until = models.DateTimeField(null=True)
    not_before = models.DateTimeField(null=True)
    deadline_at = models.DateTimeField()
    chunk_count = models.PositiveIntegerField(default=0)
    # The run's part of the organization's count of stored bytes, and what its events will add to it at the end.
    stored_bytes = models.PositiveBigIntegerField(default=0)
    event_bytes = models.PositiveBigIntegerField(default=0)

    output_text = models.TextField(blank=True)
    output_content = models.JSONField(default=list)
    stop_reason = models.CharField(max_length=40, blank=True)
    # What an agent's program has left besides its text, once it has ended: see `dispatch/agents.py`.
    agent_result = models.JSONField(null=True)
    error: "models.JSONField[StoredError | None, StoredError | None]" = models.JSONField(null=True)
    usage = models.JSONField(default=dict)
    amount_picodollars = WholeNumberField(null=True)
    estimated = models.BooleanField(default=False)
    billed = models.BooleanField(default=False)
    attempt_count = models.PositiveIntegerField(default=0)
    created_at = models.DateTimeField()
    started_at = models.DateTimeField(null=True)
    finished_at = models.DateTimeField(null=True)

    objects = RunQuerySet.as_manager()

    class Meta:
        indexes = [
            models.Index(fields=["org", "-id"], name="run_by_org"),
            models.Index(fields=["project"], condition=Q(project__isnull=False), name="run_by_project"),
            models.Index(fields=["host"], condition=Q(host__isnull=False), name="run_by_host"),
            models.Index(fields=["state", "id"], condition=Q(state__in=["QUEUED", "RUNNING"]), name="run_queue"),
            models.Index(fields=["org", "id"], condition=Q(state__in=["QUEUED", "RUNNING"]), name="run_live_in_org"),
            models.Index(F("in_sandbox"), F("org"), F("deadline_at"), condition=_WAITING, name="run_waiting_in_org"),
            models.Index(
                F("in_sandbox"),
                F("org"),
                _PROJECT_NUMBER,
                F("deadline_at"),
                F("id"),
                condition=_WAITING,
                name="run_waiting_in_project",
            ),
            models.Index(F("org"), _PROJECT_NUMBER, condition=_UNDER_WAY, name="run_under_way"),
        ]

    def __str__(self) -> str:
        return str(self.id)

    @property
    def has_events(self) -> bool:
        """Whether the run's events are stored. A gateway run streams to its caller and stores none."""
        return self.via == self.Via.QUEUE

    @property
    def is_cost_held(self) -> bool:
        """Whether the most that a call may cost is held before it; everything in it must then have a bound."""
        return self.auth_mode in PLATFORM_MODES or bool(self.caps) or self.max_cost_picodollars is not None

    @property
    def asked_name(self) -> str:
        """The name of the model in the profile or the request."""
        return self.asked_model_id or self.model_id

    @property
    def counts(self) -> Usage:
        return Usage.from_dict(self.usage)

    @property
    def with_output(self) -> "Run | None":
        """The run, if it has an output. The output of one that succeeded may be empty."""
        has_output = self.output_text or self.output_content or self.state == self.State.SUCCEEDED
        return self if has_output else None


class Turn(models.Model):
    """
    The time when a run of a project was last claimed, so that projects and organizations take turns.

    Runs in sandboxes wait separately, so they have turns of their own.

    `project_number` is the project's primary key, or 0 for runs without a project. The row may outlive its project;
    this is harmless.
    """

    org = models.ForeignKey(Org, models.CASCADE, related_name="+", db_index=False)
    project_number = models.PositiveBigIntegerField()
    in_sandbox = models.BooleanField(default=False, db_default=False)
    claimed_at = models.DateTimeField()

    objects = OrgScopedQuerySet.as_manager()

    class Meta:
        constraints = [
            models.UniqueConstraint(fields=["org", "in_sandbox", "project_number"], name="one_turn_per_project")
        ]
        indexes = [models.Index(fields=["org", "claimed_at"], name="turn_of_org")]

    def __str__(self) -> str:
        return f"{self.org_id} {self.project_number}"


class RunInput(models.Model):
    """The input of a run as the caller sent it, in a separate table to keep lists of runs small."""

    run = models.OneToOneField(Run, models.CASCADE, primary_key=True, related_name="input")
    body = models.JSONField(help_text="{system, messages} in the Messages API's shape")
    has_images = models.BooleanField(default=False, db_index=True)
    images_dropped_at = models.DateTimeField(null=True)
    # The sealed original of an input in which a key was replaced, until 10 minutes after the run: see `withheld.py`.
    original = models.BinaryField(null=True, editable=False)

    class Meta:
        indexes = [models.Index(fields=["run"], condition=Q(original__isnull=False), name="input_withheld")]

    def __str__(self) -> str:
        return str(self.run_id)


class SearchEntry(models.Model):
    """
    The words of a run's stored input and error, by which it is found, and the beginning of its prompt.

    The row is deleted with the input. The database keeps the index of `words`; see `search.py`.
    """

    run = models.OneToOneField(RunInput, models.CASCADE, related_name="search_entry")
    excerpt = models.CharField(max_length=160, blank=True)
    words = models.TextField()

    def __str__(self) -> str:
        return str(self.run_id)


class SavedView(models.Model):
    """A member's own name for filters and an order of the list of runs: the query of the page's address."""

    id = PublicIdField(prefix="view")
    org = models.ForeignKey(Org, models.CASCADE, related_name="+", db_index=False)
    membership = models.ForeignKey(Membership, models.CASCADE, related_name="saved_views", db_index=False)
    name = models.CharField(max_length=60)
    query = models.CharField(max_length=1000)
    created_at = models.DateTimeField(default=timezone.now)

    objects = OrgScopedQuerySet.as_manager()

    class Meta:
        constraints = [models.UniqueConstraint(fields=["membership", "name"], name="view_name_of_member")]
        indexes = [models.Index(fields=["org"], name="view_of_org")]

    def __str__(self) -> str:
        return self.name


class Attempt(models.Model):
    """
    One call to a provider, written in its own transaction before the call is made.

    VOID: provably never sent. INDETERMINATE: its end was not observed, so it has an estimated charge.
    """

    class State(models.TextChoices):
        OPEN = "OPEN", "Open"
        SETTLED = "SETTLED", "Settled"
        VOID = "VOID", "Never sent"
        INDETERMINATE = "INDETERMINATE", "Indeterminate"

    id = PublicIdField(prefix="att")
    # The constraint on its number has an index that begins with the run.
    run = models.ForeignKey(Run, models.CASCADE, related_name="attempts", db_index=False)
    number = models.PositiveSmallIntegerField()
    epoch = models.PositiveIntegerField()
    credential_id = models.CharField(max_length=40, blank=True)
    credential_version = models.PositiveIntegerField(default=1)
    state = models.CharField(max_length=16, choices=State.choices, default=State.OPEN)
    input_tokens_estimate = models.PositiveIntegerField()
    # The subagent that made the call and the one that started it, as the program names them; empty for the main agent.
    agent_id = models.CharField(max_length=64, blank=True, default="", db_default="")
    parent_agent_id = models.CharField(max_length=64, blank=True, default="", db_default="")
    # The most that the call of an agent may cost. The most of other calls is that of their run.
    at_most_picodollars = models.BigIntegerField(null=True)
    provider_request_id = models.CharField(max_length=120, blank=True)
    error: "models.JSONField[StoredError | None, StoredError | None]" = models.JSONField(null=True)
    started_at = models.DateTimeField()
    finished_at = models.DateTimeField(null=True)

    class Meta:
        constraints = [
            models.UniqueConstraint(fields=["run", "number"], name="attempt_number_in_run"),
            models.UniqueConstraint(fields=["run"], condition=Q(state="OPEN"), name="one_open_attempt_per_run"),
        ]

    def __str__(self) -> str:
        return str(self.id)


class Sandbox(models.Model):
    """
    The sandbox of one claim of a run, and the run token with which it calls.

    The row is committed before the sandbox is created, so that no sandbox is without one. The token is valid while the
    run is under way in the same epoch. Only its SHA-256 is stored, and that of the one request that it may send; an
    agent writes its own requests, therefore its `request_digest` is empty.
    """

    id = PublicIdField(prefix="box")
    org = models.ForeignKey(Org, models.CASCADE, related_name="sandboxes")
    run = models.ForeignKey(Run, models.CASCADE, related_name="sandboxes")
    epoch = models.PositiveIntegerField()
    pool = models.CharField(max_length=63)
    provider_id = models.CharField(max_length=16, choices=CapacityPool.Provider.choices)
    token_digest = models.CharField(max_length=64, unique=True, editable=False)
    request_digest = models.CharField(max_length=64, blank=True, editable=False)
    calls_left = models.PositiveSmallIntegerField()
    created_at = models.DateTimeField()
    # When the program of an agent is stopped, and a call that it is making with it.
    ends_at = models.DateTimeField(null=True)
    ended_at = models.DateTimeField(null=True)
    # The gateway's last refusal before a call, and the first for the run's cost. A worker's relay knows them itself.
    refusal = models.JSONField(null=True)
    cap_refusal = models.JSONField(null=True)
    # Of a sandbox in a cloud: the integration whose key made it, and the workspace of that at the time.
    credential_id = models.CharField(max_length=40, blank=True, default="", db_default="")
    workspace_id = models.CharField(max_length=120, blank=True, default="", db_default="")
    # What is charged for, once that is known.
    vcpus = models.PositiveSmallIntegerField(null=True)
    memory_mib = models.PositiveIntegerField(null=True)
    second_picodollars = models.PositiveBigIntegerField(null=True)

    objects = OrgScopedQuerySet.as_manager()

    class Meta:
        verbose_name_plural = "sandboxes"
        constraints = [models.UniqueConstraint(fields=["run", "epoch"], name="sandbox_of_claim")]
        indexes = [models.Index(fields=["id"], condition=Q(ended_at=None), name="sandbox_not_ended")]

    def __str__(self) -> str:
        return str(self.id)


class RunFile(models.Model):
    """A file that an agent's program has left, to download."""

    id = PublicIdField(prefix="file")
    run = models.ForeignKey(Run, models.CASCADE, related_name="files")
    path = models.TextField()
    content = models.BinaryField()

    class Meta:
        constraints = [models.UniqueConstraint(fields=["run", "path"], name="path_in_run")]

    def __str__(self) -> str:
        return self.path


class RunChunk(models.Model):
    """One event of a run, in order, for event streams during and after the run."""

    class Kind(models.TextChoices):
        STATE = "state", "State"
        DELTA = "delta", "Delta"
        LOG = "log", "Log"
        USAGE = "usage", "Usage"
        DONE = "done", "Done"

    run = models.ForeignKey(Run, models.CASCADE, related_name="chunks")
    seq = models.PositiveIntegerField()
    kind = models.CharField(max_length=8, choices=Kind.choices)
    data = models.JSONField(default=dict)

    class Meta:
        constraints = [models.UniqueConstraint(fields=["run", "seq"], name="chunk_order")]

    def __str__(self) -> str:
        return f"{self.run_id} {self.seq}"


class IdempotencyKey(models.Model):
    """The Idempotency-Key of a dispatch: repeating it returns the same run. Kept for 24 hours."""

    org = models.ForeignKey(Org, models.CASCADE, related_name="+")
    key = models.CharField(max_length=255)
    body_digest = models.CharField(max_length=64)
    run_id = models.CharField(max_length=40)
    created_at = models.DateTimeField()

    objects = OrgScopedQuerySet.as_manager()

    class Meta:
        constraints = [models.UniqueConstraint(fields=["org", "key"], name="idempotency_key_in_org")]

    def __str__(self) -> str:
        return self.key


class LedgerAudit(models.Model):
    """The result of one audit of the ledger. `first_differences` holds a limited number of them."""

    ran_at = models.DateTimeField(db_index=True)
    seconds = models.FloatField()
    difference_count = models.PositiveBigIntegerField()
    first_differences = models.JSONField(default=list)

    def __str__(self) -> str:
        return f"{self.ran_at:%Y-%m-%d %H:%M} {self.difference_count}"

    @property
    def ok(self) -> bool:
        return self.difference_count == 0
