"""Template tags of the page Usage."""

from collections.abc import Sequence

from django import template
from django.template import Context
from django.urls import reverse

from rensei.console import usage_report

register = template.Library()


@register.filter
def seconds(milliseconds: int | None) -> str:
    return usage_report.seconds(milliseconds)


@register.simple_tag(takes_context=True)
def to_args(context: Context, name: str, args: Sequence[str] = ()) -> str:
    """Write the address of one of the organization's pages, with arguments that are a list."""
    return reverse(f"console:{name}", args=[context["request"].access.org.slug, *args])
