"""After a load: is every call upstream in the ledger exactly once, with the tokens that the stand-in told?"""

import http.client
import json
import time
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

import psycopg

# Answers whose client has gone are read to their end and settled.
QUIET_SECONDS = 0.5
SETTLE_SECONDS_MAX = 60.0
FIRST = 10
STRAY = "att_that_nobody_made"
_UNFINISHED = """
    SELECT (SELECT count(*) FROM dispatch_run WHERE state IN ('QUEUED', 'RUNNING'))
         + (SELECT count(*) FROM dispatch_attempt WHERE state = 'OPEN')
"""
# Each statement gives what does not agree, one row for each.
_DIFFERENCES = {
    "a call without an attempt": """
        SELECT c.attempt FROM call c LEFT JOIN dispatch_attempt a ON a.id = c.attempt WHERE a.id IS NULL
    """,
    "an attempt that was called more than once": """
        SELECT attempt FROM call GROUP BY attempt HAVING count(*) > 1
    """,
    "a call without exactly one charge": """
        SELECT c.attempt || ', charged ' || count(e.id) || ' times'
        FROM call c LEFT JOIN billing_costevent e ON e.attempt_id = c.attempt AND e.kind = 'charge'
        GROUP BY c.attempt HAVING count(e.id) <> 1
    """,
    "tokens that differ": """
        SELECT c.attempt || ', upstream ' || c.input || ' and ' || c.output
               || ', ledger ' || sum(e.input_tokens) || ' and ' || sum(e.output_tokens)
        FROM call c JOIN billing_costevent e ON e.attempt_id = c.attempt
        GROUP BY c.attempt, c.input, c.output
        HAVING NOT bool_or(e.estimated) AND (sum(e.input_tokens) <> c.input OR sum(e.output_tokens) <> c.output)
    """,
    "an estimate for a call that was answered in full": """
        SELECT c.attempt FROM call c JOIN billing_costevent e ON e.attempt_id = c.attempt
        WHERE c.ended AND e.estimated
    """,
    "a charge without a call": """
        SELECT e.attempt_id FROM billing_costevent e JOIN dispatch_attempt a ON a.id = e.attempt_id
        LEFT JOIN call c ON c.attempt = e.attempt_id
        WHERE c.attempt IS NULL AND e.kind = 'charge' AND a.state <> 'INDETERMINATE'
    """,
    "an attempt without a call": """
        SELECT a.id || ', ' || a.state FROM dispatch_attempt a LEFT JOIN call c ON c.attempt = a.id
        WHERE c.attempt IS NULL AND a.state NOT IN ('VOID', 'INDETERMINATE')
    """,
    "a hold that is left": "SELECT run_id FROM billing_hold UNION ALL SELECT run_id FROM billing_budgethold",
    "shared runs that are not those that were made": """
        SELECT sum(u.used) || ' used, ' || sum(u.held) || ' held' FROM billing_sharedusage u
        HAVING sum(u.held) <> 0 OR sum(u.used) <> (
            SELECT count(DISTINCT a.run_id) FROM dispatch_attempt a JOIN dispatch_run r ON r.id = a.run_id
            WHERE r.auth_mode = 'shared' AND a.state <> 'VOID'
        )
    """,
}


class Void(Exception):
    """The ledger and the upstream's log do not agree, so what was measured does not count."""


@dataclass(frozen=True, kw_only=True)
class Agreement:
    """How much was compared, from the beginning of the benchmark, and agreed."""

    calls: int
    charges: int


class Auditor:
    """Compares the ledger with all calls so far. The calls are fetched once each, and kept in a table of its own."""

    def __init__(self, *, database_url: str, upstream_url: str) -> None:
        self._upstream = urlsplit(upstream_url)
        self._seen = 0
        self._connection = psycopg.connect(database_url, autocommit=True)
        self._connection.execute("CREATE TEMP TABLE call (attempt text, input int, output int, ended bool)")
        self._connection.execute("CREATE INDEX ON call (attempt)")

    def plant_stray_call(self) -> None:
        """Make a call that no ledger knows, to see that it is found."""
        connection = http.client.HTTPConnection(self._upstream.hostname or "", self._upstream.port, timeout=60)
        connection.request("POST", "/v1/messages", body=b"{}", headers={"x-rensei-attempt": STRAY})
        connection.getresponse().read()
        connection.close()

    def close(self) -> None:
        self._connection.close()

    def settle(self) -> None:
        """
        Wait until every call is settled.

        :raises Void: if that takes too long
        """
        until = time.monotonic() + SETTLE_SECONDS_MAX
        quiet_since, seen = time.monotonic(), -1
        # A request whose sender has gone may still be on its way in, so nothing new must come for a while either.
        while time.monotonic() < until:
            unfinished, runs = self._value(_UNFINISHED), self._value("SELECT count(*) FROM dispatch_run")
            if unfinished or runs != seen:
                quiet_since, seen = time.monotonic(), runs
            elif time.monotonic() - quiet_since >= QUIET_SECONDS:
                return
            time.sleep(0.05)
        if unfinished := self._value(_UNFINISHED):
            raise Void(f"{unfinished} runs and attempts did not end within {SETTLE_SECONDS_MAX:.0f} s.")

    def check(self) -> Agreement:
        """
        Compare, once everything is settled.

        :raises Void: naming what does not agree
        """
        self.settle()
        log = self._fetch()
        self._seen += len(log["calls"])
        with self._connection.cursor() as cursor, cursor.copy("COPY call FROM STDIN") as copy:
            for call in log["calls"]:
                copy.write_row(call)
        for table in ("call", "dispatch_attempt", "dispatch_run", "billing_costevent"):
            self._connection.execute(f"ANALYZE {table}")
        found = [f"{log['leakedTokens']} calls carried a Rensei token"] if log["leakedTokens"] else []
        for name, statement in _DIFFERENCES.items():
            rows = self._connection.execute(statement).fetchall()
            found += [f"{name}: {row[0]}" for row in rows[:FIRST]]
            found += [f"{name}: {len(rows) - FIRST} more"] if len(rows) > FIRST else []
        if found:
            raise Void("The ledger and the upstream's log do not agree:\n" + "\n".join(found))
        charges = "SELECT count(*) FROM billing_costevent WHERE kind = 'charge'"
        return Agreement(calls=self._value("SELECT count(*) FROM call"), charges=self._value(charges))

    def _value(self, statement: str) -> int:
        row = self._connection.execute(statement).fetchone()
        assert row is not None
        return int(row[0])

    def _fetch(self) -> dict[str, Any]:
        connection = http.client.HTTPConnection(self._upstream.hostname or "", self._upstream.port, timeout=60)
        try:
            connection.request("GET", f"/bench/log?since={self._seen}")
            log: dict[str, Any] = json.load(connection.getresponse())
        finally:
            connection.close()
        return log
