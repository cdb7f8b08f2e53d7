"""
Lists of runs, the overview and usage over very many runs: few queries, and work that does not grow with the runs.

`RENSEI_TEST_RUNS=1000000 pytest -s tests/dispatch/test_scale.py` does it at full size and prints the times.
"""

import json
import os
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from functools import partial
from statistics import median
from typing import Any

import pytest
from django.db import connection
from django.test import Client
from rest_framework.test import APIClient

from billing.models import UsageDaily
from rensei.console import overview, run_list
from rensei.core.clock import database_now
from rensei.dispatch import org_deletion, run_figures, run_filter, search
from rensei.dispatch.models import Run
from rensei.orgs.access import Access
from rensei.orgs.models import Org, User
from rensei.tokens.services import create_token
from tests import answers
from tests.billing.many_events import fill_ledger
from tests.dispatch.many_runs import fill_runs

RUNS = int(os.environ.get("RENSEI_TEST_RUNS", "6000"))
IS_LARGE = RUNS >= 100_000
# What is read at once, in proportion to the runs of the test.
AT_ONCE = 10_000 if IS_LARGE else 180
MOST_QUERIES = 12
# The overview also decides for each profile, and reads figures and the next steps.
MOST_QUERIES_OF = {"/o/acme/": 15}
RUN_TABLES = ("dispatch_run", "dispatch_searchentry", "dispatch_searchwords")
# Its rows are as many as the days have models, modes, projects and profiles, however many runs there are.
ROLL_UPS = "billing_usagedaily"
# Statements of transactions and settings, which read no table.
NO_QUERIES = ("SAVEPOINT", "RELEASE", "BEGIN", "COMMIT", "SET")
TIMES = 7 if IS_LARGE else 1
pytestmark = [pytest.mark.timeout(0 if IS_LARGE else 120), pytest.mark.django_db]
API = "/api/v1"
ADDRESSES = [
    "/o/acme/runs",
    "/o/acme/runs?before={middle}",
    "/o/acme/runs?after={middle}",
    "/o/acme/runs?state=FAILED",
    "/o/acme/runs?state=RUNNING",
    "/o/acme/runs?model=claude-haiku-4-5&token={token}",
    "/o/acme/runs?code=RUN_TIMEOUT&since=7d",
    "/o/acme/runs?day={month_ago}",
    "/o/acme/runs?q=sky",
    "/o/acme/runs?q=harbour+lamp",
    "/o/acme/runs?q=ada&state=FAILED&since=30d",
    "/o/acme/runs?sort=-cost",
    "/o/acme/runs?sort=took&state=FAILED&page=3",
    "/o/acme/runs/newer?seen={middle}",
    "/o/acme/",
    "/o/acme/usage?days=90",
    "/o/acme/usage?show=runs&by=person&days=30",
    "/o/acme/usage?show=latency&by=token&days=90",
    "/o/acme/settings/tokens",
    "/o/acme/settings/capacity",
    f"{API}/capacity",
    f"{API}/runs",
    f"{API}/runs?pageSize=200",
    f"{API}/runs?state=FAILED",
    f"{API}/runs?q=sky&servedModel=claude-haiku-4-5",
    f"{API}/runs?createdAfter={{month_ago}}T00:00:00Z&authMode=metered",
]


