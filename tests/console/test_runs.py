"""Playground and Runs: dispatch, watch, find, cancel."""

import pytest
from django.core.files.uploadedfile import SimpleUploadedFile

from rensei.dispatch.models import Run, RunChunk, RunInput

RUNS = "/o/acme/runs"
PLAYGROUND = "/o/acme/playground"


class TestPlayground:
    def test_dispatches_and_shows_the_run(self, page, integration, profile):
        answer = page.post(PLAYGROUND, {"profile": profile.public_id, "text": "Hello?", "action": "dispatch"})

        run = Run.objects.get()
        assert answer["Location"] == f"{RUNS}/{run.id}"
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
        monkeypatch.setattr("rensei.console.views.runs.PAGE_SIZE", 2)
        ids = sorted((make_run().id for _ in range(5)), reverse=True)

        first = page.get(RUNS).content.decode()
        second = page.get(f"{RUNS}?before={ids[1]}").content.decode()
        back = page.get(f"{RUNS}?after={ids[2]}").content.decode()

        assert [run_id for run_id in ids if run_id in first] == ids[:2]
        assert [run_id for run_id in ids if f"{RUNS}/{run_id}" in second] == ids[2:4]
        assert [run_id for run_id in ids if f"{RUNS}/{run_id}" in back] == ids[:2]
