"""
The nodes of a workflow as a picture: boxes in layers, each after those that it needs, and a line for each need.

Templates draw it as SVG: from left to right, and from top to bottom on a phone.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rensei.workflows.models import NodeRun

GAP = 16
LABEL_LENGTH_MAX = 20
UNSUCCESSFUL = {NodeRun.State.FAILED, NodeRun.State.SKIPPED, NodeRun.State.CANCELLED}


@dataclass(frozen=True, kw_only=True)
class Shape:
    """The size of a box, and the distance between two layers."""

    width: int
    height: int
    between: int


WIDE, TALL = Shape(width=176, height=60, between=64), Shape(width=152, height=60, between=36)


@dataclass(frozen=True, kw_only=True)
class Box:
    """A node: where it is, and the state of its run if it has one."""

    node_id: str
    label: str
    below: str
    state: NodeRun.State | None
    x: float
    y: float


@dataclass(frozen=True, kw_only=True)
class Line:
    """A need: an SVG path from the needed node, and whether a failure passes along it."""

    path: str
    source: str
    target: str
    fails: bool


@dataclass(frozen=True, kw_only=True)
class Picture:
    boxes: Sequence[Box]
    lines: Sequence[Line]
    width: float
    height: float
    shape: Shape


def pictures(nodes: Sequence[Mapping[str, Any]], states: Mapping[str, NodeRun.State] | None = None) -> list[Picture]:
    """Lay the nodes out twice: from left to right, and from top to bottom."""
    return [_picture(nodes, states or {}, WIDE), _picture(nodes, states or {}, TALL)]


def layers(nodes: Sequence[Mapping[str, Any]]) -> list[list[Mapping[str, Any]]]:
    """Put each node into the first layer after all that it needs, which a document lists before it."""
    depth: dict[str, int] = {}
    found: list[list[Mapping[str, Any]]] = []
    for node in nodes:
        place = max((depth[needed] + 1 for needed in node["needs"]), default=0)
        depth[node["node_id"]] = place
        if place == len(found):
            found.append([])
        found[place].append(node)
    return found


def _picture(nodes: Sequence[Mapping[str, Any]], states: Mapping[str, NodeRun.State], shape: Shape) -> Picture:
    placed = layers(nodes)
    most = max((len(layer) for layer in placed), default=0)
    is_wide = shape is WIDE
    # `along` is the direction of the arrows, and `across` that of the boxes of one layer.
    size_along, size_across = (shape.width, shape.height) if is_wide else (shape.height, shape.width)
    boxes: dict[str, Box] = {}
    for depth, layer in enumerate(placed):
        free = (most - len(layer)) * (size_across + GAP) / 2
        for place, node in enumerate(layer):
            along, across = depth * (size_along + shape.between), free + place * (size_across + GAP)
            boxes[node["node_id"]] = Box(
                node_id=node["node_id"],
                label=_short(node["node_id"]),
                below=_short(node.get("profile_id") or ""),
                state=states.get(node["node_id"]),
                x=along if is_wide else across,
                y=across if is_wide else along,
            )
    lines = [_line(boxes[needed], boxes[node["node_id"]], shape) for node in nodes for needed in node["needs"]]
    length = len(placed) * (size_along + shape.between) - shape.between
    breadth = most * (size_across + GAP) - GAP
    return Picture(
        boxes=list(boxes.values()),
        lines=lines,
        width=length if is_wide else breadth,
        height=breadth if is_wide else length,
        shape=shape,
    )


def _line(source: Box, target: Box, shape: Shape) -> Line:
    bend = shape.between / 2
    if shape is WIDE:
        start_x, start_y = source.x + shape.width, source.y + shape.height / 2
        end_x, end_y = target.x, target.y + shape.height / 2
        path = f"M{start_x:g} {start_y:g}C{start_x + bend:g} {start_y:g} {end_x - bend:g} {end_y:g} {end_x:g} {end_y:g}"
    else:
        start_x, start_y = source.x + shape.width / 2, source.y + shape.height
        end_x, end_y = target.x + shape.width / 2, target.y
        path = f"M{start_x:g} {start_y:g}C{start_x:g} {start_y + bend:g} {end_x:g} {end_y - bend:g} {end_x:g} {end_y:g}"
    return Line(path=path, source=source.node_id, target=target.node_id, fails=source.state in UNSUCCESSFUL)


def _short(text: str) -> str:
    return text if len(text) <= LABEL_LENGTH_MAX else f"{text[: LABEL_LENGTH_MAX - 1]}…"
