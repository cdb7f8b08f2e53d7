"""Settings → Model Profiles: the form offers what the model offers, and says what would happen."""

from datetime import date

import pytest

from catalog.models import CatalogEntry
from profiles import services
from profiles.models import ModelProfile
from rensei.core.clock import database_now
from rensei.tokens.models import ApiToken
from rensei.tokens.services import create_token
from rensei.workflows import services as workflows
from tests import factories

LIST = "/o/acme/settings/profiles"
NEW = f"{LIST}/new"
DOCUMENTED = "claude:claude-opus-4-1-20250514"


@pytest.fixture
def fields():
    return {
        "name": "anthropic-deep-reasoning",
        "model_id": DOCUMENTED,
        "auth_modes": ["metered", "byok"],
        "effort": "high",
        "scope": "organization",
        "prompt_caching": "ephemeral",
        "action": "save",
    }


class TestForm:
    def test_creates_a_profile(self, page, ada_access, fields):
        answer = page.post(NEW, fields)

        stored = ModelProfile.objects.get()
        assert answer["Location"] == f"{LIST}/prof_anthropic_deep_reasoning"
        assert (stored.auth_modes, stored.effort) == (["byok", "metered"], "high")

    def test_proposes_the_newest_model_that_is_recommended(self, page, ada_access):
        CatalogEntry.objects.filter(model_id="claude-opus-5-5").update(released_on=date(2099, 1, 1))
        CatalogEntry.objects.filter(model_id="claude-haiku-5-5").update(released_on=date(2099, 2, 2))

        html = page.get(NEW).content.decode()

        assert '<option value="claude:claude-opus-5-5" selected>' in html

    def test_offers_the_efforts_of_the_model_with_their_descriptions(self, page, ada_access):
        html = page.get(f"{NEW}?model={DOCUMENTED}").content.decode()

        assert ">Reasoning Effort</label>" in html
        assert ">high (deep)</option>" in html
        assert "Extended thinking; best for complex problems." in html

    def test_hides_the_effort_of_a_model_without_one(self, page, ada_access):
        html = page.get(f"{NEW}?model=claude:claude-3-5-haiku-20241022").content.decode()

        assert "is retired" in html or ">Reasoning Effort</label>" not in html

    def test_updates_itself_without_saving_or_complaining(self, page, ada_access, fields):
        answer = page.post(NEW, {**fields, "name": "", "action": "update"})

        html = answer.content.decode()
        assert answer.status_code == 200
        assert "is retired" in html
        assert "field__error" not in html
        assert not ModelProfile.objects.exists()

    def test_sends_only_the_form_to_htmx(self, page, ada_access, fields):
        answer = page.post(NEW, {**fields, "action": "update"}, headers={"HX-Request": "true"})

        assert "<html" not in answer.content.decode()
        assert 'id="profile-panel"' in answer.content.decode()

    def test_shows_the_refusal_that_would_come(self, page, ada_access):
        html = page.get(NEW).content.decode()

        assert "BYOK_NOT_CONFIGURED" in html
        assert "/docs/errors#byok-not-configured" in html

    def test_shows_a_services_refusal_in_place(self, page, ada_access, profile, fields):
        answer = page.post(NEW, {**fields, "name": profile.name})

        assert answer.status_code == 422
        assert "already exists" in answer.content.decode()

    def test_keeps_what_an_update_did_not_name(self, page, profile):
        page.post(f"{LIST}/{profile.public_id}", _as_form(profile, system="Be brief."))

        profile.refresh_from_db()
        assert profile.system == "Be brief."
        assert profile.auth_modes == ["byok", "metered"]

    def test_copies_hold_a_variable_in_place_of_a_token(self, page, profile):
        html = page.get(f"{LIST}/{profile.public_id}").content.decode()

        assert "$RENSEI_AUTH_TOKEN" in html
        assert "rensei dispatch --profile prof_deep" in html


class TestList:
    def test_says_what_would_happen_now(self, page, integration, profile, ada_access):
        services.create_profile(
            ada_access, name="free", provider="claude", model_id="claude-haiku-5-5", auth_modes=["shared"]
        )

        html = page.get(LIST).content.decode()

        assert "Runs as byok" in html
        assert "SHARED_KEY_NOT_CONFIGURED" in html

    def test_switches_a_retired_model_to_what_serves_it(self, page, ada_access, fields):
        page.post(NEW, fields)
        html = page.get(LIST).content.decode()

        page.post(f"{LIST}/prof_anthropic_deep_reasoning/switch")

        assert "served by" in html
        assert ModelProfile.objects.get().model_id != "claude-opus-4-1-20250514"

    def test_makes_default(self, page, profile):
        page.post(f"{LIST}/{profile.public_id}/default")

        profile.refresh_from_db()
        assert profile.is_default


