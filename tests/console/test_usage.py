"""The page Usage: its figures are those of the runs and of the ledger, by each dimension, and its names lead on."""

import random
import re
from collections.abc import Callable
from datetime import UTC, date, datetime, timedelta
from typing import Any

import pytest
from django.db import connection
from django.test import Client
from django.test.utils import CaptureQueriesContext
from rest_framework.test import APIClient

from billing.limits.entitlement import set_metered
from billing.models import CostEvent
from profiles.models import ModelProfile
from rensei.console import usage_report
from rensei.console.templatetags.console import usd
from rensei.console.usage_report import DIMENSIONS, FIGURES
from rensei.core.clock import database_now
from rensei.core.ids import first_id_of
from rensei.dispatch import run_figures
from rensei.dispatch.models import Run
from rensei.orgs.access import Access
from rensei.orgs.models import Org, Project, User
from rensei.tokens.models import ApiToken
from rensei.tokens.services import create_token
from tests import factories
from tests.billing.conftest import charge, make_charge  # noqa: F401 - fixtures
from tests.pages import html_of

pytestmark = pytest.mark.django_db
MODELS = ["claude-opus-5-5", "claude-sonnet-5-5", "claude-haiku-5-5"]
RUNS = 60
MOST_QUERIES = 12


@pytest.fixture
def today() -> date:
    return database_now().date()


@pytest.fixture
def tokens(ada_access: Access, mia_access: Access) -> list[ApiToken]:
    return [create_token(access, name=f"of-{access.user.name}")[0] for access in (ada_access, mia_access)]


@pytest.fixture
def mia_access(mia: User, access_of: Callable[..., Access]) -> Access:
    return access_of(mia)


@pytest.fixture
def some_runs(
    acme: Org, ada: User, mia: User, project: Project, profile: ModelProfile, tokens: list[ApiToken], today: date
) -> list[Run]:
    """Runs of the last days, made by chance and not by a call, each with an end of its own."""
    chance = random.Random(16)
    runs = []
    for place in range(RUNS):
        start = datetime.combine(today, datetime.min.time(), UTC) - timedelta(days=chance.randrange(40))
        start += timedelta(seconds=place)
        usage = {"input_tokens": chance.randrange(1000), "output_tokens": chance.randrange(1000)}
        runs.append(
            Run(
                id=f"{first_id_of('run', start)[:-4]}{place:04}",
                org=acme,
                project=chance.choice([project, None]),
                created_by=chance.choice([ada, mia]),
                token_id=chance.choice([*(token.pk for token in tokens), ""]),
                profile_id=chance.choice([profile.public_id, "prof_gone"]),
                provider="claude",
                model_id=MODELS[0],
                served_model_id=chance.choice(MODELS),
                auth_mode=chance.choice(["byok", "metered", "shared"]),
                payer="organization",
                max_tokens=100,
                state=chance.choice(["SUCCEEDED", "SUCCEEDED", "FAILED", "CANCELLED", "QUEUED"]),
                usage=usage,
                amount_picodollars=chance.choice([None, chance.randrange(10**12)]),
                deadline_at=start,
                created_at=start,
                finished_at=start + timedelta(milliseconds=chance.randrange(90_000)),
            )
        )
    return Run.objects.bulk_create(runs)


def expected(runs: list[Run], by: str, start: date) -> dict[str, list[Run]]:
    keys: dict[str, Callable[[Run], Any]] = {
        "mode": lambda run: run.auth_mode,
        "model": lambda run: run.served_model_id,
        "profile": lambda run: run.profile_id,
        "project": lambda run: run.project.slug if run.project else "",
        "person": lambda run: str(run.created_by_id),
        "token": lambda run: run.token_id,
    }
    found: dict[str, list[Run]] = {}
    for run in runs:
        if run.created_at.date() >= start:
            found.setdefault(keys[by](run), []).append(run)
    return found


