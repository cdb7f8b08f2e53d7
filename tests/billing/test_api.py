import csv
import io
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
import time_machine
from asgiref.sync import async_to_sync
from django.test import AsyncClient
from rest_framework.test import APIClient

from billing.ledger import ledger_csv
from billing.limits.quota import take_shared_run
from billing.models import CostEvent, Entitlement
from rensei.core.clock import database_now
from rensei.core.usage import Usage
from rensei.orgs.models import Org, Project, User
from tests.billing.conftest import NOON
from tests.billing.record import record_adjustment

ADDRESSES = ["/api/v1/usage", "/api/v1/cost-events", "/api/v1/cost-events.csv", "/api/v1/entitlements"]
ApiAs = Callable[..., APIClient]
WriteCharge = Callable[..., CostEvent]


def csv_rows(answer: Any) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(answer.getvalue().decode())))


class TestEveryAddress:
    @pytest.mark.parametrize("address", ADDRESSES)
    def test_refuses_strangers(self, db: None, address: str) -> None:
        assert APIClient().get(address).status_code == 401

    @pytest.mark.parametrize("address", ADDRESSES)
    @pytest.mark.parametrize("name", ["ada", "alan", "mia", "otto"])
    def test_is_read_by_every_member(
        self, request: pytest.FixtureRequest, api_as: ApiAs, acme: Org, name: str, address: str
    ) -> None:
        assert api_as(request.getfixturevalue(name)).get(address).status_code == 200

    @pytest.mark.parametrize("address", ADDRESSES)
    def test_is_only_read(self, api_as: ApiAs, acme: Org, ada: User, address: str) -> None:
        assert api_as(ada).post(address, {}).status_code == 405

    @pytest.mark.parametrize("address", ADDRESSES[:3])
    @pytest.mark.parametrize(
        "query",
        ["from=yesterday", "to=2026-02-30", "from=2026-03-15&to=2026-03-14", "since=2026-03-14", "from=0001-01-01"],
    )
    def test_refuses_a_query_it_does_not_know(
        self, api_as: ApiAs, acme: Org, ada: User, address: str, query: str
    ) -> None:
        answer = api_as(ada).get(f"{address}?{query}")

        assert answer.status_code == 400
        assert answer.json()["code"] == "VALIDATION_FAILED"
        assert answer.json()["errors"][0]["pointer"].startswith("/query/")


