"""Workflows and workflow runs as JSON."""

from collections.abc import Sequence
from typing import Any

from rensei.core.money import dollars
from rensei.dispatch.models import Run
from rensei.dispatch.presenters import moment
from rensei.workflows.models import NodeRun, Workflow, WorkflowRun


def workflow_body(workflow: Workflow) -> dict[str, Any]:
    """Return a workflow as JSON, as in lists."""
    return {
        "id": workflow.id,
        "name": workflow.name,
        "projectId": workflow.project.slug if workflow.project else None,
        "version": workflow.version,
        "createdAt": moment(workflow.created_at),
        "updatedAt": moment(workflow.updated_at),
    }


def workflow_detail(workflow: Workflow) -> dict[str, Any]:
    """Return a workflow with its document and its versions, newest first."""
    versions = list(workflow.versions.select_related("created_by").defer("document", "nodes").order_by("-number"))
    return {
        **workflow_body(workflow),
        "document": versions[0].document,
        "versions": [
            {
                "version": version.number,
                "createdAt": moment(version.created_at),
                "createdBy": version.created_by.email if version.created_by else None,
            }
            for version in versions
        ],
    }


def workflow_run_body(workflow_run: WorkflowRun) -> dict[str, Any]:
    """Return a workflow run as JSON, as in lists."""
    workflow = workflow_run.version.workflow
    return {
        "id": workflow_run.id,
        "workflowId": workflow.id,
        "workflowName": workflow.name,
        "version": workflow_run.version.number,
        "state": workflow_run.state,
        "projectId": workflow_run.project.slug if workflow_run.project else None,
        "createdBy": workflow_run.created_by.email if workflow_run.created_by else None,
        "createdAt": moment(workflow_run.created_at),
        "startedAt": moment(workflow_run.started_at),
        "finishedAt": moment(workflow_run.finished_at),
    }


def workflow_run_detail(workflow_run: WorkflowRun) -> dict[str, Any]:
    """Return a workflow run with its input, its nodes and their total cost."""
    nodes = list(workflow_run.nodes.select_related("run"))
    return {
        **workflow_run_body(workflow_run),
        "input": workflow_run.input,
        "nodes": [_node_body(node) for node in nodes],
        "cost": _cost([node.run for node in nodes if node.run is not None]),
    }


def total_cost(runs: Sequence[Run]) -> int | None:
    """Add up what the nodes' runs have cost so far. None if any price is unknown."""
    # A run that never reached a provider has no amount, and no cost.
    amounts = [run.amount_picodollars for run in runs if run.attempt_count and run.state in Run.ENDED]
    known = [amount for amount in amounts if amount is not None]
    return sum(known) if len(known) == len(amounts) else None


def _node_body(node: NodeRun) -> dict[str, Any]:
    run = node.run
    return {
        "nodeId": node.node_id,
        "state": node.state,
        "runId": run.id if run else None,
        "output": run.output_text if run and node.state == NodeRun.State.SUCCEEDED else None,
        "error": node.error,
        "cost": _cost([run]) if run else None,
    }


def _cost(runs: Sequence[Run]) -> dict[str, Any]:
    return {
        "amountUsd": dollars(total_cost(runs)),
        "billed": any(run.billed for run in runs),
        "estimated": any(run.estimated for run in runs),
    }
