"""Statements: what the organization owes the platform for each month."""

from django.http import HttpResponse
from django.shortcuts import render
from django.views.decorators.http import require_safe

from billing.statements import statements as billing
from billing.statements.api import csv_answer
from rensei.console.access import PageRequest, page
from rensei.core.clock import database_now


@require_safe
@page
def statements(request: PageRequest) -> HttpResponse:
    """List the months, newest first."""
    months = billing.summaries(request.access.org, now=database_now())
    return render(request, "console/statements.html", {"months": months})


@require_safe
@page
def statement(request: PageRequest, month: str) -> HttpResponse:
    """Show one month, line by line."""
    found = billing.statement(request.access.org, month, now=database_now())
    return render(request, "console/statement.html", {"statement": found})


@require_safe
@page
def statement_csv(request: PageRequest, month: str) -> HttpResponse:
    """Return one month as CSV."""
    return csv_answer(request.access.org, month)
