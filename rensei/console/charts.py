"""Charts as numbers: the position of each bar, grid line and card. Templates draw them as SVG."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import date, timedelta

WIDTH, HEIGHT = 720, 200
# For a phone: the labels keep their size, so the chart is as wide as the screen and has fewer bars.
NARROW_WIDTH = 320
NARROW_BARS_MAX = 14
LEFT, BOTTOM, TOP = 56, 22, 10
CARD_WIDTH, CARD_LINE, CARD_PADDING, DOT_RISE = 176, 16, 10, 4
LABEL_LENGTH = 16

Write = Callable[[int], str]


@dataclass(frozen=True, kw_only=True)
class Series:
    """A piece of every bar: its key in the values, its name, and the class of its colour."""

    key: str
    label: str
    css: str


@dataclass(frozen=True, kw_only=True)
class Bar:
    """A piece of a stacked bar."""

    css: str
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
    label: str


@dataclass(frozen=True, kw_only=True)
class CardLine:
    """A line of a card: the name of a series and its value."""

    css: str
    label: str
    text: str
    y: int

    @property
    def dot_y(self) -> int:
        return self.y - DOT_RISE


@dataclass(frozen=True, kw_only=True)
class Card:
    """What is shown over the chart while the pointer is on a bar: its day, and the value of each series."""

    day: date
    title: str
    hit_x: float
    hit_width: float
    x: float
    height: float
    lines: Sequence[CardLine]


@dataclass(frozen=True, kw_only=True)
class Chart:
    """A stacked bar for each day, or for each week."""

    bars: Sequence[Bar]
    rows: Sequence[Tick]
    days: Sequence[Tick]
    cards: Sequence[Card]
    width: int
    span: str = ""
    height: int = HEIGHT
    left: int = LEFT
    base: int = HEIGHT - BOTTOM
    card_width: int = CARD_WIDTH


@dataclass(frozen=True, kw_only=True)
class BudgetLine:
    """A month's spending as a line, its forecast, and the budget as a level."""

    spent: str
    forecast: str
    limit_at: float
    limit_label: str
    rows: Sequence[Tick]
    days: Sequence[Tick]
    width: int
    height: int = HEIGHT
    left: int = LEFT


def narrow(
    days: Sequence[date], amounts: Mapping[tuple[date, str], int], series: Sequence[Series], *, write: Write, adds: bool
) -> Chart:
    """
    Lay out the chart for a phone: a bar for each day or, where there are many, for the weeks that end today.

    Where values of several days do not add up to one, as medians do not, it shows the last days instead.
    """
    if len(days) <= NARROW_BARS_MAX:
        return stacked(days, amounts, series, write=write, width=NARROW_WIDTH)
    if not adds:
        return stacked(days[-NARROW_BARS_MAX:], amounts, series, write=write, width=NARROW_WIDTH)
    weeks = days[::-1][6::7][::-1]
    sums: dict[tuple[date, str], int] = {}
    for (day, key), amount in amounts.items():
        # The days before the first whole week are added to it.
        week = max((first for first in weeks if first <= day), default=weeks[0])
        sums[week, key] = sums.get((week, key), 0) + amount
    return stacked(weeks, sums, series, write=write, width=NARROW_WIDTH, span="week of ")