@pytest.fixture
def get(
    acme: Org,
    ada: User,
    ada_access: Access,
    eve: User,
    api_as: Callable[..., APIClient],
    page_as: Callable[[User], Client],
    monkeypatch: pytest.MonkeyPatch,
) -> Callable[[str], None]:
    """Read an address to its end, as Ada."""
    for module, name in (
        (run_filter, "READ_AT_ONCE"),
        (run_list, "READ_AT_ONCE"),
        (overview, "READ_AT_ONCE"),
        (run_figures, "RUNS_COUNTED_MAX"),
        (search, "MATCHES"),
    ):
        monkeypatch.setattr(module, name, AT_ONCE if name != "MATCHES" else min(AT_ONCE, search.MATCHES))
    if IS_LARGE:
        # The time to compare an answer with the OpenAPI document is none of the product.
        monkeypatch.setattr(answers, "differences", lambda *_: [])
    now = database_now()
    token, _ = create_token(ada_access, name="ci")
    fill_runs(acme, runs=RUNS, until=now, user=ada, token_id=token.pk)
    fill_runs(Org.objects.get(slug="evil"), runs=RUNS // 10, until=now, user=eve, token_id="")
    fill_ledger(acme, lines=RUNS // 20 if IS_LARGE else 300, until=now)
    api, page = api_as(ada), page_as(ada)
    # The first page of a session writes down which device it is.
    page.get("/account")
    words = {
        "middle": Run.objects.for_org(acme).order_by("id").values_list("id", flat=True)[RUNS // 2],
        "month_ago": (now - timedelta(days=30)).date(),
        "token": token.pk,
    }

    def read(address: str) -> None:
        reader: Any = api if address.startswith(API) else page
        answer = reader.get(address.format(**words))
        assert answer.status_code == 200, answer.content

    return read


def rows_read(sql: str, values: Any = None) -> int:
    """Count what a query reads of the tables: rows on PostgreSQL, on SQLite its instructions as rows of many each."""
    with connection.cursor() as cursor:
        if connection.vendor == "sqlite":
            steps = 0

            def count() -> None:
                nonlocal steps
                steps += 1

            connection.connection.set_progress_handler(count, INSTRUCTIONS_OF_A_ROW)
            try:
                cursor.execute(sql, values)
                cursor.fetchall()
            finally:
                connection.connection.set_progress_handler(None, 0)
            return steps
        return sum(rows for _, rows in _scans(_postgres_plan(cursor, sql, values)))


def plan_of(sql: str, values: Any = None) -> str:
    """Name how a query reads the tables, with the indexes."""
    with connection.cursor() as cursor:
        if connection.vendor == "sqlite":
            cursor.execute(f"EXPLAIN QUERY PLAN {sql}", values)
            return "; ".join(row[3] for row in cursor.fetchall())
        return "; ".join(how for how, _ in _scans(_postgres_plan(cursor, sql, values)))


# A row that a filter leaves out takes 4 at least, one that is listed up to some 100.
INSTRUCTIONS_OF_A_ROW = 25


def _postgres_plan(cursor: Any, sql: str, values: Any) -> dict[str, Any]:
    # A table of this size is rightly read from end to end; it is asked whether it could do otherwise.
    cursor.execute(f"SET LOCAL enable_seqscan = {'on' if IS_LARGE else 'off'}")
    cursor.execute(f"EXPLAIN (ANALYZE, FORMAT JSON) {sql}", values)
    plan = cursor.fetchone()[0]
    return dict((json.loads(plan) if isinstance(plan, str) else plan)[0]["Plan"])


def _scans(node: dict[str, Any]) -> Iterator[tuple[str, int]]:
    """Name each scan of the tables in a plan, with the rows that it reads."""
    table = node.get("Relation Name")
    if table in (*RUN_TABLES, ROLL_UPS):
        removed = node.get("Rows Removed by Filter", 0) + node.get("Rows Removed by Index Recheck", 0)
        index = node.get("Index Name", "")
        yield f"{node['Node Type']} {table} {index}", int((node["Actual Rows"] + removed) * node["Actual Loops"])
    elif node["Node Type"] == "Bitmap Index Scan":
        yield f"{node['Node Type']} {node['Index Name']}", 0
    for below in node.get("Plans", []):
        yield from _scans(below)


def _note(queries: list[tuple[str, Any]], execute: Any, sql: str, values: Any, many: bool, context: Any) -> Any:
    """Note a query with its values, which SQLite's choice of a partial index depends on."""
    if not sql.startswith(NO_QUERIES):
        queries.append((sql, values))
    return execute(sql, values, many, context)


class TestReadingManyRuns:
    def test_takes_few_queries_and_no_more_work_than_reads_at_once(self, get: Callable[[str], None], acme: Org) -> None:
        """One test for all addresses, because filling the tables is what takes the time."""
        roll_ups = UsageDaily.objects.for_org(acme).count()
        wrong = []
        # A worker repeats this while an organization is being deleted.
        steps = {address: partial(get, address) for address in ADDRESSES}
        for address, read_it in (steps | {"deletion": partial(org_deletion._cancel_runs, acme)}).items():
            took = []
            for _ in range(TIMES):
                queries: list[tuple[str, Any]] = []
                with connection.execute_wrapper(partial(_note, queries)):
                    began = time.perf_counter()
                    read_it()
                    took.append((time.perf_counter() - began) * 1000)

            if len(queries) > MOST_QUERIES_OF.get(address, MOST_QUERIES):
                wrong.append(f"{address}: {len(queries)} queries")
            print(f"\n{connection.vendor} {RUNS} {address}: {len(queries)} queries, {median(took):.0f} ms")
            for sql, values in queries:
                of_runs = any(table in sql for table in RUN_TABLES)
                if sql.startswith("SELECT") and (of_runs or ROLL_UPS in sql):
                    read = rows_read(sql, values)
                    if read > (4 * AT_ONCE if of_runs else max(roll_ups, 4 * AT_ONCE)):
                        wrong.append(f"{address}: {read} rows: {sql[:1500]}")
                    if IS_LARGE:
                        print(f"    {read} rows: {plan_of(sql, values)}")
        assert wrong == []

    def test_is_noticed_where_it_reads_all(self, get: Callable[[str], None], acme: Org) -> None:
        for sql in (
            "SELECT count(*) FROM dispatch_run WHERE profile_id = 'prof_1'",
            f"SELECT count(*) FROM dispatch_run WHERE org_id = '{acme.pk}' AND token_id = 'x'",
        ):
            assert rows_read(sql) > 4 * AT_ONCE, sql
