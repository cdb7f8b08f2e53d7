"""Usage: the cost, its parts, and what is left of today's quota."""

from collections import defaultdict
from datetime import date, timedelta

from django.http import HttpResponse, StreamingHttpResponse
from django.shortcuts import render
from django.views.decorators.http import require_safe

from billing.ledger import ledger_csv, reports
from billing.limits.snapshot import snapshot_of
from billing.models import CostEvent, UsageDaily
from rensei.console import charts
from rensei.console.access import PageRequest, page
from rensei.console.payers import month_figures
from rensei.core import csv_file
from rensei.core.auth_modes import AuthMode
from rensei.orgs.models import Org

PERIODS = (7, 30, 90)
TOP = 5


@require_safe
@page
def usage(request: PageRequest) -> HttpResponse:
    """Show cost and tokens by day and mode, the shared quota, and the largest consumers."""
    org = request.access.org
    snapshot = snapshot_of(org)
    now = snapshot.now
    asked = request.GET.get("days", "30")
    length = int(asked) if asked in {str(days) for days in PERIODS} else 30
    today = now.date()
    start = today - timedelta(days=length - 1)
    days = [start + timedelta(days=place) for place in range(length)]
    amounts = _amounts(org, start, today)
    used = [mode.value for mode in AuthMode if any(key == mode for _, key in amounts)]
    by = reports.usage_by_each(org, start=start, end=today, groups=["day", "profile", "project", "model"])
    quota = snapshot.shared_quota
    context = {
        "length": length,
        "periods": PERIODS,
        "days": [
            {"line": line, "by_mode": [amounts.get((date.fromisoformat(line.key), mode), 0) for mode in used]}
            for line in by["day"][::-1]
        ],
        "total": reports.total(by["day"]),
        "charts": [charts.stacked(days, amounts, used), charts.narrow(days, amounts, used)],
        "modes": [(mode, sum(amount for (_, key), amount in amounts.items() if key == mode)) for mode in used],
        "month": month_figures(org, snapshot),
        "quota": quota,
        "quota_label": f"{quota.used} of {quota.limit} shared runs used",
        "budget": snapshot.budget,
        "storage": snapshot.storage,
        "profiles": by["profile"][:TOP],
        "projects": by["project"][:TOP],
        "models": by["model"][:TOP],
    }
    return render(request, "console/usage.html", context)


@require_safe
@page
def ledger(request: PageRequest) -> StreamingHttpResponse:
    """Stream the cost ledger as CSV, row by row."""
    parts = ledger_csv.write(CostEvent.objects.for_org(request.access.org))
    return csv_file.answer(request, parts, filename=f"{request.access.org.slug}-cost-events.csv")


def _amounts(org: Org, start: date, end: date) -> dict[tuple[date, str], int]:
    """The cost of each day under each mode. Added here, because SQLite has no integer beyond 2^63."""
    amounts: dict[tuple[date, str], int] = defaultdict(int)
    rows = UsageDaily.objects.for_org(org).filter(day__range=(start, end))
    for day, mode, amount in rows.values_list("day", "auth_mode", "amount_picodollars"):
        amounts[day, mode] += amount
    return dict(amounts)
