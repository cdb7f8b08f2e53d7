"""The forms of the catalog's admin pages: prices in dollars, and the facts of a model as checkboxes."""

import hashlib
from collections.abc import Iterable
from decimal import Decimal
from typing import Any, ClassVar

from django import forms
from django.contrib.admin.widgets import AdminSplitDateTime
from django.db.models import Q, QuerySet
from django.utils import timezone

from catalog.facts import CAPABILITY_FLAGS, THINKING_TYPES, check_effort_levels
from catalog.models import CatalogEntry, Price
from catalog.providers import PROVIDERS
from rensei.core.auth_modes import AuthMode
from rensei.core.effort import Effort
from rensei.core.errors import FieldError
from rensei.core.money import PICODOLLARS_PER_DOLLAR, dollars
from rensei.core.token_classes import OF_TOKENS, TOKEN_CLASSES, WEB_SEARCHES

# 2,000 dollars for a million tokens, and 10 cents for a search. Twenty million of each class, the most that is accepted
# as a call's usage, then cost less than 2^63 picodollars, including the factors of region and speed.
TOKEN_PRICE_MAX = Decimal(2000)
SEARCH_PRICE_MAX = Decimal("0.1")
MICRODOLLARS_PER_DOLLAR = 10**6
# The call whose cost the preview says.
PREVIEWED = {"input": 10_000, "output": 1_000}
FLAG_LABELS = {
    "vision": "Reads images",
    "highResVision": "Reads images in high resolution",
    "promptCaching": "Caches prompts",
    "forcedToolChoice": "Can be made to use a tool",
    "prefill": "Continues a prefilled answer",
    "nativeEffort": "Takes a level of effort",
}
THINKING_LABELS = {
    "adaptive": "Adaptive",
    "between_tools": "Between tools",
    "enabled": "Within a budget",
    "disabled": "Can be turned off",
}


def current_entries() -> QuerySet[CatalogEntry]:
    """List the platform's models that are not retired."""
    today = timezone.now().date()
    models: QuerySet[CatalogEntry] = CatalogEntry.objects.filter(org=None)
    return models.filter(Q(retires_on=None) | Q(retires_on__gt=today)).order_by("provider", "display_name", "model_id")


def labelled(entries: Iterable[CatalogEntry]) -> list[tuple[str, str]]:
    return [(entry.model_id, f"{entry.display_name} ({entry.model_id})") for entry in entries]


def usd_name(price: str) -> str:
    """The form's field of a class of `TOKEN_CLASSES`."""
    return f"{price}_usd"


def _usd(label: str, *, is_search: bool = False) -> forms.DecimalField:
    unit = "a search" if is_search else "a million tokens"
    return forms.DecimalField(
        label=f"{label}, $ for {unit}",
        min_value=0,
        max_value=SEARCH_PRICE_MAX if is_search else TOKEN_PRICE_MAX,
        decimal_places=12 if is_search else 6,
        required=not is_search,
        help_text="Empty: a run that searches is refused." if is_search else "",
    )


def _moment_widget() -> AdminSplitDateTime:
    """Make Django's two boxes, each with a name for screen readers, which Django writes beside them only."""
    widget = AdminSplitDateTime()
    for box, name in zip(widget.widgets, ("Date, UTC", "Time, UTC"), strict=True):
        box.attrs["aria-label"] = name
    return widget


class PriceForm(forms.ModelForm):  # type: ignore[type-arg]
    """
    A price that begins later, so that it does not contradict runs that are already settled.

    It is entered in dollars. The first time that it is sent, the form says what a call will cost, and what it costs
    now; sent again as it is, the price is saved.
    """

    input_usd = _usd("Input")
    output_usd = _usd("Output")
    cache_read_usd = _usd("Cache read")
    cache_write_5m_usd = _usd("Cache write, 5 minutes")
    cache_write_1h_usd = _usd("Cache write, 1 hour")
    web_search_usd = _usd("Web search", is_search=True)
    effective_from = forms.SplitDateTimeField(label="Begins", widget=_moment_widget())
    confirmed = forms.CharField(required=False, widget=forms.HiddenInput)

    class Meta:
        model = Price
        fields = ("entry", "effective_from", "above_prompt_tokens", "source")
        labels: ClassVar = {"entry": "Model", "above_prompt_tokens": "For prompts above, tokens"}

    def clean_effective_from(self) -> Any:
        moment = self.cleaned_data["effective_from"]
        if moment <= timezone.now():
            raise forms.ValidationError("A price begins in the future. Add all its bands before it does.")
        return moment

    def clean(self) -> dict[str, Any]:
        given: dict[str, Any] = super().clean() or {}
        if self.errors:
            return given
        for one in TOKEN_CLASSES:
            amount = given[usd_name(one.price)]
            unit = PICODOLLARS_PER_DOLLAR if one == WEB_SEARCHES else MICRODOLLARS_PER_DOLLAR
            setattr(self.instance, one.in_catalog, None if amount is None else int(amount * unit))
        fingerprint = self._fingerprint(given)
        if given.get("confirmed") != fingerprint:
            self.data = {**self.data.dict(), "confirmed": fingerprint}  # type: ignore[attr-defined]
            raise forms.ValidationError(self._preview(given))
        return given

    def _preview(self, given: dict[str, Any]) -> list[str]:
        band = given.get("above_prompt_tokens") or 0
        entry = given["entry"]
        now = entry.prices.in_force_at(timezone.now()).filter(above_prompt_tokens=band).first()
        call = f"A call of {PREVIEWED['input']:,} tokens in and {PREVIEWED['output']:,} out"
        begins = f"{given['effective_from']:%Y-%m-%d %H:%M} UTC"
        return [
            "Not saved yet. Save again to confirm.",
            f"{call} to {entry.model_id} will cost ${_cost(self.instance)} from {begins} on.",
            f"It costs ${_cost(now)} now." if now else "It has no price now, so metered refuses it.",
        ]

    def _fingerprint(self, given: dict[str, Any]) -> str:
        values = [given["entry"].pk, given["effective_from"], given.get("above_prompt_tokens")]
        values += [getattr(self.instance, one.in_catalog) for one in TOKEN_CLASSES]
        return hashlib.sha256(repr(values).encode()).hexdigest()


