"""Saved views of the list of runs: a member's own names for filters and an order."""

import re
from collections.abc import Callable
from datetime import date
from html import unescape
from typing import Any
from urllib.parse import parse_qsl

import pytest
from django.http import QueryDict
from django.test import Client
from hypothesis import given
from hypothesis import strategies as st

from rensei.audit.models import AuditEvent
from rensei.console.run_list import NAMES, ORDERS, PERIODS, RunList
from rensei.core.auth_modes import AuthMode
from rensei.dispatch import saved_views
from rensei.dispatch.models import Run, SavedView
from rensei.orgs.access import Access
from rensei.orgs.models import Membership, Org, Role, User
from rensei.tokens.services import create_token
from tests.pages import html_of

RUNS = "/o/acme/runs"
VIEW = re.compile(r'class="view"><a class="menu__item" href="([^"]+)"[^>]*><span class="menu__cut">([^<]+)<')

pytestmark = pytest.mark.django_db


def views_of(browser: Client, query: str = "") -> dict[str, str]:
    html = html_of(browser.get(f"{RUNS}?{query}"))
    return {unescape(name): unescape(link) for link, name in VIEW.findall(html)}


def save(browser: Client, name: str, query: str, **options: Any) -> Any:
    return browser.post(f"{RUNS}/views", {"name": name, "query": query}, **options)


