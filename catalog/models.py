"""The models that can be named, their capabilities, and their prices over time."""

from datetime import date, datetime
from typing import Self

from django.db import models
from django.db.models import Exists, OuterRef, Q
from django.utils import timezone

from rensei.core.effort import EffortChoice, choices_for
from rensei.core.querysets import Lookups
from rensei.orgs.models import Org, OrgScopedQuerySet


class CatalogEntryQuerySet(Lookups, models.QuerySet["CatalogEntry"]):
    def visible_to(self, org: Org) -> Self:
        """
        Platform entries, and the organization's own.

        An organization's entry does not shadow a platform entry of the same id, which may have come later:
        the platform's has the vetted facts and prices. An entry whose id is an alias of another one is excluded too.
        """
        same_model = CatalogEntry.objects.filter(org=None, provider=OuterRef("provider"), model_id=OuterRef("model_id"))
        alias = ModelAlias.objects.filter(provider=OuterRef("provider"), name=OuterRef("model_id"))
        return self.filter(Q(org=None) | Q(org=org) & ~Exists(same_model)).exclude(Exists(alias))

    def in_lifecycle(self, lifecycle: "CatalogEntry.Lifecycle", day: date) -> Self:
        """The entries that are active, deprecated or retired on a day, as defined by `lifecycle_on`."""
        retired = Q(retires_on__isnull=False, retires_on__lte=day)
        deprecated = Q(deprecated_on__isnull=False, deprecated_on__lte=day)
        conditions = {
            CatalogEntry.Lifecycle.RETIRED: retired,
            CatalogEntry.Lifecycle.DEPRECATED: deprecated & ~retired,
            CatalogEntry.Lifecycle.ACTIVE: ~deprecated & ~retired,
        }
        return self.filter(conditions[lifecycle])


class CatalogEntry(models.Model):
    """
    A model that profiles may name. Without an organization it is a platform entry, visible to all.

    `capabilities` holds `vision`, `highResVision`, `promptCaching`, `minCacheTokens`, `forcedToolChoice`,
    `prefill`, `nativeEffort` (the API accepts an effort level) and `thinking`:
    `{"types": ["adaptive", "between_tools", "enabled", "disabled"], "onByDefault": bool}`, where `enabled`
    is thinking within a budget.
    """

    class Lifecycle(models.TextChoices):
        ACTIVE = "active", "Active"
        DEPRECATED = "deprecated", "Deprecated"
        RETIRED = "retired", "Retired"

    org = models.ForeignKey(Org, models.CASCADE, null=True, blank=True, related_name="catalog_entries")
    provider = models.CharField(max_length=32)
    model_id = models.CharField(max_length=128)
    display_name = models.CharField(max_length=120)
    description = models.CharField(max_length=400, blank=True)
    line = models.CharField(max_length=32, blank=True, help_text="The provider's name for its kind, such as opus")
    released_on = models.DateField(null=True, blank=True)
    deprecated_on = models.DateField(null=True, blank=True)
    retires_on = models.DateField(null=True, blank=True)
    replaced_by = models.CharField(max_length=128, blank=True)
    context_window_tokens = models.PositiveIntegerField(null=True, blank=True)
    max_output_tokens = models.PositiveIntegerField(null=True, blank=True)
    capabilities = models.JSONField(default=dict, blank=True)
    effort_levels = models.JSONField(default=list, blank=True)
    auth_modes = models.JSONField(default=list, blank=True)
    source = models.CharField(max_length=400, blank=True)
    created_at = models.DateTimeField(default=timezone.now)

    objects = CatalogEntryQuerySet.as_manager()

    class Meta:
        verbose_name_plural = "catalog entries"
        constraints = [
            models.UniqueConstraint(
                fields=["provider", "model_id"], condition=Q(org=None), name="one_platform_entry_per_model"
            ),
            models.UniqueConstraint(
                fields=["org", "provider", "model_id"],
                condition=Q(org__isnull=False),
                name="one_entry_per_org_and_model",
            ),
        ]

    def __str__(self) -> str:
        return self.model_id

    @property
    def efforts(self) -> list[EffortChoice]:
        return choices_for(self.effort_levels)

    def lifecycle_on(self, day: date) -> "CatalogEntry.Lifecycle":
        if self.retires_on is not None and self.retires_on <= day:
            return self.Lifecycle.RETIRED
        if self.deprecated_on is not None and self.deprecated_on <= day:
            return self.Lifecycle.DEPRECATED
        return self.Lifecycle.ACTIVE


