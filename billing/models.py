"""Entitlements, the shared quota, the cost ledger and its roll-ups."""

import operator
from functools import reduce
from typing import Self

from django.db import models
from django.db.models import F, Q
from django.db.models.functions import Coalesce
from django.utils import timezone

from rensei.core.auth_modes import AuthMode, Payer
from rensei.core.ids import PublicIdField
from rensei.core.money import PICODOLLARS_PER_DOLLAR
from rensei.core.token_classes import COUNTS, OF_TOKENS, PRICE_COLUMNS, WEB_SEARCHES
from rensei.core.whole_numbers import WholeNumberField
from rensei.orgs.models import Org, OrgScopedQuerySet


class BillingSetting(models.Model):
    """The operators' defaults for every organization: one row."""

    id = models.PositiveSmallIntegerField(primary_key=True, default=1, editable=False)
    shared_runs_per_day = models.PositiveIntegerField(default=20)
    shared_org_picodollars_per_day = models.PositiveBigIntegerField(
        default=25 * PICODOLLARS_PER_DOLLAR, help_text="What an organization's shared runs may cost the platform"
    )
    shared_platform_picodollars_per_day = models.PositiveBigIntegerField(
        default=500 * PICODOLLARS_PER_DOLLAR, help_text="What all shared runs together may cost the platform"
    )

    class Meta:
        constraints = [models.CheckConstraint(name="one_billing_setting", condition=Q(id=1))]

    def __str__(self) -> str:
        return "Billing settings"


class Entitlement(models.Model):
    """
    What an organization may use of the platform's key pools. Created with the organization, changed by operators.

    While a request for metered is pending, it holds who requested it, when, and what for.
    """

    org = models.OneToOneField(Org, models.CASCADE, primary_key=True, related_name="entitlement")
    metered_enabled = models.BooleanField(default=False)
    shared_runs_per_day = models.PositiveIntegerField(null=True, blank=True, help_text="Empty: the platform's default")
    shared_picodollars_per_day = models.PositiveBigIntegerField(
        null=True, blank=True, help_text="Empty: the platform's default"
    )
    monthly_budget_picodollars = models.PositiveBigIntegerField(null=True, blank=True, help_text="Empty: no budget")
    runs_at_once = models.PositiveIntegerField(
        null=True,
        blank=True,
        help_text="Queued runs that workers carry out at the same time. Empty: the server's default; 0: none start",
    )
    metered_requested_at = models.DateTimeField(null=True, blank=True, db_index=True)
    metered_requested_by = models.EmailField(blank=True)
    metered_requested_for = models.CharField(max_length=300, blank=True, help_text="In the words of who asked")
    updated_at = models.DateTimeField(default=timezone.now)

    objects = OrgScopedQuerySet.as_manager()

    def __str__(self) -> str:
        # The admin uses this as the accessible name of each row's checkbox.
        return self.org.name


class SharedUsage(models.Model):
    """An organization's shared runs on one UTC day: the settled ones, and those still held."""

    org = models.ForeignKey(Org, models.CASCADE, related_name="shared_usage")
    day = models.DateField()
    used = models.PositiveIntegerField(default=0)
    held = models.PositiveIntegerField(default=0)

    objects = OrgScopedQuerySet.as_manager()

    class Meta:
        verbose_name = verbose_name_plural = "shared quota use"
        constraints = [models.UniqueConstraint(fields=["org", "day"], name="shared_usage_per_day")]

    def __str__(self) -> str:
        return f"{self.org_id} {self.day}"


class SharedSpending(models.Model):
    """
    What shared runs of one or all organizations cost the platform on the newest UTC day, and may still cost.

    `used` is reset each day. `held` carries over, because a run that is live over midnight is paid on the new day.
    """

    account = models.CharField(max_length=40, primary_key=True, help_text="The organization, or platform")
    org = models.ForeignKey(Org, models.CASCADE, null=True, related_name="shared_spending")
    day = models.DateField()
    used = WholeNumberField(default=0)
    held = WholeNumberField(default=0)

    objects = OrgScopedQuerySet.as_manager()

    class Meta:
        verbose_name = verbose_name_plural = "shared spending"

    def __str__(self) -> str:
        return f"{self.account} {self.day}"


