"""Playground and Runs: dispatch, watch, find, cancel."""

import re
from html import unescape

import pytest
from django.core.files.uploadedfile import SimpleUploadedFile

from rensei.dispatch import search
from rensei.dispatch.models import Run, RunChunk, RunInput
from rensei.dispatch.run_filter import FIRST
from tests.pages import html_of

RUNS = "/o/acme/runs"
SEARCH = search.matching
PLAYGROUND = "/o/acme/playground"


class TestPlayground:
    def test_dispatches_and_shows_the_run(self, page, integration, profile):
        answer = page.post(PLAYGROUND, {"profile": profile.public_id, "text": "Hello?", "action": "dispatch"})

        run = Run.objects.get()
        assert answer["Location"] == f"{PLAYGROUND}?after={run.id}"
        assert (run.auth_mode, run.payer) == ("byok", "organization")

    def test_sends_images_with_the_text(self, page, integration, profile, png):
        image = SimpleUploadedFile("dot.png", png, content_type="image/png")

        page.post(
            PLAYGROUND,
            {"profile": profile.public_id, "text": "What is it?", "images": [image], "action": "dispatch"},
        )

        blocks = RunInput.objects.get().body["messages"][0]["content"]
        assert [block["type"] for block in blocks] == ["image", "text"]

    def test_says_beforehand_who_would_pay_and_what(self, page, integration, profile):
        html = page.get(PLAYGROUND).content.decode()

        assert "Runs as byok" in html
        assert "Your organization, billed directly by the provider. At most $" in html

    def test_shows_a_refusal_in_place_and_writes_nothing(self, page, ada_access, profile):
        answer = page.post(PLAYGROUND, {"profile": profile.public_id, "text": "Hello?", "action": "dispatch"})

        assert answer.status_code in {200, 422}
        assert "/docs/errors#byok-not-configured" in answer.content.decode()
        assert "Hello?" in answer.content.decode()
        assert not Run.objects.exists()

    def test_refuses_an_empty_message(self, page, integration, profile):
        answer = page.post(PLAYGROUND, {"profile": profile.public_id, "text": " ", "action": "dispatch"})

        assert not Run.objects.exists()
        assert answer.status_code == 422

    def test_takes_an_earlier_run_up_again(self, page, make_run):
        run = make_run("Why is the sky blue?")

        assert "Why is the sky blue?" in page.get(f"{PLAYGROUND}?run={run.id}").content.decode()

    def test_takes_nothing_up_from_another_organization(self, make_run, eve, page_as):
        run = make_run("Why is the sky blue?")

        assert "the sky blue" not in page_as(eve).get(f"/o/evil/playground?run={run.id}").content.decode()


class TestRun:
    def test_shows_what_a_model_wrote_as_text(self, page, run):
        Run.objects.update(state="SUCCEEDED", output_text="<script>alert(1)</script>")

        html = page.get(f"{RUNS}/{run.id}").content.decode()

        assert "&lt;script&gt;alert(1)&lt;/script&gt;" in html
        assert "<script>alert" not in html

    def test_asks_for_itself_again_until_it_has_ended(self, page, run):
        RunChunk.objects.create(run=run, seq=1, kind="delta", data={"text": "The sky "})
        RunChunk.objects.create(run=run, seq=2, kind="delta", data={"text": "is blue."})
        live = page.get(f"{RUNS}/{run.id}", headers={"HX-Request": "true"}).content.decode()

        Run.objects.update(state="SUCCEEDED", output_text="The sky is blue.")
        ended = page.get(f"{RUNS}/{run.id}", headers={"HX-Request": "true"}).content.decode()

        assert "The sky is blue." in live
        assert 'hx-trigger="every 1s"' in live
        assert "hx-trigger" not in ended

    def test_draws_all_five_modes(self, page, run):
        assert page.get(f"{RUNS}/{run.id}").content.decode().count("trace__node") == 5

    def test_explains_its_error(self, page, run):
        Run.objects.update(
            state="FAILED", error={"code": "PROVIDER_UNFUNDED", "detail": "No credit.", "fix": "Add credit."}
        )

        html = page.get(f"{RUNS}/{run.id}").content.decode()

        assert "No credit. Add credit." in html
        assert "/docs/errors#provider-unfunded" in html

    def test_is_cancelled(self, page, run):
        page.post(f"{RUNS}/{run.id}/cancel")

        assert Run.objects.get().state == Run.State.CANCELLED

    def test_says_that_an_ended_run_cannot_be_cancelled(self, page, run):
        page.post(f"{RUNS}/{run.id}/cancel")

        answer = page.post(f"{RUNS}/{run.id}/cancel", follow=True)

        assert "already ended" in answer.content.decode()


