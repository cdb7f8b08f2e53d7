"""Charts as numbers: the position of each bar and each grid line. Templates draw them as SVG."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date

WIDTH, HEIGHT = 720, 200
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
    """A stacked bar for each day."""

    bars: Sequence[Bar]
    rows: Sequence[Tick]
    days: Sequence[Tick]
    width: int = WIDTH
    height: int = HEIGHT
    left: int = LEFT
    base: int = HEIGHT - BOTTOM


def stacked(days: Sequence[date], amounts: Mapping[tuple[date, str], int], keys: Sequence[str]) -> Chart:
    """Lay out a bar for each day, in pieces from the bottom in the order of `keys`."""
    top = _round_up(max((sum(amounts.get((day, key), 0) for key in keys) for day in days), default=0))
    step = (WIDTH - LEFT) / max(1, len(days))
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
    every = max(1, round(len(days) / 6))
    return Chart(
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
