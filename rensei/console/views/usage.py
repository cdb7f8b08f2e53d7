"""Usage: one figure by one dimension over some days, the month's spending, and what is left of the limits."""

from collections.abc import Iterable, Mapping
from datetime import date, timedelta
from typing import Any

from django.http import HttpResponse, StreamingHttpResponse
from django.shortcuts import render
from django.views.decorators.http import require_safe

from billing.ledger import ledger_csv, reports
from billing.ledger.reports import visible_lines
from billing.limits.budget import Budget
from billing.limits.forecast import DAYS_OF_PACE, forecast
from billing.limits.snapshot import snapshot_of
from rensei.console import charts, usage_report
from rensei.console.access import PageRequest, page
from rensei.console.payers import month_figures
from rensei.console.templatetags.console import usd
from rensei.console.usage_report import DIMENSIONS, FIGURES, Report
from rensei.core import csv_file
from rensei.core.periods import next_month
from rensei.orgs.models import Org

PERIODS = {"7": "7 days", "30": "30 days", "90": "90 days"}
# Filters of the list of runs, by the dimensions that it has.
RUNS_FILTERS = {"mode": "mode", "model": "model", "profile": "profile", "project": "project"}


@require_safe
@page
def usage(request: PageRequest) -> HttpResponse:
    """Show the chart and table that the address asks for, the month by payer, and the limits."""
    org = request.access.org
    snapshot = snapshot_of(org)
    today = snapshot.now.date()
    length = _one_of(PERIODS, request.GET.get("days"), "30")
    start = today - timedelta(days=int(length) - 1)
    days = [start + timedelta(days=place) for place in range(int(length))]
    found = usage_report.report(
        request.access,
        figure=_one_of(FIGURES, request.GET.get("show"), "cost"),
        by=_one_of(DIMENSIONS, request.GET.get("by"), "mode"),
        start=start,
        end=today,
    )
    quota = snapshot.shared_quota
    context = {
        "report": found,
        "figure_label": FIGURES[found.figure],
        "by_label": DIMENSIONS[found.by],
        "choices": _choices({"show": found.figure, "by": found.by, "days": length}),
        "charts": _charts(days, found),
        "days": _days(days[::-1], found),
        "runs_filter": RUNS_FILTERS.get(found.by, ""),
        "month": month_figures(org, snapshot),
        "quota": quota,
        "quota_label": f"{quota.used} of {quota.limit} shared runs used",
        "budget": snapshot.budget,
        "storage": snapshot.storage,
        **(_budget(org, snapshot.budget, today) if snapshot.budget else {}),
    }
    return render(request, "console/usage.html", context)


@require_safe
@page
def ledger(request: PageRequest) -> StreamingHttpResponse:
    """Stream the cost ledger as CSV, row by row."""
    parts = ledger_csv.write(visible_lines(request.access))
    return csv_file.answer(request, parts, filename=f"{request.access.org.slug}-cost-events.csv")


def _one_of(known: Iterable[str], asked: str | None, default: str) -> str:
    return asked if asked in set(known) else default


def _choices(now: Mapping[str, str]) -> list[dict[str, Any]]:
    """The links that change one part of the question and keep the others."""
    groups = (("show", "Figure", FIGURES), ("by", "By", DIMENSIONS), ("days", "Period", PERIODS))
    return [
        {
            "label": label,
            "links": [
                {
                    "label": text,
                    "query": "&".join(f"{key}={value}" for key, value in {**now, name: option}.items()),
                    "is_current": now[name] == option,
                }
                for option, text in options.items()
            ],
        }
        for name, label, options in groups
    ]


def _charts(days: list[date], found: Report) -> list[charts.Chart]:
    adds = found.figure != "latency"
    return [
        charts.stacked(days, found.values, found.series, write=found.write),
        charts.narrow(days, found.values, found.series, write=found.write, adds=adds),
    ]


def _days(days: list[date], found: Report) -> list[dict[str, Any]]:
    """The rows of the table of the chart: the days with a value or something without a price, newest first."""
    rows = []
    for day in days:
        places = [(day, one.key) for one in found.series]
        values = [found.values.get(place, 0) for place in places]
        unpriced = [found.unpriced.get(place, 0) for place in places]
        if any(values) or any(unpriced):
            written = [found.write_with(*pair) for pair in zip(values, unpriced, strict=True)]
            rows.append({"day": day, "values": written, "total": found.write_with(sum(values), sum(unpriced))})
    return rows


def _budget(org: Org, budget: Budget, today: date) -> dict[str, Any]:
    """The month's metered spending as a line with the budget, and where it would end."""
    month = today.replace(day=1)
    first = min(month, today - timedelta(days=DAYS_OF_PACE))
    lines = reports.usage_by(org, start=first, end=today, group_by="day")
    billed = {date.fromisoformat(line.key): line.billed_picodollars for line in lines}
    expected = forecast(budget, billed, today=today)
    line = charts.budget_line(
        billed,
        month=month,
        days=(next_month(month) - month).days,
        today=today,
        limit=budget.limit,
        at_month_end=expected.at_month_end,
        write=usd,
    )
    return {"forecast": expected, "budget_line": line}
