"""
Tables and details as lines of text, which fit the width of a terminal.

An id, a number or a moment is shown whole or not at all, so that it can be copied. If a table is too wide, first its
texts for people are shortened; then the last columns are omitted.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

_GAP = 2
# One blank between two columns, so that a run's state fits beside its id on a narrow screen.
_NARROW = 60
_TEXT_WIDTH_MIN = 12
_INDENT = "  "


@dataclass(frozen=True)
class Column:
    heading: str
    cells: Sequence[str]
    may_be_shortened: bool = False

    @property
    def width(self) -> int:
        return max(map(cells_of, [self.heading, *self.cells]))

    def shortened(self, width: int) -> "Column":
        return replace(self, cells=[_shorten(cell, width) for cell in self.cells])


def cells_of(text: str) -> int:
    """The number of terminal cells of a text: an East Asian character has two."""
    from rich.cells import cell_len

    return cell_len(text)


def fit(columns: Sequence[Column], width: int | None) -> list[Column]:
    """Shorten texts, then omit columns from the last one on, until a line fits. The first column always stays."""
    shown = list(columns)
    if width is None:
        return shown
    while True:
        narrow = _with_short_texts(shown, width)
        if _width(narrow, _gap(width)) <= width or len(narrow) == 1:
            return narrow
        shown.pop()


def write(columns: Sequence[Column], width: int | None, *, bold: bool) -> list[str]:
    """Write a line of headings and one for each row, without blanks at their ends."""
    widths, gap = [column.width for column in columns], _gap(width)
    headings = _line([column.heading for column in columns], widths, gap)
    rows = [_line(row, widths, gap) for row in zip(*(column.cells for column in columns), strict=True)]
    return [f"\x1b[1m{headings}\x1b[0m" if bold else headings, *rows]


def write_details(values: Mapping[str, str], width: int | None) -> list[str]:
    """Write a line for each value, after its heading; below the heading where a word would not fit beside it."""
    left = max(map(cells_of, values)) + _GAP
    lines = []
    for heading, value in values.items():
        room = None if width is None else width - left
        if room is not None and max(map(cells_of, value.split()), default=0) > room:
            lines.append(heading)
            lines += [f"{_INDENT}{line}".rstrip() for line in _wrap(value, (width or 0) - len(_INDENT))]
            continue
        first, *more = _wrap(value, room)
        lines.append(f"{heading}{' ' * (left - cells_of(heading))}{first}".rstrip())
        lines += [f"{' ' * left}{line}".rstrip() for line in more]
    return lines


def _with_short_texts(columns: Sequence[Column], width: int) -> list[Column]:
    """Shorten the widest texts until a line fits, down to the shortest allowed length."""
    shown = list(columns)
    while (too_much := _width(shown, _gap(width)) - width) > 0:
        texts = [place for place, column in enumerate(shown) if column.may_be_shortened and _can_shrink(column)]
        if not texts:
            break
        widest = max(texts, key=lambda place: shown[place].width)
        column = shown[widest]
        shown[widest] = column.shortened(max(column.width - too_much, _least(column)))
    return shown


def _least(column: Column) -> int:
    return max(_TEXT_WIDTH_MIN, cells_of(column.heading))


def _can_shrink(column: Column) -> bool:
    return column.width > _least(column)


def _gap(width: int | None) -> int:
    return _GAP if width is None or width >= _NARROW else 1


def _width(columns: Sequence[Column], gap: int) -> int:
    return sum(column.width for column in columns) + gap * (len(columns) - 1)


def _line(cells: Sequence[str], widths: Sequence[int], gap: int) -> str:
    padded = [cell + " " * (width - cells_of(cell)) for cell, width in zip(cells, widths, strict=True)]
    return (" " * gap).join(padded).rstrip()


def _shorten(text: str, width: int) -> str:
    """Cut a text after a word, because a word may be an id, and within a word only if it is the first."""
    from rich.cells import set_cell_size

    if cells_of(text) <= width:
        return text
    cut = set_cell_size(text, width - 1)
    words, blank, _ = cut.rpartition(" ")
    return f"{words if blank and words.strip() else cut.rstrip()}…"


def _wrap(text: str, width: int | None) -> list[str]:
    """Break a text at its blanks, and never within a word. Its own lines stay."""
    lines: list[str] = []
    for paragraph in text.split("\n"):
        if width is None or cells_of(paragraph) <= width:
            lines.append(paragraph)
            continue
        line = ""
        for word in paragraph.split():
            if line and cells_of(line) + 1 + cells_of(word) > width:
                lines.append(line)
                line = word
            else:
                line = f"{line} {word}" if line else word
        lines.append(line)
    return lines
