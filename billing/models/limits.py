"""The limits of an organization: what it may use of the platform, what it used, and what its live runs hold."""

from django.db import models
from django.db.models import Q
from django.utils import timezone

from rensei.core.money import PICODOLLARS_PER_DOLLAR
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
