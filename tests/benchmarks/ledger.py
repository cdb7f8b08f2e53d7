"""A large ledger in little time: some lines as the tests make them, and the database's own copies of these."""

from django.db import connection

from billing.ledger.roll_ups import SUMS
from billing.models import CostEvent, UsageDaily
from rensei.core.clock import database_now
from rensei.orgs.models import Org
from tests.billing.many_events import fill_ledger

MADE_SINGLY = 20_000
IDS = ("id", "run_id", "attempt_id")


def fill(org: Org, *, lines: int) -> None:
    """Write about so many charges of the last 90 days, with their roll-ups. The organization has no others."""
    made = min(lines, MADE_SINGLY)
    fill_ledger(org, lines=made, until=database_now())
    copies = lines // made - 1
    columns = [str(field.column) for field in CostEvent._meta.concrete_fields]
    copied = [f"{name} || '_' || copy.number" if name in IDS else name for name in columns]
    with connection.cursor() as cursor:
        cursor.execute(
            f"INSERT INTO {CostEvent._meta.db_table} ({', '.join(columns)}) SELECT {', '.join(copied)}"
            f" FROM {CostEvent._meta.db_table}, generate_series(1, %s) AS copy (number)"
            " WHERE org_id = %s AND id LIKE %s",
            [copies, org.pk, f"cost_{org.slug}_%"],
        )
        sums = ", ".join(f"{name} = {name} * %s" for name in SUMS)
        cursor.execute(
            f"UPDATE {UsageDaily._meta.db_table} SET {sums} WHERE org_id = %s", [copies + 1] * len(SUMS) + [org.pk]
        )
        cursor.execute("VACUUM ANALYZE")
