import csv
import io
import random
from collections.abc import Callable
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from typing import Any

import pytest
from django.db import DatabaseError, connection, transaction
from django.test import Client
from rest_framework.test import APIClient

from billing.ledger.charges import Charge
from billing.models import CostEvent, Statement, UsageDaily
from billing.statements import statements
from billing.statements.statements import closable, close, read_ledger, statement, summaries
from rensei.audit.models import AuditEvent
from rensei.core.clock import database_now
from rensei.core.errors import NotFound
from rensei.core.usage import Usage
from rensei.orgs.models import Org, Project, User
from tests.billing.conftest import NOON, PRICES
from tests.billing.record import record_adjustment, record_charges

MARCH = date(2026, 3, 1)
APRIL = datetime(2026, 4, 1, tzinfo=UTC)


def adjust(line: CostEvent, *, when: datetime, billed: bool = True, **usage: int) -> CostEvent:
    with transaction.atomic():
        return record_adjustment(charge=line, usage=Usage(**usage), estimated=False, billed=billed, occurred_at=when)


def month_in_the_roll_ups(org: Org, month: date) -> int:
    days = UsageDaily.objects.for_org(org).filter(day__year=month.year, day__month=month.month)
    return sum(day.billed_picodollars for day in days)


class TestReadLedger:
    def test_sums_charges_by_model_class_and_price(self, acme: Org, charge: Callable[..., CostEvent]) -> None:
        charge()
        charge(usage=Usage(input_tokens=1, cache_read_tokens=3, cache_write_5m_tokens=4, web_search_requests=2))
        charge(served_model_id="claude-haiku-4-5", usage=Usage(cache_write_1h_tokens=5))

        found = read_ledger(acme, MARCH)

        assert [
            (line.served_model_id, line.token_class, line.count, line.unit_picodollars) for line in found.lines
        ] == [
            ("claude-haiku-4-5", "cache_write_1h", 5, 10_000_000),
            ("claude-opus-5-5", "input", 1001, 5_000_000),
            ("claude-opus-5-5", "cache_read", 3, 500_000),
            ("claude-opus-5-5", "cache_write_5m", 4, 6_250_000),
            ("claude-opus-5-5", "output", 100, 25_000_000),
            ("claude-opus-5-5", "web_search", 2, 10_000_000_000),
        ]
        assert found.total_picodollars == month_in_the_roll_ups(acme, MARCH)

    def test_keeps_prices_apart(self, acme: Org, charge: Callable[..., CostEvent]) -> None:
        dearer = PRICES.from_dict({**PRICES.as_dict(), "input": 6_000_000})
        charge(usage=Usage(input_tokens=10))
        charge(usage=Usage(input_tokens=20), prices=dearer)

        lines = read_ledger(acme, MARCH).lines

        assert [(line.count, line.unit_picodollars) for line in lines] == [(10, 5_000_000), (20, 6_000_000)]

    def test_adds_one_price_up_whatever_the_others_are(self, acme: Org, charge: Callable[..., CostEvent]) -> None:
        charge(usage=Usage(input_tokens=10))
        charge(usage=Usage(input_tokens=20), prices=PRICES.from_dict({**PRICES.as_dict(), "output": 1}))

        [line] = read_ledger(acme, MARCH).lines

        assert line.count == 30

    def test_leaves_out_what_is_not_billed(self, acme: Org, eve: User, charge: Callable[..., CostEvent]) -> None:
        charge(auth_mode="byok")
        charge(auth_mode="shared")
        charge(billed=False, estimated=True)
        charge(org_id=Org.objects.get(slug="evil").pk)

        found = read_ledger(acme, MARCH)

        assert (list(found.lines), list(found.adjustments), found.total_picodollars) == ([], [], 0)

    def test_lists_what_adjustments_bill_in_the_month_they_are_written(
        self, acme: Org, charge: Callable[..., CostEvent]
    ) -> None:
        estimate = charge(billed=False, estimated=True, occurred_at=APRIL - timedelta(microseconds=1))
        line = adjust(estimate, when=APRIL, input_tokens=1100, output_tokens=100)

        march, april = read_ledger(acme, MARCH), read_ledger(acme, date(2026, 4, 1))

        assert march.total_picodollars == 0
        [adjustment] = april.adjustments
        assert (adjustment.id, adjustment.charge_id, adjustment.run_id) == (line.pk, estimate.pk, estimate.run_id)
        assert adjustment.amount_picodollars == april.total_picodollars == 8_000_000_000
        assert adjustment.occurred_at == "2026-04-01T00:00:00Z"

    def test_adds_up_exactly_whatever_happens(self, acme: Org, make_charge: Callable[..., Charge]) -> None:
        chance = random.Random(7)

        def usage() -> Usage:
            return Usage(
                input_tokens=chance.randrange(10**6),
                output_tokens=chance.randrange(10**5),
                cache_read_tokens=chance.choice([0, chance.randrange(10**6)]),
                cache_write_5m_tokens=chance.choice([0, chance.randrange(10**5)]),
                web_search_requests=chance.choice([0, 0, 3]),
            )

        for _ in range(60):
            billed = chance.random() < 0.7
            with transaction.atomic():
                [line] = record_charges(
                    [
                        make_charge(
                            usage=usage(),
                            billed=billed,
                            estimated=not billed,
                            served_model_id=chance.choice(["claude-opus-5-5", "claude-haiku-4-5"]),
                            prices=chance.choice([PRICES, PRICES.from_dict({**PRICES.as_dict(), "input": 7_000_001})]),
                            occurred_at=NOON + timedelta(days=chance.randrange(-40, 40)),
                        )
                    ]
                )
                if chance.random() < 0.5:
                    later = line.occurred_at + timedelta(days=chance.randrange(30))
                    record_adjustment(charge=line, usage=usage(), estimated=False, billed=True, occurred_at=later)

        months = {summary.month: summary for summary in summaries(acme, now=NOON)}

        assert len(months) >= 3
        for month, summary in months.items():
            found = read_ledger(acme, month)
            parts = [line.count * line.unit_picodollars for line in found.lines]
            parts += [adjustment.amount_picodollars for adjustment in found.adjustments]
            assert found.total_picodollars == sum(parts) == month_in_the_roll_ups(acme, month)
            assert summary.total_picodollars == found.total_picodollars

    def test_totals_beyond_the_databases_whole_numbers(self, acme: Org, charge: Callable[..., CostEvent]) -> None:
        for day in range(3):
            charge(usage=Usage(output_tokens=300_000_000_000), occurred_at=NOON + timedelta(days=day), billed=True)

        assert read_ledger(acme, MARCH).total_picodollars == 900_000_000_000 * 25_000_000 > 2**63
        assert summaries(acme, now=NOON)[0].total_picodollars == 900_000_000_000 * 25_000_000


