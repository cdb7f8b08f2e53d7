"""A failed workflow: what its page says of each node, which lines its picture has, and how it is started again."""

import random
import re
from collections.abc import Callable
from typing import Any

import pytest
from django.test import Client

from integrations.models import Integration
from profiles.models import ModelProfile
from rensei.console import graph
from rensei.dispatch.models import Run
from rensei.orgs.access import Access
from rensei.orgs.models import Org, Project
from rensei.workflows import execution, services
from rensei.workflows.models import NodeRun, Workflow, WorkflowRun
from tests.pages import html_of

NEEDS: dict[str, list[str]] = {
    "intake": [],
    "summary": ["intake"],
    "risks": ["intake"],
    "owners": ["intake"],
    "plan": ["risks", "owners"],
    "letter": ["plan", "summary"],
}


@pytest.fixture
def failed(ada_access: Access, integration: Integration, profile: ModelProfile) -> WorkflowRun:
    """A workflow run in which `risks` has failed, as the worker leaves it."""
    config = {"profileId": profile.public_id, "prompt": "Go on."}
    document = {
        "name": "review",
        "nodes": [
            {"nodeId": name, "nodeType": "action/llm.inference", "needs": needs, "config": config}
            for name, needs in NEEDS.items()
        ],
    }
    workflow, _ = services.apply_document(ada_access, document)
    begun = services.start(ada_access, workflow)
    finish(begun, failing={"risks"})
    begun.refresh_from_db()
    return begun


def finish(begun: WorkflowRun, *, failing: set[str]) -> None:
    """End each node's run as a worker would, until the workflow run has ended."""
    for _ in NEEDS:
        for run in Run.objects.filter(metadata__workflowRunId=begun.id, state=Run.State.QUEUED):
            name = run.metadata["nodeId"]
            error = {"code": "PROVIDER_UNFUNDED", "detail": "No credit.", "fix": "", "retryable": False}
            changes: dict[str, Any] = {"state": "SUCCEEDED", "output_text": f"Result of {name}"}
            if name in failing:
                changes = {"state": "FAILED", "error": error}
            Run.objects.filter(pk=run.pk).update(**changes, amount_picodollars=10**9, attempt_count=1)
        WorkflowRun.objects.filter(pk=begun.pk).update(changes=999)
        execution.advance(begun.id)


