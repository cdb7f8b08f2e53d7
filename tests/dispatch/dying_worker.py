"""A worker that is killed at a named point, as by `kill -9`: python -m tests.dispatch.dying_worker POINT."""

import os
import signal
import sys
from collections.abc import Callable
from typing import Any


def die(*_args: Any, **_kwargs: Any) -> Any:
    os.kill(os.getpid(), signal.SIGKILL)


def die_before(function: Callable[..., Any]) -> Callable[..., Any]:
    return die


def die_after(function: Callable[..., Any]) -> Callable[..., Any]:
    def dying(*args: Any, **kwargs: Any) -> Any:
        function(*args, **kwargs)
        die()

    return dying


def main(point: str) -> None:
    import django

    django.setup()
    from integrations.providers.base import TextDelta, UsageReport
    from rensei.dispatch import calls, execution, queue, settlement
    from rensei.dispatch.keeper import Keeper

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
    keeper = Keeper(owner="dying-worker")
    while (claim := queue.claim_next(owner=keeper.owner)) is not None:
        execution.execute(claim, keeper)
    sys.exit("nothing killed this worker")


if __name__ == "__main__":
    main(sys.argv[1])
