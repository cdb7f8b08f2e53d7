"""The points of a run at which a worker can die."""

from collections.abc import Callable
from typing import Any

from integrations.providers.base import TextDelta, UsageReport
from rensei.dispatch import calls, execution, queue, settlement
from tests.dying import die, die_after, die_before


def plant_death(point: str) -> None:
    take = calls.Call._take
    taken: list[object] = []

    def die_on(kind: type, count: int) -> Callable[..., None]:
        def taking(call: Any, event: object) -> None:
            taken.append(event)
            if sum(isinstance(one, kind) for one in taken) == count:
                die()
            take(call, event)

        return taking

    match point:
        case "before-the-claim":
            queue.claim_next = die_before(queue.claim_next)
        case "after-the-claim":
            execution._prepare = die_before(execution._prepare)
        case "before-the-attempt":
            queue.open_attempt = die_before(queue.open_attempt)
        case "after-the-attempt":
            queue.open_attempt = die_after(queue.open_attempt)
        case "connected":
            calls.Call._take = die_on(UsageReport, 1)
        case "mid-stream":
            calls.Call._take = die_on(TextDelta, 3)
        case "after-message-stop":
            execution.outcomes.succeeded = die_before(execution.outcomes.succeeded)
        case "before-the-settlement-commits":
            settlement._tell = die_before(settlement._tell)
        case "after-the-settlement":
            settlement.write = die_after(settlement.write)
        case _:
            raise ValueError(point)
