"""The agent of the demo, alone and as a node: its program really runs in bubblewrap, and edits its file."""

from typing import Any

import pytest

from rensei import demo
from rensei.dispatch import services
from rensei.dispatch.models import Run
from rensei.orgs.access import Access
from rensei.workflows import services as workflows
from rensei.workflows.wire import WorkflowRunDetailAnswer

pytestmark = pytest.mark.django_db(transaction=True)


def test_edits_its_file(catalog: None, simulator: Any, finish: Any) -> None:
    demo.create()
    services.request_cancel(demo.first_run())
    agent = demo.agent_run()
    assert agent is not None

    run = finish(agent)

    assert (run.state, run.error, run.attempt_count) == (Run.State.SUCCEEDED, None, 2)
    edited = bytes(run.files.get(path="notes.md").content).decode()
    assert edited.startswith("# ")
    assert edited.endswith(demo.NOTES)
    assert len(edited) > len(demo.NOTES) + 50


def test_is_a_node_of_a_workflow(ada_access: Access, byok: Any, finish: Any) -> None:
    files = [{"path": "edit.py", "content": demo.AGENT.read_text()}, {"path": "notes.md", "content": demo.NOTES}]
    agent = {"program": ["python3", "edit.py"], "files": files, "outputs": ["notes.md"]}
    config = {"profileId": "prof_deep", "prompt": "{{ input.task }}", "maxCostUsd": "0.50", "agent": agent}
    document = {"nodeId": "edit", "nodeType": "action/agent.run", "config": config}
    workflow, _ = workflows.apply_document(ada_access, document)

    begun = workflows.start(ada_access, workflow, given={"task": demo.AGENT_TASK})
    run = finish(begun.nodes.get().run)

    (node,) = WorkflowRunDetailAnswer(workflows.find_workflow_run(ada_access, begun.id)).data["nodes"]
    assert (node["state"], node["runId"], node["error"]) == ("SUCCEEDED", run.id, None)
    assert node["output"].startswith("notes.md has a title now")
    assert node["agent"] == run.agent_result
    assert [file["path"] for file in node["agent"]["files"]] == ["notes.md"]
    assert (run.max_cost_picodollars, run.pool) == (5 * 10**11, "sandbox")
