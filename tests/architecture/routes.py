"""Every address of the server, from the URL resolver."""

import re
from collections.abc import Iterator

from django.urls import URLPattern, URLResolver, get_resolver

METHODS = ("get", "post", "put", "patch", "delete")


def patterns(below: list[URLPattern | URLResolver] | None = None, start: str = "") -> Iterator[tuple[str, URLPattern]]:
    """List all addresses as they are written in the URL configuration."""
    for pattern in get_resolver().url_patterns if below is None else below:
        route = start + str(pattern.pattern)
        if isinstance(pattern, URLResolver):
            yield from patterns(pattern.url_patterns, route)
        else:
            yield route, pattern


def rest() -> set[tuple[str, str]]:
    """List the REST addresses with each method that their views have, as `("GET", "runs/<run_id>")`."""
    return {
        (method.upper(), re.sub(r"<\w+:", "<", route.removeprefix("api/v1/")))
        for route, pattern in patterns()
        if route.startswith("api/v1/")
        for method in METHODS
        if hasattr(pattern.callback.cls, method)  # type: ignore[attr-defined]
    }


def pages() -> set[str]:
    """List the addresses of pages within an organization."""
    return {re.sub(r"<\w+:", "<", route) for route, _ in patterns() if route.startswith("o/")}


def others() -> set[str]:
    """List what is neither REST, nor an organization's page, nor the admin's own."""
    return {route for route, _ in patterns() if not route.startswith(("api/v1/", "o/", "admin/"))}


def needs() -> Iterator[tuple[str, tuple[str, str], object]]:
    """List each REST address and method with what its view declares that a token needs, or None."""
    for route, pattern in patterns():
        if route.startswith("api/v1/"):
            view = pattern.callback.cls  # type: ignore[attr-defined]
            for method in METHODS:
                if hasattr(view, method):
                    name = method.upper()
                    short = re.sub(r"<\w+:", "<", route.removeprefix("api/v1/"))
                    yield route, (name, short), getattr(view, "scopes", {}).get(name)
