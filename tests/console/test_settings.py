"""The plain lists of Settings, the first steps, the theme and the documentation."""

import re

import pytest

from rensei.core.errors import RenseiError
from rensei.dispatch.models import Run
from rensei.orgs.models import Membership, Project
from rensei.tokens.models import ApiToken
from tests.pages import html_of

SETTINGS = "/o/acme/settings"


class TestTokens:
    def test_shows_what_each_spent_this_month(self, page, ada, api_as, profile, integration):
        client = api_as(ada)
        for _ in range(2):
            client.post("/api/v1/runs", {"profileId": profile.public_id, "input": "Hello"})
        Run.objects.update(amount_picodollars=1_500_000_000)
        page.post(f"{SETTINGS}/tokens", {"name": "unused", "scopes": ["read"]})

        html = html_of(page.get(f"{SETTINGS}/tokens"))

        assert "$0.0030" in html
        assert "2 runs" in html
        assert "No runs" in html

    def test_shows_a_new_token_once(self, page):
        made = page.post(f"{SETTINGS}/tokens", {"name": "ci", "scopes": ["read"], "expires": "30"}).content.decode()
        later = page.get(f"{SETTINGS}/tokens").content.decode()

        assert made.count("rsk_live_") > later.count("rsk_live_")
        assert "Copy it now" in made
        assert "Copy it now" not in later
        assert ApiToken.objects.get().expires_at is not None
        assert ApiToken.objects.get().scopes == ["read"]

    def test_proposes_every_scope_and_an_end(self, page):
        form = page.get(f"{SETTINGS}/tokens").content.decode()

        assert (
            form.count('name="scopes"')
            == len(re.findall(r'<input type="checkbox" name="scopes"[^>]* checked', form))
            == 5
        )
        assert '<option value="90" selected>' in form

    def test_needs_a_scope_and_says_which_network_is_none(self, page):
        without = page.post(f"{SETTINGS}/tokens", {"name": "ci"})
        fields = {"name": "ci", "scopes": ["read"], "allowed_networks": "192.0.2.1/24"}
        wrong = page.post(f"{SETTINGS}/tokens", fields)

        assert (without.status_code, wrong.status_code) == (422, 422)
        assert "Choose at least one." in without.content.decode()
        assert "Name networks such as" in wrong.content.decode()
        assert not ApiToken.objects.exists()

    def test_revokes_after_asking(self, page, ada_access):
        page.post(f"{SETTINGS}/tokens", {"name": "ci", "scopes": ["read"]})
        token = ApiToken.objects.get()

        asked = page.get(f"{SETTINGS}/tokens/{token.id}/revoke").content.decode()
        page.post(f"{SETTINGS}/tokens/{token.id}/revoke")

        token.refresh_from_db()
        assert "Revoke ci?" in asked
        assert token.revoked_at is not None

    def test_hides_a_members_tokens_from_other_members(self, page, mia, page_as):
        page.post(f"{SETTINGS}/tokens", {"name": "adas-token"})

        assert "adas-token" not in page_as(mia).get(f"{SETTINGS}/tokens").content.decode()


class TestMembers:
    def test_changes_a_role(self, page, mia):
        member = Membership.objects.get(user=mia)

        page.post(f"{SETTINGS}/members/{member.id}/role", {"role": "admin"})

        member.refresh_from_db()
        assert member.role == "admin"

    def test_keeps_the_last_owner(self, page, ada):
        member = Membership.objects.get(user=ada)

        answer = page.post(f"{SETTINGS}/members/{member.id}/remove", follow=True)

        assert "The last owner" in answer.content.decode()
        assert Membership.objects.filter(pk=member.pk).exists()


class TestProjects:
    def test_creates_and_renames(self, page):
        page.post(f"{SETTINGS}/projects", {"name": "My Project", "slug": "my-project"})
        page.post(f"{SETTINGS}/projects/my-project/rename", {"name": "Ours"})

        assert Project.objects.get().name == "Ours"

    def test_are_not_an_auditors_to_create(self, page_as, otto):
        assert page_as(otto).post(f"{SETTINGS}/projects", {}).status_code == 403

    def test_points_at_a_wrong_id(self, page):
        answer = page.post(f"{SETTINGS}/projects", {"name": "My Project", "slug": "My Project"})

        assert answer.status_code == 422
        assert 'id="id_slug_error"' in answer.content.decode()


class TestHome:
    def test_ticks_the_steps_off(self, page, integration):
        html = page.get("/o/acme/").content.decode()

        assert html.count("step--done") == 1
        assert "Open the playground" in html

    def test_shows_what_happened_once_all_is_done(self, page, run):
        html = page.get("/o/acme/").content.decode()

        assert "Three steps" not in html
        assert run.id in html

    def test_leads_a_person_to_their_organization(self, page, grace, page_as, make_user):
        assert page.get("/")["Location"] == "/o/acme/"
        assert page_as(grace).get("/")["Location"] == "/admin/"
        assert "No organization yet" in page_as(make_user("new@acme.test")).get("/").content.decode()


class TestTheme:
    def test_is_remembered_in_a_cookie(self, page):
        answer = page.post("/theme", {"theme": "dark", "next": "/o/acme/usage"})

        assert answer["Location"] == "/o/acme/usage"
        assert 'data-theme="dark"' in page.get("/o/acme/usage").content.decode()

    @pytest.mark.parametrize("away", ["https://evil.test/", "//evil.test/", "javascript:alert(1)"])
    def test_leads_nowhere_else(self, client, away):
        assert client.post("/theme", {"theme": "dark", "next": away})["Location"] == "/"

    def test_takes_no_other_word(self, client, db):
        client.post("/theme", {"theme": '"><script>'})

        assert "theme" not in client.cookies


class TestDocs:
    def test_has_an_anchor_for_every_error(self, client, db):
        html = client.get("/docs/errors").content.decode()

        missing = {
            error.code
            for error in RenseiError.__subclasses__()
            if error.__module__.split(".")[0] != "tests" and f'id="{error.code.lower().replace("_", "-")}"' not in html
        }
        assert not missing

    def test_opens_every_page_of_its_navigation(self, client, db):
        from rensei.console.views import docs

        answers = {entry.name: client.get(f"/docs/{entry.name}").status_code for entry in docs.contents()}

        assert set(answers.values()) == {200}

    @pytest.mark.parametrize("name", ["../README", "..%2FREADME", "nothing", "/etc/passwd", "errors/../../README"])
    def test_shows_nothing_else(self, client, db, name):
        assert client.get(f"/docs/{name}").status_code == 404


class TestSignIn:
    @pytest.mark.parametrize("path", ["/accounts/login/", "/accounts/password/reset/", "/accounts/signup/"])
    def test_wears_our_clothes(self, client, db, path):
        html = client.get(path).content.decode()

        assert "rensei/rensei.css" in html
        assert "<style" not in html
