"""An operator's daily overview, for the front page of the admin."""

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import date, datetime, timedelta
from typing import Any

from django.conf import settings
from django.db.models import Count, F, FloatField, Min, OuterRef, Q, QuerySet
from django.db.models.functions import Cast

from billing.ledger.capacity import CLASS_BEGINNING
from billing.limits import metered_requests, quota
from billing.models import BudgetUsage, Entitlement, SharedUsage, UsageDaily
from catalog.models import CatalogEntry
from integrations.keys import break_glass, default_address
from integrations.models import BreakGlass, PlatformKey
from integrations.vault import openings_kept, vault
from integrations.vault.vault import VaultHealth
from rensei.core.auth_modes import AuthMode
from rensei.core.clock import database_now
from rensei.core.ids import first_id_of
from rensei.core.models import WorkerHeartbeat
from rensei.core.periods import month_of, start_of
from rensei.core.whole_numbers import WholeSum
from rensei.dispatch.models import LedgerAudit, Run
from rensei.operators import unknown_names
from rensei.operators.unknown_names import Unmarked
from rensei.orgs.models import KillSwitch, Org

QUEUE_SLOW_AFTER = timedelta(minutes=1)
AUDIT_OLD_AFTER = timedelta(hours=36)
RETIRING_WITHIN = timedelta(days=60)
NEAR = 0.8
SHOWN = 8


@dataclass(frozen=True, kw_only=True)
class ModeToday:
    """What ran under one auth mode since midnight UTC. `picodollars` omits what has no price."""

    mode: AuthMode
    runs: int
    failed: int
    picodollars: int


@dataclass(frozen=True, kw_only=True)
class Queue:
    waiting: int
    running: int
    oldest: datetime | None
    is_slow: bool


@dataclass(frozen=True, kw_only=True)
class NearLimit:
    """An organization that has used most of a limit. Amounts are runs, or picodollars for a budget."""

    org: Org
    what: str
    used: int
    limit: int

    @property
    def percent(self) -> int:
        return min(100, round(100 * self.used / self.limit)) if self.limit else 100


@dataclass(frozen=True, kw_only=True)
class KeyOut:
    """A key that may not sign, or not for some models: until when, by the name of the limit (`""`: for any)."""

    key: PlatformKey
    coolings: dict[str, datetime]


@dataclass(frozen=True, kw_only=True)
class Overview:
    now: datetime
    modes: list[ModeToday]
    queue: Queue
    workers: list[WorkerHeartbeat]
    workers_alive: int
    keys: list[PlatformKey]
    keys_out: list[KeyOut]
    audit: LedgerAudit | None
    audit_is_old: bool
    vault: VaultHealth
    near_limits: list[NearLimit]
    retiring: list[CatalogEntry]
    requests: list[Entitlement]
    switches: list[KillSwitch]
    unknown: Unmarked
    unexplained_openings: int
    asked: list[BreakGlass]
    unapproved: list[tuple[str, str]]
    has_single_operator: bool

    @property
    def runs(self) -> int:
        return sum(mode.runs for mode in self.modes)

    @property
    def failed(self) -> int:
        return sum(mode.failed for mode in self.modes)

    @property
    def picodollars(self) -> int:
        return sum(mode.picodollars for mode in self.modes)


def overview() -> Overview:
    """Read it all, in a constant number of queries."""
    now = database_now()
    workers = list(WorkerHeartbeat.objects.order_by("-seen_at")[:SHOWN])
    keys = list(PlatformKey.objects.order_by("provider", "pool", "name"))
    audit = LedgerAudit.objects.order_by("-ran_at").first()
    return Overview(
        now=now,
        modes=_modes(now),
        queue=_queue(now),
        workers=workers,
        workers_alive=sum(now - worker.seen_at <= WorkerHeartbeat.SILENT_AFTER for worker in workers),
        keys=keys,
        keys_out=_keys_out(keys, now),
        audit=audit,
        audit_is_old=audit is None or now - audit.ran_at > AUDIT_OLD_AFTER,
        vault=vault.health(),
        near_limits=[*_near_quota(now), *_near_budget(now)],
        retiring=list(_retiring(now.date())),
        requests=list(metered_requests.waiting()[:SHOWN]),
        switches=list(KillSwitch.objects.select_related("org").order_by("-set_at")),
        unknown=unknown_names.unmarked(),
        unexplained_openings=openings_kept.unexplained(now=now),
        asked=break_glass.waiting(),
        unapproved=default_address.unapproved(),
        has_single_operator=settings.RENSEI_SINGLE_OPERATOR,
    )


