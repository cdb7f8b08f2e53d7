"""What several pages answer in the same way: ask again, or say that nothing is there."""

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
    """Ask again before something goes: in the dialog where htmx asked, as a page of its own elsewhere."""
    context = {
        "title": title,
        "text": text,
        "action": action,
        "section": section,
        "items": items,
        "back": reverse(f"console:{back}", args=[request.access.org.slug, *args]),
    }
    return render(request, "components/_confirm.html" if request.htmx else "console/confirm.html", context)
