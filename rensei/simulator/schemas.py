"""JSON schemas of tools and answers: refuse an invalid one, and create the simplest value that one allows."""

from typing import Any

from rensei.simulator.errors import invalid
from rensei.simulator.shapes import require_dict, require_list


def check_schema(value: Any, *, path: str) -> None:
    """
    Check the form of a schema, and of the schemas inside it.

    :raises ApiError: 400
    """
    if isinstance(value, bool):
        return
    schema = require_dict(value, path=path)
    for name, part in require_dict(schema.get("properties", {}), path=f"{path}.properties").items():
        check_schema(part, path=f"{path}.properties.{name}")
    if "items" in schema:
        check_schema(schema["items"], path=f"{path}.items")
    for name in ("enum", "anyOf", "oneOf"):
        if name in schema and not require_list(schema[name], path=f"{path}.{name}"):
            raise invalid(f"{path}.{name}", "List should have at least 1 item")
    for name in ("anyOf", "oneOf"):
        for index, part in enumerate(schema.get(name, [])):
            check_schema(part, path=f"{path}.{name}.{index}")


def example_of(schema: Any) -> Any:
    """Create the simplest value that a schema allows."""
    if isinstance(schema, bool):
        return None
    if "const" in schema:
        return schema["const"]
    if "enum" in schema:
        return schema["enum"][0]
    if options := schema.get("anyOf") or schema.get("oneOf"):
        return example_of(options[0])
    kind = schema.get("type", "object")
    match kind[0] if isinstance(kind, list) and kind else kind:
        case "object":
            return {name: example_of(part) for name, part in schema.get("properties", {}).items()}
        case "array":
            return [example_of(schema["items"])] if "items" in schema else []
        case "integer":
            return 1
        case "number":
            return 1.5
        case "boolean":
            return True
        case "null":
            return None
        case _:
            return "example"
