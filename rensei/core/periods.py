"""Days and months in UTC, each month named by its first day, and moments as JSON has them."""

from datetime import UTC, date, datetime, time, timedelta


def month_of(moment: datetime) -> date:
    """The month that contains a moment."""
    return moment.astimezone(UTC).date().replace(day=1)


def next_month(month: date) -> date:
    return date(month.year + month.month // 12, month.month % 12 + 1, 1)


def month_before(month: date) -> date:
    return (month - timedelta(days=1)).replace(day=1)


def start_of(day: date) -> datetime:
    """The first moment of a day or a month."""
    return datetime.combine(day, time.min, tzinfo=UTC)


def last_of(day: date) -> datetime:
    """The last moment of a day."""
    return datetime.combine(day, time.max, tzinfo=UTC)


def end_of(month: date) -> datetime:
    """The first moment after the month."""
    return start_of(next_month(month))


def written(moment: datetime, *, timespec: str = "auto") -> str:
    """Write a moment as RFC 3339, with Z for UTC."""
    return moment.astimezone(UTC).isoformat(timespec=timespec).replace("+00:00", "Z")
