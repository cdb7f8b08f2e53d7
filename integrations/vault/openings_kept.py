"""What is told of the recorded openings: counts by key and month, those that nothing explains; and their retention."""

from collections.abc import Sequence
from datetime import UTC, date, datetime, timedelta

from django.conf import settings
from django.db.models import Count, DateTimeField, Max, Q, QuerySet, Subquery, Sum, Value
from django.db.models.functions import Coalesce

from integrations.models import Integration, KeyOpening, KeyOpeningDay, PlatformKey
from rensei.core.clock import database_now
from rensei.core.limits import limit
from rensei.core.periods import last_of, month_of, start_of

# A process writes an opening within a second, and a day is counted when it has been over for this time.
COUNTED_AFTER = timedelta(hours=1)
DAYS_COUNTED_FOR = limit(
    400,
    "days",
    what="Counts of openings of sealed keys, by key and day, that are kept",
    told="operators: older ones are deleted",
)
# The trigger of SQLite compares whole seconds, and refuses to delete what is too young by less than one.
TRIGGER_SLACK = timedelta(minutes=1)
RECENT = timedelta(days=7)
AT_ONCE = 1000


def add_to(keys: Sequence[Integration | PlatformKey], *, now: datetime) -> None:
    """Set on keys when they were last opened, and how often in this month (UTC), by one query."""
    ids = [key.id for key in keys]
    month = start_of(month_of(now))
    days = KeyOpeningDay.objects.filter(record_id__in=ids).order_by().values("record_id")
    rows = _uncounted().filter(record_id__in=ids).order_by().values("record_id")
    counted = days.annotate(
        times=Sum("count", filter=Q(day__gte=month.date()), default=0), last=Max("last_opened_at")
    ).values_list("record_id", "times", "last")
    single = rows.annotate(times=Count("id", filter=Q(opened_at__gte=month)), last=Max("opened_at"))
    found: dict[str, tuple[int, datetime]] = {}
    for key_id, times, last in counted.union(single.values_list("record_id", "times", "last"), all=True):
        times_before, last_before = found.get(key_id, (0, last))
        found[key_id] = times_before + times, max(last, last_before)
    for key in keys:
        key.opened_this_month, key.last_opened_at = found.get(key.id, (0, None))


def unexplained(*, now: datetime) -> int:
    """Count the openings of the last days that neither a run, a person, a command nor a job explains."""
    return KeyOpening.objects.filter(reason=KeyOpening.Reason.UNKNOWN, opened_at__gte=now - RECENT).count()


def count_and_forget() -> None:
    """Count the openings of days that are over, and delete those that are older than they are kept."""
    now = database_now()
    _count_days(until=start_of((now - COUNTED_AFTER).date()))
    kept = now - timedelta(days=settings.RENSEI_OPENINGS_KEPT_DAYS) - TRIGGER_SLACK
    old = KeyOpening.objects.filter(opened_at__lt=kept, opened_at__lte=_last_counted())
    while keys := list(old.order_by("opened_at").values_list("pk", flat=True)[:AT_ONCE]):
        KeyOpening.objects.filter(pk__in=keys).delete()
    KeyOpeningDay.objects.filter(last_opened_at__lt=now - timedelta(days=DAYS_COUNTED_FOR)).delete()


def _count_days(*, until: datetime) -> None:
    """Count each day with openings. A count is written whole, so a killed or doubled job leaves nothing wrong."""
    while (first := _uncounted().filter(opened_at__lt=until).order_by("opened_at").first()) is not None:
        day = first.opened_at.astimezone(UTC).date()
        rows = KeyOpening.objects.filter(opened_at__gte=start_of(day), opened_at__lte=last_of(day)).order_by()
        counts = rows.values("record_id").annotate(count=Count("id"), last_opened_at=Max("opened_at"))
        # In the order of the ids, so that two jobs wait for one another and never deadlock.
        KeyOpeningDay.objects.bulk_create(
            [KeyOpeningDay(day=day, **count) for count in counts.order_by("record_id")],
            update_conflicts=True,
            unique_fields=["record_id", "day"],
            update_fields=["count", "last_opened_at"],
        )


def _uncounted() -> "QuerySet[KeyOpening]":
    """Days are counted whole and in order, so what is later than all that is counted is not counted."""
    return KeyOpening.objects.filter(opened_at__gt=_last_counted())


def _last_counted() -> Coalesce:
    newest = KeyOpeningDay.objects.order_by("-last_opened_at").values("last_opened_at")[:1]
    return Coalesce(Subquery(newest), Value(start_of(date(2000, 1, 1)), output_field=DateTimeField()))
