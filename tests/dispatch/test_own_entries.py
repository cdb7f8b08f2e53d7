"""An entry that an organization made cannot open a policy: what answers in its name is held to the policy's rows."""

import itertools
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from datetime import date
from typing import Any

import pytest
from django.db import connection
from django.test.utils import CaptureQueriesContext
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from rest_framework.test import APIClient

from billing.models import CostEvent
from catalog.lookup import find_named
from catalog.models import CatalogEntry, Identity, ModelAlias
from integrations.keys import services as integrations
from profiles import services as profiles
from rensei.audit.models import AuditEvent
from rensei.core.secret import Secret
from rensei.dispatch.admission import admit
from rensei.dispatch.admission.requests import DispatchRequest, messages_from
from rensei.dispatch.models import Run
from rensei.orgs import kill_switches
from rensei.orgs import services as orgs
from rensei.orgs.access import Access, for_member
from rensei.orgs.kill_switches import Kind
from rensei.orgs.models import Project, User
from rensei.policies import services as policies
from rensei.policies.models import AccessPolicy
from rensei.policies.resolver import AuthModesUnsatisfiable, ModelNotAllowedByPolicy
from tests.drawn import examples

pytestmark = pytest.mark.django_db(transaction=True)

HAIKU, OPUS, NEWEST = "claude-haiku-4-5-20251001", "claude-opus-4-5-20251101", "claude-opus-5-5"
DENY = {"byok": {"allowed": False}}


@pytest.fixture
def api(api_as: Callable[..., APIClient], ada: User, ada_access: Access) -> APIClient:
    return api_as(ada)


@pytest.fixture
def own(api: APIClient, connect: Any, simulator: Any) -> str:
    """An entry of Acme's under a name of Haiku 4.5 that the catalog does not know yet."""
    connect()
    ModelAlias.objects.filter(name="claude-haiku-4-5").delete()
    body = {"provider": "claude", "modelId": "claude-haiku-4-5", "displayName": "Haiku"}
    assert api.post("/api/v1/catalog", body).status_code == 201
    profile = {"name": "deep", "provider": "claude", "modelId": "claude-haiku-4-5", "authModes": ["byok"]}
    assert api.post("/api/v1/profiles", profile).status_code == 201
    return "claude-haiku-4-5"


def dispatch(api: APIClient) -> Any:
    return api.post("/api/v1/runs", {"profileId": "prof_deep", "input": "Hi."})


