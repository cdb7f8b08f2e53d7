"""The doors: dispatch, dry run, list, detail, cancel; and what they refuse, with nothing written and nobody called."""

import base64
import io
from collections.abc import Callable
from typing import Any

import pytest
from PIL import Image
from rest_framework.test import APIClient

from billing.models import BillingSetting, CostEvent, Entitlement, Hold, SharedUsage
from integrations.keys import platform
from integrations.keys import services as integrations
from integrations.models import Integration
from profiles.models import ModelProfile
from rensei.core.clock import database_now
from rensei.core.secret import Secret
from rensei.dispatch.models import Attempt, IdempotencyKey, Run
from rensei.orgs.access import Access
from rensei.orgs.models import Host, Membership, Org, Project, User
from rensei.policies import services as policies
from rensei.tokens.services import create_token
from tests import factories

OPUS_4_1 = "claude-opus-4-1-20250514"


@pytest.fixture
def api(ada: User, ada_access: Access, api_as: Callable[..., APIClient]) -> APIClient:
    return api_as(ada)


@pytest.fixture
def pool_key(make_key: Callable[..., str], db: None) -> Callable[..., Any]:
    def add(pool: str, **fields: Any) -> Any:
        shared = {"model_ids": ["claude-opus-5-5"], "max_tokens_cap": 2000} if pool == "shared" else {}
        return platform.add_platform_key(
            actor=None, provider="claude", pool=pool, name="one", api_key=Secret(make_key()), **{**shared, **fields}
        )

    return add


def png(width: int = 40, height: int = 30) -> str:
    buffer = io.BytesIO()
    Image.new("RGB", (width, height), "teal").save(buffer, "PNG")
    return base64.b64encode(buffer.getvalue()).decode()


def picture(data: str, media_type: str = "image/png") -> list[dict[str, Any]]:
    source = {"type": "base64", "media_type": media_type, "data": data}
    return [{"role": "user", "content": [{"type": "image", "source": source}, {"type": "text", "text": "What is it?"}]}]


def assert_refused(answer: Any, status: int, code: str, simulator: Any) -> None:
    body = answer.json()
    assert (answer.status_code, body.get("code")) == (status, code), body
    assert answer["Content-Type"] == "application/problem+json"
    assert body["detail"]
    assert body["requestId"] == answer["X-Request-Id"]
    assert not Run.objects.exists()
    assert not Attempt.objects.exists()
    assert not CostEvent.objects.exists()
    assert not Hold.objects.exists()
    assert not IdempotencyKey.objects.exists()
    assert not SharedUsage.objects.exclude(used=0, held=0).exists()
    assert not [call for call in simulator.requests() if call["path"].startswith("/v1/messages")]


