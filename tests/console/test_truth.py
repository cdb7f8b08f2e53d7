"""What pages say about modes, keys, money and machines is what resolve, the ledger and the key pools say."""

import random
import re
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any

import pytest
from django.test import Client
from django.utils import timezone

from billing.models import CostEvent
from integrations.keys import services as integrations
from integrations.models import Integration, PlatformKey
from profiles.models import ModelProfile
from rensei.console.templatetags.console import usd
from rensei.core.auth_modes import AuthMode
from rensei.core.clock import database_now
from rensei.core.secret import Secret
from rensei.core.usage import Usage
from rensei.dispatch.admission import dry_run
from rensei.dispatch.execution.execute import execute
from rensei.dispatch.execution.lease_renewal import LeaseRenewal
from rensei.dispatch.models import Run
from rensei.dispatch.queue import claims
from rensei.orgs.access import Access
from rensei.orgs.models import Host, Org, User
from rensei.tokens.machines import register_host
from tests.billing.conftest import make_charge  # noqa: F401 - a fixture
from tests.billing.record import record_charges
from tests.console.states import MODEL, MODES, STATES, STATES_TRIED, SUBSETS
from tests.pages import html_of

LIST = "/o/acme/settings/integrations"
STEP = re.compile(
    r'trace__mode">([^<]+)</span>\s*<span class="trace__verdict">\s*([^<]+?)\s*</span>(?:\s*<a [^>]*><code>(\w+))?'
)
# What the pages say of a pool, by the health of its only key.
SAID = {"none": "The platform has no {} key", "cooling": "are cooling down", "quarantined": "rejects the platform"}


def expected_steps(modes: tuple[AuthMode, ...], alone: dict[str, dict[str, Any]]) -> Iterator[tuple[str, str, str]]:
    """What the picture of a decision says of each mode, from what a profile with that mode alone would do."""
    picked = False
    for mode in AuthMode:
        if mode not in modes:
            yield mode.label, "Not in the profile", ""
            continue
        own = alone[mode.value]
        if own["code"] == "AUTHMODES_UNSATISFIABLE":
            yield mode.label, "Denied by the organization", ""
        elif own["code"] == "HOST_SESSION_WRONG_MACHINE":
            yield mode.label, "Needs a machine", own["code"]
        elif not picked:
            picked = True
            yield mode.label, "Chosen" if own["wouldRun"] else "Refused", own["code"] or ""
        else:
            yield mode.label, "Would run, not needed" if own["wouldRun"] else "Would be refused", own["code"] or ""


@pytest.mark.django_db
class TestAProfile:
    @pytest.mark.parametrize("seed", [1, 2])
    def test_says_of_every_mode_what_its_gate_says(
        self,
        subtests: Any,
        page: Client,
        ada_access: Access,
        every_profile: list[ModelProfile],
        arrange: Callable[..., None],
        seed: int,
    ) -> None:
        chance = random.Random(seed)
        for state in chance.sample(STATES, STATES_TRIED):
            with subtests.test(**state):
                arrange(**state)
                said = dry_run.previews(ada_access, every_profile)
                alone = {mode.value: said[f"prof_{mode.value.replace('-', '_')}"] for mode in MODES}
                for path in ("playground?profile=", "settings/profiles/"):
                    modes, profile = chance.choice(list(zip(SUBSETS, every_profile, strict=True)))
                    html = page.get(f"/o/acme/{path}{profile.public_id}").content.decode()

                    assert STEP.findall(html) == list(expected_steps(modes, alone))
                    self.tells_of_the_pool(
                        html, said[profile.public_id], metered=state["metered"], shared=state["shared"]
                    )

                html = page.get(LIST).content.decode()

                signed = sum(preview["authMode"] == "byok" for preview in said.values())
                if state["key"] != "none":
                    assert f"<dd>{signed} profile{'' if signed == 1 else 's'}</dd>" in html

    def tells_of_the_pool(self, html: str, preview: dict[str, Any], *, metered: str, shared: str) -> None:
        """The API's sentence stays; before it, the page says what is so."""
        health = {"METERED_KEY_NOT_CONFIGURED": ("metered", metered), "SHARED_KEY_NOT_CONFIGURED": ("shared", shared)}
        pool, state = health.get(preview["code"] or "", ("", ""))
        said = {name: sentence.format(pool) in html for name, sentence in SAID.items()}
        assert said == {name: name == state for name in SAID}
        if state == "cooling":
            until = PlatformKey.objects.get(pool=pool).cooling_until
            assert until is not None
            assert f'datetime="{until.isoformat()}"' in html
        if state:
            assert f"No {pool} key is configured for provider &#x27;claude&#x27;" in html


