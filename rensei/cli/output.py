"""The output of the command: tables for people, the server's JSON for programs, notes on standard error."""

import io
import json
import os
import re
import shutil
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from rensei.cli import tables
from rensei.cli.errors import Refused

Value = str | Callable[[dict[str, Any]], Any]


@dataclass(frozen=True)
class Text:
    """A value that is written for people, such as a name. A narrow terminal shows its beginning."""

    cell: Value


Cell = Value | Text
Columns = Mapping[str, Cell]
"""
A heading for each column, with the name of its value (`cost.amountUsd`), or what makes it from a row.

The most important column comes first: a narrow terminal leaves out the last ones. Only a `Text` is ever shortened.
"""

_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")
_MOMENT = re.compile(r"(\d{4}-\d\d-\d\d)T(\d\d:\d\d:\d\d)(\.\d+)?Z")


def prepare_streams() -> None:
    """
    Read standard input as UTF-8, and write what a terminal cannot encode as escapes.

    A run may already be paid for when its answer is written, so as much as possible is written.
    """
    if isinstance(sys.stdin, io.TextIOWrapper):
        sys.stdin.reconfigure(encoding="utf-8", errors="strict")
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")


def drop_unwritable_output() -> None:
    """Drop output that a full disk rejected. Python would write it again at exit, and fail with a traceback."""
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        return
    except OSError:
        with open(os.devnull, "w") as nowhere:  # noqa: PTH123 - its descriptor is what counts
            os.dup2(nowhere.fileno(), sys.stdout.fileno())


def compile_filter(program: str) -> Any:
    """
    Compile a program of jq, https://jqlang.org/manual/.

    :raises ValueError: if it is not such a program
    :raises ModuleNotFoundError: if the library is not installed
    """
    import jq

    return jq.compile(program)


class Output:
    """Writes in one form, chosen by `--json`, `--format` or `--jq`."""

    def __init__(self, *, as_json: bool, jq: Any = None) -> None:
        self.as_json = as_json or jq is not None
        self._jq = jq

    def table(self, document: dict[str, Any], columns: Columns, *, empty: str = "Nothing here yet.") -> None:
        """Write a list."""
        if self.as_json:
            self.json(document)
            return
        if not document["results"]:
            self.note(empty)
            return
        made = [
            tables.Column(
                heading,
                [" ".join(show(_value(row, cell)).split()) for row in document["results"]],
                may_be_shortened=isinstance(cell, Text),
            )
            for heading, cell in columns.items()
        ]
        width = _terminal_width()
        shown = tables.fit(made, width)
        for line in tables.write(shown, width, bold=width is not None and "NO_COLOR" not in os.environ):
            print(line)
        if left_out := [column.heading for column in made[len(shown) :]]:
            self.note(f"This terminal is too narrow for: {', '.join(left_out)}. --json has everything.")

    def details(self, document: dict[str, Any], columns: Columns) -> None:
        """Write one object, a line for each of its values."""
        if self.as_json:
            self.json(document)
            return
        values = {heading: show(_value(document, cell)) for heading, cell in columns.items()}
        for line in tables.write_details(values, _terminal_width()):
            print(line)

    def done(self, document: Any, sentence: str) -> None:
        """Write that an operation succeeded."""
        if self.as_json:
            if document is not None:
                self.json(document)
        else:
            print(clean(sentence))

    def json(self, document: Any) -> None:
        """
        Write JSON: the document, or the results of the `--jq` program, whose texts are written without quotes.

        :raises Refused: if the program does not fit the document
        """
        if self._jq is None:
            print(json.dumps(document, indent=2, ensure_ascii=False))
            return
        try:
            for value in self._jq.input_value(document):
                print(clean(value) if isinstance(value, str) else json.dumps(value, ensure_ascii=False))
        except ValueError as fault:
            raise Refused(
                "JQ_FAILED", f"The program of --jq failed: {fault}.", fix="--json shows its input."
            ) from fault

    def text(self, text: str) -> None:
        """Write a piece of an answer, at once."""
        sys.stdout.write(clean(text) if sys.stdout.isatty() else text)
        sys.stdout.flush()

    def log(self, text: str) -> None:
        """Write a piece of a program's log, at once. It is not part of the result."""
        sys.stderr.write(clean(text) if sys.stderr.isatty() else text)
        sys.stderr.flush()

    def note(self, sentence: str) -> None:
        """Write a message that is not part of the result."""
        print(clean(sentence), file=sys.stderr, flush=True)

    def note_from_signal(self, sentence: str) -> None:
        """As `note`, for a signal handler, which may have interrupted a write of the buffered stream."""
        os.write(sys.stderr.fileno(), f"{clean(sentence)}\n".encode())

    def refusal(self, refused: Refused) -> None:
        if self.as_json:
            print(json.dumps(refused.document, indent=2, ensure_ascii=False), file=sys.stderr)
        else:
            for line in refused.lines():
                self.note(line)


def clean(text: str) -> str:
    """Remove control sequences of the terminal: texts come from models and from other people."""
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


def _terminal_width() -> int | None:
    """The width of the terminal; None for a pipe or a file, whose lines are not shortened."""
    return shutil.get_terminal_size().columns if sys.stdout.isatty() else None


def _value(row: dict[str, Any], cell: Cell) -> Any:
    if isinstance(cell, Text):
        cell = cell.cell
    if callable(cell):
        return cell(row)
    value: Any = row
    for step in cell.split("."):
        value = value.get(step) if isinstance(value, dict) else None
    return value