class TestReport:
    def test_counts_each_run_once_by_every_dimension(
        self, subtests: Any, some_runs: list[Run], ada_access: Access, today: date
    ) -> None:
        start = today - timedelta(days=29)
        for by in DIMENSIONS:
            with subtests.test(by):
                groups = expected(some_runs, by, start)

                found = usage_report.report(ada_access, figure="errors", by=by, start=start, end=today)

                assert {row.key: row.sums.runs for row in found.rows} == {
                    key: len(runs) for key, runs in groups.items()
                }
                assert {row.key: row.value for row in found.rows} == {
                    key: sum(run.state == "FAILED" for run in runs) for key, runs in groups.items()
                }
                assert sum(found.values.values()) == found.total
                assert {row.key: len(row.sums.milliseconds) for row in found.rows} == {
                    key: sum(run.state == "SUCCEEDED" for run in runs) for key, runs in groups.items()
                }

    def test_says_from_when_it_counts_where_there_are_too_many(
        self, some_runs: list[Run], ada_access: Access, today: date, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(run_figures, "RUNS_COUNTED_MAX", 10)
        newest = sorted(some_runs, key=lambda run: run.id)[-10:]

        found = usage_report.report(ada_access, figure="runs", by="person", start=today - timedelta(days=89), end=today)

        assert found.total == 10
        assert found.since == newest[0].created_at.date()

    def test_takes_cost_from_the_ledger_where_the_ledger_has_the_dimension(
        self,
        charge: Callable[..., CostEvent],  # noqa: F811 - the fixture
        some_runs: list[Run],
        ada_access: Access,
        today: date,
    ) -> None:
        line = charge(occurred_at=database_now())

        found = usage_report.report(ada_access, figure="cost", by="model", start=today, end=today)

        assert [(row.key, row.value, row.calls) for row in found.rows] == [
            (line.served_model_id, line.amount_picodollars, 1)
        ]

    def test_finds_nothing_of_another_organization(
        self, some_runs: list[Run], eve: User, access_of: Callable[..., Access], today: date
    ) -> None:
        access = access_of(eve, "evil")
        for by in DIMENSIONS:
            assert not usage_report.report(access, figure="runs", by=by, start=today, end=today).rows

    def test_does_not_name_the_tokens_of_others_to_a_member(
        self, some_runs: list[Run], tokens: list[ApiToken], ada_access: Access, mia_access: Access
    ) -> None:
        keys = [token.pk for token in tokens]

        assert [usage_report.names_of(ada_access, "token", keys)[key].label for key in keys] == ["of-Ada", "of-Mia"]
        assert usage_report.names_of(mia_access, "token", keys)[keys[0]].label.startswith(
            "A token that you may not see"
        )


class TestUnpriced:
    """What has no price is never $0: in the row, in the total, on its day and beside its token."""

    UNKNOWN = "— + 1 without a price"

    @pytest.fixture
    def unpriced(
        self,
        charge: Callable[..., CostEvent],  # noqa: F811 - the fixture
        acme: Org,
        ada: User,
        tokens: list[ApiToken],
    ) -> None:
        now = database_now()
        charge(prices=None, occurred_at=now)
        factories.past_run(acme, ada, token_id=tokens[0].pk, usage={"input_tokens": 10}, amount_picodollars=None)
        factories.past_run(acme, ada, token_id=tokens[0].pk, state="FAILED", amount_picodollars=None)

    @pytest.mark.parametrize("by", DIMENSIONS)
    def test_is_a_dash_everywhere(self, unpriced: None, page: Client, by: str) -> None:
        html = html_of(page.get("/o/acme/usage", {"show": "cost", "by": by}))

        assert f"<strong>Total {self.UNKNOWN}</strong>" in html
        assert f'<td class="number">{self.UNKNOWN}</td>' in html
        assert 'data-label="Cost">— <span class="table__sub">+ 1 without a price</span>' in html

    @pytest.mark.parametrize("by", ["model", "token"])
    def test_stands_beside_what_is_known(
        self,
        unpriced: None,
        charge: Callable[..., CostEvent],  # noqa: F811 - the fixture
        acme: Org,
        ada: User,
        page: Client,
        by: str,
    ) -> None:
        known = charge(occurred_at=database_now()).amount_picodollars
        factories.past_run(acme, ada, amount_picodollars=known)

        html = page.get("/o/acme/usage", {"show": "cost", "by": by}).content.decode()

        assert f"<strong>Total {usd(known)} + 1 without a price</strong>" in html

    def test_is_a_dash_beside_its_token(self, unpriced: None, page: Client) -> None:
        html = html_of(page.get("/o/acme/settings/tokens"))

        assert re.search(r'— <span class="table__sub"><a [^>]+>2 runs</a>, 1 without a price</span>', html)


class TestPage:
    def test_answers_every_question_within_the_query_budget(
        self, subtests: Any, some_runs: list[Run], acme: Org, page: Client, grace: User
    ) -> None:
        set_metered(org_ids=[acme.pk], enabled=True, actor_user=grace, budget=10**14)
        page.get("/o/acme/usage")
        for figure in FIGURES:
            for by in DIMENSIONS:
                with subtests.test(f"{figure} by {by}"):
                    with CaptureQueriesContext(connection) as queries:
                        answer = page.get("/o/acme/usage", {"show": figure, "by": by, "days": "90"})

                    assert answer.status_code == 200
                    assert len(queries) <= MOST_QUERIES, "\n".join(query["sql"][:150] for query in queries)
                    assert f"{FIGURES[figure]} by {DIMENSIONS[by].lower()}" in answer.content.decode()

    def test_links_days_and_names_that_exist(self, some_runs: list[Run], page: Client, profile: ModelProfile) -> None:
        html = page.get("/o/acme/usage", {"show": "runs", "by": "profile"}).content.decode()

        assert f'href="/o/acme/settings/profiles/{profile.public_id}">{profile.name}' in html
        assert "prof_gone (gone)" in html
        days = set(re.findall(r'href="(/o/acme/runs\?day=[0-9-]+)"', html))
        assert days
        assert {page.get(address).status_code for address in days} == {200}

    @pytest.mark.parametrize("query", [{"show": "x", "by": "'", "days": "9"}, {"show": "", "by": "\0"}])
    def test_shows_the_usual_question_for_an_unknown_one(self, page: Client, query: dict[str, str]) -> None:
        assert "Cost by mode" in page.get("/o/acme/usage", query).content.decode()


class TestToken:
    def test_of_a_dispatch_is_kept_with_its_run(
        self, api_as: Callable[..., APIClient], ada: User, profile: ModelProfile, ada_access: Access, key: str
    ) -> None:
        factories.connect_key(ada_access, key)
        answer = api_as(ada).post("/api/v1/runs", {"profileId": profile.public_id, "input": "Hello"})

        assert answer.status_code == 202, answer.content
        assert Run.objects.get().token_id == ApiToken.objects.get(name="test").pk
