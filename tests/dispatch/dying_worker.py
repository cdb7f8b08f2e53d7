"""The points of a run at which a worker can die."""

from collections.abc import Callable
from typing import Any

from integrations.providers.base import TextDelta, UsageReport
from rensei.dispatch.execution import execute, provider_call
from rensei.dispatch.queue import claims
from rensei.dispatch.settlement import settle
from tests.dying import die, die_after, die_before


def plant_death(point: str) -> None:
    take = provider_call.ProviderCall._take
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
            claims.claim_next = die_before(claims.claim_next)
        case "after-the-claim":
            execute._prepare = die_before(execute._prepare)
        case "before-the-attempt":
            claims.open_attempt = die_before(claims.open_attempt)
        case "after-the-attempt":
            claims.open_attempt = die_after(claims.open_attempt)
        case "connected":
            provider_call.ProviderCall._take = die_on(UsageReport, 1)
        case "mid-stream":
            provider_call.ProviderCall._take = die_on(TextDelta, 3)
        case "after-message-stop":
            execute.outcomes.succeeded = die_before(execute.outcomes.succeeded)
        case "before-the-settlement-commits":
            settle._tell = die_before(settle._tell)
        case "after-the-settlement":
            settle.write = die_after(settle.write)
        case _:
            raise ValueError(point)
