"""The points between two nodes at which a worker can die."""

from typing import Any

from rensei.workflows import execution
from tests.dying import die, die_after, die_before


def plant_death(point: str) -> None:
    change = execution._change

    def die_after_recording(node: Any, state: Any, **fields: Any) -> None:
        change(node, state, **fields)
        if state == "RUNNING":
            die()

    match point:
        case "before-the-next-look":
            execution.advance = die_before(execution.advance)
        case "before-the-dispatch":
            execution.admit.dispatch = die_before(execution.admit.dispatch)
        case "after-the-dispatch":
            execution.admit.dispatch = die_after(execution.admit.dispatch)
        case "after-it-is-recorded":
            execution._change = die_after_recording
        case "after-the-look":
            execution.advance = die_after(execution.advance)
        case _:
            raise ValueError(point)