class TestUsage:
    def test_groups_what_the_ledger_holds(self, api_as: ApiAs, ada: User, charge: WriteCharge) -> None:
        charge(profile_id="prof_deep")
        charge(profile_id="prof_deep", usage=Usage(cache_read_tokens=2000, output_tokens=1))
        charge(profile_id="", auth_mode="byok")

        answer = api_as(ada).get("/api/v1/usage?from=2026-03-14&to=2026-03-14&groupBy=profile").json()

        assert answer == {
            "from": "2026-03-14",
            "to": "2026-03-14",
            "groupBy": "profile",
            "total": {
                "key": "total",
                "calls": 3,
                "unpriced": 0,
                "usage": {
                    "inputTokens": 2000,
                    "outputTokens": 201,
                    "cacheReadTokens": 2000,
                    "cacheWrite5mTokens": 0,
                    "cacheWrite1hTokens": 0,
                    "webSearchRequests": 0,
                },
                "amountUsd": "0.016025",
                "billedUsd": "0.008525",
            },
            "results": [
                {
                    "key": "prof_deep",
                    "calls": 2,
                    "unpriced": 0,
                    "usage": {
                        "inputTokens": 1000,
                        "outputTokens": 101,
                        "cacheReadTokens": 2000,
                        "cacheWrite5mTokens": 0,
                        "cacheWrite1hTokens": 0,
                        "webSearchRequests": 0,
                    },
                    "amountUsd": "0.008525",
                    "billedUsd": "0.008525",
                },
                {
                    "key": None,
                    "calls": 1,
                    "unpriced": 0,
                    "usage": {
                        "inputTokens": 1000,
                        "outputTokens": 100,
                        "cacheReadTokens": 0,
                        "cacheWrite5mTokens": 0,
                        "cacheWrite1hTokens": 0,
                        "webSearchRequests": 0,
                    },
                    "amountUsd": "0.007500",
                    "billedUsd": "0.000000",
                },
            ],
        }

    @pytest.mark.parametrize(
        ("group_by", "keys"),
        [
            ("day", ["2026-03-14", "2026-03-15"]),
            ("model", ["claude-opus-5-5", "claude-haiku-5-5"]),
            ("mode", ["metered", "shared"]),
            ("project", ["apollo", None]),
            ("profile", ["prof_deep", "prof_quick"]),
        ],
    )
    def test_groups_by(
        self, api_as: ApiAs, ada: User, charge: WriteCharge, group_by: str, keys: list[str | None]
    ) -> None:
        charge(project_id="apollo", usage=Usage(input_tokens=2000))
        charge(
            occurred_at=NOON + timedelta(days=1),
            served_model_id="claude-haiku-5-5",
            auth_mode="shared",
            profile_id="prof_quick",
            usage=Usage(input_tokens=1),
        )

        answer = api_as(ada).get(f"/api/v1/usage?from=2026-03-01&to=2026-03-31&groupBy={group_by}").json()

        assert [line["key"] for line in answer["results"]] == keys

    def test_reports_the_last_thirty_days_by_day(self, api_as: ApiAs, ada: User, charge: WriteCharge) -> None:
        today = database_now()
        charge(occurred_at=today)
        charge(occurred_at=today - timedelta(days=29))
        charge(occurred_at=today - timedelta(days=30))

        answer = api_as(ada).get("/api/v1/usage").json()

        assert answer["total"]["calls"] == 2
        assert answer["from"] == (today - timedelta(days=29)).date().isoformat()

    @pytest.mark.parametrize("query", ["from=2026-03-15&to=2026-03-14", "from=2999-01-01"])
    def test_refuses_a_period_that_ends_before_it_begins(self, api_as: ApiAs, acme: Org, ada: User, query: str) -> None:
        answer = api_as(ada).get(f"/api/v1/usage?{query}")

        assert answer.status_code == 400
        assert answer.json()["errors"][0]["pointer"] == "/query/from"

    def test_takes_a_year_at_most(self, api_as: ApiAs, acme: Org, ada: User) -> None:
        api = api_as(ada)

        assert api.get("/api/v1/usage?from=2024-01-01&to=2024-12-31").status_code == 200
        assert api.get("/api/v1/usage?from=2024-01-01&to=2025-01-01").status_code == 400

    def test_does_not_call_an_unknown_amount_zero(self, api_as: ApiAs, ada: User, charge: WriteCharge) -> None:
        charge(auth_mode="byok", prices=None)

        total = api_as(ada).get("/api/v1/usage?from=2026-03-14&to=2026-03-14").json()["total"]

        assert total["amountUsd"] is None
        assert total["unpriced"] == 1

    def test_adds_amounts_beyond_the_databases_whole_numbers(
        self, api_as: ApiAs, ada: User, charge: WriteCharge
    ) -> None:
        most = Usage(output_tokens=300_000_000_000)
        for day in range(3):
            charge(usage=most, occurred_at=NOON + timedelta(days=day))

        total = api_as(ada).get("/api/v1/usage?from=2026-03-14&to=2026-03-16").json()["total"]

        assert total["amountUsd"] == "22500000.000000"

    def test_shows_a_projects_token_its_project(
        self, api_as: ApiAs, ada: User, charge: WriteCharge, project: Project
    ) -> None:
        charge()
        charge(project_id=project.slug)
        api = api_as(ada, project=project)

        assert api.get("/api/v1/usage?from=2026-03-14&to=2026-03-14").json()["total"]["calls"] == 1
        assert [event["projectId"] for event in api.get("/api/v1/cost-events").json()["results"]] == [project.slug]
        assert [row["project_id"] for row in csv_rows(api.get("/api/v1/cost-events.csv"))] == [project.slug]

    def test_shows_eve_nothing(self, api_as: ApiAs, eve: User, charge: WriteCharge) -> None:
        line = charge()
        api = api_as(eve, "evil")

        assert api.get("/api/v1/usage?from=2026-03-14&to=2026-03-14").json()["total"]["calls"] == 0
        assert api.get(f"/api/v1/cost-events?runId={line.run_id}").json()["results"] == []
        assert csv_rows(api.get("/api/v1/cost-events.csv")) == []

    def test_reads_the_roll_ups_in_one_query(
        self, api_as: ApiAs, ada: User, charge: WriteCharge, django_assert_max_num_queries: Callable[..., Any]
    ) -> None:
        charge()
        api = api_as(ada)
        api.get("/api/v1/usage")

        # One for the token, one for the roll-ups.
        with django_assert_max_num_queries(2) as queries:
            api.get("/api/v1/usage?from=2026-03-14&to=2026-03-14")

        assert not any("billing_costevent" in query["sql"] for query in queries.captured_queries)


