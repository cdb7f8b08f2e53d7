"""The run of an agent: what it was given, what it has done and left, and the files to download."""

import re
from collections.abc import Callable
from html import unescape
from typing import Any

import pytest
from django.core.files.uploadedfile import SimpleUploadedFile
from django.db import connection
from django.test import Client
from django.test.utils import CaptureQueriesContext

from billing.models import CostEvent
from integrations.keys import services as integrations
from rensei.console import agent_runs
from rensei.core.clock import database_now
from rensei.core.models import WorkerHeartbeat
from rensei.core.secret import Secret
from rensei.dispatch import agents, services, stored_bytes
from rensei.dispatch.models import Run, RunFile, Sandbox
from rensei.dispatch.pools import agent_runner
from rensei.orgs.models import User
from tests.billing.record import capacity_line
from tests.console.agents import DOLLAR, begin, call, definition, finish, offer_sandboxes, write

RUNS = "/o/acme/runs"
PLAYGROUND = "/o/acme/playground/agent"
HTMX = {"HX-Request": "true"}
ASKS = 'hx-trigger="every 1s"'
ASKED = {
    "kind": "own",
    "pool": "sandbox",
    "program": "python3 agent.py 'two words'",
    "text": "My task.\r\nSecond line.",
    "outputs": "out/**\n\n*.md",
    "max_cost_usd": "1.50",
    "timeout_seconds": "60",
    "env": "STAGE=a=b\nEMPTY=",
    "action": "dispatch",
}


@pytest.fixture
def make_agent(make_run: Callable[..., Run]) -> Callable[..., Run]:
    """Dispatch an agent, which no worker takes."""
    offer_sandboxes()

    def make(**fields: Any) -> Run:
        return make_run("My task.", pool="sandbox", max_cost_picodollars=2 * DOLLAR, agent=definition(**fields))

    return make


@pytest.fixture
def agent(make_agent: Callable[..., Run]) -> Run:
    return make_agent()


def shown(page: Client, run: Run, **options: Any) -> str:
    return unescape(page.get(f"{RUNS}/{run.id}", **options).content.decode())