class TestSaving:
    def test_keeps_what_the_list_shows_and_leads_back_to_it(
        self, page: Client, make_run: Callable[..., Run], ada_access: Access
    ) -> None:
        token, _ = create_token(ada_access, name="ci")
        found, other = make_run("Alpha"), make_run("Alpha")
        Run.objects.filter(pk=found.pk).update(token_id=token.id, state="FAILED")

        answer = save(page, "失败 of ci", f"token={token.id}&state=FAILED&q=alpha&sort=-cost&page=7")
        (link,) = views_of(page).values()
        html = page.get(link).content.decode()

        assert answer["Location"] == link
        assert f'href="{RUNS}/{found.id}"' in html
        assert f'href="{RUNS}/{other.id}"' not in html
        assert 'aria-current="true"' in html
        assert AuditEvent.objects.filter(action="view.saved").count() == 1

    @given(
        st.dictionaries(
            st.sampled_from([*NAMES, "q", "since", "from", "to", "day", "sort", "page", "before", "after", "other"]),
            st.sampled_from(
                ["FAILED", "byok", "7d", "2026-01-31", "-cost", "created", "prof_deep", "\0", "a b&c=d", ""]
            )
            | st.text(max_size=12),
        )
    )
    def test_keeps_only_filters_and_orders_that_count(self, given_query: dict[str, str]) -> None:
        query = QueryDict(mutable=True)
        query.update(given_query)
        access = Access(user=User(), org=Org(id="org_none"), role=Role.MEMBER, membership=Membership())

        kept = RunList(access, query).to_save()

        pairs = dict(parse_qsl(kept))
        assert set(pairs) <= {*NAMES, "q", "since", "from", "to", "day", "sort"}
        assert pairs.get("state", "FAILED") in Run.State.values
        assert pairs.get("mode", "byok") in {mode.value for mode in AuthMode}
        assert pairs.get("since", "7d") in PERIODS
        assert pairs.get("sort", "-cost").removeprefix("-") in ORDERS
        for name in {"from", "to", "day"} & set(pairs):
            date.fromisoformat(pairs[name])
        again = RunList(access, QueryDict(kept))
        first = RunList(access, query)
        assert again.to_save() == kept
        assert (again.filter.words, again.filter.values, again.order) == (
            first.filter.words,
            first.filter.values,
            first.order,
        )

    @pytest.mark.parametrize(
        ("name", "query", "words"),
        [
            ("", "state=FAILED", "A name has 1 to 60 printable characters."),
            ("a" * 61, "state=FAILED", "A name has 1 to 60 printable characters."),
            ("All", "", "Choose a filter or an order"),
            ("All", "page=3&other=1&state=none", "Choose a filter or an order"),
            ("Long", "q=" + "a" * 1001, "at most 1,000 characters"),
            ("Failures", "state=QUEUED", "A view named &#x27;Failures&#x27;"),
        ],
    )
    def test_is_refused_with_the_reason(self, page: Client, acme: Org, name: str, query: str, words: str) -> None:
        save(page, "Failures", "state=FAILED")

        html = save(page, name, query, follow=True).content.decode()

        assert words in html
        assert SavedView.objects.get().query == "state=FAILED"

    def test_ends_with_as_many_as_there_may_be(
        self, page: Client, acme: Org, mia: User, page_as: Callable[[User], Client], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(saved_views, "VIEWS_MAX", 2)
        for name in ("a", "b"):
            save(page, name, "state=FAILED")

        refused = save(page, "c", "state=FAILED", follow=True).content.decode()
        save(page_as(mia), "c", "state=FAILED")

        assert "You have 2 saved views. Delete one first." in refused
        assert [view.name for view in SavedView.objects.order_by("created_at")] == ["a", "b", "c"]


class TestAView:
    def test_is_its_members_own(
        self, page: Client, acme: Org, ada: User, mia: User, eve: User, page_as: Callable[[User], Client]
    ) -> None:
        save(page, "Mine", "state=FAILED")
        view = SavedView.objects.get()

        members, others = page_as(mia), page_as(eve)

        assert views_of(members) == {}
        assert members.post(f"{RUNS}/views/{view.id}/delete").status_code == 404
        assert others.post(f"{RUNS}/views/{view.id}/delete").status_code == 404
        assert others.post(f"/o/evil/runs/views/{view.id}/delete").status_code == 404
        assert views_of(page) == {"Mine": f"{RUNS}?state=FAILED"}

    def test_is_deleted(self, page: Client, acme: Org) -> None:
        save(page, "Mine", "state=FAILED")

        html = page.post(f"{RUNS}/views/{SavedView.objects.get().id}/delete", follow=True).content.decode()

        assert "The view Mine was deleted." in html
        assert not SavedView.objects.exists()
        assert AuditEvent.objects.filter(action="view.deleted").count() == 1
        assert page.post(f"{RUNS}/views/a%00b/delete").status_code == 404

    def test_is_not_an_auditors_to_save(self, acme: Org, otto: User, page_as: Callable[[User], Client]) -> None:
        browser = page_as(otto)

        assert save(browser, "Mine", "state=FAILED").status_code == 403
        assert "Name of this view" not in browser.get(f"{RUNS}?state=FAILED").content.decode()


class TestTheTokenFilter:
    def test_offers_the_tokens_that_the_person_sees(
        self,
        page: Client,
        ada_access: Access,
        mia: User,
        access_of: Callable[..., Access],
        page_as: Callable[[User], Client],
        make_run: Callable[..., Run],
    ) -> None:
        own, _ = create_token(ada_access, name="of-ada")
        other, _ = create_token(access_of(mia), name="of-mia")
        runs = [make_run(), make_run()]
        Run.objects.filter(pk=runs[0].pk).update(token_id=own.id)

        owners = page.get(f"{RUNS}?token={own.id}").content.decode()
        members = page_as(mia).get(RUNS).content.decode()
        tokens = html_of(page.get("/o/acme/settings/tokens"))

        assert [run.id in owners for run in runs] == [True, False]
        assert f'<option value="{own.id}" selected>of-ada' in owners
        assert f'<option value="{other.id}">of-mia' in owners
        assert f'<option value="{other.id}">of-mia' in members
        assert "of-ada" not in members
        (link,) = re.findall(r'href="([^"]+)">1 run</a>', tokens)
        assert [run.id in page.get(unescape(link)).content.decode() for run in runs] == [True, False]