@pytest.mark.django_db
class TestTheKeyPool:
    def test_is_linked_for_operators_only(
        self, page: Client, ada: User, every_profile: list[ModelProfile], arrange: Callable[..., None]
    ) -> None:
        arrange(entitled=True, metered="cooling", shared="none", key="none", byok_denied=False)

        before = page.get("/o/acme/playground?profile=prof_metered").content.decode()
        User.objects.filter(pk=ada.pk).update(is_staff=True)
        after = page.get("/o/acme/playground?profile=prof_metered").content.decode()

        assert "Open the key pool" not in before
        assert "Open the key pool" in after

    @pytest.mark.parametrize("limited", [MODEL, "another"])
    def test_cools_for_one_model(
        self, page: Client, every_profile: list[ModelProfile], arrange: Callable[..., None], limited: str
    ) -> None:
        arrange(entitled=True, metered="healthy", shared="none", key="none", byok_denied=False)
        until = timezone.now() + timedelta(days=3)
        PlatformKey.objects.update(cooling_models={limited: until.isoformat()})

        html = page.get("/o/acme/playground?profile=prof_metered").content.decode()

        assert (SAID["cooling"] in html) is (limited == MODEL)
        assert (f'datetime="{until.isoformat()}"' in html) is (limited == MODEL)

    def test_has_a_date_in_the_admin(
        self, every_profile: list[ModelProfile], arrange: Callable[..., None], grace: User, page_as: Any
    ) -> None:
        arrange(entitled=True, metered="cooling", shared="none", key="none", byok_denied=False)
        until = PlatformKey.objects.get().cooling_until
        assert until is not None

        html = page_as(grace).get("/admin/").content.decode()

        assert f"Cooling until {until:%-d %b, %H:%M} UTC" in html


@pytest.mark.django_db
class TestRemovingAKey:
    @pytest.fixture
    def second(self, ada_access: Access, make_key: Callable[..., str], integration: Integration) -> Integration:
        return integrations.add_integration(ada_access, provider="claude", api_key=Secret(make_key()), name="Staging")

    @pytest.mark.parametrize("status", ["ok", "failing", "untested"])
    def test_names_the_key_that_follows_and_its_health(
        self, page: Client, integration: Integration, second: Integration, profile: ModelProfile, status: str
    ) -> None:
        Integration.objects.filter(pk=second.pk).update(status=status)

        html = page.get(f"{LIST}/{integration.id}/remove").content.decode()
        page.post(f"{LIST}/{integration.id}/remove", {"typed": integration.name})

        assert f"will be signed by Staging ({second.key_hint})" in html
        assert {"ok": "which worked", "failing": "which failed", "untested": "never tested"}[status] in html
        second.refresh_from_db()
        assert second.is_default

    def test_wants_the_name_only_where_profiles_use_the_key(
        self, page: Client, integration: Integration, second: Integration, profile: ModelProfile
    ) -> None:
        wrong = page.post(f"{LIST}/{integration.id}/remove", {"typed": "Prod"})
        unused = page.post(f"{LIST}/{second.id}/remove")

        assert wrong.status_code == 422
        assert "This is not the name." in wrong.content.decode()
        assert unused.status_code == 302
        assert [one.name for one in Integration.objects.all()] == [integration.name]


@pytest.mark.django_db
class TestTheMonth:
    @pytest.mark.parametrize("seed", range(5))
    @pytest.mark.parametrize("path", ["", "usage"])
    def test_has_a_figure_for_each_payer_that_is_the_ledgers(
        self,
        page: Client,
        acme: Org,
        run: Run,
        make_charge: Callable[..., Any],  # noqa: F811
        seed: int,
        path: str,
    ) -> None:
        chance, now = random.Random(seed), database_now()
        record_charges(
            [
                make_charge(
                    auth_mode=mode,
                    occurred_at=now,
                    usage=Usage(input_tokens=chance.randint(0, 10**6), output_tokens=chance.randint(0, 10**5)),
                )
                for mode in MODES
                for _ in range(chance.randint(0, 3))
            ]
        )
        events = list(CostEvent.objects.for_org(acme))
        sums = {mode: sum(event.amount_picodollars for event in events if event.auth_mode == mode) for mode in MODES}

        html = html_of(page.get(f"/o/acme/{path}"))

        figures = dict(re.findall(r"<dt>([^<]+)</dt><dd>([^<]+) <small>", html))
        assert figures["You pay the provider"] == usd(sums[AuthMode.BYOK])
        assert figures["You pay Rensei"] == usd(sums[AuthMode.METERED])
        assert figures["Free"] == usd(sums[AuthMode.SHARED])
        if any(event.auth_mode == AuthMode.HOST_SESSION for event in events):
            assert figures["Paid by host accounts"] == usd(sums[AuthMode.HOST_SESSION])