class TestTheRunOfAnAgent:
    def test_shows_what_it_was_given_without_the_values_of_its_environment(self, page, agent):
        html = shown(page, agent)

        assert "python3 agent.py 'two words'" in html
        for told in ("My task.", "out/**", "STAGE", "1 file, 7\xa0bytes", "A worker makes a sandbox"):
            assert told in html
        assert "secret-value" not in html

    def test_shows_its_calls_below_its_sandbox(self, page, agent):
        box = begin(agent)
        for number in (1, 2):
            call(agent, number=number)
        finish(agent)

        html = shown(page, agent)

        assert html.index(box.id) < html.index("req_1") < html.index("req_2") < html.index("exit code 0")
        assert html.count("80 in, 20 out") == 2
        assert "2 calls to the model" in html
        assert CostEvent.objects.count() == 2

    def test_shows_calls_of_subagents_below_the_call_that_began_them(self, page, agent):
        begin(agent)
        # Main, a subagent with one of its own, main again while both go on, and names that lead nowhere.
        made = [("", ""), ("a", ""), ("b", "a"), ("", ""), ("b", "a"), ("a", ""), ("c", "gone"), ("d", "d"), ("e", "f")]
        made += [("f", "e"), ("g", "b")]
        for number, (agent_id, parent) in enumerate(made, start=1):
            call(agent, number=number, agent_id=agent_id, parent_agent_id=parent)
        finish(agent)

        nested = agent_runs.nested(list(agent.attempts.order_by("number")))
        html = shown(page, agent)

        assert [(each.number, depth) for each, depth in nested] == [
            *((1, 0), (2, 1), (3, 2), (5, 2), (11, 3), (6, 1), (4, 0), (8, 1)),
            *((7, 0), (9, 0), (10, 1)),
        ]
        assert html.index("req_5") < html.index("req_6") < html.index("req_4")
        assert html.count("Subagent <code>") == 9
        assert "timeline__call--3" in html

    def test_shows_its_sandbox_apart_from_the_cost_of_its_calls(self, page, agent, acme):
        begin(agent)
        call(agent, number=1)
        finish(agent)
        of_calls = Run.objects.get(id=agent.id).amount_picodollars
        Run.objects.filter(id=agent.id).update(in_cloud=True)
        # The line is written after the end of the run, so an open page goes on asking.
        Sandbox.objects.filter(run=agent).update(ended_at=None)
        assert ASKS in shown(page, agent)
        Sandbox.objects.filter(run=agent).update(ended_at=database_now())
        capacity_line(acme, run_id=agent.id)

        html = shown(page, agent)

        assert ASKS not in html
        assert "2 for 1 call and 1 sandbox" in " ".join(html.split())
        assert "capacity.e2b" in html
        assert "$0.00272" in html
        assert "It is not in the cost above." in html
        assert Run.objects.get(id=agent.id).amount_picodollars == of_calls

    def test_counts_what_its_calls_have_cost_while_it_works(self, page, agent):
        begin(agent)
        call(agent, number=1)

        html = shown(page, agent)

        (line,) = CostEvent.objects.all()
        assert f"≈ ${line.amount_picodollars / DOLLAR:.4f}".rstrip("0") in html
        assert "so far, of at most $2.00" in html

    def test_follows_its_text_and_its_log_by_the_stream(self, page, agent):
        begin(agent)
        write(agent, text="So far.", log="Looking.")

        html = shown(page, agent)
        part = shown(page, agent, headers={**HTMX, "HX-Target": "run-now"})

        assert f'data-events="/api/v1/runs/{agent.id}/events"' in html
        assert "rensei/live.js" in html
        for words in ("So far.", "Looking."):
            assert words in html
            assert words not in part
        assert 'hx-trigger="every 1s"' in part

    def test_is_still_when_it_has_ended(self, page, agent):
        begin(agent)
        write(agent, text="So far.", log="Looking.")
        finish(agent, text="So far.", files=["out/a.txt"])

        html = shown(page, agent)

        assert "every 1s" not in html
        assert "data-events" not in html
        assert "Looking." in html

    def test_shows_what_a_program_wrote_as_text(self, page, agent):
        begin(agent)
        evil = "<script>alert(1)</script>"
        write(agent, log=evil)
        finish(agent, text=evil, files=[f"out/{evil}".replace("/script", "script")])

        assert "<script>alert" not in page.get(f"{RUNS}/{agent.id}").content.decode()

    def test_says_where_its_text_and_its_log_were_cut(self, page, agent, monkeypatch):
        begin(agent)
        write(agent, log=f"Much{agent_runner.CUT}")
        finish(agent, text="x" * stored_bytes.of_answer_at_most(agent))

        html = shown(page, agent)

        assert "The log was cut at 1 MiB" in html
        assert "The output was cut" in html

    def test_says_that_there_is_nothing(self, page, make_agent):
        run = make_agent(outputs=[])
        begin(run)
        finish(run)

        html = shown(page, run)

        assert html.count("The program wrote nothing there.") == 2
        assert "Nothing was asked for" in html
        assert "The program called no model." in html

    def test_says_which_files_were_left_out(self, page, agent):
        begin(agent)
        finish(agent, files=["out/a.txt"], left_out={reason: place + 1 for place, reason in enumerate(agents.REASONS)})

        html = shown(page, agent)

        assert "1 file was left out, because more than 1,000 files match." in html
        assert html.count("files were left out, because") == len(agents.REASONS) - 1

    def test_asks_the_database_as_often_for_many_calls_and_files(self, page, make_agent):
        counted = []
        for many in (1, 4):
            run = make_agent()
            begin(run)
            for number in range(1, many + 1):
                call(run, number=number)
            finish(run, files=[f"out/{number}" for number in range(many)])
            page.get(f"{RUNS}/{run.id}")
            with CaptureQueriesContext(connection) as queries:
                page.get(f"{RUNS}/{run.id}")
            counted.append(len(queries))

        assert counted[0] == counted[1] <= 15

    def test_is_cancelled(self, page, agent):
        page.post(f"{RUNS}/{agent.id}/cancel")

        agent.refresh_from_db()
        assert agent.state == Run.State.CANCELLED
        assert "The run ended before a sandbox was made for it." in shown(page, agent)