class TestCostEvents:
    def test_shows_a_line_whole(self, api_as: ApiAs, ada: User, charge: WriteCharge) -> None:
        line = charge(
            usage=Usage(input_tokens=1000, output_tokens=100, thinking_tokens=40), pool_id="metered_pool_claude"
        )

        [event] = api_as(ada).get("/api/v1/cost-events").json()["results"]

        assert event == {
            "id": line.id,
            "kind": "charge",
            "adjusts": None,
            "runId": line.run_id,
            "attemptId": line.attempt_id,
            "profileId": "prof_deep",
            "projectId": None,
            "authMode": "metered",
            "payer": "organization-via-rensei",
            "billingClass": "metered.anthropic",
            "poolId": "metered_pool_claude",
            "provider": "claude",
            "model": "claude-opus-4-1-20250514",
            "servedModel": "claude-opus-5-5",
            "providerRequestId": None,
            "usage": {
                "inputTokens": 1000,
                "outputTokens": 100,
                "cacheReadTokens": 0,
                "cacheWrite5mTokens": 0,
                "cacheWrite1hTokens": 0,
                "webSearchRequests": 0,
                "thinkingTokens": 40,
            },
            "unitPrices": {
                "inputUsd": "0.000005",
                "outputUsd": "0.000025",
                "cacheReadUsd": "0.0000005",
                "cacheWrite5mUsd": "0.00000625",
                "cacheWrite1hUsd": "0.000010",
                "webSearchUsd": "0.010000",
                "sandboxSecondUsd": None,
            },
            "sandboxSeconds": None,
            "amountUsd": "0.007500",
            "billed": True,
            "billedUsd": "0.007500",
            "estimated": False,
            "occurredAt": "2026-03-14T12:00:00Z",
        }

    def test_shows_the_newest_first_by_pages(self, api_as: ApiAs, ada: User, charge: WriteCharge) -> None:
        written = sorted(charge().id for _ in range(5))
        api = api_as(ada)

        seen, address = [], "/api/v1/cost-events?pageSize=2"
        while address:
            page = api.get(address).json()
            seen += [event["id"] for event in page["results"]]
            address = page["next"]

        assert seen == written[::-1]

    def test_names_the_charge_that_an_adjustment_corrects(self, api_as: ApiAs, ada: User, charge: WriteCharge) -> None:
        line = charge(billed=False, estimated=True)
        record_adjustment(charge=line, usage=Usage(input_tokens=400), estimated=False, billed=True, occurred_at=NOON)

        events = api_as(ada).get(f"/api/v1/cost-events?runId={line.run_id}").json()["results"]

        [adjustment] = [event for event in events if event["kind"] == "adjustment"]
        assert adjustment["adjusts"] == line.id
        assert adjustment["amountUsd"] == "-0.005500"
        assert adjustment["billedUsd"] == "0.002000"

    @pytest.mark.parametrize(
        ("query", "found"),
        [
            ("runId=run_early", {"run_early"}),
            ("run_id=run_early", {"run_early"}),
            ("authMode=shared", {"run_late"}),
            ("from=2026-03-15", {"run_late"}),
            ("to=2026-03-14", {"run_early"}),
            ("from=2026-03-14&to=2026-03-15", {"run_early", "run_late"}),
            ("from=2026-03-16", set()),
            ("to=9999-12-31", {"run_early", "run_late"}),
        ],
    )
    def test_filters(self, api_as: ApiAs, ada: User, charge: WriteCharge, query: str, found: set[str]) -> None:
        charge(run_id="run_early", occurred_at=datetime(2026, 3, 14, 23, 59, 59, 999_999, UTC))
        charge(run_id="run_late", occurred_at=datetime(2026, 3, 15, tzinfo=UTC), auth_mode="shared")
        api = api_as(ada)

        assert {event["runId"] for event in api.get(f"/api/v1/cost-events?{query}").json()["results"]} == found
        assert {row["run_id"] for row in csv_rows(api.get(f"/api/v1/cost-events.csv?{query}"))} == found