@pytest.mark.django_db
class TestPost:
    def test_queues_a_run_and_says_why_it_was_allowed(
        self,
        simulator: Any,
        api: APIClient,
        connect: Callable[..., Integration],
        make_profile: Callable[..., ModelProfile],
    ) -> None:
        connect()
        make_profile(auth_modes=["metered", "byok"])

        answer = api.post("/api/v1/runs", {"profileId": "prof_deep", "input": "Hi.", "metadata": {"snake_key": 1}})

        assert answer.status_code == 202
        body = answer.json()
        assert answer["Location"] == f"/api/v1/runs/{body['id']}"
        assert body["state"] == "QUEUED"
        assert body["authMode"] == "byok"
        assert body["payer"] == "organization"
        assert [line["verdict"] for line in body["trace"]] == [
            "chosen",
            "allowed",
            "not-in-profile",
            "not-in-profile",
            "not-in-profile",
        ]
        assert body["metadata"] == {"snake_key": 1}
        assert body["output"] is None
        assert body["cost"] == {"amountUsd": None, "billed": False, "estimated": False}

    def test_serves_a_retired_model_by_its_replacement_visibly(
        self,
        simulator: Any,
        api: APIClient,
        connect: Callable[..., Integration],
        make_profile: Callable[..., ModelProfile],
    ) -> None:
        connect()
        make_profile(model_id=OPUS_4_1)

        body = api.post("/api/v1/runs", {"profile_id": "prof_deep", "input": "Hi.", "effort": "high"}).json()

        assert (body["model"], body["servedModel"]) == (OPUS_4_1, "claude-opus-5-5")
        assert "is retired and served by 'claude-opus-5-5'" in body["trace"][0]["detail"]

    def test_serves_a_retired_model_as_asked_where_the_keys_own_list_still_holds_it(
        self, simulator: Any, api: APIClient, ada_access: Access, connect: Any, make_profile: Any
    ) -> None:
        integrations.check_integration(ada_access, connect("legacy"))
        make_profile(model_id=OPUS_4_1)

        body = api.post("/api/v1/runs", {"profileId": "prof_deep", "input": "Hi.", "effort": "high"}).json()

        assert body["servedModel"] == OPUS_4_1
        assert body["effortApplied"] == {"thinking": {"type": "enabled", "budget_tokens": 4096}}

    def test_uses_the_projects_default_profile_and_then_the_organizations(
        self, simulator: Any, api: APIClient, connect: Any, make_profile: Any, project: Project
    ) -> None:
        connect()
        make_profile(name="org wide", is_default=True)
        make_profile(name="of project", scope="project", project=project, is_default=True)

        in_project = api.post("/api/v1/runs", {"projectId": "my-project", "input": "Hi."}).json()
        outside = api.post("/api/v1/runs", {"input": "Hi."}).json()

        assert in_project["profileId"] == "prof_of_project"
        assert outside["profileId"] == "prof_org_wide"

    def test_takes_metered_where_the_project_is_narrowed_to_it(
        self,
        simulator: Any,
        api: APIClient,
        ada_access: Access,
        connect: Any,
        make_profile: Any,
        pool_key: Any,
        project: Any,
    ) -> None:
        connect()
        pool_key("metered")
        make_profile(auth_modes=["byok", "metered"])
        Entitlement.objects.filter(org=ada_access.org).update(metered_enabled=True)
        policies.set_policy(ada_access, matrix={"*": {"byok": {"allowed": False}}}, project=project)

        body = api.post("/api/v1/runs", {"profileId": "prof_deep", "projectId": "my-project", "input": "Hi."}).json()

        assert body["authMode"] == "metered"
        assert body["payer"] == "organization-via-rensei"
        assert body["trace"][0]["deniedBy"] == "project"

    def test_needs_at_most_twelve_queries_before_it_has_queued(
        self, simulator: Any, api: APIClient, connect: Any, make_profile: Any, django_assert_max_num_queries: Any
    ) -> None:
        connect()
        make_profile()
        api.post("/api/v1/runs", {"profileId": "prof_deep", "input": "warm"})

        with django_assert_max_num_queries(14) as counted:
            api.post("/api/v1/runs", {"profileId": "prof_deep", "input": "Hi."})

        mine = [query for query in counted.captured_queries if "SAVEPOINT" not in query["sql"]]
        assert len(mine) <= 12, [query["sql"][:90] for query in mine]


