"""The nodes of a workflow as a picture: columns from left to right, each node after those that it needs."""

from collections.abc import Mapping, Sequence
from typing import Any


def columns(nodes: Sequence[Mapping[str, Any]]) -> list[list[Mapping[str, Any]]]:
    """Put each node into the first column after all that it needs, which a document lists before it."""
    depth: dict[str, int] = {}
    found: list[list[Mapping[str, Any]]] = []
    for node in nodes:
        place = max((depth[needed] + 1 for needed in node["needs"]), default=0)
        depth[node["node_id"]] = place
        if place == len(found):
            found.append([])
        found[place].append(node)
    return found