class TestDelete:
    def test_asks_before_it_deletes(self, page, profile):
        asked = page.get(f"{LIST}/{profile.public_id}/delete").content.decode()
        assert ModelProfile.objects.exists()

        page.post(f"{LIST}/{profile.public_id}/delete")

        assert "Delete deep?" in asked
        assert not ModelProfile.objects.exists()


def _as_form(profile, **changes):
    return {
        "name": profile.name,
        "model_id": f"{profile.provider}:{profile.model_id}",
        "auth_modes": profile.auth_modes,
        "scope": profile.scope,
        "prompt_caching": profile.prompt_caching,
        "action": "save",
        **changes,
    }


class TestTheQuestionBeforeDeleting:
    def test_says_what_uses_the_profile(self, page, workflow_run, make_run, profile):
        make_run()

        html = page.get(f"{LIST}/{profile.public_id}/delete").content.decode()

        assert f"<li>Workflow: {workflow_run.version.workflow.name}</li>" in html
        assert "It had 2 runs in the last 7 days." in html

    def test_lists_no_workflow_that_only_writes_its_id(self, page, ada_access, integration, profile):
        other = services.create_profile(
            ada_access, name="other", provider="claude", model_id="claude-opus-5-5", auth_modes=["byok"]
        )
        config = {"profileId": other.public_id, "prompt": f"What is {profile.public_id}?"}
        workflows.apply_document(ada_access, {"nodeId": "only", "nodeType": "action/llm.inference", "config": config})

        html = page.get(f"{LIST}/{profile.public_id}/delete").content.decode()

        assert "Workflow:" not in html

    def test_names_the_tokens_that_used_it(self, page, integration, profile, api_as, ada):
        api_as(ada).post("/api/v1/runs", {"profileId": profile.public_id, "input": "Hello"})

        assert "Token, used in the last 7 days: test" in page.get(f"{LIST}/{profile.public_id}/delete").content.decode()

    def test_names_some_of_many_tokens_and_none_that_was_revoked(self, page, acme, ada, ada_access, profile):
        tokens = sorted(
            (create_token(ada_access, name=f"of-{place}")[0] for place in range(22)), key=lambda one: one.pk
        )
        for token in tokens:
            factories.past_run(acme, ada, profile_id=profile.public_id, token_id=token.pk)
        many = page.get(f"{LIST}/{profile.public_id}/delete").content.decode()
        ApiToken.objects.exclude(pk=tokens[-1].pk).update(revoked_at=database_now())

        one = page.get(f"{LIST}/{profile.public_id}/delete").content.decode()

        assert (many.count("Token, used in"), many.count("More tokens")) == (20, 1)
        assert (one.count("Token, used in"), one.count("More tokens")) == (1, 0)
        assert f"Token, used in the last 7 days: {tokens[-1].name}" in one

    def test_is_refused_where_the_next_default_is_gone(self, page, ada_access, profile):
        services.update_profile(ada_access, profile, is_default=True)

        answer = page.post(f"{LIST}/{profile.public_id}/delete", {"chosen": "prof_gone"})

        assert answer.status_code == 404
        assert ModelProfile.objects.get().is_default

    def test_offers_another_default(self, page, ada_access, profile):
        services.update_profile(ada_access, profile, is_default=True)
        other = services.create_profile(
            ada_access, name="Other", provider="claude", model_id="claude-opus-5-5", auth_modes=["byok"]
        )
        asked = page.get(f"{LIST}/{profile.public_id}/delete").content.decode()

        page.post(f"{LIST}/{profile.public_id}/delete", {"chosen": other.public_id})

        assert f'<option value="{other.public_id}">Other</option>' in asked
        assert [one.name for one in ModelProfile.objects.filter(is_default=True)] == ["Other"]


class TestAProfileThatIsNotThere:
    def test_is_told_within_the_frame_of_the_organization(self, page, ada_access):
        answer = page.get(f"{LIST}/prof_none")

        html = answer.content.decode()
        assert answer.status_code == 404
        assert "Page not found" in html
        assert 'id="rail"' in html