class Hold(models.Model):
    """What a live run holds: one of the day's shared runs, and the most that it may cost. Deleted at settlement."""

    run_id = models.CharField(max_length=40, primary_key=True)
    org = models.ForeignKey(Org, models.CASCADE, related_name="holds")
    day = models.DateField()
    picodollars = WholeNumberField(default=0)
    created_at = models.DateTimeField(default=timezone.now)

    objects = OrgScopedQuerySet.as_manager()

    def __str__(self) -> str:
        return self.run_id


class BudgetUsage(models.Model):
    """
    What an organization's metered runs cost in the newest UTC month, and the most that live ones may still cost.

    `used` is the sum of the month's billed amounts and is reset each month. `held` carries over, because a run that
    is live over midnight of the last day is billed in the new month.
    """

    org = models.OneToOneField(Org, models.CASCADE, primary_key=True, related_name="budget_usage")
    month = models.DateField(help_text="Its first day")
    used = WholeNumberField(default=0)
    held = WholeNumberField(default=0)

    objects = OrgScopedQuerySet.as_manager()

    class Meta:
        verbose_name = verbose_name_plural = "budget use"

    def __str__(self) -> str:
        return f"{self.org_id} {self.month:%Y-%m}"


class BudgetHold(models.Model):
    """The most that a live metered run may cost. Deleted when the run ends."""

    run_id = models.CharField(max_length=40, primary_key=True)
    org = models.ForeignKey(Org, models.CASCADE, related_name="budget_holds")
    picodollars = WholeNumberField()
    created_at = models.DateTimeField()

    objects = OrgScopedQuerySet.as_manager()

    def __str__(self) -> str:
        return self.run_id


class CapHold(models.Model):
    """The most that a live run may cost, held of each cap that the run names. Deleted when the run ends."""

    run_id = models.CharField(max_length=40, primary_key=True)
    org = models.ForeignKey(Org, models.CASCADE, related_name="cap_holds")
    picodollars = WholeNumberField()
    created_at = models.DateTimeField()

    objects = OrgScopedQuerySet.as_manager()

    def __str__(self) -> str:
        return self.run_id


# The fields of a ledger line that describe the call.
CALL_COLUMNS = (
    "org_id",
    "run_id",
    "attempt_id",
    "profile_id",
    "project_id",
    "auth_mode",
    "payer",
    "billing_class",
    "pool_id",
    "credential_id",
    "provider",
    "model_id",
    "served_model_id",
    "provider_request_id",
)
# A call that searched the web has a price for it.
_TOKENS_TIMES_PRICE = reduce(
    operator.add,
    [
        *(F(one.count) * F(one.column) for one in OF_TOKENS),
        F(WEB_SEARCHES.count) * Coalesce(F(WEB_SEARCHES.column), 0),
    ],
)


class CostEventQuerySet(OrgScopedQuerySet["CostEvent"]):
    """The lines of a ledger."""

    def of_calls(self) -> Self:
        """Choose the lines of calls to models: all but those of capacity."""
        return self.exclude(kind=CostEvent.Kind.CAPACITY)


