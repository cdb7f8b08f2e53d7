"""A statement as CSV: its lines, its adjustments, and their total."""

import csv
import io

from billing.statements.statements import MonthlyStatement
from rensei.core.csv_file import cell
from rensei.core.money import dollars

HEADER = (
    "type",
    "occurred_at",
    "provider",
    "served_model_id",
    "class",
    "count",
    "unit_usd",
    "amount_usd",
    "adjusts_id",
    "run_id",
    "id",
)


def write(statement: MonthlyStatement) -> str:
    """Write a statement as CSV. `unit_usd` is the price of one token, or of one search."""
    text = io.StringIO()
    table = csv.DictWriter(text, HEADER, restval="")
    table.writeheader()
    for line in statement.lines:
        table.writerow(
            {
                "type": "usage",
                "provider": line.provider,
                "served_model_id": cell(line.served_model_id),
                "class": line.token_class,
                "count": line.count,
                "unit_usd": dollars(line.unit_picodollars),
                "amount_usd": dollars(line.amount_picodollars),
            }
        )
    for adjustment in statement.adjustments:
        table.writerow(
            {
                "type": "adjustment",
                "occurred_at": adjustment.occurred_at,
                "provider": adjustment.provider,
                "served_model_id": cell(adjustment.served_model_id),
                "amount_usd": dollars(adjustment.amount_picodollars),
                "adjusts_id": adjustment.charge_id,
                "run_id": adjustment.run_id,
                "id": adjustment.id,
            }
        )
    table.writerow({"type": "total", "amount_usd": dollars(statement.total_picodollars)})
    return text.getvalue()
