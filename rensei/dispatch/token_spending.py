"""What the runs of tokens have cost in a month, for a cap that begins within it."""

from collections.abc import Collection
from datetime import timedelta
from typing import Any

from billing.models import CostEvent
from rensei.core.ids import first_id_of
from rensei.core.periods import start_of
from rensei.core.whole_numbers import WholeSum
from rensei.dispatch.models import Run
from rensei.orgs.models import SpendCap

# A run may be dispatched in one month and be charged in the next.
BEFORE_THE_MONTH = timedelta(days=1)


def count_before(sender: type[SpendCap], cap: SpendCap, token_ids: Collection[str], **kwargs: object) -> None:
    """Count for a new cap what its tokens' runs have cost in its first month, in the transaction that saves it."""
    start: Any = start_of(cap.period)
    runs = Run.objects.filter(
        org_id=cap.org_id, token_id__in=token_ids, id__gte=first_id_of("run", start - BEFORE_THE_MONTH)
    )
    lines = CostEvent.objects.of_calls().filter(org_id=cap.org_id, occurred_at__gte=start, run_id__in=runs.values("id"))
    cap.used = lines.aggregate(used=WholeSum("amount_picodollars"))["used"] or 0
