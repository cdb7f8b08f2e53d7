"""The audit log's page and its file: who may read it, how it is narrowed, and what is never in it."""

import csv
import io
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import pytest
from django.db import connection
from django.test import Client
from django.test.utils import CaptureQueriesContext

from integrations.keys import services as integrations
from integrations.models import Integration
from rensei.audit.models import AuditEvent
from rensei.core import bounded_queries
from rensei.core.secret import Secret
from rensei.orgs import kill_switches
from rensei.orgs.access import Access
from rensei.orgs.models import KillSwitch, User
from rensei.tokens.machines import register_host
from rensei.tokens.services import create_token
from tests.billing.ledger_triggers import leave_out_audit_events

URL = "/o/acme/settings/audit-log"


def html_of(client: Client, query: str = "") -> str:
    answer = client.get(f"{URL}{query}")
    assert answer.status_code == 200
    return str(answer.content.decode())


def lines_of(client: Client, query: str = "") -> list[dict[str, str]]:
    text = b"".join(client.get(f"{URL}.csv{query}").streaming_content).decode()  # type: ignore[attr-defined]
    return list(csv.DictReader(io.StringIO(text)))


@pytest.mark.django_db
class TestThePage:
    def test_tells_the_newest_first_who_did_what_to_what(
        self, page: Client, ada_access: Access, integration: Integration
    ) -> None:
        create_token(ada_access, name="ci")

        html = html_of(page)

        assert "ada@acme.test" in html
        assert html.index("<strong>Token created") < html.index("<strong>Integration added")
        assert integration.id in html

    def test_of_an_organization_shows_what_an_operator_did_to_it(
        self, page: Client, ada_access: Access, grace: User
    ) -> None:
        org = ada_access.org
        kill_switches.stop(
            operator=grace, kind=KillSwitch.Kind.ORGANIZATION, target=org.id, reason="Unpaid bills", org=org
        )

        html = html_of(page)

        assert "Organization suspended" in html
        assert "Unpaid bills" in html
        assert "grace@platform.test" in html

    @pytest.mark.parametrize(
        ("query", "shown", "hidden"),
        [
            ("?actor=alan%40acme.test", "by-alan", "by-ada"),
            ("?action=token.created", "by-ada", "Integration added</strong>"),
            ("?q=BY-ALAN", "by-alan", "by-ada"),
            ("?q=token+alan%40", "by-alan", "by-ada"),
            ("?to=2026-01-31", "long ago", "by-ada"),
            ("?from=2026-02-01", "by-ada", "long ago"),
        ],
        ids=["who", "what", "search", "all-words", "to", "from"],
    )
    def test_is_narrowed_by_a_filter(
        self,
        page: Client,
        ada_access: Access,
        alan: User,
        access_of: Callable[..., Access],
        integration: Integration,
        query: str,
        shown: str,
        hidden: str,
    ) -> None:
        create_token(ada_access, name="by-ada")
        create_token(access_of(alan), name="by-alan")
        AuditEvent.objects.create(
            org_id=ada_access.org.pk,
            actor="command",
            action="org.moved",
            object_id="long ago",
            occurred_at=datetime(2026, 1, 31, 23, 59, tzinfo=UTC),
        )

        html = html_of(page, query)

        assert shown in html
        assert hidden not in html

    def test_searches_for_a_bounded_number_of_words(self, page: Client, integration: Integration) -> None:
        def asked(words: int) -> int:
            with CaptureQueriesContext(connection) as queries:
                html_of(page, f"?q={'+'.join(['e'] * words)}")
            return sum(query["sql"].count("LIKE") for query in queries)

        assert asked(9) == asked(18) == asked(800)

    @pytest.mark.sqlite
    def test_says_that_a_search_took_too_long(self, page: Client, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(bounded_queries, "SEARCH_SECONDS", 0)
        monkeypatch.setattr(bounded_queries, "INSTRUCTIONS", 1)

        answer = page.get(f"{URL}?q=sky", follow=True)

        assert "took longer than" in answer.content.decode()

    def test_comes_in_pages_that_new_events_do_not_shift(self, page: Client, ada_access: Access) -> None:
        for number in range(60):
            AuditEvent.objects.create(
                org_id=ada_access.org.pk, actor="x", action="thing.done", object_id=f"number-{number}."
            )
        first = html_of(page, "?action=thing.done")
        before = AuditEvent.objects.get(object_id="number-10.").pk
        AuditEvent.objects.create(org_id=ada_access.org.pk, actor="x", action="thing.done", object_id="newcomer")

        second = html_of(page, f"?action=thing.done&before={before}")

        assert f"action=thing.done&amp;before={before}" in first
        assert "number-10." in first
        assert "number-9." in second
        assert "number-10." not in second
        assert "newcomer" not in second

    @pytest.mark.parametrize("query", ["?before=x", "?before=99999999999999999999", "?from=2026-99-99", "?q=%00"])
    def test_takes_nonsense_for_nothing(self, page: Client, query: str) -> None:
        assert page.get(URL + query).status_code == 200

    def test_says_so_where_nothing_matches(self, page: Client) -> None:
        assert "Nothing matches" in html_of(page, "?q=absent")

    def test_says_so_where_nothing_has_happened(self, page: Client) -> None:
        leave_out_audit_events()

        assert "No changes yet" in html_of(page)

    def test_is_in_the_navigation_of_those_who_may_read_it(
        self, page: Client, otto: User, mia: User, page_as: Callable[[User], Client]
    ) -> None:
        seen = [URL in client.get("/o/acme/runs").content.decode() for client in (page, page_as(otto), page_as(mia))]

        assert seen == [True, True, False]


@pytest.mark.django_db
class TestTheFile:
    def test_holds_what_the_filters_leave(self, page: Client, ada_access: Access, integration: Integration) -> None:
        create_token(ada_access, name="ci")

        lines = lines_of(page, "?action=integration.added")

        assert [(line["actor"], line["object_id"]) for line in lines] == [("ada@acme.test", integration.id)]

    def test_is_whole_though_it_is_written_in_pages(self, page: Client, ada_access: Access, monkeypatch: Any) -> None:
        monkeypatch.setattr("rensei.orgs.audit_log.CSV_PAGE", 2)
        for number in range(5):
            AuditEvent.objects.create(org_id=ada_access.org.pk, actor="x", action="thing.done", object_id=str(number))

        lines = lines_of(page, "?action=thing.done")

        assert [line["object_id"] for line in lines] == ["4", "3", "2", "1", "0"]

    def test_is_no_formula_to_a_spreadsheet(self, page: Client, ada_access: Access) -> None:
        AuditEvent.objects.create(org_id=ada_access.org.pk, actor="=1+1", action="thing.done", object_id="@here")

        (line,) = lines_of(page, "?action=thing.done")

        assert (line["actor"], line["object_id"]) == ("'=1+1", "'@here")


@pytest.mark.django_db
class TestSecrets:
    def test_are_in_none_of_its_forms(
        self,
        simulator: Any,
        page: Client,
        ada: User,
        ada_access: Access,
        integration: Integration,
        key: str,
        make_key: Callable[..., str],
        api_as: Any,
    ) -> None:
        newer = make_key()
        integrations.rotate_integration(ada_access, integration, api_key=Secret(newer))
        _, token = create_token(ada_access, name="ci")
        _, _, of_host = register_host(ada_access, name="laptop")
        secrets = {key, newer, token.reveal(), of_host.reveal()}

        text = html_of(page) + repr(lines_of(page)) + api_as(ada).get("/api/v1/audit-events").content.decode()

        assert "Integration rotated" in text
        assert [secret for secret in secrets if secret in text or secret[-24:] in text] == []


@pytest.mark.django_db
class TestRest:
    def test_gives_the_events_with_the_same_filters(
        self, ada: User, ada_access: Access, integration: Integration, api_as: Any
    ) -> None:
        body = api_as(ada).get("/api/v1/audit-events?action=integration.added&pageSize=1").json()

        (event,) = body["results"]
        assert body["next"] is None
        assert (event["actor"], event["objectId"]) == ("ada@acme.test", integration.id)
        assert event["detail"]["name"] == "Production"

    @pytest.mark.parametrize(
        "query", ["who=x", "from=yesterday", "from=2026-02-01&to=2026-01-01", f"q={'e+' * 400}"], ids=range(4)
    )
    def test_refuses_what_it_does_not_know(self, ada: User, ada_access: Access, api_as: Any, query: str) -> None:
        answer = api_as(ada).get(f"/api/v1/audit-events?{query}")

        assert (answer.status_code, answer.json()["code"]) == (400, "VALIDATION_FAILED")

    def test_is_closed_to_a_token_of_one_project(
        self, ada: User, ada_access: Access, project: Any, api_as: Any
    ) -> None:
        answer = api_as(ada, project=project).get("/api/v1/audit-events")

        assert answer.json()["code"] == "NOT_PERMITTED"
