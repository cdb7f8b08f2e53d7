"""Run again, edit and run again, two runs side by side."""

import pytest

from rensei.dispatch.models import Run

RUNS = "/o/acme/runs"


@pytest.fixture
def other(make_profile):
    return make_profile(name="quick", model_id="claude-sonnet-5-5")


class TestRunAgain:
    def test_asks_the_same_with_the_same_settings(self, page, make_run):
        first = make_run("How far?", system="Be brief.", effort="low", max_tokens=2048)

        answer = page.post(f"{RUNS}/{first.id}/again")

        second = Run.objects.exclude(pk=first.pk).get()
        assert answer["Location"] == f"{RUNS}/{second.id}?before={first.id}"
        assert second.input.body == first.input.body
        assert (second.effort, second.max_tokens, second.profile_id) == ("low", 2048, first.profile_id)

    def test_offers_to_compare_the_two(self, page, make_run):
        first = make_run()

        html = page.post(f"{RUNS}/{first.id}/again", follow=True).content.decode()

        assert "Compare with the one before" not in html  # It has not ended.
        Run.objects.update(state=Run.State.SUCCEEDED)
        second = Run.objects.exclude(pk=first.pk).get()
        html = page.get(f"{RUNS}/{second.id}?before={first.id}").content.decode()
        assert f"compare?run={second.id}&amp;run={first.id}" in html

    def test_says_on_the_run_why_it_was_refused(self, page, make_run, integration):
        first = make_run()
        integration.delete()

        answer = page.post(f"{RUNS}/{first.id}/again", follow=True)

        assert answer.redirect_chain[0][0] == f"{RUNS}/{first.id}"
        assert "BYOK_NOT_CONFIGURED" in answer.content.decode()

    def test_is_not_there_without_what_was_asked(self, page, run):
        run.input.delete()

        assert page.post(f"{RUNS}/{run.id}/again").status_code == 404
        assert f"{RUNS}/{run.id}/again" not in page.get(f"{RUNS}/{run.id}").content.decode()


class TestRunOfADeletedProfile:
    """Its input can be run again with another profile."""

    @pytest.fixture
    def orphan(self, make_run, other, profile):
        run = make_run("How far?", profile_id=other.public_id)
        other.delete()
        Run.objects.update(state=Run.State.SUCCEEDED)
        return run

    def test_is_not_offered_unchanged(self, page, orphan):
        html = page.get(f"{RUNS}/{orphan.id}").content.decode()

        assert f"{RUNS}/{orphan.id}/again" not in html
        assert f"/o/acme/playground?run={orphan.id}" in html
        assert f"/settings/profiles/{orphan.profile_id}" not in html
        assert "which was deleted" in html

    def test_leads_to_the_playground_with_another(self, page, orphan, profile):
        answer = page.post(f"{RUNS}/{orphan.id}/again", follow=True)

        assert answer.redirect_chain == [(f"/o/acme/playground?run={orphan.id}", 302)]
        assert answer.context["form"].initial["text"] == "How far?"
        assert answer.context["chosen"] == profile
        assert f"There is no profile <code>{orphan.profile_id}</code> any more" in answer.content.decode()
        assert Run.objects.count() == 1

    def test_leads_to_a_new_profile_where_none_is_left(self, page, orphan, profile):
        profile.delete()

        answer = page.post(f"{RUNS}/{orphan.id}/again", follow=True)

        assert (answer.status_code, answer.context["chosen"]) == (200, None)
        assert "No profile yet" in answer.content.decode()

    def test_is_told_of_among_selected_runs(self, page, orphan):
        html = page.post(f"{RUNS}/selected", {"action": "again", "run": orphan.id}, follow=True).content.decode()

        assert f"The profile &#x27;{orphan.profile_id}&#x27; of this run was deleted." in html
        assert Run.objects.count() == 1


class TestEditAndRunAgain:
    def test_fills_the_playground_with_what_was_asked(self, page, make_run):
        first = make_run("How far?", system="Be brief.", max_tokens=2048)

        form = page.get(f"/o/acme/playground?run={first.id}").context["form"]

        assert form.initial["text"] == "How far?"
        assert form.initial["system"] == "Be brief."
        assert form.initial["max_tokens"] == 2048


class TestSideBySide:
    def test_shows_both_and_how_they_differ(self, page, make_run, other):
        left, right = make_run("One?"), make_run("Two?", profile_id=other.public_id)
        Run.objects.filter(pk=left.pk).update(amount_picodollars=1_000_000_000, output_text="<b>left</b>")
        Run.objects.filter(pk=right.pk).update(amount_picodollars=2_500_000_000, output_text="right")

        html = page.get(f"{RUNS}/compare?run={left.id}&run={right.id}").content.decode()

        assert "+150 %" in html
        assert "&lt;b&gt;left&lt;/b&gt;" in html
        for text in ("claude-opus-5-5", "claude-sonnet-5-5", "One?", "Two?"):
            assert text in html

    def test_asks_itself_again_until_both_have_ended(self, page, make_run):
        left, right = make_run(), make_run()
        path = f"{RUNS}/compare?run={left.id}&run={right.id}"
        Run.objects.filter(pk=left.pk).update(state=Run.State.SUCCEEDED)

        assert 'hx-trigger="every 1s"' in page.get(path).content.decode()
        Run.objects.update(state=Run.State.SUCCEEDED)
        assert 'hx-trigger="every 1s"' not in page.get(path).content.decode()

    def test_lets_one_choose_the_second(self, page, make_run):
        left, right = make_run(), make_run()

        html = page.get(f"{RUNS}/compare?run={left.id}").content.decode()

        assert f"?run={left.id}&amp;run={right.id}" in html
        assert f"&amp;run={left.id}" not in html

    def test_does_not_find_the_run_of_another_organization(self, run, page_as, eve):
        assert page_as(eve).get(f"/o/evil/runs/compare?run={run.id}").status_code == 404

    def test_begins_in_the_playground_with_another_profile(self, page, integration, profile, other):
        sent = {"profile": profile.public_id, "other": other.public_id, "text": "Why?", "action": "dispatch"}

        answer = page.post("/o/acme/playground", {**sent, "pool": "local"})

        left, right = Run.objects.order_by("id")
        assert answer["Location"] == f"{RUNS}/compare?run={left.id}&run={right.id}"
        assert left.input.body["messages"] == right.input.body["messages"]
        assert [left.profile_id, right.profile_id] == [profile.public_id, other.public_id]