def stacked(
    days: Sequence[date],
    amounts: Mapping[tuple[date, str], int],
    series: Sequence[Series],
    *,
    write: Write,
    width: int = WIDTH,
    span: str = "",
) -> Chart:
    """Lay out a bar for each day, in pieces from the bottom in the order of `series`. `span` precedes a day."""
    top = _round_up(max((sum(amounts.get((day, one.key), 0) for one in series) for day in days), default=0))
    step = (width - LEFT) / max(1, len(days))
    tall = HEIGHT - BOTTOM - TOP
    bars, cards = [], []
    for place, day in enumerate(days):
        level = float(HEIGHT - BOTTOM)
        for one in series:
            height = amounts.get((day, one.key), 0) / top * tall
            if height > 0:
                level -= height
                bars.append(
                    Bar(
                        css=one.css,
                        day=day,
                        amount=amounts[day, one.key],
                        x=_r(LEFT + place * step + step * 0.14),
                        y=_r(level),
                        width=_r(step * 0.72),
                        height=_r(height),
                    )
                )
        if level < HEIGHT - BOTTOM:
            cards.append(_card(day, amounts, series, write=write, at=LEFT + place * step, step=step, width=width))
    every = max(1, round(len(days) / (6 if width == WIDTH else 4)))
    return Chart(
        width=width,
        span=span,
        bars=bars,
        rows=_rows(top, write),
        days=[
            Tick(at=_r(LEFT + place * step + step / 2), label=_day(day))
            for place, day in enumerate(days)
            if place % every == 0
        ],
        cards=cards,
    )


def budget_line(
    spent: Mapping[date, int], *, month: date, days: int, today: date, limit: int, at_month_end: int, write: Write
) -> BudgetLine:
    """Lay out what was spent up to each day of a month, where the forecast ends, and the budget."""
    top = _round_up(max(limit, at_month_end, sum(amount for day, amount in spent.items() if day >= month)))
    step = (WIDTH - LEFT) / days
    tall = HEIGHT - BOTTOM - TOP

    def at(place: int, amount: int) -> str:
        return f"{_r(LEFT + place * step)},{_r(HEIGHT - BOTTOM - max(0, amount) / top * tall)}"

    points, so_far = [at(0, 0)], 0
    for place in range(today.day):
        so_far += spent.get(month + timedelta(days=place), 0)
        points.append(at(place + 1, so_far))
    return BudgetLine(
        width=WIDTH,
        spent=" ".join(points),
        forecast=f"{points[-1]} {at(days, at_month_end)}" if today.day < days else "",
        limit_at=_r(HEIGHT - BOTTOM - limit / top * tall),
        limit_label=write(limit),
        rows=_rows(top, write),
        days=[
            Tick(at=_r(LEFT + place * step + step / 2), label=_day(month + timedelta(days=place)))
            for place in range(0, days, 7)
        ],
    )


def _card(
    day: date,
    amounts: Mapping[tuple[date, str], int],
    series: Sequence[Series],
    *,
    write: Write,
    at: float,
    step: float,
    width: int,
) -> Card:
    """The card of a bar, to its right or, where there is no room, to its left."""
    values = [(one, amounts.get((day, one.key), 0)) for one in series[::-1]]
    parts = [(one.css, _short(one.label), write(value)) for one, value in values if value]
    if len(parts) > 1:
        parts.append(("", "Total", write(sum(value for _, value in values))))
    right = at + step
    return Card(
        day=day,
        title=f"{_day(day)}, {day.year}",
        hit_x=_r(at),
        hit_width=_r(step),
        x=_r(right if right + CARD_WIDTH <= width else max(0.0, at - CARD_WIDTH)),
        height=CARD_PADDING + CARD_LINE * (len(parts) + 1),
        lines=[
            CardLine(css=css, label=label, text=text, y=CARD_PADDING + CARD_LINE * (place + 1) + CARD_LINE // 2)
            for place, (css, label, text) in enumerate(parts)
        ],
    )


def _short(label: str) -> str:
    return label if len(label) <= LABEL_LENGTH else f"{label[: LABEL_LENGTH - 1]}…"


def _day(day: date) -> str:
    return f"{day:%b} {day.day}"


def _rows(top: int, write: Write) -> list[Tick]:
    tall = HEIGHT - BOTTOM - TOP
    return [Tick(at=_r(HEIGHT - BOTTOM - tall * part / 2), label=write(top * part // 2)) for part in range(3)]


def _round_up(value: int) -> int:
    """The next 1, 2 or 5 with zeros, so that the grid has round numbers."""
    if value <= 0:
        return 1
    size: int = 10 ** (len(str(value)) - 1)
    return next(part * size for part in (1, 2, 5, 10) if part * size >= value)


def _r(value: float) -> float:
    return round(value, 2)
