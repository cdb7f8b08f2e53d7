"""Settings → Integrations, as a person clicks through it, with and without JavaScript."""

import pytest

from integrations.models import Integration
from rensei.dispatch.models import Run

CONNECT = "/o/acme/settings/integrations/add/claude"
LIST = "/o/acme/settings/integrations"
HTMX = {"HX-Request": "true"}


@pytest.fixture(autouse=True)
def _provider(simulator, catalog):
    """Every test of this file talks to the simulator."""


class TestConnect:
    def test_tests_a_key_before_it_is_saved(self, page, key):
        answer = page.post(CONNECT, {"api_key": key, "action": "test"}, headers=HTMX)

        assert answer.status_code == 200
        assert "notice--ok" in answer.content.decode()
        assert "<html" not in answer.content.decode()
        assert not Integration.objects.exists()

    def test_never_writes_the_key_back(self, page, key):
        answer = page.post(CONNECT, {"api_key": key, "name": "Production", "action": "test"})

        html = answer.content.decode()
        assert key not in html
        assert 'value="Production"' in html
        assert "Paste the key again" in html

    def test_says_what_is_wrong_with_a_key(self, page, make_key):
        answer = page.post(CONNECT, {"api_key": make_key("revoked"), "action": "test"}, headers=HTMX)

        assert "notice--bad" in answer.content.decode()

    def test_shows_a_refusal_beside_the_field(self, page):
        answer = page.post(CONNECT, {"api_key": "nonsense", "action": "save"})

        assert answer.status_code == 422
        assert 'id="id_api_key_error"' in answer.content.decode()
        assert not Integration.objects.exists()

    def test_saves_and_tests_in_place(self, page, key):
        answer = page.post(CONNECT, {"api_key": key, "name": "Production", "action": "save"}, follow=True)

        integration = Integration.objects.get()
        assert answer.redirect_chain[0][0] == f"{LIST}?new={integration.id}"
        assert "Production is connected." in answer.content.decode()
        assert 'hx-trigger="submit, load"' in answer.content.decode()

    def test_knows_no_other_provider(self, page):
        assert page.get("/o/acme/settings/integrations/add/unknown").status_code == 404

    def test_limits_how_often_a_key_is_tried(self, page, key, settings, monkeypatch):
        monkeypatch.setattr("rensei.tokens.throttling.SensitiveThrottle.THROTTLE_RATES", {"sensitive": "1/min"})
        page.post(CONNECT, {"api_key": key, "action": "test"}, headers=HTMX)

        answer = page.post(CONNECT, {"api_key": key, "action": "test"}, headers=HTMX)

        assert "Too many requests" in answer.content.decode()


class TestTest:
    def test_shows_the_card_again_with_the_verdict(self, page, integration):
        answer = page.post(f"{LIST}/{integration.id}/test", headers=HTMX)

        assert "Works" in answer.content.decode()
        assert answer.content.decode().strip().startswith("<article")

    def test_goes_back_to_the_list_without_javascript(self, page, integration):
        answer = page.post(f"{LIST}/{integration.id}/test", follow=True)

        assert answer.redirect_chain[0][0] == LIST
        assert "messages" in answer.content.decode()


class TestMessage:
    def test_dispatches_a_run_of_that_key(self, page, integration):
        page.post(f"{LIST}/{integration.id}/test")

        answer = page.post(f"{LIST}/{integration.id}/message")

        run = Run.objects.get()
        assert answer["Location"] == f"{LIST}?sent={run.id}"
        assert run.credential_id == integration.id


class TestEdit:
    def test_renames(self, page, integration):
        page.post(f"{LIST}/{integration.id}/edit", {"name": "Staging"})

        integration.refresh_from_db()
        assert integration.name == "Staging"

    def test_asks_for_the_key_when_the_address_changes(self, page, integration):
        answer = page.post(f"{LIST}/{integration.id}/edit", {"name": "Production", "base_url": "https://93.184.216.34"})

        assert answer.status_code == 422
        assert "needs the key again" in answer.content.decode()


class TestRotate:
    def test_keeps_the_key_in_use_when_the_new_one_fails(self, page, integration, make_key):
        bad = make_key("revoked")

        answer = page.post(f"{LIST}/{integration.id}/rotate", {"api_key": bad})

        assert answer.status_code == 422
        assert bad not in answer.content.decode()
        before = integration.secret_version
        integration.refresh_from_db()
        assert integration.secret_version == before

    def test_replaces_the_key(self, page, integration, make_key):
        new = make_key()

        page.post(f"{LIST}/{integration.id}/rotate", {"api_key": new})

        integration.refresh_from_db()
        assert integration.key_hint.endswith(new[-4:])


class TestRemove:
    def test_says_which_profiles_lose_their_key(self, page, integration, profile):
        answer = page.get(f"{LIST}/{integration.id}/remove")

        assert profile.name in answer.content.decode()
        assert "will be refused" in answer.content.decode()
        assert Integration.objects.exists()

    def test_offers_no_removal_while_a_profile_names_it(self, page, integration, profile):
        profile.integration = integration
        profile.save()

        answer = page.get(f"{LIST}/{integration.id}/remove")

        assert "is in use" in answer.content.decode()
        assert "button--destroy" not in answer.content.decode()

    def test_removes(self, page, integration):
        page.post(f"{LIST}/{integration.id}/remove", {"typed": integration.name})

        assert not Integration.objects.exists()

    def test_comes_as_a_dialog_to_htmx(self, page, integration):
        answer = page.get(f"{LIST}/{integration.id}/remove", headers=HTMX)

        assert "<html" not in answer.content.decode()


class TestRoles:
    def test_tell_a_member_who_can_do_it(self, acme, integration, mia, page_as):
        html = page_as(mia).get(LIST).content.decode()

        assert "ada@acme.test" in html
        assert "Add Provider" not in html
        assert "Test Connection" not in html