@pytest.mark.django_db(transaction=True)
class TestATestMessage:
    @pytest.mark.parametrize(("word", "said"), [("", "has credit"), ("nocredit", "The test message failed.")])
    def test_shows_its_result_and_its_cost_in_the_card(
        self, page: Client, ada_access: Access, make_key: Callable[..., str], simulator: Any, word: str, said: str
    ) -> None:
        own = integrations.add_integration(ada_access, provider="claude", api_key=Secret(make_key(word)), name="Main")
        page.post(f"{LIST}/{own.id}/test")
        (quoted,) = re.findall(r"at most \$([\d.]+)", page.get(LIST).content.decode())

        sending = page.post(f"{LIST}/{own.id}/message", follow=True)
        renewal = LeaseRenewal(owner="test")
        claim = claims.claim_next(owner="test")
        assert claim is not None
        execute(claim, renewal)
        renewal.close()
        html = page.get(f"{LIST}?sent={claim.run.id}").content.decode()

        assert "Sending a test message" in sending.content.decode()
        assert said in html
        assert f'href="/o/acme/runs/{claim.run.id}"' in html
        if not word:
            cost = CostEvent.objects.get().amount_picodollars
            assert f"It cost {usd(cost)}" in html
            assert cost <= round(float(quoted) * 10**12 * 1.005)

    def test_is_sent_with_a_key_that_was_just_saved(
        self, page: Client, simulator: Any, catalog: None, key: str
    ) -> None:
        form = html_of(page.get(f"{LIST}/add/claude"))

        answer = page.post(f"{LIST}/add/claude", {"api_key": key, "action": "save-and-send"})

        assert re.search(r"Save and send a test message.*at most \$0\.\d+", form)
        assert answer["Location"] == f"{LIST}?sent={Run.objects.get().id}"


@pytest.mark.django_db
class TestAMachine:
    @pytest.mark.parametrize("count", [0, 1, 2, 3])
    def test_is_chosen_from_those_of_the_person(
        self,
        page: Client,
        ada_access: Access,
        mia: User,
        access_of: Callable[..., Access],
        every_profile: list[ModelProfile],
        count: int,
    ) -> None:
        register_host(access_of(mia), name="mias")
        machines = [register_host(ada_access, name=f"machine-{place}")[0] for place in range(count)]
        for place, machine in enumerate(machines):
            Host.objects.filter(pk=machine.pk).update(last_seen_at=timezone.now() - timedelta(hours=place + 1))
        url = "/o/acme/playground?profile=prof_host_session"

        html = page.get(url).content.decode()
        fields = {"profile": "prof_host_session", "text": "Hello?", "pool": "local"}
        sent = [page.post(url, {**fields, "host": machine.id}) for machine in machines]

        assert ("Needs a machine" in html) is (count == 0)
        assert ("Runs as host-session" in html) is (count > 0)
        assert "badge--bad" not in html
        assert "mias" not in html
        assert [f"machine-{place}, last seen" in html for place in range(count)] == [True] * count
        assert [answer.status_code for answer in sent] == [302] * count
        assert list(Run.objects.order_by("id").values_list("host", flat=True)) == [machine.id for machine in machines]


class TestARunThatHasNotEnded:
    @pytest.mark.parametrize("state", ["QUEUED", "RUNNING"])
    def test_counts_its_time(self, page: Client, run: Run, state: str) -> None:
        created = database_now() - timedelta(minutes=2, seconds=5)
        Run.objects.filter(pk=run.pk).update(state=state, created_at=created)

        html = page.get(f"/o/acme/runs/{run.id}").content.decode()

        (elapsed,) = re.findall(r'data-elapsed="(\d+)"', html)
        assert 125 <= int(elapsed) < 185
        assert "minutes ago" not in html