def _modes(now: datetime) -> list[ModeToday]:
    """Count today's runs by their ids, which sort by time, and add today's cost of calls from the roll-ups."""
    midnight = start_of(now.date())
    today = Run.objects.filter(id__gte=_first_id_of(midnight), created_at__gte=midnight).order_by()
    counted: dict[str, Any] = {
        row["auth_mode"]: row
        for row in today.values("auth_mode").annotate(
            runs=Count("id"), failed=Count("id", filter=Q(state=Run.State.FAILED))
        )
    }
    spent: dict[str, int] = defaultdict(int)
    # Sandboxes in clouds have no calls, and each organization pays its provider for them.
    of_calls = UsageDaily.objects.filter(day=now.date()).exclude(served_model_id__startswith=CLASS_BEGINNING)
    rows = of_calls.order_by().values("auth_mode")
    for row in rows.annotate(total=WholeSum("amount_picodollars")):
        spent[row["auth_mode"]] += row["total"]
    return [
        ModeToday(
            mode=mode,
            runs=counted.get(mode, {}).get("runs", 0),
            failed=counted.get(mode, {}).get("failed", 0),
            picodollars=spent[mode],
        )
        for mode in AuthMode
        if mode in counted or mode in spent
    ]


def _first_id_of(moment: datetime) -> str:
    """Return the lowest id that a run of that moment can have, a minute earlier for clocks that differ."""
    return first_id_of("run", moment - timedelta(minutes=1))


def _queue(now: datetime) -> Queue:
    live = Run.objects.filter(state__in=[Run.State.QUEUED, Run.State.RUNNING]).order_by()
    # A host session waits for its machine, which may be off; that is independent of the workers.
    for_workers = ~Q(auth_mode=AuthMode.HOST_SESSION)
    found = live.aggregate(
        waiting=Count("id", filter=Q(state=Run.State.QUEUED)),
        running=Count("id", filter=Q(state=Run.State.RUNNING)),
        oldest=Min("created_at", filter=Q(state=Run.State.QUEUED) & for_workers),
    )
    oldest = found["oldest"]
    return Queue(**found, is_slow=oldest is not None and now - oldest > QUEUE_SLOW_AFTER)


def _keys_out(keys: Iterable[PlatformKey], now: datetime) -> list[KeyOut]:
    found = [KeyOut(key=key, coolings=key.coolings(now)) for key in keys if key.active]
    return [out for out in found if out.coolings or out.key.health == PlatformKey.Health.QUARANTINED]


def _near_quota(now: datetime) -> Iterable[NearLimit]:
    """List the organizations whose shared runs of today are nearly used up, the highest usage first."""
    rows = (
        SharedUsage.objects.filter(day=now.date())
        .annotate(taken=F("used") + F("held"), limit=quota.limit_of(OuterRef("org_id")))
        .filter(taken__gte=NEAR * F("limit"))
        .select_related("org")
        .order_by("-taken")[:SHOWN]
    )
    return [NearLimit(org=row.org, what="shared runs today", used=row.taken, limit=row.limit) for row in rows]


def _near_budget(now: datetime) -> Iterable[NearLimit]:
    """List the organizations whose budget of the month is nearly used or held, the highest usage first."""
    rows = (
        BudgetUsage.objects.filter(month=month_of(now), org__entitlement__monthly_budget_picodollars__isnull=False)
        .annotate(
            limit=F("org__entitlement__monthly_budget_picodollars"),
            # Precise enough to select and to sort by.
            about=Cast("used", FloatField()) + Cast("held", FloatField()),
        )
        .filter(about__gte=NEAR * Cast("limit", FloatField()))
        .select_related("org")
        .order_by("-about")[:SHOWN]
    )
    return [
        NearLimit(org=row.org, what="metered budget", used=max(0, row.used) + row.held, limit=row.limit) for row in rows
    ]


def _retiring(today: date) -> QuerySet[CatalogEntry]:
    soon = CatalogEntry.objects.filter(org=None, retires_on__gt=today, retires_on__lte=today + RETIRING_WITHIN)
    return soon.order_by("retires_on", "model_id")[:SHOWN]
