"""Runs as CSV, written row by row."""

from collections.abc import Iterator

from rensei.core import csv_file
from rensei.core.csv_file import cell
from rensei.core.money import dollars
from rensei.core.periods import written
from rensei.core.querysets import pages
from rensei.dispatch.models import Run, RunQuerySet

PAGE = 500
TEXTS = ("id", "state", "profile_id", "provider", "model_id", "served_model_id", "auth_mode", "payer", "via")
TIMES = ("created_at", "started_at", "finished_at")
TOKENS = ("input_tokens", "output_tokens", "cache_read_tokens", "cache_write_5m_tokens", "cache_write_1h_tokens")
HEADER = (*TEXTS, "project", "member", *TIMES, *TOKENS, "amount_usd", "billed", "estimated", "error_code")


def write(runs: RunQuerySet) -> Iterator[str]:
    """Write the runs as CSV, newest first, without prompts and answers, one page of them in memory at a time."""
    found = runs.listed().select_related("project", "created_by")
    return csv_file.write(HEADER, (map(_cells, page) for page in pages(found, size=PAGE, by="-id")))


def _cells(run: Run) -> list[object]:
    moments = [getattr(run, name) for name in TIMES]
    return [
        *(cell(getattr(run, name)) for name in TEXTS),
        cell(run.project.slug if run.project else ""),
        cell(run.created_by.email if run.created_by else ""),
        *(written(moment) if moment else "" for moment in moments),
        *(run.usage.get(name, 0) for name in TOKENS),
        dollars(run.amount_picodollars) or "",
        run.billed,
        run.estimated,
        run.error["code"] if run.error else "",
    ]
