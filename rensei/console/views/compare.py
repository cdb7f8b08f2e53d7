"""Two runs side by side: their inputs, models, results and costs."""

from decimal import Decimal
from typing import Any

from django.http import HttpResponse
from django.shortcuts import render
from django.views.decorators.http import require_safe

from rensei.console.access import PageRequest, page
from rensei.console.run_texts import asked_of, text_of
from rensei.console.templatetags.console import count, mode_label, prompt_tokens, usd
from rensei.dispatch.models import Run
from rensei.dispatch.queries import visible_runs

OFFERED = 15


@require_safe
@page
def compare(request: PageRequest) -> HttpResponse:
    """Show the two runs that the address names, or the latest ones to choose from until there are two."""
    own = visible_runs(request.access)
    named = list(dict.fromkeys(request.GET.getlist("run")))[:2]
    found = [own.select_related("input", "host").get_or_404(pk=run_id) for run_id in named]
    if len(found) < 2:
        offered = own.listed().exclude(pk__in=named).order_by("-id")[:OFFERED]
        choice = {"first": found[0] if found else None, "runs": offered}
        return render(request, "console/compare_choose.html", choice)
    sides = [{"run": one, "text": text_of(one), "ended": one.state in Run.ENDED} for one in found]
    asked = [asked_of(one.input.body) if hasattr(one, "input") else [] for one in found]
    context = {
        "sides": sides,
        "lines": _lines(*found),
        "ended": all(side["ended"] for side in sides),
        "asked": asked,
        "asked_alike": asked[0] == asked[1],
    }
    return render(request, "console/_compare.html" if request.htmx else "console/compare.html", context)


def _lines(left: Run, right: Run) -> list[dict[str, Any]]:
    """Each fact of both runs, and how the right one differs, in words or in percent."""
    return [
        _words("Profile", left.profile_name or left.profile_id, right.profile_name or right.profile_id),
        _words("Model", left.served_model_id, right.served_model_id),
        _words("Signed by", mode_label(left.auth_mode), mode_label(right.auth_mode)),
        _words("Effort", left.effort or "the model's own", right.effort or "the model's own"),
        _number("Cost", left.amount_picodollars, right.amount_picodollars, usd),
        _number("Tokens in", _prompt(left), _prompt(right), count),
        _number("Tokens out", left.usage.get("output_tokens"), right.usage.get("output_tokens"), count),
        _number("Model time", _seconds(left), _seconds(right), lambda value: f"{value:.2f} s"),
    ]


def _prompt(run: Run) -> int | None:
    return prompt_tokens(run.usage) if run.usage else None


def _words(label: str, left: str, right: str) -> dict[str, Any]:
    return {"label": label, "values": [left, right], "difference": "same" if left == right else "differs"}


def _number(label: str, left: Any, right: Any, written: Any) -> dict[str, Any]:
    values = ["—" if value is None else written(value) for value in (left, right)]
    return {"label": label, "values": values, "difference": _percent(left, right), "number": True}


def _percent(left: Any, right: Any) -> str:
    if left is None or right is None or not left:
        return ""
    change = round(100 * (Decimal(right) - Decimal(left)) / Decimal(left))
    return "same" if left == right else f"{'+' if change >= 0 else '−'}{abs(change):,} %"


def _seconds(run: Run) -> float | None:
    if run.started_at is None or run.finished_at is None:
        return None
    return (run.finished_at - run.started_at).total_seconds()