class CostEvent(models.Model):
    """
    One line of an organization's cost ledger. Lines are added, never changed.

    A charge records one model's part in one call to a provider, usually all of it. An adjustment corrects a charge
    by a signed amount. A line of capacity records the seconds of one sandbox in the organization's own account at a
    capacity provider, which bills them to it: its attempt is the sandbox, its model the billing class.
    Token classes are disjoint: `input` is the uncached rest, output includes thinking. Unit prices are
    frozen here, in picodollars per token, so that the amount can always be verified. An unpriced call has
    no prices and no amount: unknown is never 0. Only the price of web searches may be missing, if none was made.

    `billed` says whether the call is billed from this line on. `billed_picodollars` is what the line adds
    to the organization's debt, so the debt is always the sum of that column.
    """

    class Kind(models.TextChoices):
        CHARGE = "charge", "Charge"
        ADJUSTMENT = "adjustment", "Adjustment"
        CAPACITY = "capacity", "Capacity"

    id = PublicIdField(prefix="cost")
    org = models.ForeignKey(Org, models.PROTECT, related_name="cost_events", db_index=False)
    kind = models.CharField(max_length=16, choices=Kind.choices)
    adjusts = models.ForeignKey(
        "self", models.PROTECT, null=True, blank=True, related_name="adjustments", db_index=False
    )
    run_id = models.CharField(max_length=40, db_index=True)
    attempt_id = models.CharField(max_length=40)
    profile_id = models.CharField(max_length=80, blank=True)
    project_id = models.CharField(max_length=63, blank=True)
    auth_mode = models.CharField(max_length=16, choices=AuthMode.choices)
    payer = models.CharField(max_length=32, choices=Payer.choices)
    billing_class = models.CharField(max_length=64, help_text="Such as metered.anthropic")
    pool_id = models.CharField(max_length=64, blank=True, help_text="Such as metered_pool_claude")
    credential_id = models.CharField(max_length=40, blank=True)
    provider = models.CharField(max_length=32)
    model_id = models.CharField(max_length=128)
    served_model_id = models.CharField(max_length=128)
    provider_request_id = models.CharField(max_length=120, blank=True)
    input_tokens = models.BigIntegerField(default=0)
    output_tokens = models.BigIntegerField(default=0)
    cache_read_tokens = models.BigIntegerField(default=0)
    cache_write_5m_tokens = models.BigIntegerField(default=0)
    cache_write_1h_tokens = models.BigIntegerField(default=0)
    web_search_requests = models.BigIntegerField(default=0)
    thinking_tokens = models.BigIntegerField(default=0, help_text="Part of the output tokens")
    input_picodollars = models.PositiveBigIntegerField(null=True)
    output_picodollars = models.PositiveBigIntegerField(null=True)
    cache_read_picodollars = models.PositiveBigIntegerField(null=True)
    cache_write_5m_picodollars = models.PositiveBigIntegerField(null=True)
    cache_write_1h_picodollars = models.PositiveBigIntegerField(null=True)
    web_search_picodollars = models.PositiveBigIntegerField(null=True)
    # Only a line of capacity has these.
    sandbox_seconds = models.BigIntegerField(null=True)
    sandbox_second_picodollars = models.PositiveBigIntegerField(null=True)
    amount_picodollars = models.BigIntegerField(null=True)
    billed = models.BooleanField(help_text="Whether the organization owes the call to the platform from this line on")
    billed_picodollars = models.BigIntegerField(default=0, help_text="What this line adds to the organization's debt")
    estimated = models.BooleanField(default=False)
    occurred_at = models.DateTimeField()

    objects = CostEventQuerySet.as_manager()

    class Meta:
        indexes = [
            models.Index(fields=["org", "occurred_at", "id"], name="cost_by_org_in_order"),
            models.Index(fields=["org", "occurred_at"], condition=Q(kind="capacity"), name="cost_of_capacity"),
            models.Index(fields=["occurred_at"], name="cost_by_time"),
            models.Index(fields=["adjusts"], condition=Q(adjusts__isnull=False), name="cost_by_charge"),
        ]
        constraints = [
            models.UniqueConstraint(
                fields=["attempt_id", "served_model_id"],
                condition=Q(kind="charge"),
                name="one_charge_per_attempt_and_model",
            ),
            models.UniqueConstraint(
                fields=["attempt_id"], condition=Q(kind="capacity"), name="one_capacity_line_per_sandbox"
            ),
            models.CheckConstraint(
                name="adjustment_names_its_charge",
                condition=Q(kind__in=["charge", "capacity"], adjusts=None)
                | Q(kind="adjustment", adjusts__isnull=False),
            ),
            models.CheckConstraint(
                name="charge_counts_are_not_negative",
                condition=Q(kind="adjustment") | Q(**{f"{count}__gte": 0 for count in COUNTS}),
            ),
            models.CheckConstraint(
                name="amount_is_tokens_times_price",
                condition=Q(kind="capacity")
                | Q(amount_picodollars=None, **dict.fromkeys(PRICE_COLUMNS))
                | (Q(web_search_requests=0) | Q(web_search_picodollars__isnull=False))
                & Q(
                    amount_picodollars__isnull=False,
                    amount_picodollars=_TOKENS_TIMES_PRICE,
                    **{f"{one.column}__isnull": False for one in OF_TOKENS},
                ),
            ),
            models.CheckConstraint(
                name="capacity_is_seconds_times_price",
                condition=~Q(kind="capacity") & Q(sandbox_seconds=None, sandbox_second_picodollars=None)
                | Q(
                    kind="capacity",
                    sandbox_seconds__isnull=False,
                    sandbox_seconds__gte=0,
                    **dict.fromkeys(COUNTS, 0),
                    **dict.fromkeys(PRICE_COLUMNS),
                )
                & (
                    Q(amount_picodollars=None, sandbox_second_picodollars=None)
                    | Q(
                        amount_picodollars__isnull=False,
                        sandbox_second_picodollars__isnull=False,
                        amount_picodollars=F("sandbox_seconds") * F("sandbox_second_picodollars"),
                    )
                ),
            ),
            models.CheckConstraint(
                name="only_metered_is_billed",
                condition=Q(auth_mode=AuthMode.METERED) | Q(billed=False, billed_picodollars=0),
            ),
            models.CheckConstraint(
                name="charge_is_billed_whole_or_not",
                condition=Q(kind="adjustment")
                | Q(billed=False, billed_picodollars=0)
                | Q(billed=True, amount_picodollars=None, billed_picodollars=0)
                | Q(billed=True, amount_picodollars__isnull=False, billed_picodollars=F("amount_picodollars")),
            ),
        ]

    def __str__(self) -> str:
        return str(self.pk)


