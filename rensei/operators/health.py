"""Health checks and metrics: is the server alive, is it ready, and how busy is it."""

import hmac
import math
import threading
import time
from collections.abc import Iterable, Iterator
from datetime import datetime
from typing import NamedTuple

from django.conf import settings
from django.contrib.auth.decorators import login_not_required
from django.db import DatabaseError, connection
from django.db.migrations.executor import MigrationExecutor
from django.db.models import Count, Min, Sum
from django.http import Http404, HttpRequest, HttpResponse, JsonResponse
from django.views.decorators.http import require_safe
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from billing.models import SharedUsage
from catalog.models import CatalogEntry
from integrations.vault import openings_kept, vault
from integrations.vault.vault import VaultHealth
from rensei.core.clock import database_now
from rensei.core.database_pool import patience, waiting_for_connections
from rensei.core.errors import DATABASE_FAULTS
from rensei.core.limits import limit
from rensei.core.models import UnknownName, WorkerHeartbeat
from rensei.core.problems import NotAuthenticated, problem_page
from rensei.dispatch.models import Attempt, Run
from rensei.dispatch.queue import wake_up
from rensei.dispatch.settlement import audit
from rensei.layout import MANAGE

# From this duration on, readiness and metrics send the database only one query.
SLOW_SECONDS = 1.0
READY_SECONDS = limit(
    1,
    "seconds apart",
    what="Readiness: looks into the database for all requests without the token, each process",
    told="the caller: it gets the last answer",
)
CONNECTION_SECONDS = limit(
    2.0,
    "seconds",
    what="Readiness and metrics: wait for a connection to the database",
    told="the caller: not ready, and that the database does not answer",
)


@login_not_required
@require_safe
def alive(request: HttpRequest) -> HttpResponse:
    """Answer as long as this process runs."""
    return JsonResponse({"ok": True})


@login_not_required
@require_safe
def ready(request: HttpRequest) -> HttpResponse:
    """
    Answer whether runs can be accepted and executed. Requests with the token get what is missing or degraded.

    A degraded service is still ready: otherwise a load balancer would turn it into an outage.
    """
    if not _knows_token(request):
        is_ready = readiness.is_ready()
        return JsonResponse({"ready": is_ready}, status=200 if is_ready else 503)
    database = _database()
    missing = list(_missing(database))
    answer = {"ready": not missing, "missing": missing, "degraded": list(_degraded(database))}
    return JsonResponse(answer, status=503 if missing else 200)


@login_not_required
@require_safe
def metrics(request: HttpRequest) -> HttpResponse:
    """Return metrics in Prometheus' text format to requests with the token. If none is set, the page is not found."""
    if not settings.RENSEI_METRICS_TOKEN:
        raise Http404
    if not _knows_token(request):
        return problem_page(request, NotAuthenticated())
    registry = CollectorRegistry()
    registry.register(_Figures())
    return HttpResponse(generate_latest(registry), content_type=CONTENT_TYPE_LATEST)


def _knows_token(request: HttpRequest) -> bool:
    scheme, _, token = request.headers.get("Authorization", "").partition(" ")
    expected = settings.RENSEI_METRICS_TOKEN.encode()
    return bool(expected) and scheme.lower() == "bearer" and hmac.compare_digest(token.strip().encode(), expected)


class _Database(NamedTuple):
    """
    The first query to the database: its time, None if it does not answer, and the duration of the query.

    While requests wait for a connection, the query is skipped, because it would wait behind them.
    """

    now: datetime | None
    seconds: float
    waiting: int

    @property
    def is_slow(self) -> bool:
        return self.seconds >= SLOW_SECONDS


def _database() -> _Database:
    waiting, began = waiting_for_connections(), time.monotonic()
    try:
        with patience(CONNECTION_SECONDS):
            now = None if waiting else database_now()
    except DATABASE_FAULTS:
        now = None
    return _Database(now, time.monotonic() - began, waiting)


