"""A worker that is killed between two nodes, as by `kill -9`: python -m tests.workflows.dying_worker POINT."""

import sys
from typing import Any

from tests.dispatch.dying_worker import die, die_after, die_before


def main(point: str) -> None:
    import django

    django.setup()
    from rensei.dispatch import queue
    from rensei.dispatch.execution import execute
    from rensei.dispatch.keeper import Keeper
    from rensei.workflows import execution

    change = execution._change

    def die_after_recording(node: Any, state: Any, **fields: Any) -> None:
        change(node, state, **fields)
        if state == "RUNNING":
            die()

    match point:
        case "before-the-next-look":
            execution.advance = die_before(execution.advance)
        case "before-the-dispatch":
            execution.admission.dispatch = die_before(execution.admission.dispatch)
        case "after-the-dispatch":
            execution.admission.dispatch = die_after(execution.admission.dispatch)
        case "after-it-is-recorded":
            execution._change = die_after_recording
        case "after-the-look":
            execution.advance = die_after(execution.advance)
        case _:
            raise ValueError(point)
    keeper = Keeper(owner="dying-worker")
    while (claim := queue.claim_next(owner=keeper.owner)) is not None:
        execute(claim, keeper)
    sys.exit("nothing killed this worker")


if __name__ == "__main__":
    main(sys.argv[1])
