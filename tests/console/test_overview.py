"""The overview: what needs attention, how many runs fail, what two weeks cost, and the next steps."""

import random
import re
from collections.abc import Callable
from datetime import timedelta
from html import unescape
from typing import Any

import pytest
from django.db import connection
from django.test import Client
from django.test.utils import CaptureQueriesContext
from django.utils import timezone

from billing.ledger import reports
from billing.limits.entitlement import set_metered
from billing.models import Entitlement
from integrations.models import Integration
from profiles import services as profiles
from profiles.models import ModelProfile
from rensei.console import overview
from rensei.console.templatetags.console import usd
from rensei.core.clock import database_now
from rensei.core.ids import first_id_of, new_id
from rensei.core.usage import Usage
from rensei.dispatch.admission import dry_run
from rensei.dispatch.models import Run
from rensei.orgs.access import Access
from rensei.orgs.models import Membership, Org, User
from rensei.tokens.machines import register_host
from rensei.tokens.services import create_token
from tests import factories
from tests.billing.conftest import make_charge  # noqa: F401 - a fixture
from tests.billing.record import record_charges
from tests.console.states import STATES, STATES_TRIED
from tests.pages import html_of

HOME = "/o/acme/"
RETIRED = "claude-opus-4-1-20250514"
LINE = re.compile(r'attention__title" href="([^"]+)">([^<]+)</a><p class="small muted">([^<]*)</p>')
STEP = re.compile(r'step--(done|next)"><span class="step__mark">.*?<h3>(?:<a href="([^"]+)">)?([^<]+)<')

pytestmark = pytest.mark.django_db


def lines_of(html: str) -> list[tuple[str, str]]:
    return [(unescape(title), unescape(detail)) for _, title, detail in LINE.findall(html)]


def steps_of(html: str) -> dict[str, bool]:
    return {title: state == "done" for state, _, title in STEP.findall(html)}


