"""Template tags for icons, addresses, money, numbers and times."""

from datetime import datetime
from decimal import Decimal
from typing import Any
from urllib.parse import urlencode, urlsplit

from django import forms, template
from django.forms import BoundField
from django.template import Context
from django.templatetags.static import static
from django.urls import reverse
from django.utils.html import format_html
from django.utils.safestring import SafeString

from billing.limits.budget import Budget
from billing.limits.quota import SharedQuota
from rensei.console import fixes
from rensei.core.auth_modes import PAYER_OF, AuthMode
from rensei.core.money import PICODOLLARS_PER_DOLLAR, dollars
from rensei.core.token_classes import TOKEN_CLASSES
from rensei.core.usage import Usage
from rensei.dispatch.models import Run
from rensei.dispatch.pools import slots
from rensei.orgs.storage import Storage

register = template.Library()
CENT = Decimal("0.01")
LEAST_LISTED = Decimal("0.0001")
LABELS = {one.price: one.label for one in TOKEN_CLASSES}
VERDICTS = {
    "chosen": "Chosen",
    "allowed": "Allowed by policy, not needed",
    "not-in-profile": "Not in the profile",
    "not-offered": "Not offered",
    "denied-by-policy": "Denied by a policy",
    "gate-failed": "Refused",
}


# The document that explains a page, by the first word of the page's name.
HELP = {
    "runs": "auth-modes", "run": "auth-modes", "compare": "auth-modes", "playground": "auth-modes",
    "profiles": "auth-modes", "profile": "auth-modes", "projects": "auth-modes", "project": "auth-modes",
    "workflows": "workflows", "workflow": "workflows", "connect": "gateway", "usage": "ledger",
    "statements": "ledger", "statement": "ledger", "integrations": "providers/anthropic",
    "integration": "providers/anthropic", "catalog": "catalog", "members": "people", "member": "people",
    "invitation": "people", "organization": "people", "audit": "people", "tokens": "tokens", "token": "tokens",
    "machines": "host-sessions", "machine": "host-sessions", "why": "errors", "metered": "auth-modes",
}  # fmt: skip


@register.simple_tag
def icon(name: str) -> SafeString:
    """Draw an icon of our own set. It has no meaning by itself, so it is hidden from screen readers."""
    return format_html('<svg class="icon" aria-hidden="true"><use href="{}#{}"></use></svg>', _sprite(), name)


@register.simple_tag(takes_context=True)
def to(context: Context, name: str, *args: str, **query: str | None) -> str:
    """Write the address of one of the organization's pages, with a query of those parameters that have a value."""
    address = reverse(f"console:{name}", args=[context["request"].access.org.slug, *args])
    asked = urlencode({key: value for key, value in query.items() if value})
    return f"{address}?{asked}" if asked else address


@register.simple_tag
def moment(value: datetime | None, style: str = "relative") -> SafeString | str:
    """Write a time in UTC; a script converts it to the viewer's time zone."""
    if value is None:
        return ""
    text = f"{value:%H:%M} UTC" if style == "clock" else f"{value:%b} {value.day}, {value:%Y, %H:%M} UTC"
    return format_html('<time datetime="{}" data-time="{}">{}</time>', value.isoformat(), style, text)


@register.filter
def usd(picodollars: int | None) -> str:
    """Write an amount in dollars with as many decimals as it needs; an unknown amount is a dash."""
    if picodollars is None:
        return "—"
    amount = Decimal(picodollars) / PICODOLLARS_PER_DOLLAR
    sign, amount = ("−", -amount) if amount < 0 else ("", amount)
    if amount == 0:
        return "$0.00"
    if amount >= 1:
        return f"{sign}${amount:,.2f}"
    places = max(4, -amount.adjusted() + 2)
    whole, _, fraction = f"{amount:.{places}f}".partition(".")
    return f"{sign}${whole}.{fraction.rstrip('0').ljust(2, '0')}"


@register.filter
def usd_listed(picodollars: int | None) -> SafeString | str:
    """Write an amount for a column of a list: four decimals, so that they align, and all of them on hover."""
    if picodollars is None:
        return "—"
    amount = Decimal(picodollars) / PICODOLLARS_PER_DOLLAR
    text = f"<${LEAST_LISTED}" if 0 < amount < LEAST_LISTED else f"{'−' if amount < 0 else ''}${abs(amount):,.4f}"
    return format_html('<span title="{}">{}</span>', usd_exact(picodollars), text)


@register.filter
def usd_exact(picodollars: int) -> str:
    """Write an amount in dollars with all decimals, for figures that have to add up."""
    return f"{'−' if picodollars < 0 else ''}${dollars(abs(picodollars))}"


@register.filter
def token_class(name: str) -> str:
    return LABELS[name]


@register.filter
def usd_text(amount: str | None) -> str:
    """Write an amount of the wire form, a decimal string of dollars, for people."""
    return usd(None if amount is None else int(Decimal(amount) * PICODOLLARS_PER_DOLLAR))


@register.filter
def per_mtok(microdollars: int | None) -> str:
    """Write a price in dollars per million tokens."""
    if not isinstance(microdollars, int):
        return "—"
    price = Decimal(microdollars) / 1_000_000
    return f"${price:,.2f}" if price == price.quantize(CENT) else f"${price.normalize():f}"


@register.filter
def count(number: int | None) -> str:
    return f"{number:,}" if isinstance(number, int) else "—"


@register.filter
def tokens_short(number: int | None) -> str:
    """Write a size in tokens in short form: 200K, 1M."""
    if number is None:
        return "—"
    if number >= 1_000_000:
        return f"{number / 1_000_000:g}M"
    return f"{number // 1000}K" if number >= 1000 else str(number)