class Readiness:
    """The answer to all requests without the token, which anyone can send: looked for once in a while."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._is_ready = False
        self._looked_at = -math.inf
        self._is_migrated = False

    def is_ready(self) -> bool:
        with self._lock:
            if time.monotonic() - self._looked_at >= READY_SECONDS:
                self._is_ready = not any(_missing(_database()))
                self._looked_at = time.monotonic()
            return self._is_ready

    def unapplied_migrations(self) -> int:
        """Count the migrations of this version that are not applied. Their graph is large, and none is undone."""
        if self._is_migrated:
            return 0
        executor = MigrationExecutor(connection)
        count = len(executor.migration_plan(executor.loader.graph.leaf_nodes()))
        self._is_migrated = count == 0
        return count

    def forget(self) -> None:
        self._looked_at, self._is_migrated = -math.inf, False


readiness = Readiness()


def _degraded(database: _Database) -> Iterator[str]:
    if database.now is not None and database.is_slow:
        yield f"The database takes {database.seconds:.1f} s for an answer. What else it holds was not looked at."
    if wake_up.is_broker_away():
        yield f"The broker does not answer. `{MANAGE} worker` starts the runs until it is back."
    if database.now is not None and not database.is_slow and (sealed := _silent_vault()):
        yield f"The vault's key service does not answer, so stored keys cannot be opened: {sealed.detail}"


def _silent_vault() -> VaultHealth | None:
    try:
        sealed = vault.health()
    except DATABASE_FAULTS:
        return None
    return sealed if sealed.silent else None


def _missing(database: _Database) -> Iterator[str]:
    if database.waiting:
        yield f"All connections to the database are taken, and {database.waiting} request(s) wait for one."
        return
    if database.now is None:
        yield "The database does not answer."
        return
    if database.is_slow:
        # Each further query would take as long, and a load balancer would not wait for it.
        return
    try:
        waiting = readiness.unapplied_migrations()
        if waiting:
            yield f"The database lacks {waiting} migration(s). Run `{MANAGE} migrate`."
            return
        last_seen = WorkerHeartbeat.objects.order_by("-seen_at").values_list("seen_at", flat=True).first()
        has_catalog = CatalogEntry.objects.exists()
        sealed = vault.health()
    except DatabaseError:
        yield "The database does not answer."
        return
    if not sealed.ok and not sealed.silent:
        yield f"The vault is shut: {sealed.detail}"
    if not has_catalog:
        yield f"The catalog is empty. Run `{MANAGE} load_catalog`."
    if last_seen is None:
        yield f"No worker has started yet. Run `{MANAGE} worker`."
    elif database.now - last_seen > WorkerHeartbeat.SILENT_AFTER:
        yield f"No worker has been seen for {int((database.now - last_seen).total_seconds())} s."


class _Figures(Collector):
    """Reads everything from the database on each request, so that all processes return the same."""

    def collect(self) -> Iterable[Metric]:
        database = _database()
        yield GaugeMetricFamily(
            "rensei_database_ok", "Whether the database answered this process", value=float(database.now is not None)
        )
        yield GaugeMetricFamily("rensei_database_seconds", "How long it took", value=database.seconds)
        yield GaugeMetricFamily(
            "rensei_database_waiting",
            "Requests of this process that wait for a connection to the database",
            value=database.waiting,
        )
        if settings.CELERY_BROKER_URL:
            is_ok = not wake_up.is_broker_away()
            yield GaugeMetricFamily("rensei_broker_ok", "Whether the broker answered this process", value=float(is_ok))
        if database.now is not None and not database.is_slow:
            yield from self._stored(database.now)

    def _stored(self, now: datetime) -> Iterator[Metric]:
        yield from self._runs(now)
        yield self._attempts()
        yield self._workers(now)
        yield from self._shared(now)
        yield from self._audit(now)
        yield self._unknown()
        yield GaugeMetricFamily(
            "rensei_key_openings_unexplained",
            "Openings of sealed keys in the last 7 days that no run, person, command or job explains",
            value=openings_kept.unexplained(now=now),
        )
        yield GaugeMetricFamily("rensei_vault_ok", "Whether sealed keys can be opened", value=float(vault.health().ok))

    def _runs(self, now: datetime) -> Iterator[Metric]:
        counts = dict(Run.objects.order_by().values_list("state").annotate(Count("id")))
        family = GaugeMetricFamily("rensei_runs", "Runs by state", labels=["state"])
        for state in Run.State.values:
            family.add_metric([state], counts.get(state, 0))
        yield family
        oldest = Run.objects.filter(state=Run.State.QUEUED).aggregate(oldest=Min("created_at"))["oldest"]
        age = (now - oldest).total_seconds() if oldest else 0.0
        yield GaugeMetricFamily("rensei_queue_age_seconds", "How long the oldest queued run has waited", value=age)

    def _attempts(self) -> Metric:
        counts = dict(Attempt.objects.order_by().values_list("state").annotate(Count("id")))
        family = GaugeMetricFamily("rensei_attempts", "Calls to providers by state", labels=["state"])
        for state in Attempt.State.values:
            family.add_metric([state], counts.get(state, 0))
        return family

    def _workers(self, now: datetime) -> Metric:
        family = GaugeMetricFamily(
            "rensei_worker_silence_seconds", "Time since each worker's last heartbeat", labels=["worker"]
        )
        for worker, seen_at in WorkerHeartbeat.objects.values_list("worker", "seen_at"):
            family.add_metric([worker], (now - seen_at).total_seconds())
        return family

    def _unknown(self) -> Metric:
        family = CounterMetricFamily(
            "rensei_unknown", "What was met that this version does not know, by kind and name", labels=["kind", "name"]
        )
        for kind, name, count in UnknownName.objects.order_by("kind", "name").values_list("kind", "name", "count"):
            family.add_metric([kind, name], count)
        return family

    def _shared(self, now: datetime) -> Iterator[Metric]:
        today = SharedUsage.objects.filter(day=now.date()).aggregate(used=Sum("used"), held=Sum("held"))
        for name in ("used", "held"):
            yield GaugeMetricFamily(
                f"rensei_shared_runs_{name}", f"Shared runs {name} today, all organizations", value=today[name] or 0
            )

    def _audit(self, now: datetime) -> Iterator[Metric]:
        """Return nothing before the first audit: without it, zero differences would be misleading."""
        newest = audit.last()
        if newest is None:
            return
        yield GaugeMetricFamily(
            "rensei_ledger_differences", "What the last audit of the ledger found", value=newest.difference_count
        )
        age = (now - newest.ran_at).total_seconds()
        yield GaugeMetricFamily("rensei_ledger_audit_age_seconds", "How long ago that audit was", value=age)