class TestAnAnswerOfADeniedModel:
    def test_is_settled_as_what_it_was_and_the_next_call_is_refused(
        self, api: APIClient, own: str, work: Any, ada_access: Access, simulator: Any
    ) -> None:
        policies.set_policy(ada_access, matrix={HAIKU: DENY})

        first = dispatch(api)
        (run,) = work()
        second = dispatch(api)

        line = CostEvent.objects.get()
        assert first.status_code == 202
        assert run.state == Run.State.SUCCEEDED
        assert (line.model_id, line.served_model_id) == (own, HAIKU)
        assert line.amount_picodollars
        assert (second.status_code, second.json()["code"]) == (403, "MODEL_NOT_ALLOWED_BY_POLICY")
        assert f"the row '{HAIKU}' of the organization's access policy" in second.json()["detail"]
        assert Run.objects.count() == 1
        assert len([call for call in simulator.requests() if call["path"] == "/v1/messages"]) == 1

    def test_is_in_the_audit_log(self, api: APIClient, own: str, work: Any, ada_access: Access) -> None:
        policies.set_policy(ada_access, matrix={"claude": DENY, own: {"byok": {"allowed": True}}})
        dispatch(api)
        (run,) = work()

        event = AuditEvent.objects.get(action="catalog_entry.blocked")

        assert (event.org_id, event.object_id) == (ada_access.org.pk, own)
        assert event.detail == {
            "provider": "claude",
            "answeredBy": HAIKU,
            "runId": run.id,
            "mode": "byok",
            "policy": "organization",
            "row": "claude",
        }

    def test_is_told_by_the_dry_run_and_the_catalog(
        self, api: APIClient, own: str, work: Any, ada_access: Access
    ) -> None:
        policies.set_policy(ada_access, matrix={HAIKU: DENY})
        dispatch(api)
        work()

        preview = api.post("/api/v1/profiles/prof_deep/resolve", {}).json()

        assert (preview["wouldRun"], preview["code"]) == (False, "MODEL_NOT_ALLOWED_BY_POLICY")
        assert preview["trace"][0]["deniedBy"] == "organization"
        assert api.get(f"/api/v1/catalog/{own}").json()["answeredBy"] == [HAIKU]

    def test_stops_the_runs_that_wait(
        self, api: APIClient, own: str, work: Any, ada_access: Access, simulator: Any
    ) -> None:
        policies.set_policy(ada_access, matrix={HAIKU: DENY})
        for _ in range(3):
            assert dispatch(api).status_code == 202

        ended = work()

        assert [run.state for run in ended] == ["SUCCEEDED", "FAILED", "FAILED"]
        assert {run.error["code"] for run in ended[1:] if run.error} == {"MODEL_NOT_ALLOWED_BY_POLICY"}
        assert CostEvent.objects.count() == 1

    def test_is_not_forgotten_by_deleting_the_entry_and_adding_it_again(
        self, api: APIClient, own: str, work: Any, ada_access: Access
    ) -> None:
        policies.set_policy(ada_access, matrix={HAIKU: DENY})
        dispatch(api)
        work()
        assert api.delete("/api/v1/profiles/prof_deep").status_code == 204
        assert api.delete(f"/api/v1/catalog/{own}").status_code == 204
        api.post("/api/v1/catalog", {"provider": "claude", "modelId": own, "displayName": "Again"})
        api.post("/api/v1/profiles", {"name": "deep", "provider": "claude", "modelId": own, "authModes": ["byok"]})

        assert dispatch(api).json()["code"] == "MODEL_NOT_ALLOWED_BY_POLICY"

    def test_ends_with_the_row(self, api: APIClient, own: str, work: Any, ada_access: Access) -> None:
        policies.set_policy(ada_access, matrix={HAIKU: DENY})
        dispatch(api)
        work()
        policies.set_policy(ada_access, matrix={})

        assert dispatch(api).status_code == 202

    def test_concerns_no_other_organization(
        self, api: APIClient, own: str, work: Any, ada_access: Access, eve: User, access_of: Any
    ) -> None:
        elsewhere = CatalogEntry.objects.create(
            org=access_of(eve, "evil").org, provider="claude", model_id=own, display_name="H"
        )
        dispatch(api)
        work()

        assert Identity.objects.get().org == ada_access.org
        assert elsewhere.org_id != ada_access.org.pk


class TestAWaitingRun:
    def test_whose_id_becomes_a_name_of_a_denied_model_makes_no_call(
        self, api: APIClient, own: str, work: Any, ada_access: Access, simulator: Any
    ) -> None:
        policies.set_policy(ada_access, matrix={HAIKU: DENY})
        assert dispatch(api).status_code == 202
        ModelAlias.objects.create(entry=CatalogEntry.objects.get(org=None, model_id=HAIKU), provider="claude", name=own)

        (run,) = work()

        assert run.error is not None
        assert run.error["code"] == "MODEL_NOT_ALLOWED_BY_POLICY"
        assert f"'{own}' is a name of '{HAIKU}'" in run.error["detail"]
        assert not [call for call in simulator.requests() if call["path"] == "/v1/messages"]

    def test_whose_id_becomes_a_name_of_an_allowed_model_is_called(
        self, api: APIClient, own: str, work: Any, ada_access: Access
    ) -> None:
        assert dispatch(api).status_code == 202
        ModelAlias.objects.create(entry=CatalogEntry.objects.get(org=None, model_id=HAIKU), provider="claude", name=own)

        (run,) = work()

        assert run.state == Run.State.SUCCEEDED

    def test_makes_no_call_once_the_model_that_answers_is_paused(
        self, api: APIClient, own: str, work: Any, grace: User, simulator: Any
    ) -> None:
        assert dispatch(api).status_code == 202
        work()
        assert dispatch(api).status_code == 202
        kill_switches.stop(operator=grace, kind=Kind.MODEL, target=HAIKU, reason="It is wrong.")

        refused = dispatch(api)
        work()

        assert (refused.status_code, refused.json()["code"]) == (503, "PAUSED_BY_OPERATOR")
        codes = [run.error and run.error["code"] for run in Run.objects.order_by("created_at")]
        assert codes == [None, "PAUSED_BY_OPERATOR"]
        assert len([call for call in simulator.requests() if call["path"] == "/v1/messages"]) == 1