@pytest.mark.django_db
class TestRefusals:
    """Each with the documented code, the step that mends it, nothing written and no call made."""

    @pytest.mark.parametrize(
        ("body", "pointer"),
        [
            ({"input": "Hi.", "messages": []}, "/input"),
            ({}, "/input"),
            ({"input": "  "}, "/input"),
            ({"messages": []}, "/messages"),
            ({"messages": "Hi."}, "/messages"),
            ({"messages": [{"role": "system", "content": "x"}]}, "/messages/0/role"),
            ({"messages": [{"role": "user", "content": []}]}, "/messages/0/content"),
            ({"messages": [{"role": "user", "content": [{"type": "video"}]}]}, "/messages/0/content/0"),
            ({"messages": [{"role": "assistant", "content": "x"}]}, "/messages/0/role"),
            ({"input": "Hi.", "systemm": "x"}, "/systemm"),
            ({"input": "Hi.", "max_tokens": -1}, "/maxTokens"),
            ({"input": "Hi.", "maxTokens": "many"}, "/maxTokens"),
            ({"input": "Hi.", "effort": "enormous"}, "/effort"),
            ({"input": "Hi.", "system": [{"type": "image"}]}, "/system/0/type"),
            ({"input": "Hi.", "metadata": []}, "/metadata"),
            (
                {"input": "Hi.", "providerConfig": {"anthropic": {"contextWindw": 1}}},
                "/providerConfig/anthropic/contextWindw",
            ),
            ({"input": "Hi.", "providerConfig": {"openai": {}}}, "/providerConfig/openai"),
            (
                {"input": "Hi.", "providerConfig": {"anthropic": {"contextWindow": -1}}},
                "/providerConfig/anthropic/contextWindow",
            ),
            (
                {"input": "Hi.", "providerConfig": {"anthropic": {"contextWindow": 0}}},
                "/providerConfig/anthropic/contextWindow",
            ),
            (
                {"input": "Hi.", "providerConfig": {"anthropic": {"contextWindow": "9"}}},
                "/providerConfig/anthropic/contextWindow",
            ),
            (
                {"input": "Hi.", "providerConfig": {"anthropic": {"contextWindow": True}}},
                "/providerConfig/anthropic/contextWindow",
            ),
            (
                {"input": "Hi.", "providerConfig": {"anthropic": {"contextWindow": 2_000_000}}},
                "/providerConfig/anthropic/contextWindow",
            ),
        ],
    )
    def test_a_body_of_the_wrong_shape(
        self, simulator: Any, api: APIClient, connect: Any, make_profile: Any, body: Any, pointer: str
    ) -> None:
        connect()
        make_profile()

        answer = api.post("/api/v1/runs", {"profileId": "prof_deep", **body}, HTTP_IDEMPOTENCY_KEY="k")

        assert_refused(answer, 400, "VALIDATION_FAILED", simulator)
        assert pointer in {error["pointer"] for error in answer.json()["errors"]}, answer.json()

    def test_a_body_that_is_not_json(self, simulator: Any, api: APIClient) -> None:
        answer = api.post("/api/v1/runs", data="{", content_type="application/json")

        assert_refused(answer, 400, "VALIDATION_FAILED", simulator)

    def test_a_body_of_33_megabytes(self, simulator: Any, api: APIClient) -> None:
        huge = '{"input": "' + "x" * 33 * 1024 * 1024 + '"}'

        answer = api.post("/api/v1/runs", data=huge, content_type="application/json")

        assert_refused(answer, 413, "REQUEST_TOO_LARGE", simulator)

    def test_no_profile_named_and_no_default(self, simulator: Any, api: APIClient) -> None:
        assert_refused(api.post("/api/v1/runs", {"input": "Hi."}), 422, "PROFILE_REQUIRED", simulator)

    @pytest.mark.parametrize(
        "body", [{"profileId": "prof_nobody"}, {"projectId": "nowhere"}, {"profileId": "x\u0000"}, {"profileId": "💥"}]
    )
    def test_an_unknown_profile_or_project(
        self, simulator: Any, api: APIClient, connect: Any, make_profile: Any, body: Any
    ) -> None:
        connect()
        make_profile(is_default=True)

        answer = api.post("/api/v1/runs", {"input": "Hi.", **body})

        assert answer.status_code in {400, 404}
        assert_refused(answer, answer.status_code, answer.json()["code"], simulator)

    def test_a_profile_of_another_project(
        self, simulator: Any, api: APIClient, ada_access: Access, connect: Any, make_profile: Any, project: Project
    ) -> None:
        connect()
        Project.objects.create(org=ada_access.org, slug="other", name="Other")
        make_profile(scope="project", project=project)

        answer = api.post("/api/v1/runs", {"profileId": "prof_deep", "projectId": "other", "input": "Hi."})

        assert_refused(answer, 404, "NOT_FOUND", simulator)
        assert answer.json()["errors"][0]["pointer"] == "/profileId"

    @pytest.mark.parametrize(
        ("body", "pointer"), [({"profileId": "prof_none"}, "/profileId"), ({"projectId": "none"}, "/projectId")]
    )
    def test_an_unknown_id_with_the_field_that_it_stands_in(
        self, simulator: Any, api: APIClient, connect: Any, make_profile: Any, body: Any, pointer: str
    ) -> None:
        connect()
        make_profile(is_default=True)

        answer = api.post("/api/v1/runs", {"input": "Hi.", **body})

        assert_refused(answer, 404, "NOT_FOUND", simulator)
        assert answer.json()["errors"][0]["pointer"] == pointer

    def test_a_number_that_is_a_text(self, simulator: Any, api: APIClient, connect: Any, make_profile: Any) -> None:
        connect()
        make_profile(is_default=True)

        answer = api.post("/api/v1/runs", {"input": "Hi.", "maxTokens": "5"})

        assert_refused(answer, 400, "VALIDATION_FAILED", simulator)
        assert answer.json()["errors"][0]["pointer"] == "/maxTokens"

    @pytest.mark.parametrize("pool", ["nowhere", "e2b", "vercel", "modal"])
    def test_a_pool_that_cannot_take_the_run(
        self, simulator: Any, api: APIClient, connect: Any, make_profile: Any, pool: str
    ) -> None:
        connect()
        make_profile()

        answer = api.post("/api/v1/runs", {"profileId": "prof_deep", "input": "Hi.", "pool": pool})

        assert_refused(answer, 409, "NO_ELIGIBLE_POOL", simulator)

    def test_no_key_connected_even_where_metered_would_do(
        self, simulator: Any, api: APIClient, ada_access: Access, make_profile: Any, pool_key: Any
    ) -> None:
        pool_key("metered")
        Entitlement.objects.filter(org=ada_access.org).update(metered_enabled=True)
        make_profile(auth_modes=["byok", "metered"])

        answer = api.post("/api/v1/runs", {"profileId": "prof_deep", "input": "Hi."})

        assert_refused(answer, 409, "BYOK_NOT_CONFIGURED", simulator)
        assert answer.json()["trace"][0]["verdict"] == "gate-failed"
        assert answer.json()["trace"][1]["verdict"] == "allowed"

    def test_metered_without_entitlement(
        self, simulator: Any, api: APIClient, make_profile: Any, pool_key: Any
    ) -> None:
        pool_key("metered")
        make_profile(auth_modes=["metered"])

        answer = api.post("/api/v1/runs", {"profileId": "prof_deep", "input": "Hi."})

        assert_refused(answer, 403, "METERED_NOT_ENTITLED", simulator)
        assert answer.json()["detail"].startswith("Organisation is not entitled to use metered auth mode")

    def test_metered_without_a_key(self, simulator: Any, api: APIClient, ada_access: Access, make_profile: Any) -> None:
        Entitlement.objects.filter(org=ada_access.org).update(metered_enabled=True)
        make_profile(auth_modes=["metered"])

        answer = api.post("/api/v1/runs", {"profileId": "prof_deep", "input": "Hi."})

        assert_refused(answer, 503, "METERED_KEY_NOT_CONFIGURED", simulator)
        assert answer.json()["detail"].startswith("No metered key is configured for provider 'claude'")

    @pytest.mark.parametrize("models", [None, ["claude-haiku-5-5"]])
    def test_shared_without_a_key_for_the_model(
        self, simulator: Any, api: APIClient, make_profile: Any, pool_key: Any, models: Any
    ) -> None:
        if models:
            pool_key("shared", model_ids=models)
        make_profile(auth_modes=["shared"])

        answer = api.post("/api/v1/runs", {"profileId": "prof_deep", "input": "Hi."})

        assert_refused(answer, 503, "SHARED_KEY_NOT_CONFIGURED", simulator)
        assert f"free tier serves ({', '.join(models or ['none now'])})" in answer.json()["detail"]

    def test_shared_beyond_the_days_quota(
        self, simulator: Any, api: APIClient, ada_access: Access, make_profile: Any, pool_key: Any
    ) -> None:
        pool_key("shared")
        make_profile(auth_modes=["shared"])
        Entitlement.objects.filter(org=ada_access.org).update(shared_runs_per_day=0)

        answer = api.post("/api/v1/runs", {"profileId": "prof_deep", "input": "Hi."})

        assert_refused(answer, 429, "SHARED_QUOTA_EXCEEDED", simulator)
        body = answer.json()
        assert (body["used"], body["limit"], body["retryable"]) == (0, 0, True)
        assert body["resetsAt"].endswith("T00:00:00Z")
        assert 0 < int(answer["Retry-After"]) <= 86_400

    @pytest.mark.parametrize("pool", ["sandbox", "e2b", "vercel", "modal"])
    def test_a_host_session_in_the_cloud(self, simulator: Any, api: APIClient, make_profile: Any, pool: str) -> None:
        make_profile(auth_modes=["host-session"])

        answer = api.post("/api/v1/runs", {"profileId": "prof_deep", "input": "Hi.", "pool": pool})

        assert_refused(answer, 409, "AUTH_MODE_REQUIRES_LOCAL_CAPACITY", simulator)

    def test_a_host_session_on_nobodys_or_another_members_machine(
        self, simulator: Any, api: APIClient, ada_access: Access, make_profile: Any, mia: User
    ) -> None:
        make_profile(auth_modes=["host-session"])
        hers = Host.objects.create(org=ada_access.org, owner=mia, name="mia's")

        for body in ({}, {"hostId": hers.id}, {"hostId": "host_nobodys"}):
            answer = api.post("/api/v1/runs", {"profileId": "prof_deep", "input": "Hi.", **body})

            assert_refused(answer, 409, "HOST_SESSION_WRONG_MACHINE", simulator)

    def test_what_no_policy_leaves(
        self, simulator: Any, api: APIClient, ada_access: Access, connect: Any, make_profile: Any
    ) -> None:
        connect()
        make_profile()
        policies.set_policy(ada_access, matrix={"claude-opus-5-5": {"byok": {"allowed": False}}})

        answer = api.post("/api/v1/runs", {"profileId": "prof_deep", "input": "Hi."})

        assert_refused(answer, 403, "AUTHMODES_UNSATISFIABLE", simulator)
        assert answer.json()["trace"][0]["deniedBy"] == "organization"

    def test_an_effort_that_the_model_lacks(
        self, simulator: Any, api: APIClient, connect: Any, make_profile: Any
    ) -> None:
        connect()
        make_profile(model_id="claude-haiku-4-5-20251001")

        answer = api.post("/api/v1/runs", {"profileId": "prof_deep", "input": "Hi.", "effort": "max"})

        assert_refused(answer, 422, "EFFORT_NOT_SUPPORTED", simulator)

    @pytest.mark.parametrize(
        ("data", "media_type"),
        [("bm90IGFuIGltYWdl", "image/png"), ("not base64!", "image/png"), ("", "image/png")],
    )
    def test_what_is_not_an_image(
        self, simulator: Any, api: APIClient, connect: Any, make_profile: Any, data: str, media_type: str
    ) -> None:
        connect()
        make_profile()

        answer = api.post("/api/v1/runs", {"profileId": "prof_deep", "messages": picture(data, media_type)})

        assert_refused(answer, 422, "INVALID_IMAGE", simulator)

    def test_a_prompt_above_the_window_with_both_numbers(
        self, simulator: Any, api: APIClient, connect: Any, make_profile: Any
    ) -> None:
        connect()
        make_profile()
        config = {"anthropic": {"contextWindow": 1000}}

        answer = api.post("/api/v1/runs", {"profileId": "prof_deep", "input": "word " * 1001, "providerConfig": config})

        assert_refused(answer, 422, "CONTEXT_WINDOW_EXCEEDED", simulator)
        assert "1001" in answer.json()["detail"]
        assert "1000" in answer.json()["detail"]

    def test_an_unpriced_model_under_metered(
        self, simulator: Any, api: APIClient, ada_access: Access, make_profile: Any, pool_key: Any
    ) -> None:
        from catalog.services import create_entry

        create_entry(ada_access, provider="claude", model_id="claude-tomorrow-9", display_name="Tomorrow")
        Entitlement.objects.filter(org=ada_access.org).update(metered_enabled=True)
        pool_key("metered")
        make_profile(model_id="claude-tomorrow-9", auth_modes=["metered"])

        answer = api.post("/api/v1/runs", {"profileId": "prof_deep", "input": "Hi."})

        assert_refused(answer, 409, "MODEL_UNPRICED", simulator)

    def test_an_auditor(self, simulator: Any, otto: User, api_as: Any, connect: Any, make_profile: Any) -> None:
        connect()
        make_profile()

        answer = api_as(otto).post("/api/v1/runs", {"profileId": "prof_deep", "input": "Hi."})

        assert_refused(answer, 403, "NOT_PERMITTED", simulator)

    def test_another_organizations_profile_project_machine_and_run(
        self, simulator: Any, eve: User, api_as: Any, connect: Any, make_profile: Any, project: Any, catalog: None
    ) -> None:
        connect()
        make_profile()
        evil = api_as(eve, "evil")

        for body in ({"profileId": "prof_deep"}, {"projectId": "my-project"}):
            answer = evil.post("/api/v1/runs", {"input": "Hi.", **body})

            assert_refused(answer, 404, "NOT_FOUND", simulator)


