"""What the rooms behind the doors cost: resolving, sealing, admitting, a whole run, and pages over a large ledger."""

import http.client
import secrets
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

import psycopg
from django.test import Client

from integrations.models import Integration
from integrations.vault import vault
from rensei.core.secret import Secret
from rensei.dispatch import context
from rensei.dispatch.admission import admit, decide
from rensei.dispatch.admission.requests import DispatchRequest, messages_from
from rensei.dispatch.models import Run
from rensei.orgs import services as orgs
from rensei.orgs.models import User
from rensei.policies.resolver import resolve
from tests.benchmarks import ledger
from tests.benchmarks.contenders import upstream_key
from tests.benchmarks.world import OWNER, World

WAIT_SECONDS_MAX = 120.0
# The large ledger is another organization's, so that the one that was loaded keeps a ledger that agrees.
LARGE = "globex"
PAGES = (
    f"/o/{LARGE}/settings/catalog",
    f"/o/{LARGE}/usage",
    f"/o/{LARGE}/usage?days=90",
    "/api/v1/catalog",
    "/api/v1/usage",
    "/api/v1/cost-events",
)


@dataclass(frozen=True, kw_only=True)
class Times:
    """How long one thing took, again and again. In milliseconds."""

    count: int
    p50_ms: float
    p99_ms: float
    seconds: float

    @property
    def rate(self) -> float:
        return self.count / self.seconds


def commits(database_url: str, *, seconds: float) -> Times:
    """Commit one changed row at a time, as a request that waits for its own commit does."""
    with psycopg.connect(database_url, autocommit=True) as connection:
        connection.execute("CREATE TABLE IF NOT EXISTS bench_commit (id int PRIMARY KEY, count bigint NOT NULL)")
        connection.execute("INSERT INTO bench_commit VALUES (1, 0) ON CONFLICT DO NOTHING")
        return _repeat(
            lambda: connection.execute("UPDATE bench_commit SET count = count + 1 WHERE id = 1"), seconds=seconds
        )


def resolving(world: World, *, seconds: float) -> Times:
    """Decide by a profile, a model and the policies, which are loaded already."""
    found = decide.load(world.access, _request(world, "shared"))
    requested = context.offered_model(found.requested)
    served = found.offered()
    return _repeat(
        lambda: resolve(
            profile_modes=found.profile.auth_modes,
            provider=found.profile.provider,
            provider_modes=found.spec.auth_modes,
            requested=requested,
            served=served,
            policies=found.policies,
        ),
        seconds=seconds,
    )


def sealing(world: World, *, seconds: float) -> tuple[Times, Times]:
    """Seal a key, and open it again."""
    integration = Integration.objects.for_org(world.access.org).get()
    context = vault.SealContext(
        org=world.access.org,
        record_id=integration.id,
        field="benchmark",
        version=1,
        provider=integration.provider,
        destination="default",
    )
    key = Secret(upstream_key())
    sealed = vault.seal(key, context=context)
    return (
        _repeat(lambda: vault.seal(key, context=context), seconds=seconds),
        _repeat(lambda: vault.open_sealed(sealed, context=context), seconds=seconds),
    )


def admitting(world: World, *, count: int) -> Times:
    """Admit runs one after the other, and leave them in the queue."""
    request = _request(world, "shared")
    return _repeat(lambda: admit.dispatch(world.access, request), count=count)


def executing() -> Times:
    """
    Wait until the worker has carried out every run of the queue, from its first claim on.

    The times of one run are those from its claim to its end, with eight of them side by side.
    """
    waiting = set(Run.objects.filter(state=Run.State.QUEUED).values_list("id", flat=True))
    until = time.monotonic() + WAIT_SECONDS_MAX
    while Run.objects.exclude(state__in=Run.ENDED).exists():
        if time.monotonic() > until:
            raise TimeoutError("runs do not end")
        time.sleep(0.1)
    runs = list(Run.objects.filter(id__in=waiting))
    failed = [run.error for run in runs if run.state != Run.State.SUCCEEDED]
    assert not failed, failed[:3]
    began, ended = min(run.started_at for run in runs), max(run.finished_at for run in runs)
    return _times([(run.finished_at - run.started_at).total_seconds() for run in runs], (ended - began).total_seconds())


def alone(world: World, *, count: int) -> Times:
    """Dispatch a run to an idle worker and wait for its end, again and again."""
    request = _request(world, "shared")

    def run_one() -> None:
        run = admit.dispatch(world.access, request)
        until = time.monotonic() + WAIT_SECONDS_MAX
        while not Run.objects.filter(id=run.id, state__in=Run.ENDED).exists():
            assert time.monotonic() < until, "a run does not end"
            time.sleep(0.005)

    return _repeat(run_one, count=count)


def pages(*, url: str, lines: int, repeats: int) -> dict[str, Times]:
    """Write a ledger of so many lines, and read pages over it from the running server, as Ada."""
    owner = User.objects.get(email=OWNER)
    ledger.fill(orgs.create_org(name="Globex", slug=LARGE, owner=owner), lines=lines)
    browser = Client()
    browser.force_login(owner)
    cookies = "; ".join(f"{name}={morsel.value}" for name, morsel in browser.cookies.items())
    where = urlsplit(url)
    connection = http.client.HTTPConnection(where.hostname or "", where.port, timeout=120)

    def read(path: str) -> None:
        connection.request("GET", path, headers={"cookie": cookies, "x-rensei-org": LARGE})
        answer = connection.getresponse()
        body = answer.read()
        assert answer.status == 200, (path, answer.status, body[:300])

    try:
        found = {}
        for path in PAGES:
            read(path)
            found[path] = _repeat(lambda path=path: read(path), count=repeats)  # type: ignore[misc]
        return found
    finally:
        connection.close()


def count_runs() -> int:
    return Run.objects.count()


def _request(world: World, mode: str) -> DispatchRequest:
    text = f"In one sentence: what is {secrets.token_hex(4)}?"
    return DispatchRequest(profile_id=world.profiles[mode], messages=messages_from(text=text, messages=None))


def _repeat(do: Callable[[], Any], *, seconds: float = float("inf"), count: int | None = None) -> Times:
    """Do something so often, or for so long, and time each."""
    taken: list[float] = []
    began = now = time.perf_counter()
    while now - began < seconds and len(taken) != count:
        do()
        then, now = now, time.perf_counter()
        taken.append(now - then)
    return _times(taken, now - began)


def _times(taken: Sequence[float], seconds: float) -> Times:
    ordered = sorted(taken)
    last = len(ordered) - 1
    p50, p99 = (ordered[round(last * percent / 100)] * 1000 for percent in (50, 99))
    return Times(count=len(ordered), p50_ms=p50, p99_ms=p99, seconds=seconds)