class TestAnAnswerOfAnAllowedModel:
    def test_is_noted_once_and_changes_nothing(self, api: APIClient, own: str, work: Any) -> None:
        for _ in range(2):
            assert dispatch(api).status_code == 202
            work()

        assert AuditEvent.objects.get(action="catalog_entry.identified").detail["answeredBy"] == HAIKU
        assert Identity.objects.count() == 1

    def test_is_refused_once_a_policy_denies_that_model(
        self, api: APIClient, own: str, work: Any, ada_access: Access
    ) -> None:
        dispatch(api)
        work()
        AccessPolicy.objects.create(scope="system", matrix={HAIKU: DENY})

        assert "the system's access policy" in dispatch(api).json()["detail"]


class TestAPlatformModel:
    def test_is_settled_without_asking_what_it_is(
        self, api: APIClient, connect: Any, make_profile: Any, work: Any, simulator: Any
    ) -> None:
        connect()
        make_profile()
        dispatch(api)

        with CaptureQueriesContext(connection) as queries:
            work()

        assert Run.objects.get().state == Run.State.SUCCEEDED
        assert "catalog_identity" not in str(queries.captured_queries)

    def test_that_a_denied_model_answers_for_is_blocked_and_told(
        self, api: APIClient, connect: Any, make_profile: Any, work: Any, ada_access: Access, simulator: Any
    ) -> None:
        connect()
        make_profile(model_id=NEWEST)
        policies.set_policy(ada_access, matrix={HAIKU: DENY})
        body = {"profileId": "prof_deep", "input": f"[[serve {HAIKU}]] Hi."}
        assert api.post("/api/v1/runs", body).status_code == 202

        (run,) = work()
        refused = api.post("/api/v1/runs", body)

        assert (run.state, CostEvent.objects.get().served_model_id) == (Run.State.SUCCEEDED, HAIKU)
        event = AuditEvent.objects.get(action="catalog_entry.blocked")
        assert (event.object_id, event.detail["answeredBy"], event.detail["row"]) == (NEWEST, HAIKU, HAIKU)
        assert (refused.status_code, refused.json()["code"]) == (403, "MODEL_NOT_ALLOWED_BY_POLICY")
        assert len([call for call in simulator.requests() if call["path"] == "/v1/messages"]) == 1
        policies.set_policy(ada_access, matrix={})
        assert api.post("/api/v1/runs", body).status_code == 202

    def test_that_an_allowed_model_answers_for_is_not_recorded(
        self, api: APIClient, connect: Any, make_profile: Any, work: Any, ada_access: Access, simulator: Any
    ) -> None:
        connect()
        make_profile(model_id=NEWEST)
        policies.set_policy(ada_access, matrix={OPUS: DENY})

        for _ in range(2):
            body = {"profileId": "prof_deep", "input": f"[[serve {HAIKU}]] Hi."}
            assert api.post("/api/v1/runs", body).status_code == 202
            work()

        assert not Identity.objects.exists()


class TestAnAnswerThatReportsNoUsage:
    @pytest.mark.parametrize("fault", ["nousage", "negativeusage", "truncate after=5", "cut after=5"])
    def test_still_tells_which_model_it_is(
        self, api: APIClient, own: str, work: Any, ada_access: Access, fault: str
    ) -> None:
        policies.set_policy(ada_access, matrix={HAIKU: DENY})
        body = {"profileId": "prof_deep", "input": f"Hi. [[reply 90 words]] [[fault:{fault} times=9]]"}
        assert api.post("/api/v1/runs", body).status_code == 202

        work()

        assert AuditEvent.objects.filter(action="catalog_entry.blocked").exists()
        assert dispatch(api).json()["code"] == "MODEL_NOT_ALLOWED_BY_POLICY"


# Which names mean which model, as the provider has it. The catalog knows all but those in UNKNOWN.
NAMES = {
    HAIKU: [HAIKU, f"anthropic/{HAIKU}", "claude-haiku-4-5", "anthropic/claude-haiku-4-5"],
    OPUS: [OPUS, f"anthropic/{OPUS}", "claude-opus-4-5"],
    NEWEST: [NEWEST, f"{NEWEST}[1m]", "claude-opus-4-1", "claude-opus-4-1-20250514", "anthropic/claude-opus-4-1"],
}
MODEL_OF = {name: model for model, names in NAMES.items() for name in names}
OWN_NAMES = ("claude-haiku-4-5", "claude-opus-4-5")
SCOPES = ("system", "organization", "project")
cells = st.fixed_dictionaries({"byok": st.booleans().map(lambda yes: {"allowed": yes})})
matrices = st.dictionaries(
    st.sampled_from([HAIKU, OPUS, NEWEST, "claude-haiku-4-5", "claude-opus-4-1-20250805", "claude", "*"]),
    cells,
    max_size=3,
)
numbers = itertools.count()


