"""Workflows in the pages: write a document, see its faults, run it, watch its nodes."""

import pytest

from rensei.dispatch.models import Run
from rensei.workflows.models import Workflow, WorkflowRun
from tests.pages import html_of

WORKFLOWS = "/o/acme/workflows"
DOCUMENT = """\
name: greetings
nodes:
  - nodeId: hello
    nodeType: action/llm.inference
    config:
      profileId: prof_deep
      prompt: "Hello {{ input.name }}"
"""


@pytest.fixture
def workflow(page, integration, profile):
    page.post(f"{WORKFLOWS}/new", {"document": DOCUMENT})
    return Workflow.objects.get()


class TestList:
    def test_begins_with_the_documentations_example(self, page):
        html = page.get(WORKFLOWS).content.decode()

        assert "No workflow yet" in html
        assert "profileId: prof_anthropic_deep_reasoning" in html

    def test_shows_what_there_is(self, page, workflow):
        assert f'href="{WORKFLOWS}/{workflow.id}"' in page.get(WORKFLOWS).content.decode()


class TestDocument:
    def test_is_saved_and_shown(self, page, workflow):
        html = page.get(f"{WORKFLOWS}/{workflow.id}").content.decode()

        assert "Hello {{ input.name }}" in html
        assert "Save as version 2" in html

    def test_is_saved_as_another_version(self, page, workflow):
        page.post(f"{WORKFLOWS}/{workflow.id}", {"document": DOCUMENT.replace("Hello", "Good day")})

        workflow.refresh_from_db()
        assert workflow.version == 2

    @pytest.mark.parametrize("new", [True, False])
    def test_is_shown_again_with_its_faults_by_line(self, page, workflow, new):
        faulty = DOCUMENT.replace("config:", "config:\n      efort: <high>")

        answer = page.post(f"{WORKFLOWS}/{'new' if new else workflow.id}", {"document": faulty})

        html = html_of(answer)
        assert answer.status_code == 422
        assert "<strong>Line 6</strong> · node <code>hello</code> · <code>config.efort</code>" in html
        assert "Did you mean &#x27;effort&#x27;?" in html
        assert '<code class="faint">efort: &lt;high&gt;</code>' in html
        assert "/docs/errors#workflow-invalid" in html
        workflow.refresh_from_db()
        assert workflow.version == 1

    def test_is_only_read_by_an_auditor(self, page_as, otto, workflow):
        html = page_as(otto).get(f"{WORKFLOWS}/{workflow.id}").content.decode()

        assert "Hello {{ input.name }}" in html
        assert "<textarea" not in html

    def test_does_not_take_anothers_name(self, page, workflow):
        page.post(f"{WORKFLOWS}/new", {"document": DOCUMENT.replace("greetings", "others")})

        answer = page.post(f"{WORKFLOWS}/{workflow.id}", {"document": DOCUMENT.replace("greetings", "others")})

        assert answer.status_code == 422
        assert "already exists" in answer.content.decode()

    def test_is_deleted_after_asking(self, page, workflow):
        asked = page.get(f"{WORKFLOWS}/{workflow.id}/delete").content.decode()
        page.post(f"{WORKFLOWS}/{workflow.id}/delete")

        assert "Delete greetings?" in asked
        assert not Workflow.objects.exists()


class TestRun:
    def test_is_started_with_its_input(self, page, workflow):
        answer = page.post(f"{WORKFLOWS}/{workflow.id}/start", {"given": '{"name": "Ada"}'})

        begun = WorkflowRun.objects.get()
        assert answer["Location"] == f"/o/acme/workflow-runs/{begun.id}"
        assert begun.input == {"name": "Ada"}

    @pytest.mark.parametrize(
        ("given", "said"), [("", "needs an input with name"), ('{"name"', "is a JSON object"), ("Ada", "with name")]
    )
    def test_says_what_is_missing(self, page, workflow, given, said):
        answer = page.post(f"{WORKFLOWS}/{workflow.id}/start", {"given": given})

        assert answer.status_code == 422
        assert said in answer.content.decode()
        assert not WorkflowRun.objects.exists()

    def test_shows_each_node_with_its_state_output_and_run(self, page, workflow_run):
        run = Run.objects.get(metadata__workflowRunId=workflow_run.id)
        url = f"/o/acme/workflow-runs/{workflow_run.id}"
        live = page.get(url, headers={"HX-Request": "true"}).content.decode()

        Run.objects.filter(id=run.id).update(state="SUCCEEDED", output_text="<script>alert(1)</script>")
        workflow_run.nodes.update(state="SUCCEEDED")
        WorkflowRun.objects.update(state="SUCCEEDED")
        ended = page.get(url).content.decode()

        assert 'hx-trigger="every 1s"' in live
        assert f'href="/o/acme/runs/{run.id}"' in live
        assert "Waiting for a worker" in live
        assert "&lt;script&gt;alert(1)&lt;/script&gt;" in ended
        assert "<script>alert" not in ended
        assert 'hx-trigger="every 1s"' not in ended

    def test_shows_why_a_node_was_refused(self, page, workflow_run):
        error = {"code": "BYOK_NOT_CONFIGURED", "detail": "No key.", "fix": "Connect one.", "retryable": False}
        workflow_run.nodes.update(state="FAILED", run=None, error=error)

        html = page.get(f"/o/acme/workflow-runs/{workflow_run.id}").content.decode()

        assert "No key. Connect one." in html
        assert "/docs/errors#byok-not-configured" in html

    def test_is_cancelled(self, page, workflow_run):
        page.post(f"/o/acme/workflow-runs/{workflow_run.id}/cancel")

        workflow_run.refresh_from_db()
        assert workflow_run.cancel_requested_at is not None
