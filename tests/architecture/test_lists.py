"""
Lists hold no outputs, inputs or traces: only the address of one thing loads what it holds, however long that is.

Every address that is read is asked about an organization whose texts are short, and again when they are long. Those
that are not of one thing may neither load a column that holds such texts, nor answer more for them.
"""

import re

import pytest
from django.contrib import admin
from django.db import connection
from django.test.utils import CaptureQueriesContext
from django.urls import reverse

from rensei.dispatch.models import Run, RunChunk, RunInput
from rensei.orgs.models import User
from rensei.workflows.models import NodeRun, WorkflowRun, WorkflowVersion
from tests.architecture import routes
from tests.architecture.test_isolation import OWNER, REST, call, content, stage  # noqa: F401 - a fixture

SHORT, LONG = 10, 100_000
# What may be long, as `table.column`.
LARGE = [
    f'"{model._meta.db_table}"."{name}"'
    for model, names in {
        Run: ["output_text", "output_content", "trace", "prices"],
        RunInput: ["body"],
        RunChunk: ["data"],
        WorkflowRun: ["input"],
        WorkflowVersion: ["document", "nodes"],
    }.items()
    for name in names
]
# The addresses of one thing, which may load what it holds.
REST_DETAILS = {
    "runs/<run_id>",
    "runs/<run_id>/events",
    "runs/<run_id>/receipt",
    "workflows/<workflow_id>",
    "workflow-runs/<workflow_run_id>",
}
PAGE_DETAILS = {
    "o/<org>/runs/<run_id>",
    "o/<org>/runs/<run_id>/receipt",
    "o/<org>/workflows/<workflow_id>",
    "o/<org>/workflow-runs/<workflow_run_id>",
    # It searches the documents of workflows for the profile.
    "o/<org>/settings/profiles/<profile_id>/delete",
}
TRACE_LINE = {"mode": "byok", "verdict": "chosen", "code": None, "deniedBy": None}


@pytest.fixture
def fill(stage):  # noqa: F811
    """Give the texts of the organization a length."""
    run = Run.objects.get(pk=stage.ids["run_id"])
    workflow_run = WorkflowRun.objects.get(pk=stage.ids["workflow_run_id"])
    NodeRun.objects.create(workflow_run=workflow_run, position=0, node_id="canary-of-acme", run=run)
    RunInput.objects.create(run=run, body={})
    chunk = RunChunk.objects.create(run=run, seq=1, kind="delta")

    def filled(length):
        text = "x" * length
        Run.objects.filter(pk=run.pk).update(
            output_text=text,
            output_content=[{"type": "text", "text": text}],
            trace=[{**TRACE_LINE, "detail": text}],
            prices=[text],
        )
        RunInput.objects.filter(pk=run.pk).update(
            body={
                "system": text,
                "messages": [{"role": "user", "content": text}],
                "maxTokens": 1,
                "promptCaching": "off",
            }
        )
        RunChunk.objects.filter(pk=chunk.pk).update(data={"text": text})
        WorkflowRun.objects.filter(pk=workflow_run.pk).update(input=text)
        WorkflowVersion.objects.filter(pk=workflow_run.version_id).update(document=f"# {text}")

    return filled


def asked(fill, get, *args):
    """Ask for an address with short texts and with long ones: the large columns that are loaded, and the growth."""
    fill(SHORT)
    with CaptureQueriesContext(connection) as captured:
        short = content(get(*args))
    # The next request empties the log.
    asked_for = [query["sql"] for query in captured]
    fill(LONG)
    grown = len(content(get(*args))) - len(short)
    return sorted({name for name in LARGE for sql in asked_for if _loads(sql, name)}), grown > LONG / 2


def _loads(sql, column):
    return sql.startswith("SELECT") and re.search(re.escape(column) + r"(?! IS)", sql) is not None


class TestRest:
    def test_loads_outputs_inputs_and_traces_only_for_one_thing(self, subtests, stage, fill):  # noqa: F811
        for method, route in sorted(REST):
            if method != "GET" or route in REST_DETAILS:
                continue
            with subtests.test(route):
                answer = call(stage.clients[OWNER], method, route, stage.ids, None)
                assert answer.status_code == 200

                assert asked(fill, call, stage.clients[OWNER], "GET", route, stage.ids, None) == ([], False)

    def test_tells_of_a_run_in_a_list_all_but_its_output_and_trace(self, stage, fill):  # noqa: F811
        fill(SHORT)
        client = stage.clients[OWNER]

        (listed,) = client.get("/api/v1/runs").json()["results"]
        one = client.get(f"/api/v1/runs/{stage.ids['run_id']}").json()

        assert {name: one[name] for name in listed} == listed
        assert set(one) - set(listed) == {"agent", "output", "trace", "waitsFor"}


class TestPages:
    def test_load_outputs_inputs_and_traces_only_for_one_thing(self, subtests, stage, fill):  # noqa: F811
        for route in sorted(routes.pages() - PAGE_DETAILS):
            path = "/" + re.sub(r"<(\w+)>", lambda found: str(stage.ids[found[1]]), route)
            if stage.browsers[OWNER].get(path).status_code != 200:
                continue
            with subtests.test(route):
                assert asked(fill, stage.browsers[OWNER].get, path) == ([], False)

    def test_are_listed_with_the_filters_that_they_have(self, subtests, stage, fill):  # noqa: F811
        filters = [
            "q=run_",
            "state=SUCCEEDED&since=30d",
            "before=run_z",
            "after=run_0",
            "profile=prof_canary&mode=byok",
        ]
        for query in filters:
            with subtests.test(query):
                path = f"/o/acme/runs?{query}"
                assert asked(fill, stage.browsers[OWNER].get, path) == ([], False)


class TestAdmin:
    def test_loads_no_outputs_inputs_or_traces(self, subtests, stage, fill, client, grace):  # noqa: F811
        client.force_login(User.objects.get(pk=grace.pk))
        for model in admin.site._registry:
            path = reverse(f"admin:{model._meta.app_label}_{model._meta.model_name}_changelist")
            with subtests.test(path):
                assert client.get(path, follow=True).status_code == 200
                assert asked(fill, client.get, path) == ([], False)


class TestTheTest:
    def test_finds_what_an_address_of_one_thing_loads(self, stage, fill):  # noqa: F811
        loaded, grows = asked(fill, call, stage.clients[OWNER], "GET", "runs/<run_id>", stage.ids, None)

        assert '"dispatch_run"."output_text"' in loaded
        assert grows