class TestList:
    @pytest.mark.parametrize(
        ("query", "found"),
        [
            ("state=QUEUED", True),
            ("state=FAILED", False),
            ("mode=byok", True),
            ("mode=shared", False),
            ("profile=prof_deep", True),
            ("profile=prof_other", False),
            ("project=nowhere", False),
            ("since=1h", True),
            ("state=nonsense", True),
        ],
    )
    def test_filters(self, page, run, query, found):
        html = page.get(f"{RUNS}?{query}").content.decode()

        assert (f'href="{RUNS}/{run.id}"' in html) is found

    def test_leads_from_an_id_straight_to_its_run(self, page, run):
        assert page.get(f"{RUNS}?q={run.id}")["Location"] == f"{RUNS}/{run.id}"

    def test_pages_without_losing_or_repeating_a_run(self, page, make_run, monkeypatch):
        monkeypatch.setattr("rensei.console.run_list.PAGE_SIZE", 2)
        ids = sorted((make_run().id for _ in range(5)), reverse=True)

        first = page.get(RUNS).content.decode()
        second = page.get(f"{RUNS}?before={ids[1]}").content.decode()
        back = page.get(f"{RUNS}?after={ids[2]}").content.decode()

        assert [run_id for run_id in ids if run_id in first] == ids[:2]
        assert [run_id for run_id in ids if f"{RUNS}/{run_id}" in second] == ids[2:4]
        assert [run_id for run_id in ids if f"{RUNS}/{run_id}" in back] == ids[:2]

    @pytest.mark.parametrize(
        ("query", "found"),
        [
            ("q=hello", True),
            ("q=ada+hel", True),
            ("q=goodbye", False),
            ("q=%00%27%22", False),
            ("q=run_%00", False),
            ("from=0001-01-01&to=9999-12-30&q=hello", True),
            ("to=0001-01-01", False),
            ("model=claude-opus-5-5", True),
            ("model=other", False),
            ("member={member}", True),
            ("member=mbr_other", False),
            ("code=provider_unfunded", False),
            ("from=2000-01-01", True),
            ("to=2000-01-01", False),
            ("q=hello&to=2000-01-01", False),
            ("sort=-cost", True),
            ("sort=took", True),
            ("sort=-nonsense&page=99999", True),
            ("page=7&sort=cost", False),
            ("before=run_0", False),
            ("after=run_0&state=QUEUED", True),
        ],
    )
    def test_finds_and_sorts(self, page, run, access, query, found):
        html = page.get(f"{RUNS}?{query.format(member=access.membership.id)}").content.decode()

        assert (f'href="{RUNS}/{run.id}"' in html) is found

    def test_never_finds_another_organizations_prompt(self, make_run, eve, page_as):
        run = make_run("The secret plan")

        for address in ("/o/evil/runs?q=secret+plan", "/o/evil/runs.csv?q=secret", f"/o/evil/runs?q={run.id}"):
            answer = page_as(eve).get(address)
            text = b"".join(answer.streaming_content) if answer.streaming else answer.content
            assert answer.status_code == 200
            assert "The secret plan" not in text.decode()
            assert f"{RUNS}/{run.id}" not in text.decode()

    def test_sorts_by_cost_as_a_number(self, page, make_run):
        amounts = [9, 10**13, 10**25, None, 70]
        ids = {}
        for amount in amounts:
            run = make_run()
            Run.objects.filter(id=run.id).update(amount_picodollars=amount)
            ids[amount] = run.id

        for sort, order in (("cost", [9, 70, 10**13, 10**25, None]), ("-cost", [10**25, 10**13, 70, 9, None])):
            html = page.get(f"{RUNS}?sort={sort}").content.decode()
            places = [html.index(f'href="{RUNS}/{ids[amount]}"') for amount in order]
            assert places == sorted(places)

    def test_sums_what_matches(self, page, make_run):
        for amount in (10**12, 5 * 10**11, None):
            Run.objects.filter(id=make_run("Count me").id).update(amount_picodollars=amount)
        make_run("Another")

        html = html_of(page.get(f"{RUNS}?q=count"))

        assert "3 runs · $1.50 · 1 without a known cost" in html

    def test_reads_a_stated_number_of_runs_at_once_and_leads_on(self, page, make_run, monkeypatch):
        monkeypatch.setattr("rensei.dispatch.run_filter.READ_AT_ONCE", 3)
        monkeypatch.setattr("rensei.console.run_list.READ_AT_ONCE", 3)
        ids = [make_run().id for _ in range(7)]
        Run.objects.filter(id__in=[ids[0], ids[5]]).update(state="FAILED")

        seen, address, steps = [], f"{RUNS}?state=FAILED", 0
        while address and steps < 9:
            html = page.get(address).content.decode()
            seen += [run_id for run_id in ids if f'href="{RUNS}/{run_id}"' in html]
            link = re.search(r'href="(\?[^"]+)">(?:Older|Search earlier runs)<', html)
            address, steps = (RUNS + unescape(link[1]) if link else ""), steps + 1

        assert seen == [ids[5], ids[0]]
        assert steps == 3
        assert "1 run among the newest 3" in page.get(f"{RUNS}?state=FAILED").content.decode()

    def test_says_that_a_gateway_prompt_is_not_stored(self, page, run):
        Run.objects.update(via="gateway")

        assert "whose prompt is not stored" in page.get(RUNS).content.decode()

    def test_counts_what_is_new_for_the_same_filter(self, page, make_run):
        seen = make_run("Alpha").id
        make_run("Alpha again")
        make_run("Beta")

        def said(query):
            return html_of(page.get(f"{RUNS}/newer?seen={seen}{query}", headers={"HX-Request": "true"}))

        assert page.get(f"{RUNS}/newer?seen=%00").status_code == 200
        assert "2 new runs" in said("")
        assert "1 new run<" in said("&q=alpha")
        assert said("&state=FAILED").strip() == ""

    def test_searches_once_for_a_page_and_what_is_new_only_from_there(self, page, make_run, monkeypatch):
        make_run("Alpha")
        seen = make_run("Alpha").id
        searches = []

        def matching(org, text, **places):
            searches.append(places["first"])
            return SEARCH(org, text, **places)

        monkeypatch.setattr("rensei.dispatch.search.matching", matching)

        page.get(f"{RUNS}?q=alpha")
        page.get(f"{RUNS}/newer?q=alpha&seen={seen}")

        assert searches == [FIRST, seen]

    def test_writes_what_matches_as_csv(self, page, make_run):
        found = make_run("Alpha").id
        make_run("Beta")

        lines = b"".join(page.get(f"{RUNS}.csv?q=alpha").streaming_content).decode().splitlines()

        assert [line.split(",")[0] for line in lines] == ["id", found]
        assert "Alpha" not in "".join(lines)