@pytest.mark.django_db
class TestIdempotency:
    def test_gives_the_same_run_for_the_same_body_however_it_is_spelled(
        self, simulator: Any, api: APIClient, connect: Any, make_profile: Any
    ) -> None:
        connect()
        make_profile()
        first = api.post("/api/v1/runs", {"profileId": "prof_deep", "input": "Hi."}, HTTP_IDEMPOTENCY_KEY="once")

        again = api.post("/api/v1/runs", {"input": "Hi.", "profileId": "prof_deep"}, HTTP_IDEMPOTENCY_KEY="once")

        assert again.status_code == 202
        assert again.json()["id"] == first.json()["id"]
        assert Run.objects.count() == 1

    def test_refuses_the_key_with_another_body(
        self, simulator: Any, api: APIClient, connect: Any, make_profile: Any
    ) -> None:
        connect()
        make_profile()
        api.post("/api/v1/runs", {"profileId": "prof_deep", "input": "Hi."}, HTTP_IDEMPOTENCY_KEY="once")

        answer = api.post("/api/v1/runs", {"profileId": "prof_deep", "input": "Ho."}, HTTP_IDEMPOTENCY_KEY="once")

        assert answer.status_code == 422
        assert answer.json()["code"] == "IDEMPOTENCY_KEY_REUSED"
        assert Run.objects.count() == 1

    def test_keeps_the_keys_of_two_organizations_apart(
        self,
        simulator: Any,
        api: APIClient,
        eve: User,
        api_as: Any,
        access_of: Any,
        connect: Any,
        make_profile: Any,
        make_key: Any,
    ) -> None:
        connect()
        make_profile()
        hers = access_of(eve, "evil")
        factories.connect_key(hers, make_key())
        factories.create_profile(hers)
        body = {"profileId": "prof_deep", "input": "Hi."}
        first = api.post("/api/v1/runs", body, HTTP_IDEMPOTENCY_KEY="once")

        answer = api_as(eve, "evil").post("/api/v1/runs", body, HTTP_IDEMPOTENCY_KEY="once")

        assert answer.status_code == 202
        assert answer.json()["id"] != first.json()["id"]