class UsageDaily(models.Model):
    """
    A roll-up of the ledger: one row for each UTC day, model, mode, project and profile of an organization.

    Written in the ledger line's transaction. `amount` sums the lines with a known amount; `unpriced` counts
    the others.
    """

    org = models.ForeignKey(Org, models.CASCADE, related_name="usage")
    day = models.DateField()
    provider = models.CharField(max_length=32)
    served_model_id = models.CharField(max_length=128)
    auth_mode = models.CharField(max_length=16, choices=AuthMode.choices)
    project_id = models.CharField(max_length=63, blank=True)
    profile_id = models.CharField(max_length=80, blank=True)
    calls = models.BigIntegerField(default=0)
    unpriced = models.BigIntegerField(default=0)
    input_tokens = models.BigIntegerField(default=0)
    output_tokens = models.BigIntegerField(default=0)
    cache_read_tokens = models.BigIntegerField(default=0)
    cache_write_5m_tokens = models.BigIntegerField(default=0)
    cache_write_1h_tokens = models.BigIntegerField(default=0)
    web_search_requests = models.BigIntegerField(default=0)
    amount_picodollars = WholeNumberField(default=0)
    billed_picodollars = WholeNumberField(default=0)

    objects = OrgScopedQuerySet.as_manager()

    class Meta:
        verbose_name = verbose_name_plural = "daily usage"
        constraints = [
            models.UniqueConstraint(
                fields=["org", "day", "provider", "served_model_id", "auth_mode", "project_id", "profile_id"],
                name="one_roll_up",
            )
        ]

    def __str__(self) -> str:
        return f"{self.org_id} {self.day} {self.served_model_id}"


class Statement(models.Model):
    """
    What an organization owes for one UTC month, as closed by an operator. Statements are added, never changed.

    `digest` covers its whole content, and is also in the audit log.
    """

    org = models.ForeignKey(Org, models.PROTECT, related_name="statements")
    month = models.DateField(help_text="Its first day")
    lines = models.JSONField()
    adjustments = models.JSONField()
    total_picodollars = WholeNumberField()
    digest = models.CharField(max_length=64)
    closed_at = models.DateTimeField()
    closed_by = models.EmailField()

    objects = OrgScopedQuerySet.as_manager()

    class Meta:
        constraints = [models.UniqueConstraint(fields=["org", "month"], name="one_statement_per_month")]

    def __str__(self) -> str:
        return f"{self.org_id} {self.month:%Y-%m}"


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
