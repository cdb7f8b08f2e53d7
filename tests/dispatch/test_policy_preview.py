"""What a change of a policy would do: the prediction against what a dry run says once it is saved."""

import random
from typing import Any
from unittest.mock import patch

import pytest
from django.db import connection
from django.test.utils import CaptureQueriesContext

from integrations.keys import platform
from profiles import services as profiles
from profiles.models import ModelProfile
from rensei.audit.models import AuditEvent
from rensei.core.auth_modes import AuthMode
from rensei.core.errors import FieldError, NotFound, NotPermitted
from rensei.core.secret import Secret
from rensei.core.transactions import durable
from rensei.dispatch.admission import dry_run, policy_preview
from rensei.dispatch.admission.requests import DispatchRequest
from rensei.orgs import services as orgs
from rensei.orgs.access import Access
from rensei.policies import services as policies
from rensei.policies.models import AccessPolicy
from rensei.tokens.look_up import for_token
from rensei.tokens.services import create_token
from tests.integrations.anthropic.test_growth import lines

DENY_BYOK = {"*": {"byok": {"allowed": False}}}
DENY_METERED = {"*": {"metered": {"allowed": False}}}
MODELS = ["claude-opus-5-5", "claude-opus-4-8", "claude-haiku-4-5-20251001"]
RETIRED = "claude-3-opus-20240229"
ROWS = ["*", "claude", *MODELS, RETIRED]
# Together 500 random changes, in parts that can run side by side. PostgreSQL stores what those of one part need.
SEEDS = [0, *(pytest.param(seed, marks=pytest.mark.outside) for seed in range(1, 10))]
CHANGES_OF_SEED = 50


@pytest.fixture
def metered_key(grace: Any, make_key: Any) -> Any:
    return platform.add_platform_key(
        actor=grace, provider="claude", pool="metered", name="A", api_key=Secret(make_key())
    )