class TestAFile:
    @pytest.fixture
    def file(self, agent: Run) -> RunFile:
        begin(agent)
        finish(agent, files=["out/notes.html"])
        return agent.files.get()

    def test_is_downloaded_and_not_shown(self, page, agent, file):
        address = f"{RUNS}/{agent.id}/files/{file.id}"

        answer = page.get(address)

        assert f'href="{address}"' in shown(page, agent)
        assert (answer.status_code, answer.content) == (200, b"out/notes.html")
        assert answer["Content-Disposition"] == 'attachment; filename="notes.html"'
        assert "sandbox" in answer["Content-Security-Policy"]

    def test_is_absent_for_others_and_under_other_runs(self, page, agent, file, make_agent, eve: User, page_as):
        other = make_agent()

        for browser, org, run in ((page_as(eve), "acme", agent), (page_as(eve), "evil", agent), (page, "acme", other)):
            assert browser.get(f"/o/{org}/runs/{run.id}/files/{file.id}").status_code == 404


class TestThePlayground:
    @pytest.fixture(autouse=True)
    def _offered(self, integration, profile) -> None:
        offer_sandboxes()

    def test_dispatches_as_rest_does_and_leads_to_the_run(self, page):
        files = [SimpleUploadedFile("agent.py", b"print()"), SimpleUploadedFile("data.bin", b"\x00\xff")]

        answer = page.post(PLAYGROUND, {"profile": "prof_deep", **ASKED, "uploads": files})

        run = Run.objects.select_related("input").get()
        assert answer["Location"] == f"{RUNS}/{run.id}"
        assert (run.is_agent, run.pool, run.max_cost_picodollars) == (True, "sandbox", 3 * DOLLAR // 2)
        assert run.input.body["messages"][0]["content"] == [{"type": "text", "text": "My task.\nSecond line."}]
        assert run.input.body["agent"] == {
            "program": ["python3", "agent.py", "two words"],
            "files": [
                {"path": "agent.py", "content": "print()"},
                {"path": "data.bin", "content": "AP8=", "encoding": "base64"},
            ],
            "env": {"STAGE": "a=b", "EMPTY": ""},
            "outputs": ["out/**", "*.md"],
            "maxTurns": None,
            "timeoutSeconds": 60,
        }

    @pytest.mark.parametrize(
        ("field", "value", "said"),
        [
            ("program", "python3 'x", "It cannot be divided as a shell does it"),
            ("program", " ", "This field is required."),
            ("text", "", "This field is required."),
            ("text", " ", "`input` is empty"),
            ("max_cost_usd", "", "This field is required."),
            ("max_cost_usd", "-1", "greater than or equal to 0"),
            ("timeout_seconds", "3601", "less than or equal to 3600"),
            ("env", "STAGE", "Line 1 has no =."),
            ("env", "ANTHROPIC_MODEL=x", "none that the sandbox sets"),
            ("outputs", "/etc/*", "The pattern is absolute."),
            ("pool", "local", "local is not one of the available choices"),
            ("git_url", "http://git.example.com/a.git", "The address is none of https on port 443."),
            ("git_url", "https://git.example.com/a.git", "its sandboxes have no network"),
        ],
    )
    def test_says_what_is_wrong_beside_its_field(self, page, field, value, said):
        answer = page.post(PLAYGROUND, {"profile": "prof_deep", **ASKED, field: value})

        html = unescape(answer.content.decode())
        assert answer.status_code == 422
        assert re.search(rf'id="id_{field}_error">.*?{re.escape(said)}', html, re.DOTALL)
        assert not Run.objects.exists()

    def test_offers_claude_code_where_the_workers_have_it(self, page):
        before = page.get(PLAYGROUND).content.decode()
        WorkerHeartbeat.objects.update(offers_claude_code=True)
        after = page.get(PLAYGROUND).content.decode()

        answer = page.post(
            PLAYGROUND, {"profile": "prof_deep", **ASKED, "kind": "claude-code", "program": "", "max_turns": "3"}
        )
        run = Run.objects.get()
        again = page.get(f"{PLAYGROUND}?run={run.id}").content.decode()

        assert ("Claude Code" in before, "Claude Code" in after) == (False, True)
        assert answer["Location"] == f"{RUNS}/{run.id}"
        agent = run.input.body["agent"]
        assert (agent["program"], agent["maxTurns"]) == ("claude-code", 3)
        assert '<option value="claude-code" selected>' in again
        assert "claude-code" in page.get(f"{RUNS}/{run.id}").content.decode()

    def test_takes_a_repository_with_a_token_that_no_page_shows(self, page, agent, integration, ada_access, settings):
        settings.PUBLIC_URL = "https://rensei.example.com"
        integrations.add_integration(ada_access, provider="e2b", api_key=Secret("e2b_" + "a" * 40))
        config = {"egress": ["git.example.com"]}
        services.create_pool(ada_access, name="cloud", provider_id="e2b", config=config)
        given = {"git_url": "https://git.example.com/a.git", "git_ref": "main", "git_token": "glpat-secret"}
        asked = {"profile": "prof_deep", **ASKED, "pool": "cloud", **given}

        updated = page.post(PLAYGROUND, {**asked, "action": "update"})
        answer = page.post(PLAYGROUND, asked)

        run = Run.objects.select_related("input").latest("id")
        assert answer["Location"] == f"{RUNS}/{run.id}"
        assert run.input.body["agent"]["git"] == {
            "url": "https://git.example.com/a.git",
            "ref": "main",
            "token": None,
            "username": "x-access-token",
        }
        pages = [updated, page.get(f"{RUNS}/{run.id}"), page.get(f"{PLAYGROUND}?run={run.id}")]
        for shown_page in pages:
            html = shown_page.content.decode()
            assert ("https://git.example.com/a.git" in html, "glpat-secret" in html) == (True, False)

    def test_says_that_a_name_is_given_twice(self, page):
        files = [SimpleUploadedFile("a.py", b"1"), SimpleUploadedFile("a.py", b"2")]

        answer = page.post(PLAYGROUND, {"profile": "prof_deep", **ASKED, "uploads": files})

        assert re.search('id="id_uploads_error">.*?The path is given twice.', answer.content.decode(), re.DOTALL)

    def test_shows_a_refusal_in_place_and_writes_nothing(self, page, integration):
        integration.delete()

        answer = page.post(PLAYGROUND, {"profile": "prof_deep", **ASKED})

        assert "/docs/errors#byok-not-configured" in answer.content.decode()
        assert "two words" in answer.content.decode()
        assert not Run.objects.exists()

    def test_says_what_it_would_do_as_the_form_changes(self, page):
        answer = page.post(PLAYGROUND, {"profile": "prof_deep", **ASKED, "action": "update"}, headers=HTMX)

        html = answer.content.decode()
        assert answer.status_code == 200
        assert "Runs as byok" in html
        assert "It costs $1.50 at most." in html
        assert not Run.objects.exists()

    def test_says_what_is_missing_where_no_pool_runs_agents(self, page):
        WorkerHeartbeat.objects.update(offers_sandboxes=False, sandbox_refusal="bubblewrap is missing.")

        html = page.get(PLAYGROUND).content.decode()

        assert "No pool runs agents now" in html
        assert "This server starts no sandboxes: bubblewrap is missing." in html
        assert 'name="program"' not in html

    def test_offers_the_active_pools_and_says_why_not_the_others(self, page, ada_access):
        pool = services.create_pool(ada_access, name="own", provider_id="sandbox", config={})
        services.update_pool(ada_access, pool, active=False)

        html = unescape(page.get(PLAYGROUND).content.decode())

        assert re.findall('<option value="(\\w+)"', html.partition('name="pool"')[2].partition("</select>")[0]) == [
            "sandbox"
        ]
        assert "The pool 'own' is not active." in html

    def test_begins_with_an_earlier_run_without_its_files_and_its_environment(self, page, make_agent):
        run = make_agent()

        moved = page.get(f"/o/acme/playground?run={run.id}")
        html = unescape(page.get(moved["Location"]).content.decode())

        assert moved["Location"] == f"{PLAYGROUND}?run={run.id}"
        for told in ("python3 agent.py 'two words'", "My task.", "out/**", 'value="2', "without its files"):
            assert told in html
        assert "secret-value" not in html

    def test_begins_with_nothing_of_another_organization(self, make_agent, eve, page_as):
        run = make_agent()
        offered = page_as(eve).get(f"/o/evil/playground/agent?run={run.id}")

        assert offered.status_code == 200
        assert "My task." not in offered.content.decode()

    def test_is_closed_to_auditors(self, otto, page_as):
        browser = page_as(otto)

        assert "Auditors can read everything" in browser.get(PLAYGROUND).content.decode()
        assert browser.post(PLAYGROUND, {"profile": "prof_deep", **ASKED}).status_code == 403
        assert not Run.objects.exists()