@pytest.mark.django_db
class TestResolveDryRun:
    def test_says_what_would_happen_and_changes_nothing(
        self, simulator: Any, api: APIClient, connect: Any, make_profile: Any, pool_key: Any
    ) -> None:
        connect()
        pool_key("shared")
        make_profile(auth_modes=["byok", "metered", "shared"])

        answer = api.post("/api/v1/profiles/prof_deep/resolve", {"input": "word " * 1000, "maxTokens": 1000})

        body = answer.json()
        assert answer.status_code == 200
        assert (body["authMode"], body["payer"], body["wouldRun"], body["code"]) == ("byok", "organization", True, None)
        assert [quote["mode"] for quote in body["quotes"]] == ["byok", "metered", "shared"]
        assert [quote["code"] for quote in body["quotes"]] == [None, "METERED_NOT_ENTITLED", None]
        byok = body["quotes"][0]
        assert 0 < float(byok["expectedUsd"]) < float(byok["maxUsd"])
        assert not Run.objects.exists()
        assert not SharedUsage.objects.exclude(held=0).exists()

    @pytest.mark.parametrize("body", [None, {}, {"pool": "local"}])
    def test_takes_a_body_with_everything_left_out(
        self, simulator: Any, api: APIClient, make_profile: Any, body: Any
    ) -> None:
        make_profile()

        answer = api.post("/api/v1/profiles/prof_deep/resolve", body)

        assert answer.status_code == 200
        assert answer.json()["code"] == "BYOK_NOT_CONFIGURED"
        assert answer.json()["wouldRun"] is False

    def test_does_not_take_null_for_a_body_with_everything_left_out(
        self, simulator: Any, api: APIClient, make_profile: Any
    ) -> None:
        make_profile()

        answer = api.generic("POST", "/api/v1/profiles/prof_deep/resolve", "null", content_type="application/json")

        assert (answer.status_code, answer.json()["code"]) == (400, "VALIDATION_FAILED")

    def test_shows_the_quota_as_a_dispatch_would_judge_it(
        self, simulator: Any, api: APIClient, ada_access: Access, make_profile: Any, pool_key: Any
    ) -> None:
        pool_key("shared")
        make_profile(auth_modes=["shared"])
        BillingSetting.objects.update_or_create(id=1, defaults={"shared_runs_per_day": 0})

        assert api.post("/api/v1/profiles/prof_deep/resolve", {}).json()["code"] == "SHARED_QUOTA_EXCEEDED"