class TestSelected:
    def test_are_cancelled(self, page, make_run):
        ids = [make_run().id for _ in range(3)]

        html = page.post(f"{RUNS}/selected", {"action": "cancel", "run": ids[:2]}, follow=True).content.decode()

        assert set(Run.objects.filter(state="CANCELLED").values_list("id", flat=True)) == set(ids[:2])
        assert "2 runs are being cancelled." in html

    def test_are_run_again(self, page, make_run):
        kept, other = make_run("Once more"), make_run("Not stored")
        RunInput.objects.filter(run=other).delete()

        html = page.post(
            f"{RUNS}/selected", {"action": "again", "run": [kept.id, other.id]}, follow=True
        ).content.decode()

        assert Run.objects.count() == 3
        assert "1 run is dispatched again." in html
        assert "1 of the selected runs cannot be." in html

    def test_stop_at_a_profile_that_is_deleted_and_say_so(self, page, make_run):
        runs = [make_run() for _ in range(3)]
        Run.objects.filter(id=runs[1].id).update(profile_id="prof_gone")

        answer = page.post(f"{RUNS}/selected", {"action": "again", "run": [run.id for run in runs]}, follow=True)

        html = answer.content.decode()
        assert answer.status_code == 200
        assert Run.objects.count() == 4
        assert "1 run is dispatched again." in html
        assert "/docs/errors#not-found" in html
        assert "cannot be" not in html

    def test_take_no_text_that_a_database_refuses(self, page, run):
        html = page.post(f"{RUNS}/selected", {"action": "cancel", "run": ["\0", run.id]}, follow=True).content.decode()

        assert "1 run is being cancelled." in html

    def test_are_compared_and_exported(self, page, make_run):
        ids = [make_run().id for _ in range(2)]

        compared = page.post(f"{RUNS}/selected", {"action": "compare", "run": ids})
        exported = page.post(f"{RUNS}/selected", {"action": "export", "run": ids[:1]})

        assert compared["Location"] == f"{RUNS}/compare?run={ids[0]}&run={ids[1]}"
        assert b"".join(exported.streaming_content).decode().splitlines()[1].startswith(ids[0])

    @pytest.mark.parametrize("action", ["cancel", "again", "export", "compare"])
    def test_of_another_organization_are_not_found(self, make_run, eve, page_as, action):
        run = make_run()

        answer = page_as(eve).post("/o/evil/runs/selected", {"action": action, "run": run.id}, follow=True)

        text = b"".join(answer.streaming_content) if answer.streaming else answer.content
        assert run.id not in text.decode().replace(f"run={run.id}", "")
        assert list(Run.objects.values_list("id", "state")) == [(run.id, "QUEUED")]
