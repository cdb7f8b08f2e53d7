"""The page of all components, and the pages that stand beside those of organizations."""

import pytest
from django.test import Client


class TestComponents:
    def test_are_shown_to_staff(self, grace, page_as):
        answer = page_as(grace).get("/components")

        assert answer.status_code == 200
        for name in ("Buttons", "Fields", "Cards", "Tables", "Badges and tags", "Meters", "Code and tabs", "Dialogs"):
            assert f">{name}</h2>" in answer.content.decode()

    def test_are_not_there_for_others(self, ada, page_as, client):
        assert page_as(ada).get("/components").status_code == 404
        assert client.get("/components")["Location"].startswith("/accounts/login/")


class TestAnExpiredForm:
    @pytest.fixture
    def browser(self, acme, ada):
        browser = Client(enforce_csrf_checks=True)
        browser.force_login(ada)
        return browser

    def test_leads_back_to_the_page_it_was_on(self, browser):
        page = "http://testserver/o/acme/settings/tokens"

        answer = browser.post("/o/acme/settings/tokens", {"name": "ci"}, headers={"Referer": page})

        assert answer.status_code == 403
        assert "The form has expired" in answer.content.decode()
        assert f'href="{page}"' in answer.content.decode()

    def test_does_not_lead_to_another_site(self, browser):
        answer = browser.post("/o/acme/settings/tokens", {}, headers={"Referer": "https://evil.test/"})

        assert "evil.test" not in answer.content.decode()

    def test_is_a_problem_document_for_programs(self, browser):
        answer = browser.post("/api/v1/projects", {"id": "new"}, content_type="application/json")

        assert answer.status_code == 403
        assert answer["Content-Type"] == "application/problem+json"


class TestTheRestReference:
    def test_comes_in_the_theme_of_the_pages(self, client, db):
        client.cookies["theme"] = "dark"

        assert '<html lang="en" data-theme="dark">' in client.get("/api/docs").content.decode()