@pytest.mark.django_db
class TestListAndDetail:
    def test_lists_newest_first_by_pages_and_filters(
        self, simulator: Any, api: APIClient, connect: Any, make_profile: Any, django_assert_max_num_queries: Any
    ) -> None:
        connect()
        make_profile()
        made = [api.post("/api/v1/runs", {"profileId": "prof_deep", "input": f"{n}"}).json()["id"] for n in range(5)]

        with django_assert_max_num_queries(4):
            first = api.get("/api/v1/runs?pageSize=3").json()
        second = api.get(first["next"]).json()

        assert [run["id"] for run in first["results"] + second["results"]] == made[::-1]
        assert second["next"] is None
        assert api.get("/api/v1/runs?state=FAILED").json()["results"] == []
        assert len(api.get("/api/v1/runs?authMode=byok&profileId=prof_deep").json()["results"]) == 5
        assert api.get("/api/v1/runs?state=DANCING").status_code == 400
        assert api.get("/api/v1/runs?stat=FAILED").json()["errors"][0]["pointer"] == "/query/stat"

    def test_finds_by_words_model_member_and_error(
        self, simulator: Any, api: APIClient, access: Access, eve: User, api_as: Any, connect: Any, make_profile: Any
    ) -> None:
        connect()
        make_profile()
        sky = api.post("/api/v1/runs", {"profileId": "prof_deep", "input": "Why is the sky blue?"}).json()["id"]
        sea = api.post("/api/v1/runs", {"profileId": "prof_deep", "input": "Why is the sea blue?"}).json()["id"]
        Run.objects.filter(id=sea).update(error={"code": "PROVIDER_UNFUNDED", "detail": "", "fix": ""})
        token, _ = create_token(access, name="ci")
        Run.objects.filter(id=sky).update(token_id=token.id)
        now = f"{database_now():%Y-%m-%dT%H:%M:%SZ}"

        for query, found in (
            ("q=blue", [sea, sky]),
            ("q=sky+ada", [sky]),
            ("q=sky+mia", []),
            ("q=", [sea, sky]),
            ("q=%27%22", []),
            (f"q=blue&createdAfter={now[:10]}T00:00:00Z", [sea, sky]),
            ("q=blue&createdBefore=2000-01-01T00:00:00Z", []),
            ("q=blue&createdAfter=0001-01-01T00:00:00Z", [sea, sky]),
            ("q=blue&createdBefore=9999-12-31T23:59:59Z", [sea, sky]),
            ("createdAfter=9999-12-31T23:59:59Z", []),
            ("createdBefore=0001-01-01T00:00:00Z", []),
            ("code=PROVIDER_UNFUNDED", [sea]),
            (f"memberId={access.membership.id}", [sea, sky]),
            ("memberId=mbr_other", []),
            (f"tokenId={token.id}", [sky]),
            ("tokenId=tok_other", []),
            ("servedModel=claude-opus-5-5&q=sea", [sea]),
            ("servedModel=other", []),
        ):
            assert [run["id"] for run in api.get(f"/api/v1/runs?{query}").json()["results"]] == found, query
        assert api_as(eve, "evil").get("/api/v1/runs?q=blue").json()["results"] == []
        assert api.get(f"/api/v1/runs?q={'a' * 201}").status_code == 400

    def test_reads_a_stated_number_of_runs_for_a_page_and_leads_on(
        self, simulator: Any, api: APIClient, connect: Any, make_profile: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        connect()
        make_profile()
        monkeypatch.setattr("rensei.dispatch.run_filter.READ_AT_ONCE", 3)
        ids = [api.post("/api/v1/runs", {"profileId": "prof_deep", "input": "Hi."}).json()["id"] for _ in range(8)]
        wanted = [ids[6], ids[5], ids[0]]
        Run.objects.filter(id__in=wanted).update(error={"code": "PROVIDER_UNFUNDED", "detail": "", "fix": ""})

        def walk(address: str | None, link: str) -> list[list[str]]:
            pages = []
            while address and len(pages) < 9:
                page = api.get(address).json()
                pages.append([run["id"] for run in page["results"]])
                address, walk.last = page[link], address  # type: ignore[attr-defined]
            return pages

        assert walk("/api/v1/runs?code=PROVIDER_UNFUNDED", "next") == [wanted[:2], [], wanted[2:]]
        assert walk(walk.last, "previous") == [wanted[2:], [], wanted[:2], []]  # type: ignore[attr-defined]
        single = walk("/api/v1/runs?code=PROVIDER_UNFUNDED&pageSize=1", "next")
        assert [run_id for page in single for run_id in page] == wanted
        assert walk("/api/v1/runs?pageSize=8", "next") == [ids[::-1]]

    def test_finds_no_member_of_another_organization(
        self, simulator: Any, api: APIClient, acme: Org, ada: User, eve: User, api_as: Any, connect: Any,
        make_profile: Any, page_as: Any,
    ) -> None:  # fmt: skip
        connect()
        make_profile()
        run = api.post("/api/v1/runs", {"profileId": "prof_deep", "input": "Hi."}).json()["id"]
        other = Membership.objects.create(org=Org.objects.get(slug="evil"), user=ada, role="member")

        assert api.get(f"/api/v1/runs?memberId={other.id}").json()["results"] == []
        assert run not in page_as(ada).get(f"/o/acme/runs?member={other.id}").content.decode()

    def test_hides_a_run_of_another_organization_byte_for_byte(
        self, simulator: Any, api: APIClient, eve: User, api_as: Any, connect: Any, make_profile: Any
    ) -> None:
        connect()
        make_profile()
        run_id = api.post("/api/v1/runs", {"profileId": "prof_deep", "input": "Hi."}).json()["id"]
        evil = api_as(eve, "evil")

        for path in ("", "/events", "/cancel"):
            call = evil.post if path == "/cancel" else evil.get
            theirs = call(f"/api/v1/runs/{run_id}{path}")
            absent = call(f"/api/v1/runs/run_00000000000000000000000000{path}")

            assert theirs.status_code == absent.status_code == 404
            assert {**theirs.json(), "requestId": None} == {**absent.json(), "requestId": None}
        assert evil.get("/api/v1/runs").json()["results"] == []

    def test_cancels_a_queued_run_at_once_and_only_once(
        self, simulator: Any, api: APIClient, connect: Any, make_profile: Any
    ) -> None:
        connect()
        make_profile()
        run_id = api.post("/api/v1/runs", {"profileId": "prof_deep", "input": "Hi."}).json()["id"]

        cancelled = api.post(f"/api/v1/runs/{run_id}/cancel")
        again = api.post(f"/api/v1/runs/{run_id}/cancel")

        assert (cancelled.status_code, cancelled.json()["state"]) == (200, "CANCELLED")
        assert (again.status_code, again.json()["code"]) == (409, "RUN_NOT_CANCELLABLE")
