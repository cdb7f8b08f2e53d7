"""What is held for runs, by the monthly budget, for the shared ones, or by caps."""

from collections.abc import Collection

from billing.models import BudgetHold, CapHold, Hold


def held_for(run_ids: Collection[str]) -> dict[str, int]:
    """Read the most that runs may cost, in picodollars, by run id. Runs that hold nothing are absent."""
    held: dict[str, int] = {}
    for model in (BudgetHold, Hold, CapHold):
        held |= dict(model.objects.filter(run_id__in=run_ids).values_list("run_id", "picodollars"))
    return held
