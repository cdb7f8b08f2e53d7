"""Answers that several pages share: a confirmation, and the single object of an address."""

from collections.abc import Sequence

from django.http import HttpResponse
from django.shortcuts import render
from django.urls import reverse

from rensei.console.access import PageRequest


def confirm(
    request: PageRequest,
    *,
    title: str,
    text: str,
    action: str,
    section: str,
    back: str,
    items: Sequence[str] = (),
    args: Sequence[str] = (),
) -> HttpResponse:
    """Show a confirmation before a removal: in the dialog for a request of htmx, as a separate page otherwise."""
    context = {
        "title": title,
        "text": text,
        "action": action,
        "section": section,
        "items": items,
        "back": reverse(f"console:{back}", args=[request.access.org.slug, *args]),
    }
    return render(request, "components/_confirm.html" if request.htmx else "console/confirm.html", context)