@pytest.mark.django_db
class TestChanges:
    def test_names_the_mode_the_payer_and_the_refusal_before_and_after(
        self, ada_access: Access, connect: Any, make_profile: Any
    ) -> None:
        connect()
        make_profile(auth_modes=["byok", "metered"])

        (change,) = policy_preview.changes(ada_access, matrix=DENY_BYOK)

        wire = change.wire()
        assert (wire["profileId"], wire["projectId"]) == ("prof_deep", None)
        assert (wire["before"]["authMode"], wire["before"]["payer"], wire["before"]["code"]) == (
            "byok", "organization", None,
        )  # fmt: skip
        assert (wire["after"]["authMode"], wire["after"]["payer"], wire["after"]["code"]) == (
            "metered", "organization-via-rensei", "METERED_NOT_ENTITLED",
        )  # fmt: skip

    def test_leaves_out_what_stays_as_it_is(self, ada_access: Access, make_profile: Any) -> None:
        make_profile()

        assert policy_preview.changes(ada_access, matrix=DENY_METERED) == []

    def test_counts_another_denier_of_the_same_mode_as_no_change(
        self, ada_access: Access, grace: Any, make_profile: Any
    ) -> None:
        make_profile()
        policies.set_policy(ada_access, matrix=DENY_BYOK)

        assert list(policy_preview.system_changes(DENY_BYOK)) == []

    def test_looks_into_each_project_that_has_a_policy(
        self, ada_access: Access, project: Any, connect: Any, make_profile: Any
    ) -> None:
        connect()
        make_profile(auth_modes=["byok", "metered"])
        policies.set_policy(ada_access, matrix=DENY_BYOK, project=project)

        found = policy_preview.changes(ada_access, matrix=DENY_METERED)

        assert [(change.project, change.after.code) for change in found] == [(project, "AUTHMODES_UNSATISFIABLE")]

    def test_of_a_projects_policy_are_those_within_it(
        self, ada_access: Access, project: Any, connect: Any, make_profile: Any
    ) -> None:
        other = orgs.create_project(ada_access, slug="other", name="Other")
        connect()
        make_profile()
        make_profile(name="inside", scope="project", project=project)
        make_profile(name="elsewhere", scope="project", project=other)

        found = policy_preview.changes(ada_access, matrix=DENY_BYOK, project=project)

        assert [(change.profile.name, change.project) for change in found] == [("deep", project), ("inside", project)]

    def test_of_too_many_profiles_and_projects_are_refused_before_any_is_loaded(
        self, ada_access: Access, project: Any, make_profile: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        make_profile()
        policies.set_policy(ada_access, matrix=DENY_BYOK, project=project)
        monkeypatch.setattr(policy_preview, "OUTCOMES_MAX", 1)
        monkeypatch.setattr(policy_preview.context, "load", None)

        with pytest.raises(FieldError, match="Preview it for a project"):
            policy_preview.changes(ada_access, matrix=DENY_METERED)

    def test_count_the_recent_runs_of_many_with_work_that_grows_with_them(self, ada_access: Access) -> None:
        def work(number: int) -> int:
            outcome = policy_preview.Outcome(mode=None, code=None, detail=None)
            profiles_of = [ModelProfile(org=ada_access.org, public_id=f"prof_{n}") for n in range(number)]
            predictions = [
                policy_preview.Prediction(profile=one, project=None, before=outcome, after=outcome)
                for one in profiles_of
            ]
            rows = [(one.public_id, None, 1) for one in profiles_of]
            with patch.object(policy_preview, "_counted", lambda *_: rows):
                return lines(lambda: policy_preview.recent_runs(ada_access, predictions), of="policy_preview.py")

        assert work(400) <= 2.2 * work(200)

    def test_write_nothing(self, ada_access: Access, make_profile: Any) -> None:
        make_profile()
        events = AuditEvent.objects.count()

        with CaptureQueriesContext(connection) as queries:
            policy_preview.changes(ada_access, matrix=DENY_BYOK)

        assert all(query["sql"].lstrip().startswith("SELECT") for query in queries)
        assert (AccessPolicy.objects.count(), AuditEvent.objects.count()) == (0, events)

    def test_take_as_many_queries_for_many_profiles_as_for_one(self, ada_access: Access, make_profile: Any) -> None:
        modes = ["byok", "metered", "shared", "host-session"]
        make_profile(auth_modes=modes)
        with CaptureQueriesContext(connection) as few:
            policy_preview.changes(ada_access, matrix=DENY_BYOK)
        for place in range(9):
            home = orgs.create_project(ada_access, slug=f"p{place}", name=f"P{place}")
            policies.set_policy(ada_access, matrix=DENY_METERED, project=home)
            make_profile(name=f"more {place}", auth_modes=modes, model_id=MODELS[place % len(MODELS)])

        with CaptureQueriesContext(connection) as many:
            found = policy_preview.changes(ada_access, matrix=DENY_BYOK)

        assert len(found) == 10 * 10
        assert len(many) == len(few) <= 14

    def test_are_for_those_who_may_set_the_policy(
        self, ada_access: Access, project: Any, mia: Any, eve: Any, access_of: Any
    ) -> None:
        _, secret = create_token(ada_access, name="ci", project=project)
        bound = for_token(token=secret.reveal())
        assert bound is not None

        with pytest.raises(NotPermitted):
            policy_preview.changes(access_of(mia), matrix=DENY_BYOK)
        with pytest.raises(NotPermitted):
            policy_preview.changes(bound, matrix=DENY_BYOK)
        with pytest.raises(NotFound):
            policy_preview.changes(access_of(eve, "evil"), matrix=DENY_BYOK, project=project)
        assert policy_preview.changes(bound, matrix=DENY_BYOK, project=project) == []

    def test_refuse_a_row_that_names_nothing(self, ada_access: Access) -> None:
        with pytest.raises(FieldError) as refusal:
            policy_preview.changes(ada_access, matrix={"claude-opus-9": {}, **DENY_BYOK})

        assert refusal.value.errors[0]["pointer"] == "/matrix/claude-opus-9"


@pytest.mark.django_db
class TestSystemChanges:
    def test_reach_every_organization(
        self, ada_access: Access, eve: Any, access_of: Any, make_profile: Any, make_key: Any
    ) -> None:
        make_profile()
        profiles.create_profile(
            access_of(eve, "evil"), name="evils", provider="claude", model_id=MODELS[0], auth_modes=["byok", "shared"]
        )

        found = list(policy_preview.system_changes(DENY_BYOK))

        assert {change.profile.name for change in found} == {"deep", "evils"}

    def test_look_only_at_organizations_that_the_proposal_touches(
        self, ada_access: Access, eve: Any, access_of: Any, make_profile: Any, django_assert_num_queries: Any
    ) -> None:
        make_profile()

        with django_assert_num_queries(3):
            assert list(policy_preview.system_changes(DENY_METERED)) == []


def random_matrix(dice: random.Random) -> dict[str, Any]:
    return {
        row: {
            mode.value: {"allowed": dice.random() < 0.5}
            for mode in dice.sample(list(AuthMode), dice.randint(0, len(AuthMode)))
        }
        for row in dice.sample(ROWS, dice.randint(0, 3))
    }


@pytest.mark.django_db
class TestPredict:
    @pytest.mark.parametrize("seed", SEEDS)
    def test_says_what_a_dry_run_says_after_each_of_500_random_changes(
        self, seed: int, ada_access: Access, project: Any, grace: Any, connect: Any, make_profile: Any, metered_key: Any
    ) -> None:
        dice = random.Random(seed)
        other = orgs.create_project(ada_access, slug="other", name="Other")
        connect()
        modes = [["byok", "metered"], ["byok", "shared", "host-session"], ["metered", "shared"], ["byok", "metered"]]
        for model_id, listed in zip([*MODELS, RETIRED], modes, strict=True):
            make_profile(name=model_id, model_id=model_id, auth_modes=listed)
        make_profile(name="own", scope="project", project=project, auth_modes=["byok", "shared", "host-session"])
        stored = list(profiles.visible_profiles(ada_access))
        seen_codes, seen_modes = set(), set()

        for _ in range(CHANGES_OF_SEED):
            where = dice.choice([None, project, other, "system"])
            matrix = random_matrix(dice)
            if where == "system":
                before = answers(ada_access, stored)
                predicted = {key(one): one.after.wire() for one in policy_preview.system_changes(matrix)}
                with durable():
                    policies.set_system_policy(operator=grace, matrix=matrix)
                after = answers(ada_access, stored)
                differing = {place for place in after if outcome(after[place]) != outcome(before[place])}
                assert {place for place in predicted if place in after} == differing, matrix
                assert all(predicted[place] == after[place] for place in differing), matrix
            else:
                everything = policy_preview.predict(ada_access, matrix=matrix, project=where)
                policies.set_policy(ada_access, matrix=matrix, project=where)
                after = {}
                if where is None:
                    after = answers(ada_access, stored)
                    assert after == {key(one): one.after.wire() for one in everything if key(one) in after}, matrix
                one = dice.choice(everything)
                place = one.project.slug if one.project else None
                asked = DispatchRequest(profile_id=one.profile.public_id, project_id=place)
                after[key(one)] = wire(dry_run.preview(ada_access, asked))
                assert one.after.wire() == after[key(one)], (matrix, place)
            seen_codes |= {answer["code"] for answer in after.values()}
            seen_modes |= {answer["authMode"] for answer in after.values()}

        # The draw must have reached every kind of answer, or it has proved little.
        assert {None, "AUTHMODES_UNSATISFIABLE", "METERED_NOT_ENTITLED", "SHARED_KEY_NOT_CONFIGURED"} <= seen_codes
        assert {None, "byok", "metered", "shared", "host-session"} <= seen_modes


def answers(access: Access, stored: list[Any]) -> dict[tuple[str, str | None], dict[str, Any]]:
    """What a dry run says of every profile where it is at home, by profile and project."""
    found = dry_run.previews(access, stored)
    return {
        (profile.public_id, profile.project.slug if profile.project else None): wire(found[profile.public_id])
        for profile in stored
    }


def wire(answer: dict[str, Any]) -> dict[str, Any]:
    return {name: answer[name] for name in ("authMode", "payer", "wouldRun", "code", "detail")}


def outcome(answer: dict[str, Any]) -> tuple[Any, ...]:
    return answer["authMode"], answer["payer"], answer["code"]


def key(prediction: policy_preview.Prediction) -> tuple[str, str | None]:
    return prediction.profile.public_id, prediction.project.slug if prediction.project else None


@pytest.mark.django_db
class TestRest:
    def test_previews_and_changes_nothing(self, ada: Any, ada_access: Access, api_as: Any, make_profile: Any) -> None:
        make_profile()

        answer = api_as(ada).post("/api/v1/access-policy/preview", {"matrix": DENY_BYOK})

        assert answer.status_code == 200
        (change,) = answer.json()["changes"]
        assert change["profileId"] == "prof_deep"
        assert change["after"]["code"] == "AUTHMODES_UNSATISFIABLE"
        assert not AccessPolicy.objects.exists()

    def test_previews_a_projects_policy(
        self, ada: Any, ada_access: Access, project: Any, api_as: Any, make_profile: Any
    ) -> None:
        make_profile()

        answer = api_as(ada).post("/api/v1/projects/my-project/access-policy/preview", {"matrix": DENY_BYOK})

        assert [change["projectId"] for change in answer.json()["changes"]] == ["my-project"]

    @pytest.mark.parametrize("path", ["access-policy", "projects/my-project/access-policy"])
    def test_names_the_row_that_is_no_model_when_it_is_put(
        self, path: str, ada: Any, ada_access: Access, project: Any, api_as: Any
    ) -> None:
        api = api_as(ada)

        refused = api.put(f"/api/v1/{path}", {"matrix": {"claude-opus-9": {}, "claude": {}, "*": {}}})
        accepted = api.put(f"/api/v1/{path}", {"matrix": {"claude-opus-5-5": {}, "claude": {}, "*": {}}})

        assert (refused.status_code, refused.json()["code"]) == (400, "VALIDATION_FAILED")
        assert [error["pointer"] for error in refused.json()["errors"]] == ["/matrix/claude-opus-9"]
        assert accepted.status_code == 200