class TestSummaries:
    def test_lists_this_month_even_if_it_is_empty(self, acme: Org) -> None:
        [only] = summaries(acme, now=NOON)

        assert (only.name, only.total_picodollars, only.closed_at) == ("2026-03", 0, None)

    def test_lists_months_newest_first(self, acme: Org, charge: Callable[..., CostEvent]) -> None:
        charge(occurred_at=NOON - timedelta(days=60))
        charge(auth_mode="byok", occurred_at=NOON - timedelta(days=30))

        assert [summary.name for summary in summaries(acme, now=NOON)] == ["2026-03", "2026-01"]


class TestStatement:
    @pytest.mark.parametrize(
        "name", ["2026-04", "2026-02", "2026-3", "2026-13", "2026-00", "march", "2026-03-01", "²026-03"]
    )
    def test_is_absent_for_any_other_month(self, acme: Org, charge: Callable[..., CostEvent], name: str) -> None:
        charge()

        with pytest.raises(NotFound):
            statement(acme, name, now=NOON)

    def test_is_absent_for_a_month_of_another_organization(
        self, acme: Org, eve: User, charge: Callable[..., CostEvent], grace: User
    ) -> None:
        charge()
        close(org_ids=[acme.pk], actor_user=grace)

        with pytest.raises(NotFound):
            statement(Org.objects.get(slug="evil"), "2026-03", now=database_now())


