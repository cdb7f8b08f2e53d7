"""The cost ledger, its roll-ups, and the statements made from it."""

import operator
from functools import reduce
from typing import Self

from django.db import models
from django.db.models import F, Q
from django.db.models.functions import Coalesce

from rensei.core.auth_modes import AuthMode, Payer
from rensei.core.ids import PublicIdField
from rensei.core.token_classes import COUNTS, OF_TOKENS, PRICE_COLUMNS, WEB_SEARCHES
from rensei.core.whole_numbers import WholeNumberField
from rensei.orgs.models import Org, OrgScopedQuerySet

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
