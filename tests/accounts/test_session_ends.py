"""Sessions end by themselves, and leave nothing in the browser."""

from datetime import timedelta

import pytest
from allauth.usersessions.models import UserSession
from django.contrib.sessions.models import Session
from django.core.cache import caches
from django.test import Client
from django.utils import timezone

from rensei.orgs.models import Org, User

PASSWORD = "correct horse battery"


@pytest.fixture
def browser(acme: Org, ada: User) -> Client:
    client = Client()
    client.post("/accounts/login/", {"login": ada.email, "password": PASSWORD})
    client.get("/account")
    return client


def go_back(*, began: timedelta, seen: timedelta) -> None:
    """Make the session older than it is."""
    now = timezone.now()
    UserSession.objects.update(created_at=now - began, last_seen_at=now - seen)
    caches["process"].clear()


def is_signed_in(client: Client) -> bool:
    return bool(client.get("/api/v1/me").status_code == 200)


class TestASession:
    def test_ends_when_it_was_not_used_for_a_week(self, browser: Client) -> None:
        go_back(began=timedelta(days=8), seen=timedelta(days=7))

        answer = browser.get("/account")

        assert answer.headers["Location"] == "/accounts/login/?next=/account"
        assert "Clear-Site-Data" not in answer.headers, "a form that was being written is kept"
        assert not is_signed_in(browser)
        assert not Session.objects.exists()

    def test_ends_two_weeks_after_it_began_however_much_it_is_used(self, browser: Client) -> None:
        go_back(began=timedelta(days=14), seen=timedelta(minutes=6))

        assert browser.get("/account").headers["Location"] == "/accounts/login/?next=/account"
        assert not is_signed_in(browser)

    def test_goes_on_before(self, browser: Client) -> None:
        go_back(began=timedelta(days=13, hours=23), seen=timedelta(days=6, hours=23))

        assert is_signed_in(browser)


class TestSigningOut:
    def test_clears_what_scripts_have_stored(self, browser: Client) -> None:
        answer = browser.post("/accounts/logout/")

        assert answer.headers["Clear-Site-Data"] == '"storage"'
        assert "Clear-Site-Data" not in browser.get("/accounts/login/").headers
