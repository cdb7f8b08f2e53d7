"""Why a dispatch would be refused: the explanation against what the same dispatch then answers."""

import random
import re
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
from django.db import connection
from django.test.utils import CaptureQueriesContext
from rest_framework.test import APIClient

from billing.models import BillingSetting, Entitlement
from integrations.keys import platform
from integrations.models import Integration, PlatformKey
from rensei.core.auth_modes import AuthMode
from rensei.core.clock import database_now
from rensei.core.rates import rates
from rensei.core.secret import Secret
from rensei.dispatch import token_rate
from rensei.dispatch.admission import explain
from rensei.dispatch.admission.requests import DispatchRequest
from rensei.dispatch.models import CapacityPool, Run
from rensei.orgs.access import Access
from rensei.orgs.models import Host, KillSwitch, Org, Project, StoredBytes
from rensei.policies.models import AccessPolicy
from tests.drawn import examples

MIB = 1024 * 1024
DOLLAR = 10**12
MODEL, SMALL, RETIRED = "claude-opus-5-5", "claude-haiku-4-5-20251001", "claude-3-opus-20240229"
ROWS = ["*", "claude", MODEL, SMALL, RETIRED]
# Together 300 drawn dispatches on SQLite, in parts that can run side by side.
SEEDS = range(examples(30) // 5)
DISPATCHES_OF_SEED = 50
# The kinds of answers that a seed reaches at best.
MOST_KINDS = 16
HELLO = "Hello."


@pytest.fixture
def ask(api_as: Callable[..., APIClient], ada: Any) -> Callable[..., Any]:
    """Ask as Ada, or as another person."""
    clients: dict[str, APIClient] = {}

    def post(body: dict[str, Any], *, by: Any = ada, to: str = "why") -> Any:
        if by.email not in clients:
            clients[by.email] = api_as(by)
        return clients[by.email].post(f"/api/v1/{to}", body)

    return post


@pytest.fixture
def key_of(grace: Any, make_key: Callable[..., str], ada_access: Access) -> Callable[..., PlatformKey]:
    def add(pool: str, **fields: Any) -> PlatformKey:
        return platform.add_platform_key(
            actor=grace, provider="claude", pool=pool, name=pool, api_key=Secret(make_key()), **fields
        )

    return add


class World:
    """Acme in a drawn state: policies, keys, limits, pools, kill switches and storage."""

    def __init__(self, dice: random.Random, *, org: Org, project: Project, host: Host, grace: Any) -> None:
        self.dice, self.org, self.project, self.host, self.grace = dice, org, project, host, grace

    def rarely(self) -> bool:
        return self.dice.random() < 0.12

    def draw(self) -> None:
        """Change what a dispatch depends on. Most of it is well most of the time, or no later gate is reached."""
        rates.forget()
        AccessPolicy.objects.all().delete()
        for scope, of in (("system", {}), ("organization", {"org": self.org}), ("project", self._of_project())):
            AccessPolicy.objects.create(scope=scope, matrix=self._matrix(), **of)
        Integration.objects.update(is_default=not self.rarely())
        self._draw_keys()
        self._draw_limits()
        self._draw_storage()
        CapacityPool.objects.filter(name="off").update(active=False)
        Host.objects.update(revoked_at=database_now() if self.rarely() else None)
        KillSwitch.objects.all().delete()
        if self.rarely():
            kind, target = self.dice.choice(
                [("organization", self.org.id), ("model", MODEL), ("auth-mode", "shared"), ("provider", "claude"),
                 ("integration", Integration.objects.get().id)]
            )  # fmt: skip
            own = self.org if kind in ("organization", "integration") else None
            self._stop(kind, target, org=own)
        if self.rarely():
            _, seconds = token_rate._rate()
            rates.count(token_rate.key_of(self.org.id), seconds=seconds, by=10**12)

    def request(self) -> dict[str, Any]:
        pick = self.dice.choice
        body: dict[str, Any] = {"input": HELLO}
        body |= pick([{}, *({"profileId": f"prof_{name}"} for name in NAMES)])
        body |= pick([{}, {}, {"projectId": "my-project"}, {"projectId": "other"}])
        body |= {"pool": pick(["local"] * 6 + ["e2b", "cloud", "off", "none-such"])}
        body |= pick([{}] * 6 + [{"effort": "max"}, {"maxTokens": 2000}, {"maxTokens": 1}])
        body |= pick([{}] * 8 + [{"providerConfig": {"anthropic": {"contextWindow": 5}}}])
        body |= pick([{}] * 8 + [{"hostId": self.host.id}, {"hostId": "host_none"}])
        return body

    def _of_project(self) -> dict[str, Any]:
        return {"org": self.org, "project": self.project}

    def _matrix(self) -> dict[str, Any]:
        if self.dice.random() < 0.6:
            return {}
        return {
            row: {
                mode.value: {"allowed": self.dice.random() < 0.6}
                for mode in self.dice.sample(list(AuthMode), self.dice.randint(1, 2))
            }
            for row in self.dice.sample(ROWS, self.dice.randint(1, 2))
        }

    def _draw_keys(self) -> None:
        for key in PlatformKey.objects.all():
            key.active = not self.rarely()
            key.health, key.cooling_until = PlatformKey.Health.HEALTHY, None
            if self.rarely():
                key.health = PlatformKey.Health.COOLING
                key.cooling_until = database_now() + timedelta(minutes=self.dice.choice([-5, 5]))
            key.cooling_models = {}
            if self.rarely():
                end = database_now() + timedelta(minutes=self.dice.choice([-5, 5]))
                key.cooling_models = {self.dice.choice(["claude-opus-5-5", "another"]): end.isoformat()}
            key.save()

    def _draw_limits(self) -> None:
        pick = self.dice.choice
        used = [None, None, 0, 1]
        Entitlement.objects.filter(org=self.org).update(
            metered_enabled=not self.rarely(),
            shared_runs_per_day=pick(used),
            shared_picodollars_per_day=pick([None, None, 0, DOLLAR // 1000]),
            monthly_budget_picodollars=pick([None, 1000 * DOLLAR, DOLLAR // 1000, 0]),
        )
        BillingSetting.objects.update_or_create(
            id=1, defaults={"shared_platform_picodollars_per_day": pick([500 * DOLLAR] * 4 + [0])}
        )

    def _draw_storage(self) -> None:
        """Leave as much room as any of the runs, or a little less than some need."""
        row, _ = StoredBytes.objects.get_or_create(org=self.org)
        row.limit_mib = 100
        row.used = 100 * MIB - row.held - self.dice.choice([50 * MIB] * 6 + [0, 1, 3_000, 60_000, 1_600_000])
        row.save()

    def _stop(self, kind: str, target: str, *, org: Org | None) -> None:
        KillSwitch.objects.create(
            kind=kind, target=target, org=org, reason="We look into it", set_by="grace", set_at=database_now()
        )


# The profiles, with their auth modes and models.
NAMES = {
    "own": (["byok"], MODEL),
    "billed": (["metered"], MODEL),
    "free": (["shared"], SMALL),
    "free_other": (["shared"], MODEL),
    "machine": (["host-session"], MODEL),
    "each": (["byok", "metered", "shared", "host-session"], SMALL),
    "old": (["byok", "metered"], RETIRED),
}


@pytest.mark.django_db
class TestExplanation:
    @pytest.mark.parametrize("seed", SEEDS)
    def test_says_what_the_dispatch_then_answers_each_time(
        self, seed: int, ask: Any, acme: Any, ada: Any, mia: Any, otto: Any, grace: Any, project: Any, connect: Any,
        make_profile: Any, key_of: Any,
    ) -> None:  # fmt: skip
        dice = random.Random(seed)
        connect()
        for name, (modes, model_id) in NAMES.items():
            make_profile(name=name.replace("_", "-"), model_id=model_id, auth_modes=modes)
        make_profile(name="of-project", scope="project", project=project)
        Project.objects.create(org=acme, slug="other", name="Other")
        for name, active in (("cloud", True), ("off", False)):
            CapacityPool.objects.create(org=acme, name=name, provider_id="e2b", active=active)
        key_of("metered")
        key_of("shared", model_ids=[SMALL], max_tokens_cap=4096)
        host = Host.objects.create(org=acme, owner=mia, name="laptop")
        world = World(dice, org=acme, project=project, host=host, grace=grace)
        seen = set()

        for _ in range(DISPATCHES_OF_SEED):
            world.draw()
            body, person = world.request(), dice.choice([ada, mia, mia, otto])
            explained = ask({**body, "asMember": person.email})
            dispatched = ask(body, by=person, to="runs")
            seen.add(compare(explained, dispatched, case=(body, person.email)))

        # The draw must have reached many kinds of answers, or it has proved little.
        assert None in seen
        assert len(seen) > MOST_KINDS // 2

    def test_writes_nothing_and_calls_nobody(
        self, ada_access: Access, connect: Any, make_profile: Any, key_of: Any, simulator: Any
    ) -> None:
        connect()
        key_of("shared", model_ids=[SMALL], max_tokens_cap=4096)
        hello = [{"role": "user", "content": [{"type": "text", "text": HELLO}]}]
        make_profile(model_id=SMALL, auth_modes=["shared", "host-session"])
        simulator.reset()

        with CaptureQueriesContext(
            connection,
        ) as queries:
            allowed = explain.explain(ada_access, DispatchRequest(profile_id="prof_deep", messages=hello))
            refused = explain.explain(ada_access, DispatchRequest(profile_id="prof_deep", pool="e2b", messages=hello))

        assert (allowed.refusal, type(refused.refusal).__name__) == (None, "NoEligiblePool")
        assert [query["sql"] for query in queries if not query["sql"].startswith("SELECT")] == []
        assert simulator.requests() == []
        assert not Run.objects.exists()

    def test_lights_every_gate_after_the_one_that_refuses(
        self, ask: Any, acme: Any, make_profile: Any, connect: Any, grace: Any
    ) -> None:
        make_profile(auth_modes=["metered"])
        connect()

        answer = ask({"profileId": "prof_deep"}).json()

        verdicts = {gate["gate"]: (gate["verdict"], gate["code"]) for gate in answer["gates"]}
        assert answer["code"] == "METERED_NOT_ENTITLED"
        assert verdicts["entitlement"] == ("refused", "METERED_NOT_ENTITLED")
        assert verdicts["key"] == ("refused", "METERED_KEY_NOT_CONFIGURED")
        assert verdicts["price"] == verdicts["budget"] == ("passed", None)
        other = {one["mode"]: one for one in answer["alternatives"]}
        assert (other["byok"]["wouldRun"], other["byok"]["inProfile"]) == (True, False)
        assert other["host-session"]["code"] == "HOST_SESSION_WRONG_MACHINE"

    def test_shows_the_row_of_the_policy_that_denies(
        self, ask: Any, acme: Any, make_profile: Any, connect: Any
    ) -> None:
        connect()
        make_profile()
        matrix = {"claude": {"byok": {"allowed": False}}}
        AccessPolicy.objects.create(scope="organization", org=acme, matrix=matrix)

        answer = ask({"profileId": "prof_deep"}).json()

        (policy,) = [gate for gate in answer["gates"] if gate["gate"] == "policy"]
        (seen,) = policy["lookedAt"]
        assert (policy["verdict"], policy["code"]) == ("refused", "AUTHMODES_UNSATISFIABLE")
        assert "the organization's row 'claude' denies it" in seen["value"]

    def test_shows_until_when_a_pool_cools_and_no_key_of_it(
        self, ask: Any, acme: Any, mia: Any, make_profile: Any, key_of: Any
    ) -> None:
        Entitlement.objects.update(metered_enabled=True)
        key = key_of("metered")
        until = database_now() + timedelta(days=3)
        PlatformKey.objects.update(health=PlatformKey.Health.COOLING, cooling_until=until)
        make_profile(auth_modes=["metered"])

        answer = ask({"profileId": "prof_deep"}, by=mia)

        (gate,) = [gate for gate in answer.json()["gates"] if gate["gate"] == "key"]
        assert {"name": "A key of the pool", "value": f"Cools down until {until:%Y-%m-%d %H:%M} UTC"} in gate[
            "lookedAt"
        ]
        assert key.id not in answer.content.decode()
        assert key.key_hint not in answer.content.decode()

    def test_follows_a_machine_of_the_member_and_not_of_the_one_who_asks(
        self, ask: Any, ada: Any, mia: Any, acme: Any, make_profile: Any
    ) -> None:
        Host.objects.create(org=acme, owner=mia, name="laptop")
        make_profile(auth_modes=["host-session"])

        assert ask({"asMember": mia.email}).json()["code"] == "PROFILE_REQUIRED"
        assert ask({"profileId": "prof_deep", "asMember": mia.email}).json()["wouldRun"]
        assert ask({"profileId": "prof_deep"}).json()["code"] == "HOST_SESSION_WRONG_MACHINE"


@pytest.mark.django_db
class TestAnotherMember:
    def test_is_for_owners_admins_and_auditors(
        self, ask: Any, ada: Any, alan: Any, mia: Any, otto: Any, make_profile: Any
    ) -> None:
        make_profile()
        body = {"profileId": "prof_deep"}

        for person in (ada, alan, otto):
            assert ask({**body, "asMember": mia.email}, by=person).json()["member"] == mia.email
        refused = [ask({**body, "asMember": address}, by=mia) for address in (ada.email, "none@acme.test")]
        assert [answer.json()["code"] for answer in refused] == ["NOT_PERMITTED"] * 2
        assert ask({**body, "asMember": "MIA@acme.test"}, by=mia).status_code == 200

    def test_of_another_organization_is_not_found(self, ask: Any, eve: Any, make_profile: Any) -> None:
        make_profile()

        answers = [ask({"asMember": address}) for address in (eve.email, "none@evil.test")]

        assert [answer.status_code for answer in answers] == [404, 404]
        documents = [{**answer.json(), "requestId": None} for answer in answers]
        assert documents[0] == documents[1]

    def test_stays_in_the_project_of_the_token(
        self, api_as: Any, ada: Any, mia: Any, project: Any, make_profile: Any
    ) -> None:
        make_profile()
        client = api_as(ada, project=project)

        answer = client.post("/api/v1/why", {"profileId": "prof_deep", "asMember": mia.email})

        assert answer.json()["projectId"] == "my-project"

    def test_needs_the_scope_to_read(self, api_as: Any, ada: Any, mia: Any, make_profile: Any) -> None:
        make_profile()
        client = api_as(ada, scopes=["runs"])

        assert client.post("/api/v1/why", {"profileId": "prof_deep"}).status_code == 200
        answer = client.post("/api/v1/why", {"profileId": "prof_deep", "asMember": mia.email})
        assert (answer.status_code, answer.json()["code"]) == (403, "SCOPE_MISSING")


def compare(explained: Any, dispatched: Any, *, case: Any) -> str | None:
    """The explanation is the dispatch's own answer. Returns its code, or None for a dispatch that was admitted."""
    said, came = explained.json(), dispatched.json()
    if dispatched.status_code == 202:
        assert said["wouldRun"], (case, said)
        assert (said["authMode"], said["payer"]) == (came["authMode"], came["payer"]), case
        assert said["trace"] == came["trace"], case
        return None
    if explained.status_code != 200:
        assert (explained.status_code, said["code"]) == (dispatched.status_code, came["code"]), (case, said, came)
        return str(came["code"])
    assert (said["wouldRun"], said["code"]) == (False, came["code"]), (case, said, came)
    if came["code"] != "NOT_PERMITTED":
        assert _without_seconds(said["detail"]) == _without_seconds(came["detail"]), (case, said, came)
    return str(came["code"])


def _without_seconds(detail: str) -> str:
    """A second may pass between the two answers."""
    return re.sub(r"in \d+ s\b", "in some seconds", detail)
