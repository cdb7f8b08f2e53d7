"""What is held for runs, by the monthly budget or for the shared ones."""

from collections.abc import Collection

from billing.models import BudgetHold, Hold


def held_for(run_ids: Collection[str]) -> dict[str, int]:
    """Read the most that runs may cost, in picodollars, by run id. Runs that hold nothing are absent."""
    held: dict[str, int] = {}
    for model in (BudgetHold, Hold):
        held |= dict(model.objects.filter(run_id__in=run_ids).values_list("run_id", "picodollars"))
    return held