class TestNeedsAttention:
    @pytest.mark.parametrize("seed", [1, 2])
    def test_names_what_a_dry_run_refuses_and_the_keys_that_fail(
        self,
        subtests: Any,
        monkeypatch: pytest.MonkeyPatch,
        page: Client,
        acme: Org,
        ada: User,
        ada_access: Access,
        every_profile: list[ModelProfile],
        arrange: Callable[..., None],
        seed: int,
    ) -> None:
        monkeypatch.setattr(overview, "NAMES_MAX", 50)
        factories.past_run(acme, ada)
        chance = random.Random(seed)
        for state in chance.sample(STATES, STATES_TRIED):
            with subtests.test(**state):
                arrange(**state)

                said = lines_of(html_of(page.get(HOME)))

                asked = {one.name: dry_run.previews(ada_access, [one])[one.public_id] for one in every_profile}
                refused = {
                    (name, preview["detail"])
                    for name, preview in asked.items()
                    if not preview["wouldRun"] and preview["code"] != "HOST_SESSION_WRONG_MACHINE"
                }
                named = {
                    (name, detail)
                    for title, detail in said
                    if title.endswith(" would be refused")
                    for name in re.split(", | and ", title.removesuffix(" would be refused"))
                }
                assert named == refused
                failing = [title for title, _ in said if title.endswith("the key fails")]
                assert failing == (["Main: the key fails"] if state["key"] == "failing" else [])

    def test_names_a_retired_model_until_the_profile_is_switched(
        self,
        page: Client,
        otto: User,
        page_as: Callable[[User], Client],
        integration: Integration,
        make_profile: Callable[..., ModelProfile],
        run: Run,
    ) -> None:
        make_profile(name="old", model_id=RETIRED, auth_modes=["metered", "byok"])

        before = lines_of(html_of(page.get(HOME)))
        ((_, read),) = lines_of(page_as(otto).get(HOME).content.decode())
        page.post("/o/acme/settings/profiles/prof_old/switch")
        after = html_of(page.get(HOME))

        ((title, detail),) = before
        assert title == "old names a retired model"
        assert detail.startswith(f"{RETIRED} is served by claude-opus-")
        # An auditor has no button that switches.
        assert detail == f"{read} Model Profiles has a button that switches to it."
        assert "Needs attention" not in after

    def test_says_how_many_more_there_are(
        self, page: Client, acme: Org, ada: User, ada_access: Access, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(overview, "PROFILES_MAX", 5)
        monkeypatch.setattr(overview, "LINES_MAX", 1)
        factories.past_run(acme, ada)
        for place in range(6):
            factories.create_profile(ada_access, name=f"own-{place}", auth_modes=["byok"])
        factories.create_profile(ada_access, name="a-first", auth_modes=["metered"])

        html = html_of(page.get(HOME))

        assert len(lines_of(html)) == 1
        assert "And 1 more" in html
        assert "The first 5 profiles are checked here" in html

    def test_costs_as_many_queries_for_many_profiles_as_for_two(
        self, page: Client, ada_access: Access, integration: Integration, run: Run
    ) -> None:
        def counted() -> int:
            with CaptureQueriesContext(connection) as queries:
                page.get(HOME)
            return len(queries)

        factories.create_profile(ada_access, name="second", auth_modes=["shared", "metered", "host-session"])
        counted()
        few = counted()
        for place in range(30):
            factories.create_profile(ada_access, name=f"more-{place}", auth_modes=["shared", "byok"])

        assert counted() == few


class TestTheFigures:
    @pytest.mark.parametrize("seed", range(3))
    def test_count_the_failures_of_seven_days_as_the_list_does(
        self, page: Client, acme: Org, ada: User, seed: int
    ) -> None:
        chance, now = random.Random(seed), database_now()
        for _ in range(60):
            at = now - timedelta(days=chance.choice([0, 3, 6, 8, 20]), minutes=chance.randrange(60))
            state = chance.choice(Run.State.values)
            run_id = first_id_of("run", at)[:14] + new_id("run")[14:]
            factories.past_run(acme, ada, id=run_id, created_at=at, state=state)
        ended = Run.objects.filter(created_at__gte=now - timedelta(days=7), state__in=Run.ENDED).count()

        html = html_of(page.get(HOME))
        (link,) = re.findall(r'href="([^"]+)">([\d.]+) %</a><small>(\d+) of (\d+) that ended', html)
        listed = page.get(unescape(link[0])).content.decode()

        assert (int(link[2]), int(link[3])) == (listed.count("runs__pick"), ended)
        assert link[1] == f"{100 * int(link[2]) / ended:.1f}"

    def test_say_when_there_are_more_runs_than_are_read(
        self, page: Client, acme: Org, ada: User, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(overview, "READ_AT_ONCE", 3)
        for _ in range(4):
            factories.past_run(acme, ada)

        assert "0 of the newest 3 that ended" in html_of(page.get(HOME))

    def test_draw_each_day_of_the_ledger_and_sum_them(
        self,
        page: Client,
        acme: Org,
        run: Run,
        make_charge: Callable[..., Any],  # noqa: F811
    ) -> None:
        now = database_now()
        spent = {0: 500, 5: 1000, 13: 250, 14: 9999}
        record_charges(
            [
                make_charge(occurred_at=now - timedelta(days=ago), usage=Usage(input_tokens=tokens))
                for ago, tokens in spent.items()
            ]
        )
        days = reports.usage_by(acme, start=now.date() - timedelta(days=13), end=now.date(), group_by="day")

        html = html_of(page.get(HOME))

        (drawn,) = re.findall(r'points="([^"]+)"', html)
        heights = [float(point.split(",")[1]) for point in drawn.split()]
        assert len(heights) == 14
        assert [heights[13 - ago] for ago in (5, 0, 13, 1)] == [2.0, 18.0, 26.0, 34.0]
        assert f"{usd(reports.total(days).known_picodollars)}, all payers together" in html

    def test_tell_the_unpriced_from_the_free(
        self,
        page: Client,
        acme: Org,
        run: Run,
        make_charge: Callable[..., Any],  # noqa: F811
    ) -> None:
        unpriced = make_charge(auth_mode="byok", occurred_at=database_now(), usage=Usage(input_tokens=7), prices=None)
        record_charges([unpriced])

        assert "—, all payers together, 1 without a price" in html_of(page.get(HOME))


class TestTheNextSteps:
    def test_are_those_of_the_organization_for_its_owner(
        self,
        page: Client,
        acme: Org,
        ada: User,
        ada_access: Access,
        grace: User,
        make_user: Callable[..., User],
        make_profile: Callable[..., ModelProfile],
    ) -> None:
        factories.past_run(acme, ada)
        set_metered(org_ids=[acme.pk], enabled=True, actor_user=grace)
        titles = ["Create an API token", "Connect your app", "Choose a default profile", "Invite people"]
        titles += ["Agree on a monthly budget"]

        begun = steps_of(html_of(page.get(HOME)))
        create_token(ada_access, name="ci")
        first = steps_of(html_of(page.get(HOME)))
        factories.past_run(acme, ada, via="gateway")
        profiles.update_profile(ada_access, make_profile(name="deep"), is_default=True)
        Membership.objects.create(org=acme, user=make_user("zoe@acme.test"), role="member")
        nearly = steps_of(html_of(page.get(HOME)))
        Entitlement.objects.filter(org=acme).update(monthly_budget_picodollars=10**12)
        done = html_of(page.get(HOME))

        assert begun == {"Send your first run": True, **dict.fromkeys(titles, False)}
        assert [title for title, is_done in first.items() if is_done] == ["Send your first run", titles[0]]
        assert [title for title, is_done in nearly.items() if not is_done] == titles[-1:]
        assert "Next steps" not in done

    def test_are_a_members_own(
        self, acme: Org, ada: User, mia: User, access_of: Callable[..., Access], page_as: Callable[[User], Client]
    ) -> None:
        factories.past_run(acme, ada, via="gateway")
        register_host(access_of(mia), name="laptop")
        browser = page_as(mia)

        begun = steps_of(html_of(browser.get(HOME)))
        factories.past_run(acme, mia)
        create_token(access_of(mia), name="ci")
        later = steps_of(html_of(browser.get(HOME)))

        assert begun == {"Send your first run": False, "Create an API token": False, "Connect your app": False}
        assert later == {"Send your first run": True, "Create an API token": True, "Connect your app": False}

    def test_end_after_thirty_days(
        self, page: Client, acme: Org, ada: User, mia: User, page_as: Callable[[User], Client]
    ) -> None:
        factories.past_run(acme, ada)
        Org.objects.update(created_at=timezone.now() - timedelta(days=31))

        owners, members = page.get(HOME), page_as(mia).get(HOME)

        assert "Next steps" not in owners.content.decode()
        assert "Next steps" in members.content.decode()

    def test_are_not_an_auditors(self, acme: Org, ada: User, otto: User, page_as: Callable[[User], Client]) -> None:
        factories.past_run(acme, ada)

        assert "Next steps" not in page_as(otto).get(HOME).content.decode()

    def test_lead_to_pages_that_the_person_may_open(
        self, page: Client, acme: Org, ada: User, grace: User, mia: User, page_as: Callable[[User], Client]
    ) -> None:
        factories.past_run(acme, ada)
        set_metered(org_ids=[acme.pk], enabled=True, actor_user=grace)
        for browser, least in ((page, 4), (page_as(mia), 3)):
            links = [link for _, link, _ in STEP.findall(html_of(browser.get(HOME))) if link]

            assert len(links) >= least
            assert {browser.get(link).status_code for link in links} == {200}


class TestTheFirstSteps:
    def test_end_with_the_first_run_though_no_key_is_connected(self, page: Client, acme: Org, ada: User) -> None:
        factories.past_run(acme, ada, auth_mode="shared", payer="platform")

        html = html_of(page.get(HOME))

        assert "Three steps" not in html
        assert "Latest runs" in html

    @pytest.mark.parametrize("has_default", [True, False])
    def test_propose_the_first_profile_as_the_default(
        self, page: Client, make_profile: Callable[..., ModelProfile], catalog: None, has_default: bool
    ) -> None:
        if has_default:
            make_profile(name="deep", is_default=True)

        html = page.get("/o/acme/settings/profiles/new").content.decode()

        (box,) = re.findall(r'<input type="checkbox" name="is_default"[^>]*>', html)
        assert ("checked" in box) is not has_default
