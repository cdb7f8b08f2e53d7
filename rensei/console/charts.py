"""Charts as numbers: the position of each bar and each grid line. Templates draw them as SVG."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date

WIDTH, HEIGHT = 720, 200
# For a phone: the labels keep their size, so the chart is as wide as the screen and has fewer bars.
NARROW_WIDTH = 320
NARROW_BARS_MAX = 14
LEFT, BOTTOM, TOP = 56, 22, 10


@dataclass(frozen=True, kw_only=True)
class Bar:
    """A piece of a stacked bar."""

    key: str
    day: date
    amount: int
    x: float
    y: float
    width: float
    height: float


@dataclass(frozen=True, kw_only=True)
class Tick:
    """A line of the grid, or a label under a bar."""

    at: float
    value: int
    label: str


@dataclass(frozen=True, kw_only=True)
class Chart:
    """A stacked bar for each day, or for each week."""

    bars: Sequence[Bar]
    rows: Sequence[Tick]
    days: Sequence[Tick]
    width: int
    span: str = ""
    height: int = HEIGHT
    left: int = LEFT
    base: int = HEIGHT - BOTTOM


def narrow(days: Sequence[date], amounts: Mapping[tuple[date, str], int], keys: Sequence[str]) -> Chart:
    """Lay out the chart for a phone: a bar for each day or, where there are many, for the weeks that end today."""
    if len(days) <= NARROW_BARS_MAX:
        return stacked(days, amounts, keys, width=NARROW_WIDTH)
    weeks = days[::-1][6::7][::-1]
    sums: dict[tuple[date, str], int] = {}
    for (day, key), amount in amounts.items():
        # The days before the first whole week are added to it.
        week = max((first for first in weeks if first <= day), default=weeks[0])
        sums[week, key] = sums.get((week, key), 0) + amount
    return stacked(weeks, sums, keys, width=NARROW_WIDTH, span="week of ")


def stacked(
    days: Sequence[date],
    amounts: Mapping[tuple[date, str], int],
    keys: Sequence[str],
    *,
    width: int = WIDTH,
    span: str = "",
) -> Chart:
    """Lay out a bar for each day, in pieces from the bottom in the order of `keys`. `span` is written before a day."""
    top = _round_up(max((sum(amounts.get((day, key), 0) for key in keys) for day in days), default=0))
    step = (width - LEFT) / max(1, len(days))
    tall = HEIGHT - BOTTOM - TOP
    bars = []
    for place, day in enumerate(days):
        level = float(HEIGHT - BOTTOM)
        for key in keys:
            height = amounts.get((day, key), 0) / top * tall
            if height > 0:
                level -= height
                bars.append(
                    Bar(
                        key=key,
                        day=day,
                        amount=amounts[day, key],
                        x=_r(LEFT + place * step + step * 0.14),
                        y=_r(level),
                        width=_r(step * 0.72),
                        height=_r(height),
                    )
                )
    every = max(1, round(len(days) / (6 if width == WIDTH else 4)))
    return Chart(
        width=width,
        span=span,
        bars=bars,
        rows=[Tick(at=_r(HEIGHT - BOTTOM - tall * part / 2), value=top * part // 2, label="") for part in range(3)],
        days=[
            Tick(at=_r(LEFT + place * step + step / 2), value=0, label=f"{day:%b} {day.day}")
            for place, day in enumerate(days)
            if place % every == 0
        ],
    )


def _round_up(value: int) -> int:
    """The next 1, 2 or 5 with zeros, so that the grid has round numbers."""
    if value <= 0:
        return 1
    size: int = 10 ** (len(str(value)) - 1)
    return next(part * size for part in (1, 2, 5, 10) if part * size >= value)


def _r(value: float) -> float:
    return round(value, 2)
