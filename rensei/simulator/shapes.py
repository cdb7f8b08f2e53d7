"""Small checks of JSON values, with the API's messages: the path of the field, then what is wrong."""

from typing import Any

from rensei.simulator.errors import invalid


def require_dict(value: Any, *, path: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise invalid(path, "Input should be a valid dictionary")
    return value


def require_list(value: Any, *, path: str) -> list[Any]:
    if not isinstance(value, list):
        raise invalid(path, "Input should be a valid list")
    return value


def require_string(value: Any, *, path: str) -> str:
    if not isinstance(value, str):
        raise invalid(path, "Input should be a valid string")
    return value


def require_integer(value: Any, *, path: str, minimum: int) -> int:
    if not isinstance(value, int) or isinstance(value, bool):
        raise invalid(path, "Input should be a valid integer")
    if value < minimum:
        raise invalid(path, f"Input should be greater than or equal to {minimum}")
    return value


def require_one_of(value: Any, choices: tuple[Any, ...], *, path: str) -> None:
    if value not in choices or isinstance(value, bool) != isinstance(choices[0], bool):
        raise invalid(path, f"Input should be {' or '.join(repr(choice) for choice in choices)}")


def require_fields(value: dict[str, Any], *, required: set[str], optional: set[str], path: str) -> None:
    """Refuse a missing field, then an unknown one."""
    prefix = f"{path}." if path else ""
    for name in sorted(required):
        if name not in value:
            raise invalid(f"{prefix}{name}", "Field required")
    for name in value:
        if name not in required | optional:
            raise invalid(f"{prefix}{name}", "Extra inputs are not permitted")
