"""Values that a shell offers after Tab, read from the server. If that takes longer than a second, there are none."""

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import typer

from rensei.cli.errors import Refused
from rensei.cli.session import GLOBAL, Flags, Session

_SECONDS_MAX = 1.0
Completer = Callable[[typer.Context, str], list[str]]


def of_list(path: str, read: Callable[[dict[str, Any]], Iterable[str]], *, besides: tuple[str, ...] = ()) -> Completer:
    """Offer a value of each row of a list, such as its id."""

    def complete(ctx: typer.Context, incomplete: str) -> list[str]:
        values = {*besides, *(value for row in _rows(ctx, path) for value in read(row))}
        return sorted(value for value in values if value.startswith(incomplete))

    return complete


def of_words(*words: str) -> Completer:
    """Offer fixed words, in lower case where the person types lower case."""

    def complete(incomplete: str) -> list[str]:
        offered = [word.lower() for word in words] if incomplete.islower() else words
        return [word for word in offered if word.startswith(incomplete)]

    return lambda ctx, incomplete: complete(incomplete)


profiles = of_list("profiles", lambda row: [row["id"]])
projects = of_list("projects", lambda row: [row["id"]])
pools = of_list("pools", lambda row: [row["name"]], besides=("local",))
models = of_list("catalog", lambda row: [row["modelId"]])
efforts = of_list("catalog", lambda row: [effort["value"] for effort in row["efforts"]])
workflows = of_list("workflows", lambda row: [row["name"]])
runs = of_list("runs", lambda row: [row["id"]])
members = of_list("members", lambda row: [row["email"]])


def _rows(ctx: typer.Context, path: str) -> Iterator[dict[str, Any]]:
    session = Session(flags=_flags(ctx))
    if session.flags.token is not None:
        # It would be read from the terminal, which the shell uses.
        return
    try:
        page = session.client.call("GET", path, query={"pageSize": 200}, timeout_seconds=_SECONDS_MAX)
        yield from page["results"]
    except (Refused, OSError, UnicodeError):
        return
    finally:
        session.close()


def _flags(ctx: Any) -> Flags:
    """The flags before and after the subcommand, as far as they are typed."""
    flags = Flags()
    while ctx is not None:
        given = {name.removeprefix(GLOBAL): value for name, value in ctx.params.items() if name.startswith(GLOBAL)}
        flags = flags.over(Flags(**given))
        ctx = ctx.parent
    return flags
