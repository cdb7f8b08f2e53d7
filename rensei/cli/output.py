"""What the command writes: tables for people, the server's JSON for programs, notes on standard error."""

import io
import json
import os
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from rensei.cli.errors import Refused

Cell = str | Callable[[dict[str, Any]], Any]
Columns = Mapping[str, Cell]
"""A heading for each column, with the name of its value (`cost.amountUsd`), or what makes it from a row."""

_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")
_MOMENT = re.compile(r"(\d{4}-\d\d-\d\d)T(\d\d:\d\d:\d\d)(\.\d+)?Z")
# A pipe has no width, and a program that reads a table wants its lines whole.
_PIPE_COLUMNS = 400


def prepare_streams() -> None:
    """
    Read standard input as UTF-8, and write what a terminal cannot encode as escapes.

    A run may have been made and paid for by the time that its answer is written, so what can be written is.
    """
    if isinstance(sys.stdin, io.TextIOWrapper):
        sys.stdin.reconfigure(encoding="utf-8", errors="strict")
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")


def drop_unwritable_output() -> None:
    """Drop what a full disk did not take. Python would try it once more at its end, and fail with a traceback."""
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        return
    except OSError:
        with open(os.devnull, "w") as nowhere:  # noqa: PTH123 - its descriptor is what counts
            os.dup2(nowhere.fileno(), sys.stdout.fileno())


class Output:
    """Writes in one form, chosen by `--json` or `--format`."""

    def __init__(self, *, as_json: bool) -> None:
        self.as_json = as_json

    def table(self, document: dict[str, Any], columns: Columns, *, empty: str = "Nothing here yet.") -> None:
        """Write a list."""
        if self.as_json:
            self.json(document)
        elif not document["results"]:
            self.note(empty)
        else:
            rows = [[show(_value(row, cell)) for cell in columns.values()] for row in document["results"]]
            _print_table(list(columns), rows)

    def details(self, document: dict[str, Any], columns: Columns) -> None:
        """Write one thing, a line for each of its values."""
        if self.as_json:
            self.json(document)
        else:
            _print_table(None, [[heading, show(_value(document, cell))] for heading, cell in columns.items()])

    def done(self, document: Any, sentence: str) -> None:
        """Say that something was done."""
        if self.as_json:
            if document is not None:
                self.json(document)
        else:
            print(clean(sentence))

    def json(self, document: Any) -> None:
        print(json.dumps(document, indent=2, ensure_ascii=False))

    def text(self, text: str) -> None:
        """Write a piece of an answer, at once."""
        sys.stdout.write(clean(text) if sys.stdout.isatty() else text)
        sys.stdout.flush()

    def note(self, sentence: str) -> None:
        """Tell the person something that is not the result."""
        print(clean(sentence), file=sys.stderr, flush=True)

    def refusal(self, refused: Refused) -> None:
        if self.as_json:
            print(json.dumps(refused.document, indent=2, ensure_ascii=False), file=sys.stderr)
        else:
            for line in refused.lines():
                self.note(line)


def clean(text: str) -> str:
    """Take out what would steer the terminal: texts come from models and from other people."""
    return _CONTROL.sub("", text)


def show(value: Any) -> str:
    """Write a value of JSON for people."""
    if value is None or value == "" or value == [] or value == {}:
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, str):
        return clean(_MOMENT.sub(r"\1 \2", value))
    if isinstance(value, list) and all(isinstance(one, str) for one in value):
        return clean(", ".join(value))
    if isinstance(value, dict | list):
        return clean(json.dumps(value, ensure_ascii=False))
    return str(value)


def _value(row: dict[str, Any], cell: Cell) -> Any:
    if callable(cell):
        return cell(row)
    value: Any = row
    for step in cell.split("."):
        value = value.get(step) if isinstance(value, dict) else None
    return value


def _print_table(headings: Sequence[str] | None, rows: Sequence[Sequence[str]]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console(width=None if sys.stdout.isatty() else _PIPE_COLUMNS, highlight=False)
    table = Table(box=None, pad_edge=False, show_header=headings is not None, header_style="bold", padding=(0, 2, 0, 0))
    for heading in headings or ("", ""):
        table.add_column(heading, overflow="fold", style="bold" if headings is None and not table.columns else "")
    for row in rows:
        table.add_row(*(Text(cell) for cell in row))
    console.print(table)