@pytest.mark.django_db
class TestAFailedWorkflowRun:
    def test_says_of_each_node_what_came_of_it(self, page: Client, failed: WorkflowRun) -> None:
        html = page.get(f"/o/acme/workflow-runs/{failed.id}").content.decode()

        assert failed.state == "FAILED"
        assert "3 succeeded · 1 failed · 2 skipped" in html
        # The failure is told once, by the node that failed.
        assert html.count("PROVIDER_UNFUNDED</p>") == 1
        assert html.count("Skipped: risks failed.") == 2
        assert html.count("Retry from here") == 1

    def test_shows_the_way_of_the_failure(self, page: Client, failed: WorkflowRun) -> None:
        html = html_of(page.get(f"/o/acme/workflow-runs/{failed.id}"))
        wide = html.split("graph-frame--wide")[1].split("</svg>")[0]

        lines = re.findall(r'<path class="graph__line([^"]*)"[^>]*><title>(\w+) needs (\w+)', wide)
        boxes = re.findall(r"graph__node graph__node--(\w+)\"[^>]*><title>(\w+)", wide)

        assert {(target, source) for _, target, source in lines} == {
            (name, needed) for name, needs in NEEDS.items() for needed in needs
        }
        assert {(target, source) for kind, target, source in lines if kind} == {("plan", "risks"), ("letter", "plan")}
        assert {name: state for state, name in boxes} == {
            node.node_id: node.state.lower() for node in failed.nodes.all()
        }

    def test_goes_on_from_the_failed_node_with_what_is_there(self, page: Client, failed: WorkflowRun) -> None:
        runs_before = Run.objects.count()

        answer = page.post(f"/o/acme/workflow-runs/{failed.id}/retry/risks")
        again = WorkflowRun.objects.latest("id")
        finish(again, failing=set())
        again.refresh_from_db()
        html = page.get(f"/o/acme/workflow-runs/{again.id}").content.decode()

        assert answer["Location"] == f"/o/acme/workflow-runs/{again.id}"
        assert again.state == "SUCCEEDED"
        reused = set(again.nodes.filter(reused=True).values_list("node_id", flat=True))
        assert reused == {"intake", "summary", "owners"}
        assert Run.objects.count() - runs_before == 3
        # The three new runs cost a thousandth each; the reused ones were paid for before.
        assert "$0.003<small>" in html
        assert html.count(", reused</a>") == 3

    def test_is_not_started_again_while_it_goes_on(self, page: Client, failed: WorkflowRun) -> None:
        WorkflowRun.objects.update(state="RUNNING")

        answer = page.post(f"/o/acme/workflow-runs/{failed.id}/retry/risks", follow=True)

        assert "has not ended" in answer.content.decode()
        assert WorkflowRun.objects.count() == 1

    def test_is_started_again_by_rest(self, api_as: Any, ada: Any, failed: WorkflowRun) -> None:
        api, url = api_as(ada), f"/api/v1/workflow-runs/{failed.id}/retry"

        answer = api.post(url, {"nodeId": "risks"})
        unknown = api.post(url, {"nodeId": "none"})
        early = api.post(f"/api/v1/workflow-runs/{answer.json()['id']}/retry", {"nodeId": "risks"})

        assert answer.status_code == 202
        assert answer.headers["Location"] == f"/api/v1/workflow-runs/{answer.json()['id']}"
        assert {node["nodeId"]: node["state"] for node in answer.json()["nodes"]} == {
            "intake": "SUCCEEDED",
            "summary": "SUCCEEDED",
            "owners": "SUCCEEDED",
            "risks": "RUNNING",
            "plan": "PENDING",
            "letter": "PENDING",
        }
        assert answer.json()["cost"]["amountUsd"] in {"0", "0.000000"}
        assert (unknown.status_code, early.json()["code"]) == (404, "WORKFLOW_RUN_NOT_ENDED")

    def test_is_started_again_once_for_a_key(self, api_as: Any, ada: Any, failed: WorkflowRun) -> None:
        url, key = f"/api/v1/workflow-runs/{failed.id}/retry", {"Idempotency-Key": "once"}

        first, second = (api_as(ada).post(url, {"nodeId": "risks"}, headers=key) for _ in range(2))
        other = api_as(ada).post(url, {"nodeId": "intake"}, headers=key)

        assert (first.status_code, second.json()["id"]) == (202, first.json()["id"])
        assert other.json()["code"] == "IDEMPOTENCY_KEY_REUSED"
        assert WorkflowRun.objects.count() == 2

    def test_stays_in_its_project(self, page: Client, failed: WorkflowRun, acme: Org) -> None:
        """The access policies and the budget of a project hold for a workflow run that one of its tokens has begun."""
        project = Project.objects.create(org=acme, slug="side", name="Side")
        WorkflowRun.objects.filter(pk=failed.pk).update(project=project, bound_to_project=True)

        page.post(f"/o/acme/workflow-runs/{failed.id}/retry/risks")

        again = WorkflowRun.objects.latest("id")
        assert (again.pk != failed.pk, again.project, again.bound_to_project) == (True, project, True)

    def test_has_no_other_nodes(self, page: Client, failed: WorkflowRun) -> None:
        assert page.post(f"/o/acme/workflow-runs/{failed.id}/retry/none").status_code == 404

    def test_is_not_started_again_by_an_auditor(self, page_as: Any, otto: Any, failed: WorkflowRun) -> None:
        answer = page_as(otto).post(f"/o/acme/workflow-runs/{failed.id}/retry/risks", follow=True)

        assert "Not permitted" in answer.content.decode()
        assert Workflow.objects.count() == WorkflowRun.objects.count() == 1


class TestThePicture:
    @pytest.mark.parametrize("seed", range(20))
    def test_has_every_box_apart_and_every_line_forward(self, seed: int) -> None:
        chance = random.Random(seed)
        names = [f"n{place}" for place in range(chance.randint(1, 14))]
        nodes = [
            {"node_id": name, "needs": chance.sample(names[:place], chance.randint(0, min(place, 3)))}
            for place, name in enumerate(names)
        ]

        for picture in graph.pictures(nodes, {name: chance.choice(list(NodeRun.State)) for name in names}):
            boxes = {box.node_id: box for box in picture.boxes}
            places = {(box.x, box.y) for box in picture.boxes}
            assert len(places) == len(names)
            for one in picture.boxes:
                assert 0 <= one.x <= picture.width - picture.shape.width
                assert 0 <= one.y <= picture.height - picture.shape.height
            assert len(picture.lines) == sum(len(node["needs"]) for node in nodes)
            along: Callable[[Any], float] = (lambda box: box.x) if picture.shape is graph.WIDE else lambda box: box.y
            for line in picture.lines:
                assert along(boxes[line.source]) < along(boxes[line.target])
                assert line.fails == (boxes[line.source].state in graph.UNSUCCESSFUL)