class TestCostEventsCsv:
    def test_holds_every_line_exactly(self, api_as: ApiAs, ada: User, charge: WriteCharge) -> None:
        line = charge(auth_mode="byok", usage=Usage(input_tokens=1))
        charge(auth_mode="byok", prices=None)

        answer = api_as(ada).get("/api/v1/cost-events.csv", HTTP_ACCEPT="text/csv")

        assert answer["Content-Type"] == "text/csv; charset=utf-8"
        assert "attachment" in answer["Content-Disposition"]
        rows = {row["amount_usd"]: row for row in csv_rows(answer)}
        assert set(rows) == {"0.000005", ""}
        assert rows["0.000005"]["id"] == line.id
        assert rows["0.000005"]["input_tokens"] == "1"
        assert rows["0.000005"]["occurred_at"] == "2026-03-14T12:00:00+00:00"

    @pytest.mark.parametrize("model_id", ["=1+1", "+1", "-1", "@SUM(A1)", "\tx", "\rx"])
    def test_gives_a_spreadsheet_no_formula(self, api_as: ApiAs, ada: User, charge: WriteCharge, model_id: str) -> None:
        charge(model_id=model_id)

        [row] = csv_rows(api_as(ada).get("/api/v1/cost-events.csv"))

        assert row["model_id"] == f"'{model_id}"

    def test_keeps_a_page_of_rows_in_memory(self, charge: WriteCharge, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(ledger_csv, "PAGE", 2)
        written = sorted(charge().id for _ in range(5))

        parts = list(ledger_csv.write(CostEvent.objects.all()))

        assert [part.count("\r\n") for part in parts] == [1, 2, 2, 1]
        assert [row["id"] for row in csv.DictReader(io.StringIO("".join(parts)))] == written[::-1]

    def test_streams_under_asgi(self, api_as: ApiAs, ada: User, charge: WriteCharge) -> None:
        line = charge()
        token = api_as(ada)._credentials["HTTP_AUTHORIZATION"]

        async def download() -> bytes:
            answer = await AsyncClient().get("/api/v1/cost-events.csv", headers={"authorization": token})
            assert answer.is_async
            return b"".join([part async for part in answer])

        text = async_to_sync(download)().decode()

        assert [row["id"] for row in csv.DictReader(io.StringIO(text))] == [line.id]


class TestEntitlements:
    def test_says_what_the_organization_may_use(self, api_as: ApiAs, ada: User, acme: Org) -> None:
        now = database_now()
        Entitlement.objects.filter(org=acme).update(metered_enabled=True, shared_runs_per_day=7)
        take_shared_run(org_id=acme.pk, run_id="run_1", now=now)

        answer = api_as(ada).get("/api/v1/entitlements").json()

        midnight = (now + timedelta(days=1)).strftime("%Y-%m-%dT00:00:00Z")
        assert answer == {
            "meteredEnabled": True,
            "shared": {"used": 1, "limit": 7, "resetsAt": midnight},
            "budget": None,
            "storage": {"usedBytes": 0, "heldBytes": 0, "limitBytes": 102_400 * 1024 * 1024},
        }

    def test_begins_with_the_platforms_defaults(self, api_as: ApiAs, ada: User, acme: Org) -> None:
        answer = api_as(ada).get("/api/v1/entitlements").json()

        assert answer["meteredEnabled"] is False
        assert (answer["shared"]["used"], answer["shared"]["limit"]) == (0, 20)

    def test_goes_by_the_databases_clock(self, api_as: ApiAs, ada: User, acme: Org) -> None:
        api = api_as(ada)

        with time_machine.travel(database_now() - timedelta(hours=26)):
            skewed = api.get("/api/v1/entitlements").json()

        assert skewed["shared"]["resetsAt"] == (database_now() + timedelta(days=1)).strftime("%Y-%m-%dT00:00:00Z")