class TestClose:
    def test_freezes_a_month_that_is_over(self, acme: Org, charge: Callable[..., CostEvent], grace: User) -> None:
        charge()
        before = read_ledger(acme, MARCH)

        [closed] = close(org_ids=[acme.pk], actor_user=grace)

        found = statement(acme, "2026-03", now=database_now())
        assert (found.lines, found.adjustments) == (before.lines, before.adjustments)
        assert found.total_picodollars == closed.total_picodollars == before.total_picodollars == 7_500_000_000
        assert found.closed_at == closed.closed_at
        assert closed.closed_by == "grace@platform.test"

    def test_leaves_later_lines_to_the_next_open_month(
        self, acme: Org, charge: Callable[..., CostEvent], grace: User
    ) -> None:
        line = charge()
        close(org_ids=[acme.pk], actor_user=grace)
        now = database_now()

        adjust(line, when=now, input_tokens=2000, output_tokens=100)

        assert statement(acme, "2026-03", now=now).total_picodollars == 7_500_000_000
        current = statement(acme, f"{now:%Y-%m}", now=now)
        assert current.total_picodollars == 5_000_000_000
        assert summaries(acme, now=now)[-1].total_picodollars == 7_500_000_000

    def test_says_so_in_the_audit_log(self, acme: Org, charge: Callable[..., CostEvent], grace: User) -> None:
        charge()

        [closed] = close(org_ids=[acme.pk], actor_user=grace)

        event = AuditEvent.objects.get(action="statement.closed")
        assert (event.org_id, event.actor, event.object_id) == (acme.pk, "grace@platform.test", "2026-03")
        assert event.detail == {"total_picodollars": 7_500_000_000, "digest": closed.digest}

    def test_digests_everything_that_it_says(self, acme: Org, charge: Callable[..., CostEvent], grace: User) -> None:
        adjust(charge(), when=NOON, input_tokens=1)
        [closed] = close(org_ids=[acme.pk], actor_user=grace)

        stored = Statement.objects.get()

        def digest(**changes: Any) -> str:
            said = {
                "org_id": stored.org_id, "month": stored.month, "lines": stored.lines,
                "adjustments": stored.adjustments, "total_picodollars": stored.total_picodollars, **changes,
            }  # fmt: skip
            return statements.digest_of(**said)

        assert digest() == closed.digest
        others = {digest(org_id="x"), digest(month=APRIL.date()), digest(lines=[]), digest(adjustments=[])}
        assert len({*others, digest(total_picodollars=1), digest()}) == 6

    def test_closes_nothing_twice(self, acme: Org, charge: Callable[..., CostEvent], grace: User) -> None:
        charge()
        close(org_ids=[acme.pk], actor_user=grace)

        assert close(org_ids=[acme.pk], actor_user=grace) == []
        assert Statement.objects.count() == 1

    @pytest.mark.parametrize(
        ("now", "names"),
        [
            (NOON, []),
            (APRIL, []),
            (APRIL + timedelta(minutes=59), []),
            (APRIL + timedelta(hours=1), ["2026-03"]),
        ],
    )
    def test_waits_until_the_last_runs_of_the_month_are_settled(
        self, acme: Org, charge: Callable[..., CostEvent], now: datetime, names: list[str]
    ) -> None:
        charge()

        assert [summary.name for _, summary in closable([acme.pk], now=now)] == names


class TestTheTable:
    @pytest.mark.parametrize(
        "sql",
        [
            "UPDATE billing_statement SET total_picodollars = 0",
            "DELETE FROM billing_statement",
            pytest.param(
                "INSERT OR REPLACE INTO billing_statement SELECT * FROM billing_statement", marks=pytest.mark.sqlite
            ),
            pytest.param("SET CONSTRAINTS ALL IMMEDIATE; TRUNCATE billing_statement", marks=pytest.mark.postgres),
            pytest.param(
                "SET LOCAL session_replication_role = replica; DELETE FROM billing_statement",
                marks=pytest.mark.postgres,
            ),
        ],
    )
    def test_refuses_every_change(self, acme: Org, charge: Callable[..., CostEvent], grace: User, sql: str) -> None:
        charge()
        close(org_ids=[acme.pk], actor_user=grace)

        with pytest.raises(DatabaseError, match="stays as it is"), transaction.atomic(), connection.cursor() as cursor:
            cursor.execute(sql)

        assert Statement.objects.get().total_picodollars == 7_500_000_000


class TestRest:
    @pytest.fixture
    def api(self, api_as: Callable[..., APIClient], otto: User) -> APIClient:
        return api_as(otto)

    def test_lists_the_months(self, api: APIClient, acme: Org, charge: Callable[..., CostEvent], grace: User) -> None:
        charge()
        close(org_ids=[acme.pk], actor_user=grace)

        answer = api.get("/api/v1/statements").json()

        assert (answer["next"], answer["previous"]) == (None, None)
        current, march = answer["results"]
        assert (current["totalUsd"], current["closedAt"]) == ("0.000000", None)
        assert (march["month"], march["totalUsd"]) == ("2026-03", "0.007500")
        assert march["closedAt"]

    def test_answers_one_month_line_by_line(self, api: APIClient, charge: Callable[..., CostEvent]) -> None:
        line = charge(billed=False, estimated=True)
        charge(usage=Usage(input_tokens=1000))
        correction = adjust(line, when=NOON, input_tokens=1100, output_tokens=100)

        answer = api.get("/api/v1/statements/2026-03").json()

        assert answer == {
            "month": "2026-03",
            "totalUsd": "0.013000",
            "closedAt": None,
            "digest": "",
            "lines": [
                {
                    "provider": "claude",
                    "servedModel": "claude-opus-5-5",
                    "class": "input",
                    "count": 1000,
                    "unitUsd": "0.000005",
                    "amountUsd": "0.005000",
                }
            ],
            "adjustments": [
                {
                    "id": correction.pk,
                    "occurredAt": "2026-03-14T12:00:00Z",
                    "adjusts": line.pk,
                    "runId": line.run_id,
                    "provider": "claude",
                    "servedModel": "claude-opus-5-5",
                    "amountUsd": "0.008000",
                }
            ],
        }

    @pytest.mark.parametrize("closed", [False, True])
    def test_writes_a_csv_that_adds_up(
        self, api: APIClient, acme: Org, charge: Callable[..., CostEvent], grace: User, closed: bool
    ) -> None:
        adjust(charge(served_model_id="=evil()"), when=NOON, input_tokens=1)
        if closed:
            close(org_ids=[acme.pk], actor_user=grace)

        answer = api.get("/api/v1/statements/2026-03.csv")

        rows = list(csv.DictReader(io.StringIO(answer.content.decode())))
        assert answer["Content-Disposition"] == 'attachment; filename="acme-statement-2026-03.csv"'
        assert [row["type"] for row in rows] == ["usage", "usage", "adjustment", "total"]
        assert rows[0]["served_model_id"] == "'=evil()"
        assert sum(Decimal(row["amount_usd"]) for row in rows[:-1]) == Decimal(rows[-1]["amount_usd"])
        for row in rows[:2]:
            assert int(row["count"]) * Decimal(row["unit_usd"]) == Decimal(row["amount_usd"])

    @pytest.mark.parametrize("path", ["2026-02", "2026-02.csv", "nonsense", "nonsense.csv"])
    def test_is_404_for_a_month_that_is_not_there(self, api: APIClient, path: str) -> None:
        assert api.get(f"/api/v1/statements/{path}").json()["code"] == "NOT_FOUND"

    def test_is_closed_to_a_projects_token(
        self, api_as: Callable[..., APIClient], ada: User, project: Project, charge: Callable[..., CostEvent]
    ) -> None:
        charge()
        api = api_as(ada, project=project)

        for path in ("", "/2026-03", "/2026-03.csv"):
            assert api.get(f"/api/v1/statements{path}").json()["code"] == "NOT_PERMITTED"


