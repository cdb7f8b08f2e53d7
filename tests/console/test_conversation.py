"""A conversation of the Playground: each answer is a run, whose input is everything before it."""

import json
import random
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
from integrations.models import Integration
from profiles.models import ModelProfile
from rensei.console import conversation
from rensei.console.templatetags.console import usd
from rensei.dispatch.admission import admit
from rensei.dispatch.admission.requests import DispatchRequest, messages_from
from rensei.dispatch.execution.execute import execute
from rensei.dispatch.execution.lease_renewal import LeaseRenewal
from rensei.dispatch.models import Run, RunInput
from rensei.dispatch.queue import claims
from rensei.orgs.access import Access
from rensei.orgs.models import Org, User
from rensei.tokens.services import create_token
from rensei.workflows import execution
from rensei.workflows.models import WorkflowRun
from tests import factories
from tests.pages import html_of

PLAYGROUND = "/o/acme/playground"
QUOTE = re.compile(r'class="number">\$([\d.]+)</span><span class="quote__payer">')
FAULT = "[[fault:spendlimit]]"


def ask(browser: Client, text: str, *, after: str = "", **fields: Any) -> Any:
    fields = {"profile": "prof_deep", "text": text, "action": "dispatch", **fields}
    return browser.post(PLAYGROUND, fields | ({"after": after} if after else {}))


def work() -> Run:
    """Make the call of the run that waits, as a worker does."""
    renewal = LeaseRenewal(owner="test")
    claim = claims.claim_next(owner="test")
    assert claim is not None
    execute(claim, renewal)
    renewal.close()
    run: Run = Run.objects.get(pk=claim.run.id)
    return run


def said(*turns: str) -> list[dict[str, Any]]:
    """The messages of a conversation whose turns are those of the user and the assistant, alternating."""
    roles = ("user", "assistant")
    return [{"role": roles[place % 2], "content": [{"type": "text", "text": text}]} for place, text in enumerate(turns)]


