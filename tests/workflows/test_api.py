"""REST: apply a document, run it, look at it, cancel it; and what is refused, with nothing written."""

import asyncio
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
from asgiref.sync import sync_to_async
from django.db import connections
from django.test import AsyncClient
from rest_framework.test import APIClient

from rensei.audit.models import AuditEvent
from rensei.dispatch.models import Run
from rensei.orgs import row_limits
from rensei.orgs import services as orgs
from rensei.orgs.access import Access
from rensei.orgs.models import Project, User
from rensei.tokens.services import create_token
from rensei.workflows import live
from rensei.workflows.models import Workflow, WorkflowRun
from tests.workflows.conftest import DOCUMENTED, node, workflow

URL = "/api/v1/workflows"


@pytest.fixture
def api(ada: User, ada_access: Access, api_as: Callable[..., APIClient]) -> APIClient:
    return api_as(ada)


@pytest.fixture
def applied(api: APIClient, make_profile: Any) -> dict[str, Any]:
    make_profile()
    return api.post(URL, {"document": workflow(node("a", "Hello {{ input.name }}"))}).json()


@pytest.mark.django_db
class TestApply:
    def test_makes_a_workflow_of_the_documentations_node(self, api: APIClient, deep_reasoning: Any) -> None:
        answer = api.post(URL, {"document": DOCUMENTED})

        body = answer.json()
        assert answer.status_code == 201
        assert answer["Location"] == f"{URL}/{body['id']}"
        assert (body["name"], body["version"], body["projectId"]) == ("llm_call_1", 1, None)
        assert body["document"] == DOCUMENTED

    def test_takes_a_document_as_an_object(self, api: APIClient, make_profile: Any) -> None:
        make_profile()

        assert api.post(URL, {"document": workflow(node("a", "Hi."))}).status_code == 201

    def test_makes_no_more_workflows_than_an_organization_may_have(
        self, api: APIClient, make_profile: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        make_profile()
        monkeypatch.setattr(row_limits, "WORKFLOWS", replace(row_limits.WORKFLOWS, most=1))

        first = api.post(URL, {"document": workflow(node("a", "Hi."))})
        refused = api.post(URL, {"document": workflow(node("a", "Hi."), name="other")})
        changed = api.post(URL, {"document": workflow(node("a", "Hello."))})

        assert (first.status_code, refused.status_code, changed.status_code) == (201, 403, 200)
        assert (refused.json()["code"], changed.json()["version"]) == ("LIMIT_REACHED", 2)

    def test_makes_no_version_of_the_same_document_again(self, api: APIClient, deep_reasoning: Any) -> None:
        first = api.post(URL, {"document": DOCUMENTED}).json()

        again = api.post(URL, {"document": DOCUMENTED.replace("\n", "\r\n")})

        assert again.status_code == 200
        assert (again.json()["id"], again.json()["version"]) == (first["id"], 1)

    def test_adds_a_version_of_another_document(self, api: APIClient, deep_reasoning: Any) -> None:
        api.post(URL, {"document": DOCUMENTED})

        again = api.post(URL, {"document": DOCUMENTED.replace("deeply", "fast")}).json()

        assert again["version"] == 2
        assert [version["version"] for version in again["versions"]] == [2, 1]
        assert again["versions"][0]["createdBy"] == "ada@acme.test"

    def test_names_line_node_and_field(self, api: APIClient, deep_reasoning: Any) -> None:
        answer = api.post(URL, {"document": DOCUMENTED.replace("deep_reasoning", "reasoning")})

        body = answer.json()
        assert (answer.status_code, body["code"]) == (422, "WORKFLOW_INVALID")
        assert body["detail"].startswith("Line 4, node 'llm_call_1', config.profileId: There is no profile")
        assert body["errors"] == [
            {
                "pointer": "/config/profileId",
                "code": "invalid",
                "detail": "There is no profile 'prof_anthropic_reasoning' here.",
                "line": 4,
                "node": "llm_call_1",
                "field": "config.profileId",
            }
        ]
        assert not Workflow.objects.exists()

    @pytest.mark.parametrize(
        ("config", "field", "word"),
        [
            ({"effort": "max"}, "config.effort", "offers low, medium, high"),
            ({"providerConfig": {"anthropic": {"contextWindow": 0}}}, "config.providerConfig", "positive"),
            ({"providerConfig": {"anthropic": {"window": 1}}}, "config.providerConfig", "Did you mean"),
            ({"providerConfig": {"openai": {}}}, "config.providerConfig", "Did you mean"),
        ],
    )
    def test_checks_settings_against_the_profiles_model(
        self, api: APIClient, make_profile: Any, config: Any, field: str, word: str
    ) -> None:
        make_profile(model_id="claude-opus-4-5-20251101")

        answer = api.post(URL, {"document": workflow(node("a", "Hi.", **config))}).json()

        assert answer["code"] == "WORKFLOW_INVALID"
        assert answer["errors"][0]["field"] == field
        assert word in answer["errors"][0]["detail"]

    def test_refuses_a_profile_of_another_project(
        self, api: APIClient, deep_reasoning: Any, ada_access: Access
    ) -> None:
        orgs.create_project(ada_access, slug="other", name="Other")

        own = api.post(URL, {"document": DOCUMENTED, "projectId": "my-project"})
        others = api.post(URL, {"document": DOCUMENTED.replace("call_1", "call_2"), "projectId": "other"})

        assert own.status_code == 201
        assert others.json()["code"] == "WORKFLOW_INVALID"

    def test_keeps_a_name_in_its_project(self, api: APIClient, make_profile: Any, project: Project) -> None:
        make_profile()
        document = workflow(node("a", "Hi."))
        api.post(URL, {"document": document, "projectId": "my-project"})

        again = api.post(URL, {"document": document})
        orgs_ = api.post(URL, {"document": document, "projectId": None})

        assert again.status_code == 200
        assert again.json()["projectId"] == "my-project"
        assert orgs_.status_code == 200

    def test_refuses_an_unknown_project_and_a_document_that_is_none(self, api: APIClient, make_profile: Any) -> None:
        make_profile()

        assert api.post(URL, {"document": workflow(node("a", "Hi.")), "projectId": "x"}).status_code == 404
        assert api.post(URL, {"document": 7}).status_code == 400
        assert api.post(URL, {}).status_code == 400

    def test_refuses_whoever_only_reads(self, otto: User, api_as: Any, make_profile: Any) -> None:
        make_profile()

        assert api_as(otto).post(URL, {"document": workflow(node("a", "Hi."))}).status_code == 403

    def test_leaves_what_is_everyones_alone_with_a_projects_token(
        self, ada: User, api_as: Any, applied: Any, project: Project
    ) -> None:
        bound = api_as(ada, project=project)

        assert bound.get(f"{URL}/{applied['id']}").status_code == 200
        assert bound.put(f"{URL}/{applied['id']}", {"document": DOCUMENTED}).status_code == 403
        assert bound.delete(f"{URL}/{applied['id']}").status_code == 403
        assert bound.post(URL, {"document": workflow(node("a", "Bye."))}).status_code == 409


@pytest.mark.django_db
class TestWorkflow:
    def test_is_listed_and_found_by_name(self, api: APIClient, applied: Any) -> None:
        listed = api.get(URL).json()["results"]

        assert [one["id"] for one in listed] == [applied["id"]]
        assert "document" not in listed[0]
        assert api.get(URL, {"name": "flow"}).json()["results"] == listed
        assert api.get(URL, {"name": "other"}).json()["results"] == []

    def test_is_renamed_by_its_document(self, api: APIClient, applied: Any) -> None:
        answer = api.put(f"{URL}/{applied['id']}", {"document": workflow(node("a", "Hi."), name="new name")})

        assert answer.status_code == 200
        assert (answer.json()["name"], answer.json()["version"]) == ("new name", 2)

    def test_does_not_take_anothers_name(self, api: APIClient, applied: Any) -> None:
        api.post(URL, {"document": workflow(node("a", "Hi."), name="taken")})

        answer = api.put(f"{URL}/{applied['id']}", {"document": workflow(node("a", "Hi."), name="taken")})

        assert (answer.status_code, answer.json()["code"]) == (409, "ALREADY_EXISTS")

    def test_is_deleted_with_a_trace(self, api: APIClient, applied: Any) -> None:
        assert api.delete(f"{URL}/{applied['id']}").status_code == 204
        assert api.get(f"{URL}/{applied['id']}").status_code == 404
        assert AuditEvent.objects.filter(action="workflow.deleted", object_id=applied["id"]).exists()


@pytest.mark.django_db(transaction=True)
class TestRun:
    def test_answers_202_with_its_nodes(self, api: APIClient, ready: Any, api_document: Any) -> None:
        made = api_document(node("a", "Hello {{ input.name }}"), node("b", "And {{ nodes.a.output }}"))

        answer = api.post(f"{URL}/{made}/runs", {"input": {"name": "Ada"}})

        body = answer.json()
        run = Run.objects.get()
        assert answer.status_code == 202
        assert answer["Location"] == f"/api/v1/workflow-runs/{body['id']}"
        assert (body["state"], body["workflowId"], body["version"]) == ("RUNNING", made, 1)
        assert [(one["nodeId"], one["state"], one["runId"]) for one in body["nodes"]] == [
            ("a", "RUNNING", run.id),
            ("b", "PENDING", None),
        ]
        assert run.metadata == {"workflowRunId": body["id"], "nodeId": "a"}
        assert run.input.body["messages"][0]["content"] == [{"type": "text", "text": "Hello Ada"}]

    @pytest.mark.parametrize(
        ("prompt", "given", "pointers"),
        [
            ("{{ input.x }} {{ input.y }}", {"x": "1"}, ["/input/y"]),
            ("{{ input.x }} {{ input.y }}", "text", ["/input/x", "/input/y"]),
            ("{{ input.x }}", {"x": None}, ["/input/x"]),
            ("{{ input }}", None, ["/input"]),
            (None, None, ["/input"]),
            (None, "  ", ["/input"]),
            (None, {}, ["/input"]),
        ],
    )
    def test_asks_for_the_input_that_is_missing(
        self, api: APIClient, ready: Any, api_document: Any, prompt: Any, given: Any, pointers: list[str]
    ) -> None:
        made = api_document(node("a", prompt))

        answer = api.post(f"{URL}/{made}/runs", {"input": given} if given is not None else {})

        assert (answer.status_code, answer.json()["code"]) == (422, "INPUT_REQUIRED")
        assert [error["pointer"] for error in answer.json()["errors"]] == pointers
        assert not WorkflowRun.objects.exists()
        assert not Run.objects.exists()

    def test_is_the_same_for_the_same_idempotency_key(self, api: APIClient, ready: Any, api_document: Any) -> None:
        made = api_document(node("a", "Hi."))

        first, second = (api.post(f"{URL}/{made}/runs", {}, headers={"Idempotency-Key": "k"}) for _ in range(2))
        other = api.post(f"{URL}/{made}/runs", {"input": "x"}, headers={"Idempotency-Key": "k"})

        assert first.json()["id"] == second.json()["id"]
        assert (other.status_code, other.json()["code"]) == (422, "IDEMPOTENCY_KEY_REUSED")
        assert WorkflowRun.objects.count() == Run.objects.count() == 1

    @pytest.mark.parametrize("given", [7, ["a"], True])
    def test_refuses_an_input_that_is_no_text_and_no_object(
        self, api: APIClient, ready: Any, api_document: Any, given: Any
    ) -> None:
        made = api_document(node("a", "Hi."))

        assert api.post(f"{URL}/{made}/runs", {"input": given}).status_code == 400

    def test_refuses_null_as_the_whole_body(self, api: APIClient, ready: Any, api_document: Any) -> None:
        made = api_document(node("a", "Hi."))

        answer = api.generic("POST", f"{URL}/{made}/runs", "null", content_type="application/json")

        assert (answer.status_code, answer.json()["code"]) == (400, "VALIDATION_FAILED")
        assert not WorkflowRun.objects.exists()

    def test_keeps_the_version_that_it_began_with(
        self, api: APIClient, ready: Any, api_document: Any, work: Any
    ) -> None:
        made = api_document(node("a", "[[echo one]]"), node("b", "[[echo {{ nodes.a.output }} two]]"))
        begun = api.post(f"{URL}/{made}/runs", {}).json()

        api_document(node("a", "other"))
        work()

        ended = api.get(f"/api/v1/workflow-runs/{begun['id']}").json()
        assert (ended["version"], ended["state"]) == (1, "SUCCEEDED")
        assert [one["output"] for one in ended["nodes"]] == ["one", "one two"]

    def test_is_listed_under_its_workflow(self, api: APIClient, ready: Any, api_document: Any) -> None:
        made = api_document(node("a", "Hi."))
        begun = api.post(f"{URL}/{made}/runs", {}).json()

        listed = api.get(f"{URL}/{made}/runs").json()["results"]

        assert [one["id"] for one in listed] == [begun["id"]]

    def test_stands_in_the_way_of_deleting_its_workflow_until_it_ends(
        self, api: APIClient, ready: Any, api_document: Any
    ) -> None:
        made = api_document(node("a", "Hi."))
        begun = api.post(f"{URL}/{made}/runs", {}).json()

        refused = api.delete(f"{URL}/{made}")
        api.post(f"/api/v1/workflow-runs/{begun['id']}/cancel")

        assert (refused.status_code, refused.json()["code"]) == (409, "IN_USE")
        assert begun["id"] in refused.json()["detail"]
        assert api.delete(f"{URL}/{made}").status_code == 204
        assert Run.objects.count() == 1

    def test_is_cancelled_once(self, api: APIClient, ready: Any, api_document: Any) -> None:
        made = api_document(node("a", "Hi."), node("b", "{{ nodes.a.output }}"))
        begun = api.post(f"{URL}/{made}/runs", {}).json()

        first = api.post(f"/api/v1/workflow-runs/{begun['id']}/cancel")
        second = api.post(f"/api/v1/workflow-runs/{begun['id']}/cancel")

        assert first.json()["state"] == "CANCELLED"
        assert {one["state"] for one in first.json()["nodes"]} == {"CANCELLED"}
        assert Run.objects.get().state == "CANCELLED"
        assert (second.status_code, second.json()["code"]) == (409, "RUN_NOT_CANCELLABLE")


@pytest.fixture
def api_document(api: APIClient) -> Callable[..., str]:
    def apply(*nodes: dict[str, Any]) -> str:
        answer = api.post(URL, {"document": workflow(*nodes)})
        assert answer.status_code in {200, 201}, answer.content
        return str(answer.json()["id"])

    return apply


@pytest.mark.django_db(transaction=True)
class TestWait:
    @pytest.fixture(autouse=True)
    def _close_the_connections_of_the_async_side(self, transactional_db: None) -> Iterator[None]:
        yield
        asyncio.run(sync_to_async(connections.close_all)())
        # The poller's thread closes its own when nobody waits any more, but here its loop has ended before.
        live._ends._thread.submit(connections.close_all).result()

    def post(self, ada_access: Access, made: str, body: Any, wait: str) -> Any:
        _, secret = create_token(ada_access, name="live")
        headers = {"Authorization": f"Bearer {secret.reveal()}", "Prefer": wait}
        sent = AsyncClient().post(f"{URL}/{made}/runs", data=body, content_type="application/json", headers=headers)
        return asyncio.run(sent)

    def test_answers_200_with_the_ended_workflow_run(
        self, ready: Any, ada_access: Access, api_document: Any, worker: Any
    ) -> None:
        made = api_document(node("a", "[[echo élan]]"), node("b", "[[echo {{ nodes.a.output }}!]]"))

        answer = self.post(ada_access, made, {}, "wait=30")

        assert answer.status_code == 200, answer.content
        assert answer["Preference-Applied"] == "wait=30"
        assert answer.json()["state"] == "SUCCEEDED"
        assert answer.json()["nodes"][1]["output"] == "élan!"

    def test_answers_202_when_the_time_has_passed(self, ready: Any, ada_access: Access, api_document: Any) -> None:
        answer = self.post(ada_access, api_document(node("a", "Hi.")), {}, "wait=1")

        assert answer.status_code == 202
        assert answer["Preference-Applied"] == "wait=1"

    def test_answers_a_refusal_at_once(self, ready: Any, ada_access: Access, api_document: Any) -> None:
        answer = self.post(ada_access, api_document(node("a")), {}, "wait=60")

        assert (answer.status_code, answer.json()["code"]) == (422, "INPUT_REQUIRED")


@pytest.mark.django_db
class TestForeignWorkflows:
    def test_are_not_there(self, applied: Any, eve: User, api_as: Any) -> None:
        stranger = api_as(eve, "evil")

        for answer in (
            stranger.get(f"{URL}/{applied['id']}"),
            stranger.put(f"{URL}/{applied['id']}", {"document": DOCUMENTED}),
            stranger.delete(f"{URL}/{applied['id']}"),
            stranger.get(f"{URL}/{applied['id']}/runs"),
            stranger.post(f"{URL}/{applied['id']}/runs", {"input": "x"}),
        ):
            assert (answer.status_code, answer.json()["code"]) == (404, "NOT_FOUND")
        assert stranger.get(URL).json()["results"] == []
