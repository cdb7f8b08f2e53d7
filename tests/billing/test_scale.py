"""
Usage, the ledger and the statements over a large ledger: by an index range, in few queries.

`RENSEI_TEST_LEDGER_LINES=1000000 pytest -s tests/billing/test_scale.py` does it at full size and prints the times.
"""

import json
import os
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any

import pytest
from django.db import connection
from django.test import Client
from django.test.utils import CaptureQueriesContext
from rest_framework.test import APIClient

from rensei.core.clock import database_now
from rensei.orgs.models import Org, User
from tests.billing.many_events import fill_ledger

LINES = int(os.environ.get("RENSEI_TEST_LEDGER_LINES", "3000"))
# Below this size PostgreSQL rightly reads a table from end to end; it is asked whether it could do otherwise.
LARGE = 100_000
MOST_QUERIES = 12
TABLE = "billing_costevent"
pytestmark = pytest.mark.timeout(0 if LINES >= LARGE else 120)
API = "/api/v1"
ADDRESSES = [
    f"{API}/usage",
    f"{API}/usage?from={{month_ago}}&to={{today}}&groupBy=model",
    f"{API}/usage?groupBy=profile",
    f"{API}/cost-events",
    f"{API}/cost-events?pageSize=200&authMode=metered",
    f"{API}/cost-events?from={{month_ago}}&to={{today}}",
    f"{API}/cost-events?runId=run_acme_000000000007",
    f"{API}/cost-events.csv?from={{today}}",
    f"{API}/entitlements",
    f"{API}/statements",
    f"{API}/statements/{{month}}",
    f"{API}/statements/{{month}}.csv",
    "/o/acme/usage",
    "/o/acme/usage?days=90",
    "/o/acme/usage/statements",
    "/o/acme/usage/statements/{month}",
]


@pytest.fixture
def get(
    acme: Org, ada: User, eve: User, api_as: Callable[..., APIClient], page_as: Callable[[User], Client]
) -> Callable[[str], None]:
    """Read an address to its end, as Ada, and the second page of a list as well."""
    now = database_now()
    fill_ledger(acme, lines=LINES, until=now)
    fill_ledger(Org.objects.get(slug="evil"), lines=LINES, until=now)
    api, page = api_as(ada), page_as(ada)
    # The first page of a session writes down which device it is.
    page.get("/account")
    words = {"today": now.date(), "month_ago": (now - timedelta(days=30)).date(), "month": f"{now:%Y-%m}"}

    def read(address: str) -> None:
        reader: Any = api if address.startswith(API) else page
        answer = reader.get(address.format(**words))
        assert answer.status_code == 200, answer.content
        assert b"".join(answer.streaming_content) if answer.streaming else answer.content
        if "/cost-events" in address and not answer.streaming and answer.json()["next"]:
            assert len(reader.get(answer.json()["next"]).json()["results"]) > 1

    return read


def reads_without_range(sql: str) -> Iterator[str]:
    """Name each place of a query's plan where the ledger is read other than by a range of an index."""
    with connection.cursor() as cursor:
        if connection.vendor == "sqlite":
            cursor.execute(f"EXPLAIN QUERY PLAN {sql}")
            yield from (row[3] for row in cursor.fetchall() if TABLE in row[3] and not row[3].startswith("SEARCH"))
        else:
            cursor.execute(f"SET LOCAL enable_seqscan = {'on' if LINES >= LARGE else 'off'}")
            cursor.execute(f"EXPLAIN (FORMAT JSON) {sql}")
            plan = cursor.fetchone()[0]
            yield from _scans((json.loads(plan) if isinstance(plan, str) else plan)[0]["Plan"])


def _scans(node: dict[str, Any]) -> Iterator[str]:
    if node.get("Relation Name") == TABLE and not {"Index Cond", "Recheck Cond"} & node.keys():
        yield node["Node Type"]
    for below in node.get("Plans", []):
        yield from _scans(below)


class TestReadingALargeLedger:
    def test_takes_few_queries_and_no_scan_of_the_ledger(self, get: Callable[[str], None]) -> None:
        """One test for all addresses, because filling the ledger is what takes the time."""
        for address in ADDRESSES:
            with CaptureQueriesContext(connection) as queries:
                began = time.perf_counter()
                get(address)
                seconds = time.perf_counter() - began

            pages = len(queries) if ".csv?" not in address else 0
            print(f"{connection.vendor} {LINES} {address} {len(queries)} queries {seconds * 1000:.0f} ms")
            assert pages <= MOST_QUERIES, address
            for query in queries.captured_queries:
                if TABLE in query["sql"]:
                    assert list(reads_without_range(query["sql"])) == [], (address, query["sql"])

    def test_finds_a_scan_where_there_is_one(self, get: Callable[[str], None]) -> None:
        for sql in (f"SELECT count(*) FROM {TABLE}", f"SELECT * FROM {TABLE} WHERE payer = 'x'"):
            assert list(reads_without_range(sql)), sql


class TestTheAdminsLedger:
    def test_never_reads_the_whole_of_it(self, get: Callable[[str], None], grace: User, page_as: Any) -> None:
        admin = page_as(grace)
        month = f"{database_now():%Y-%m}-01"

        for query_string in ("", "?auth_mode__exact=metered", f"?month={month}"):
            with CaptureQueriesContext(connection) as queries:
                began = time.perf_counter()
                assert admin.get(f"/admin/billing/costevent/{query_string}").status_code == 200
                seconds = time.perf_counter() - began

            print(f"{connection.vendor} {LINES} admin{query_string} {len(queries)} queries {seconds * 1000:.0f} ms")
            for query in queries.captured_queries:
                if TABLE in query["sql"] and "LIMIT" not in query["sql"]:
                    assert list(reads_without_range(query["sql"])) == [], query["sql"]
