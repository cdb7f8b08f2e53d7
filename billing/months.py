"""UTC months, each named by its first day."""

from datetime import UTC, date, datetime, time, timedelta


def month_of(moment: datetime) -> date:
    """The month that contains a moment."""
    return moment.astimezone(UTC).date().replace(day=1)


def next_month(month: date) -> date:
    return date(month.year + month.month // 12, month.month % 12 + 1, 1)


def month_before(month: date) -> date:
    return (month - timedelta(days=1)).replace(day=1)


def start_of(month: date) -> datetime:
    return datetime.combine(month, time.min, tzinfo=UTC)


def end_of(month: date) -> datetime:
    """The first moment after the month."""
    return start_of(next_month(month))