class ModelAlias(models.Model):
    """
    Another name that the provider accepts for the model of a platform entry.

    It is not a separate entry, because policy rows, prices and windows must be those of the model.
    """

    entry = models.ForeignKey(CatalogEntry, models.CASCADE, related_name="aliases")
    provider = models.CharField(max_length=32)
    name = models.CharField(max_length=128)

    class Meta:
        verbose_name_plural = "model aliases"
        constraints = [models.UniqueConstraint(fields=["provider", "name"], name="one_model_per_alias")]

    def __str__(self) -> str:
        return self.name


class Identity(models.Model):
    """
    A platform model that has answered a call to an organization's own entry.

    Only answers show which model such an entry really is. The row holds the entry's id and no foreign key, so deleting
    the entry and adding it again does not discard this information.
    """

    org = models.ForeignKey(Org, models.CASCADE, related_name="+")
    provider = models.CharField(max_length=32)
    model_id = models.CharField(max_length=128)
    answered_by = models.CharField(max_length=128)
    run_id = models.CharField(max_length=40, help_text="The first run that was answered so")
    seen_at = models.DateTimeField(default=timezone.now)

    objects = OrgScopedQuerySet.as_manager()

    class Meta:
        verbose_name = "model that answered"
        verbose_name_plural = "models that answered"
        constraints = [
            models.UniqueConstraint(fields=["org", "provider", "model_id", "answered_by"], name="one_row_per_identity")
        ]

    def __str__(self) -> str:
        return f"{self.model_id} is {self.answered_by}"


class PriceQuerySet(models.QuerySet["Price"]):
    def in_force_at(self, moment: datetime) -> Self:
        """The prices that had begun by then, newest first, then by band from the highest."""
        return self.filter(effective_from__lte=moment).order_by("-effective_from", "-above_prompt_tokens")


class Price(models.Model):
    """
    A model's price from a moment on, for prompts above a size. Superseded by newer rows, never edited.

    All token prices are microdollars per million tokens, which is picodollars per token.
    """

    entry = models.ForeignKey(CatalogEntry, models.CASCADE, related_name="prices")
    effective_from = models.DateTimeField()
    above_prompt_tokens = models.PositiveIntegerField(default=0)
    input_microdollars = models.PositiveBigIntegerField()
    output_microdollars = models.PositiveBigIntegerField()
    cache_write_5m_microdollars = models.PositiveBigIntegerField()
    cache_write_1h_microdollars = models.PositiveBigIntegerField()
    cache_read_microdollars = models.PositiveBigIntegerField()
    web_search_picodollars = models.PositiveBigIntegerField(null=True, blank=True)
    source = models.CharField(max_length=400, blank=True)
    created_at = models.DateTimeField(default=timezone.now)

    objects = PriceQuerySet.as_manager()

    class Meta:
        constraints = [
            models.UniqueConstraint(
                fields=["entry", "effective_from", "above_prompt_tokens"], name="one_price_per_band"
            )
        ]

    def __str__(self) -> str:
        return f"{self.entry_id} from {self.effective_from:%Y-%m-%d} above {self.above_prompt_tokens}"


class CatalogSetting(models.Model):
    """The operators' switches for the catalog: one row."""

    id = models.PositiveSmallIntegerField(primary_key=True, default=1, editable=False)
    redirect_retired = models.BooleanField(
        default=True, help_text="Serve a retired model by its replacement. Off: refuse with MODEL_RETIRED."
    )

    class Meta:
        constraints = [models.CheckConstraint(name="one_catalog_setting", condition=Q(id=1))]

    def __str__(self) -> str:
        return "Catalog settings"