def denies(matrix: dict[str, Any], model: str) -> bool:
    """Whether a policy denies a model, as the documentation has it: its row, else the provider's, else all models'."""
    for row in (model, "claude", "*"):
        if row in matrix:
            return not matrix[row]["byok"]["allowed"]
    return False


class TestEverySpelling:
    @pytest.mark.timeout(300)
    @settings(max_examples=examples(25), deadline=None, suppress_health_check=list(HealthCheck))
    @given(
        spelled=st.lists(st.sampled_from(sorted(MODEL_OF)), min_size=1, max_size=3, unique=True),
        unknown=st.sets(st.sampled_from(OWN_NAMES)),
        retired=st.sets(st.sampled_from(OWN_NAMES)),
        three=st.tuples(matrices, matrices, matrices),
    )
    def test_reaches_a_denied_model_once_at_most_and_one_that_the_catalog_knows_never(
        self,
        catalog: None,
        simulator: Any,
        work: Any,
        make_key: Any,
        spelled: list[str],
        unknown: set[str],
        retired: set[str],
        three: tuple[dict[str, Any], ...],
    ) -> None:
        """Over real calls: what the provider answered with is compared with what the policies say of it."""
        number = next(numbers)
        simulator.reset()
        stage(make_key, number, unknown, retired, three)
        access = for_member(user=User.objects.get(email=f"p{number}@acme.test"), slug=f"org{number}")
        assert access is not None
        project = Project.objects.get(org=access.org)

        for name, _ in itertools.product(spelled, range(3)):
            profile_id = f"prof_n{sorted(MODEL_OF).index(name)}"
            request = DispatchRequest(
                profile_id=profile_id, project_id=project.slug, messages=messages_from(text="Hi.", messages=None)
            )
            with suppress(AuthModesUnsatisfiable, ModelNotAllowedByPolicy):
                admit.dispatch(access, request)
            work()

        reached = Counter(
            (run.asked_model_id, line.served_model_id)
            for run in Run.objects.filter(org=access.org)
            for line in CostEvent.objects.filter(run_id=run.id)
        )
        assert not Run.objects.filter(org=access.org).exclude(state=Run.State.SUCCEEDED).exists()
        for (name, model), times in reached.items():
            if any(denies(matrix, model) for matrix in three):
                is_own = name.removeprefix("anthropic/") in unknown
                assert times <= (1 if is_own else 0), (name, model, times, three)
            else:
                assert times == 3


def stage(make_key: Any, number: int, unknown: set[str], retired: set[str], three: tuple[dict[str, Any], ...]) -> None:
    """An organization with a key, policies of three scopes, a profile for each name, and entries for unknown ones."""
    for alias, model in (("claude-haiku-4-5", HAIKU), ("claude-opus-4-5", OPUS)):
        entry = CatalogEntry.objects.get(org=None, model_id=model)
        ModelAlias.objects.filter(name=alias).delete()
        if alias not in unknown:
            ModelAlias.objects.create(entry=entry, provider="claude", name=alias)
    user = User.objects.create_user(f"p{number}@acme.test", "correct horse battery")
    org = orgs.create_org(name=f"Org {number}", slug=f"org{number}", owner=user)
    project = Project.objects.create(org=org, slug="p", name="P")
    access = for_member(user=user, slug=org.slug)
    assert access is not None
    integrations.add_integration(access, provider="claude", api_key=Secret(make_key()), name="Main")
    for name in unknown:
        # A retired own entry is served by what it names, which is an own entry's name or a platform's.
        redirect = {"retires_on": date(2026, 1, 1), "replaced_by": HAIKU} if name in retired else {}
        CatalogEntry.objects.create(
            org=org,
            provider="claude",
            model_id=name,
            display_name=name,
            auth_modes=["byok"],
            max_output_tokens=1000,
            **redirect,
        )
    for place, name in enumerate(sorted(MODEL_OF)):
        assert find_named([("claude", name)], org=org), name
        profiles.create_profile(
            access, name=f"n{place}", provider="claude", model_id=name, auth_modes=["byok"], max_tokens=500
        )
    system, organization, within = three
    AccessPolicy.objects.filter(scope="system").delete()
    AccessPolicy.objects.create(scope="system", matrix=system)
    AccessPolicy.objects.create(scope="organization", org=org, matrix=organization)
    AccessPolicy.objects.create(scope="project", org=org, project=project, matrix=within)