class TestPage:
    def test_leads_from_usage_to_a_month(
        self, page_as: Callable[[User], Client], otto: User, charge: Callable[..., CostEvent]
    ) -> None:
        line = charge(billed=False, estimated=True)
        charge(usage=Usage(input_tokens=1000, web_search_requests=1))
        adjust(line, when=NOON, input_tokens=1100, output_tokens=100)
        page = page_as(otto)

        usage = page.get("/o/acme/usage").content.decode()
        listed = page.get("/o/acme/usage/statements").content.decode()
        shown = page.get("/o/acme/usage/statements/2026-03").content.decode()
        file = page.get("/o/acme/usage/statements/2026-03.csv").content.decode()

        assert "/o/acme/usage/statements" in usage
        assert "/o/acme/usage/statements/2026-03" in listed
        assert "March 2026" in listed
        assert "$0.023000" in shown
        assert f"/o/acme/runs/{line.run_id}" in shown
        assert file.splitlines()[-1].startswith("total,")

    def test_shows_a_closed_month_with_its_digest(
        self, page_as: Callable[[User], Client], otto: User, acme: Org, charge: Callable[..., CostEvent], grace: User
    ) -> None:
        charge()
        [closed] = close(org_ids=[acme.pk], actor_user=grace)

        shown = page_as(otto).get("/o/acme/usage/statements/2026-03").content.decode()

        assert "It is final" in shown
        assert closed.digest in shown


class TestAdmin:
    ENTITLEMENTS = "/admin/billing/entitlement/"

    def act(self, admin: Client, org: Org, **more: str) -> str:
        form = {"action": "close_statements", "_selected_action": org.pk, **more}
        return admin.post(self.ENTITLEMENTS, form, follow=True).content.decode()

    def test_asks_before_it_closes(
        self, page_as: Callable[[User], Client], grace: User, acme: Org, charge: Callable[..., CostEvent]
    ) -> None:
        charge()

        asked = self.act(page_as(grace), acme)

        assert "Acme (acme), 2026-03: 0.007500 USD" in asked
        assert not Statement.objects.exists()

    def test_closes_when_confirmed(
        self, page_as: Callable[[User], Client], grace: User, acme: Org, charge: Callable[..., CostEvent]
    ) -> None:
        charge()
        admin = page_as(grace)

        done = self.act(admin, acme, confirmed="yes")

        assert "1 statement(s) closed." in done
        assert "0.007500" in admin.get("/admin/billing/statement/").content.decode()
        assert "no open statement" in self.act(admin, acme)

    def test_neither_changes_nor_deletes_a_closed_one(
        self, page_as: Callable[[User], Client], grace: User, acme: Org, charge: Callable[..., CostEvent]
    ) -> None:
        charge()
        [closed] = close(org_ids=[acme.pk], actor_user=grace)
        admin = page_as(grace)

        assert 'name="_save"' not in admin.get(f"/admin/billing/statement/{closed.pk}/change/").content.decode()
        assert admin.get(f"/admin/billing/statement/{closed.pk}/delete/").status_code == 403