@register.filter
def seconds_between(start: datetime | None, end: datetime | None) -> str:
    if start is None or end is None:
        return "—"
    seconds = (end - start).total_seconds()
    return f"{seconds:.2f} s" if seconds < 10 else duration(int(seconds))


@register.simple_tag
def stopwatch(start: datetime, now: datetime) -> SafeString:
    """Write how long something has lasted; a script goes on counting until the page is loaded again."""
    seconds = max(0, int((now - start).total_seconds()))
    return format_html('<span data-elapsed="{}">{}</span>', seconds, duration(seconds))


def duration(seconds: int) -> str:
    """Write whole seconds with at most two units. `rensei.js` counts on in the same form."""
    if seconds < 120:
        return f"{seconds} s"
    minutes, seconds = divmod(seconds, 60)
    if minutes < 120:
        return f"{minutes} min {seconds} s"
    return f"{minutes // 60} h {minutes % 60} min"


@register.filter
def mode_label(mode: str) -> str:
    return str(AuthMode(mode).label)


@register.filter
def payer_sentence(mode: str) -> str:
    """Say who pays under an auth mode."""
    return str(PAYER_OF[AuthMode(mode)].label)


@register.filter
def errors_page(code: str) -> str:
    """Write the address of the documentation of an error code."""
    return f"{reverse('console:docs-page', args=['errors'])}#{code.lower().replace('_', '-')}"


@register.simple_tag(takes_context=True)
def help_link(context: Context) -> SafeString:
    """Link to the documentation of the page; with scripts, it opens beside the page."""
    match = context["request"].resolver_match
    address = reverse("console:docs-page", args=[HELP.get((match.url_name or "").partition("-")[0], "index")])
    return format_html(
        '<a class="button button--quiet button--icon" href="{0}" hx-get="{0}" hx-target="#dialog" '
        'aria-label="Help" title="Help">{1}</a>',
        address,
        icon("help"),
    )


@register.simple_tag(takes_context=True)
def fix_link(context: Context, code: str, run_id: str = "") -> SafeString | str:
    """Write a link to the page that corrects a refusal; nothing where there is none."""
    access = context.get("access")
    way = fixes.way_to(code, access=access, run_id=run_id) if access else None
    return format_html('<a class="fix" href="{}">{}</a>', *way) if way else ""


@register.filter
def what_to_do(code: str) -> str:
    """Write what to do about a refusal, from its documentation."""
    return fixes.step_of(code)


@register.filter
def verdict_label(verdict: str) -> str:
    """Write the verdict on a mode for people."""
    return VERDICTS[verdict]


@register.filter
def belongs_to(name: str, section: str) -> bool:
    """Whether a page's name is that of a section, or begins with it."""
    return name == section or name.startswith(f"{section.rstrip('-')}-")


@register.filter
def control(field: BoundField) -> SafeString:
    """Draw a form's field in our style, linked to its help and its error for screen readers."""
    widget = field.field.widget
    attrs = {}
    if isinstance(widget, forms.Select):
        attrs["class"] = "select"
    elif isinstance(widget, forms.Textarea):
        attrs["class"] = f"textarea {widget.attrs.get('class', '')}".strip()
    elif not isinstance(widget, forms.CheckboxInput | forms.FileInput):
        attrs["class"] = f"input {widget.attrs.get('class', '')}".strip()
    if field.errors:
        attrs["aria-invalid"] = "true"
        attrs["aria-describedby"] = f"{field.auto_id}_error"
    return field.as_widget(attrs={**widget.attrs, **attrs})


@register.filter
def after_colon(value: str) -> str:
    """The model id of a value such as `claude:claude-opus-5`."""
    return value.partition(":")[2]


@register.filter
def short_id(public_id: str) -> str:
    """The start of a long id and its last letters, which differ between two runs of one moment."""
    return f"{public_id[:8]}…{public_id[-6:]}"


@register.filter
def prompt_tokens(usage: dict[str, int] | None) -> int:
    """The whole prompt of a run's stored usage, cached or not."""
    return Usage.from_dict(usage or {}).prompt_tokens


@register.filter
def waits_for(run: Run) -> str:
    """Say what a queued run waits for: a slot of its pool, a worker, or the member's machine it was dispatched to."""
    if run.host:
        return f"Waiting for the machine {run.host.name}"
    full = slots.why_waiting(run)
    return f"Waiting for a slot. {full}" if full else "Waiting for a worker"


@register.filter
def all_tokens(usage: dict[str, int]) -> int:
    """The prompt and the output of a run's stored usage together."""
    return prompt_tokens(usage) + usage.get("output_tokens", 0)


@register.filter
def system_text(system: str | list[dict[str, Any]]) -> str:
    """A stored system prompt as one text."""
    return system if isinstance(system, str) else "\n\n".join(block["text"] for block in system)


@register.filter
def quota_left(quota: SharedQuota) -> int:
    return max(0, quota.limit - quota.used)


@register.filter
def budget_percent(budget: Budget) -> int:
    """The percentage of the budget that is used or held."""
    taken = max(0, budget.used + budget.held)
    return min(100, round(100 * taken / budget.limit)) if budget.limit else 100


@register.filter
def storage_percent(storage: Storage) -> int:
    """The percentage of the organization's storage limit that is used or held."""
    return min(100, round(100 * (storage.used + storage.held) / storage.limit)) if storage.limit else 100


@register.filter
def quota_percent(quota: SharedQuota) -> int:
    return min(100, round(100 * quota.used / quota.limit)) if quota.limit else 100


@register.filter
def host(url: str) -> str:
    return urlsplit(url).hostname or url


@register.filter
def item(mapping: dict[str, Any], key: str) -> Any:
    return mapping.get(key)


def _sprite() -> str:
    return static("rensei/icons.svg")