@pytest.mark.django_db(transaction=True)
class TestAFollowUp:
    @pytest.mark.parametrize("seed", range(4))
    def test_sends_everything_before_it_and_is_a_run_with_its_own_cost(
        self, page: Client, simulator: Any, integration: Integration, profile: ModelProfile, seed: int
    ) -> None:
        chance = random.Random(seed)
        turns: list[str] = []
        answers: list[Run] = []
        after = ""
        for place in range(6):
            fails = chance.random() < 0.4
            text = f"{FAULT if fails else f'[[reply {chance.randint(1, 9)} words]]'} Question {place}"
            answer = ask(page, text, after=after)
            run = work()
            after = run.id

            assert answer["Location"] == f"{PLAYGROUND}?after={run.id}"
            assert RunInput.objects.get(run=run).body["messages"] == said(*turns, text)
            assert run.metadata.get("conversation", []) == [one.id for one in answers]
            html = page.get(f"{PLAYGROUND}?after={after}").content.decode()
            if run.state == Run.State.SUCCEEDED:
                turns += [text, run.output_text]
                answers.append(run)
            shown = [unescape(one) for one in re.findall(r"Run details</a>.*?title=\"(\$[\d.]+)", html, re.DOTALL)]
            costs = [CostEvent.objects.get(run_id=one.id) for one in answers]
            assert [f"${one.amount_picodollars / 10**12:.12f}".rstrip("0") for one in costs] == [
                one.rstrip("0") for one in shown if float(one[1:])
            ]
            whole = sum(one.amount_picodollars for one in costs)
            if len(answers) > 1:
                assert f"{usd(whole)} for this conversation so far" in " ".join(html.split())
            for one in answers:
                assert f'href="/o/acme/runs/{one.id}"' in html
            (box,) = re.findall(r'<textarea name="text"[^>]*>\n?(.*?)</textarea>', html, flags=re.DOTALL)
            assert unescape(box) == ("" if run.state == Run.State.SUCCEEDED else text)

        assert Run.objects.count() == 6

    def test_waits_for_the_answer_before_it_and_keeps_what_was_typed(
        self, page: Client, integration: Integration, profile: ModelProfile
    ) -> None:
        ask(page, "First?")
        first = Run.objects.get()

        answer = ask(page, "Second?", after=first.id)

        html = answer.content.decode()
        assert (answer.status_code, Run.objects.count()) == (422, 1)
        assert "The last answer is not complete yet." in html
        assert "Second?" in html
        assert f'data-events="/api/v1/runs/{first.id}/events"' in html

    def test_is_quoted_with_everything_before_it(
        self, page: Client, simulator: Any, integration: Integration, profile: ModelProfile
    ) -> None:
        def quoted(after: str = "") -> float:
            given = {"profile": "prof_deep", "text": "Go on.", "action": "update"} | ({"after": after} if after else {})
            html = html_of(page.post(PLAYGROUND, given, headers={"HX-Request": "true"}))
            return float(QUOTE.findall(html)[0])

        ask(page, "[[reply 20 words]] " + "A long question. " * 2000)
        run = work()

        assert quoted(run.id) > quoted() + 0.02

    def test_is_written_for_programs_as_it_would_be_sent(
        self, page: Client, simulator: Any, integration: Integration, profile: ModelProfile, png: bytes
    ) -> None:
        ask(page, "What is it?", images=[SimpleUploadedFile("dot.png", png, content_type="image/png")])
        run = work()
        given = {"profile": "prof_deep", "text": "Are you sure?", "action": "update", "after": run.id}

        html = unescape(page.post(PLAYGROUND, given, headers={"HX-Request": "true"}).content.decode())

        assert '"role": "assistant"' in html
        assert json.dumps(run.output_text, ensure_ascii=False) in html
        assert "$(base64 < image-1.png" in html
        assert 'open("image-1.png", "rb")' in html
        assert "image-2" not in html
        assert "rensei dispatch --profile" not in html

    def test_costs_as_many_queries_late_as_early(
        self, page: Client, simulator: Any, integration: Integration, profile: ModelProfile
    ) -> None:
        def counted(after: str) -> int:
            with CaptureQueriesContext(connection) as queries:
                page.get(f"{PLAYGROUND}?after={after}")
            return len(queries)

        counts, after = [], ""
        for place in range(5):
            ask(page, f"[[reply 2 words]] {place}", after=after)
            after = work().id
            counts.append(counted(after))

        assert counts[1:] == counts[1:2] * 4
        assert counts[1] <= 18

    def test_ends_with_a_full_conversation(
        self,
        page: Client,
        simulator: Any,
        integration: Integration,
        profile: ModelProfile,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        monkeypatch.setattr(conversation, "ANSWERS_MAX", 2)
        ask(page, "[[reply 2 words]] One")
        ask(page, "[[reply 2 words]] Two", after=work().id)

        answer = ask(page, "Three", after=work().id)

        assert answer.status_code == 422
        assert "This conversation is full." in answer.content.decode()

    def test_keeps_the_options_of_the_run_before(
        self, page: Client, simulator: Any, integration: Integration, profile: ModelProfile, project: Any
    ) -> None:
        ask(page, "[[reply 2 words]]", system="Be brief.", effort="low", max_tokens="2048", project=project.slug)
        run = work()

        html = page.get(f"{PLAYGROUND}?after={run.id}").content.decode()

        assert ">\nBe brief.</textarea>" in html
        assert re.search(r'name="max_tokens"[^>]*value="2048"|value="2048"[^>]*name="max_tokens"', html)
        assert f'<option value="{project.slug}" selected>' in html
        assert '<option value="low" selected>' in html


@pytest.mark.django_db
class TestAConversation:
    def test_is_absent_for_another_organization_and_for_what_is_not_stored(
        self, page: Client, acme: Org, ada: User, run: Run, eve: User, page_as: Callable[[User], Client]
    ) -> None:
        gateway = factories.past_run(acme, ada, via="gateway")

        assert page_as(eve).get(f"/o/evil/playground?after={run.id}").status_code == 404
        assert page_as(eve).post("/o/evil/playground", {"after": run.id, "text": "Hello?"}).status_code == 404
        for name in (gateway.id, "run_none", "a\0b"):
            assert page.get(PLAYGROUND, {"after": name}).status_code == 404
        assert Run.objects.count() == 2

    @pytest.mark.parametrize("named", [None, "run", 7, {"a": 1}, [None, 7, {}, ["x"]], ["run_none"] * 2000])
    def test_reads_nothing_else_from_the_metadata_that_programs_write(
        self, page: Client, run: Run, eve: User, make_user: Callable[..., User], named: Any
    ) -> None:
        evil = Org.objects.get(slug="evil")
        foreign = factories.past_run(evil, eve, amount_picodollars=7 * 10**12)
        listed = [*named, foreign.id] if isinstance(named, list) and len(named) < 50 else named
        Run.objects.filter(pk=run.id).update(metadata={"conversation": listed}, state="SUCCEEDED", output_text="Yes.")

        answer = page.get(f"{PLAYGROUND}?after={run.id}")

        assert answer.status_code == 200
        assert foreign.id not in answer.content.decode()
        assert "$7" not in answer.content.decode()

    @pytest.mark.parametrize("content", ["A text", [{"type": "text", "text": "A block"}]])
    def test_goes_on_from_what_a_program_sent(
        self, page: Client, ada_access: Access, integration: Integration, profile: ModelProfile, content: Any
    ) -> None:
        turns = [
            {"role": "user", "content": content},
            {"role": "assistant", "content": "An answer"},
            {"role": "user", "content": "And then?"},
        ]
        asked = DispatchRequest(profile_id=profile.public_id, messages=messages_from(text=None, messages=turns))
        run = admit.dispatch(ada_access, asked)
        Run.objects.filter(pk=run.id).update(state="SUCCEEDED", output_text="Then that.")

        ask(page, "And now?", after=run.id)

        sent = RunInput.objects.exclude(run=run).get().body["messages"]
        assert sent == [*turns, *said("", "Then that.", "And now?")[1:]]
        assert page.get(f"{PLAYGROUND}?after={run.id}").content.decode().count("Run details") == 1

    def test_is_read_and_not_continued_by_an_auditor(
        self, run: Run, otto: User, page_as: Callable[[User], Client]
    ) -> None:
        Run.objects.filter(pk=run.id).update(state="SUCCEEDED", output_text="Yes.")
        browser = page_as(otto)

        html = browser.get(f"{PLAYGROUND}?after={run.id}").content.decode()

        assert "Yes." in html
        assert 'value="dispatch"' not in html
        assert ask(browser, "Go on.", after=run.id).status_code == 403

    def test_shows_what_a_model_wrote_as_text(self, page: Client, run: Run) -> None:
        Run.objects.filter(pk=run.id).update(state="SUCCEEDED", output_text="<script>alert(1)</script>")

        html = page.get(f"{PLAYGROUND}?after={run.id}").content.decode()

        assert "&lt;script&gt;alert(1)&lt;/script&gt;" in html
        assert "<script>alert" not in html


@pytest.mark.django_db
class TestTheLastPrompts:
    def shown(self, browser: Client) -> list[str]:
        return re.findall(r'menu__cut">([^<]*)<', browser.get(PLAYGROUND).content.decode())

    def test_are_the_persons_own_from_a_browser_each_once_the_newest_first(
        self,
        page: Client,
        mia: User,
        page_as: Callable[[User], Client],
        make_run: Callable[..., Run],
        ada_access: Access,
        workflow_run: WorkflowRun,
    ) -> None:
        execution.advance(workflow_run.id)
        assert Run.objects.filter(created_by=ada_access.user).count() == 1
        token, _ = create_token(ada_access, name="ci")
        runs = {text: make_run(text) for text in ("of a token", "a", "b", "c", "d", "e", "f")}
        make_run("b")
        Run.objects.filter(pk=runs["of a token"].pk).update(token_id=token.pk)

        assert self.shown(page) == ["b", "f", "e", "d", "c"]
        assert self.shown(page_as(mia)) == []

    def test_fill_the_form_with_the_last_message(
        self, page: Client, ada_access: Access, integration: Integration, profile: ModelProfile
    ) -> None:
        messages = said("First question", "An answer", "Second question")
        admit.dispatch(ada_access, DispatchRequest(profile_id=profile.public_id, messages=messages))

        (link,) = re.findall(r'href="(/o/acme/playground\?run=[^"]+)"', page.get(PLAYGROUND).content.decode())

        assert ">\nSecond question</textarea>" in page.get(link).content.decode()