def _cost(price: Price) -> str | None:
    prices = {one.price: getattr(price, one.in_catalog) for one in OF_TOKENS}
    return dollars(sum(prices[name] * tokens for name, tokens in PREVIEWED.items()))


class EntryForm(forms.ModelForm):  # type: ignore[type-arg]
    """A platform entry that is not in the data files."""

    provider = forms.ChoiceField(choices=lambda: [(spec.id, spec.display_name) for spec in PROVIDERS.values()])
    replaced_by = forms.ChoiceField(required=False, help_text="The model that serves it once it is retired.")
    auth_modes = forms.MultipleChoiceField(
        choices=AuthMode.choices, required=False, widget=forms.CheckboxSelectMultiple
    )
    capability_flags = forms.MultipleChoiceField(
        label="Capabilities",
        choices=[(flag, FLAG_LABELS[flag]) for flag in CAPABILITY_FLAGS],
        required=False,
        widget=forms.CheckboxSelectMultiple,
    )
    min_cache_tokens = forms.IntegerField(
        label="Shortest cached prompt, tokens", required=False, min_value=1, help_text="Empty: not known."
    )
    thinking_types = forms.MultipleChoiceField(
        label="Thinking",
        choices=[(kind, THINKING_LABELS[kind]) for kind in THINKING_TYPES],
        required=False,
        widget=forms.CheckboxSelectMultiple,
    )
    thinks_by_default = forms.BooleanField(label="Thinks unless it is turned off", required=False)
    effort_levels = forms.MultipleChoiceField(
        choices=Effort.choices, required=False, widget=forms.CheckboxSelectMultiple
    )

    class Meta:
        model = CatalogEntry
        fields = (
            "provider", "model_id", "display_name", "description", "line", "released_on", "deprecated_on", "retires_on",
            "replaced_by", "context_window_tokens", "max_output_tokens", "auth_modes", "effort_levels", "source",
        )  # fmt: skip

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        stored = self.instance.capabilities
        thinking = stored.get("thinking") or {}
        self.initial["capability_flags"] = [flag for flag in CAPABILITY_FLAGS if stored.get(flag)]
        self.initial["min_cache_tokens"] = stored.get("minCacheTokens")
        self.initial["thinking_types"] = thinking.get("types", [])
        self.initial["thinks_by_default"] = thinking.get("onByDefault", False)
        field = self.fields["replaced_by"]
        assert isinstance(field, forms.ChoiceField)
        current = labelled(current_entries().exclude(pk=self.instance.pk))
        now = self.instance.replaced_by
        kept = [(now, now)] if now and now not in dict(current) else []
        field.choices = [("", "Nothing"), *kept, *current]

    def clean(self) -> dict[str, Any]:
        values = super().clean() or {}
        offered = [mode.value for mode in PROVIDERS[values["provider"]].auth_modes] if "provider" in values else []
        if unknown := [mode for mode in values.get("auth_modes") or [] if mode not in offered]:
            self.add_error("auth_modes", f"The provider does not offer {unknown[0]}. It offers {', '.join(offered)}.")
        capabilities: dict[str, Any] = dict.fromkeys(values.get("capability_flags") or [], True)
        if values.get("min_cache_tokens") is not None:
            capabilities["minCacheTokens"] = values["min_cache_tokens"]
        if values.get("thinking_types"):
            capabilities["thinking"] = {
                "types": values["thinking_types"], "onByDefault": values.get("thinks_by_default", False)
            }  # fmt: skip
        elif values.get("thinks_by_default"):
            self.add_error("thinking_types", "A model that thinks by default has at least one kind of thinking.")
        try:
            if levels := values.get("effort_levels"):
                check_effort_levels(levels, capabilities)
        except FieldError as refusal:
            self.add_error("effort_levels", refusal.detail)
        self.instance.capabilities = capabilities
        return values
