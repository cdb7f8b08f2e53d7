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
    to_type: str = "",
    choice: tuple[str, Sequence[tuple[str, str]]] | None = None,
) -> HttpResponse:
    """
    Show a confirmation before a removal: in the dialog for a request of htmx, as a separate page otherwise.

    With `to_type`, the person types that name first. A form with another name is shown again. A `choice` is a label
    with values and their texts; the form sends the value as `chosen`.
    """
    context = {
        "title": title,
        "text": text,
        "action": action,
        "section": section,
        "items": items,
        "back": reverse(f"console:{back}", args=[request.access.org.slug, *args]),
        "to_type": to_type,
        "choice": choice,
        "mistyped": request.POST.get("typed"),
    }
    template = "components/_confirm.html" if request.htmx else "console/confirm.html"
    return render(request, template, context, status=422 if request.method == "POST" else 200)
