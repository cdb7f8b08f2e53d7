"""The components that contain other markup. Each has its template; the page `/components` shows all of them."""

from collections.abc import Mapping
from typing import Any

from django import template
from django.forms.utils import flatatt
from django.template import Context
from django.template.loader import render_to_string
from django.urls import reverse

from rensei.console.sorting import Sort

register = template.Library()
FULL, NEARLY_FULL = 100, 80


@register.simple_block_tag(takes_context=True)
def button(
    context: Context,
    content: str,
    kind: str = "",
    icon: str = "",
    to: str = "",
    about: str = "",
    query: str = "",
    dialog: bool = False,
    **attributes: Any,
) -> str:
    """
    Draw a button, or a link that looks like one if it leads `to` a page of the organization or has an `href`.

    `about` is the id in that page's address, and `dialog` opens the page in the dialog where scripts run. An
    attribute with a hyphen is written with an underscore; an attribute that is false is omitted.
    """
    if to:
        address = reverse(f"console:{to}", args=[context["request"].access.org.slug, *([about] if about else [])])
        attributes["href"] = address + query
        if dialog:
            attributes |= {"hx_get": address, "hx_target": "#dialog"}
    elif "href" not in attributes:
        attributes.setdefault("type", "submit")
    written = {name.replace("_", "-"): value for name, value in attributes.items() if value not in ("", None)}
    return render_to_string(
        "components/_button.html",
        {
            "tag": "a" if "href" in attributes else "button",
            "kinds": kind.split(),
            "icon_name": icon,
            "attributes": flatatt(written),
            "label": content,
        },
    )


@register.simple_block_tag
def card(content: str, title: str = "") -> str:
    """Draw a framed piece of a page, with a heading if it has a title."""
    return render_to_string("components/_card.html", {"title": title, "content": content})


@register.simple_block_tag
def notice(content: str, kind: str = "", icon: str = "", title: str = "", alert: bool = False) -> str:
    """Draw a highlighted sentence: `ok`, `warn`, `bad` or plain. A screen reader reads an alert at once."""
    icons = {"ok": "check", "warn": "alert", "bad": "alert"}
    values = {"kind": kind, "icon_name": icon or icons.get(kind, "info"), "title": title, "alert": alert}
    return render_to_string("components/_notice.html", {**values, "content": content})


@register.simple_block_tag
def table(
    content: str, *columns: str, kind: str = "fold", menus: bool = False, sorts: Mapping[str, Sort] | None = None
) -> str:
    """
    Draw a table with these headings, which becomes a list on a phone.

    A heading that begins with `#` is of numbers; `-` is that of the buttons in each row. One that ends with `?` or `??`
    is of a column that is left out where the frame is narrow, `?` first; its cells have the class `spare-1` or
    `spare-2`. With `menus`, menus in the table may extend beyond its frame. The headings in `sorts` are links that sort
    the rows.
    """
    heads = [_head(column, sorts or {}) for column in columns]
    values = {"columns": heads, "kinds": kind.split(), "menus": menus, "content": content}
    return render_to_string("components/_table.html", values)


@register.simple_block_tag
def meter(content: str, percent: int, label: str) -> str:
    """Draw a bar of a percentage, whose colour changes towards its end, with its text below."""
    kind = "bad" if percent >= FULL else "warn" if percent >= NEARLY_FULL else ""
    values = {"percent": percent, "kind": kind, "label": label, "content": content}
    return render_to_string("components/_meter.html", values)


@register.simple_block_tag
def empty(content: str, icon: str, title: str) -> str:
    """Draw the text of an empty list: why it is empty, and what to do."""
    return render_to_string("components/_empty.html", {"icon_name": icon, "title": title, "content": content})


def _head(column: str, sorts: Mapping[str, Sort]) -> dict[str, Any]:
    if column == "-":
        return {"label": "Actions", "hidden": True}
    label = column.strip("#?")
    spare = {"?": "spare-1", "??": "spare-2"}.get(column[len(column.rstrip("?")) :])
    css = " ".join(filter(None, ["number" if column.startswith("#") else None, spare]))
    return {"label": label, "css": css, "sort": sorts.get(label)}
