"""Where a person is signed in, and how to end it there."""

from datetime import timedelta

import pytest
from allauth.usersessions.models import UserSession
from django.core.cache import caches
from django.db import connection
from django.test import Client
from django.test.utils import CaptureQueriesContext
from django.utils import timezone

from rensei.accounts.sessions import device_of
from rensei.audit.models import AuditEvent

PASSWORD = "correct horse battery"
FIREFOX = "Mozilla/5.0 (X11; Linux x86_64; rv:140.0) Gecko/20100101 Firefox/140.0"
IPHONE = (
    "Mozilla/5.0 (iPhone; CPU iPhone OS 19_0 like Mac OS X) AppleWebKit/605.1.15 (KHTML, like Gecko) "
    "Version/19.0 Mobile/15E148 Safari/604.1"
)
CHROME = (
    "Mozilla/5.0 (Windows NT 10.0; Win64; x64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/143.0.0.0 Safari/537.36"
)


def sign_in(user, agent, address):
    client = Client(headers={"User-Agent": agent}, REMOTE_ADDR=address)
    client.post("/accounts/login/", {"login": user.email, "password": PASSWORD})
    assert "_auth_user_id" in client.session
    return client


@pytest.fixture
def laptop(acme, ada):
    return sign_in(ada, FIREFOX, "198.51.100.1")


@pytest.fixture
def phone(acme, ada):
    return sign_in(ada, IPHONE, "2001:db8::7")


def is_signed_in(client):
    return client.get("/api/v1/me").status_code == 200


def rows(client):
    return {session.device: session for session in client.get("/account").context["sessions"]}


class TestTheList:
    def test_names_device_and_address_and_this_browser(self, laptop, phone):
        listed = rows(laptop)

        assert list(listed) == ["Firefox on Linux", "Safari on iPhone"]
        assert [session.here for session in listed.values()] == [True, False]
        assert [session.address for session in listed.values()] == ["198.51.100.1", "2001:db8::7"]
        assert "This browser" in laptop.get("/account").content.decode()

    def test_leaves_out_what_is_over(self, laptop, phone, ada):
        phone.post("/accounts/logout/")

        assert list(rows(laptop)) == ["Firefox on Linux"]

    def test_shows_nobody_elses(self, laptop, eve):
        sign_in(eve, CHROME, "203.0.113.9")

        assert list(rows(laptop)) == ["Firefox on Linux"]

    def test_holds_a_session_that_began_at_another_door(self, acme, ada, page_as):
        """The link of the first set-up and an invitation's sign in without the library."""
        assert len(page_as(ada).get("/account").context["sessions"]) == 1

    def test_holds_no_session_key(self, laptop):
        assert laptop.session.session_key not in laptop.get("/account").content.decode()

    def test_costs_few_queries(self, laptop, phone):
        laptop.get("/account")

        with CaptureQueriesContext(connection) as queries:
            laptop.get("/account")

        assert len(queries) <= 12

    def test_is_for_people_who_are_signed_in(self, db, client):
        assert client.get("/account").headers["Location"] == "/accounts/login/?next=/account"


class TestLastSeen:
    def test_is_noted_every_five_minutes_and_not_with_each_request(self, laptop):
        earlier = timezone.now() - timedelta(hours=1)
        laptop.get("/account")
        UserSession.objects.update(last_seen_at=earlier)

        laptop.get("/account")
        unchanged = UserSession.objects.get().last_seen_at
        caches["process"].clear()
        laptop.get("/account")

        assert unchanged == earlier
        assert UserSession.objects.get().last_seen_at > earlier

    def test_is_no_concern_of_programs(self, acme, ada, api_as):
        api_as(ada).get("/api/v1/me")

        assert not UserSession.objects.exists()


class TestEnd:
    def test_signs_out_there_and_not_here(self, laptop, phone):
        laptop.post(f"/account/sessions/{rows(laptop)['Safari on iPhone'].id}/end")

        assert is_signed_in(laptop)
        assert not is_signed_in(phone)
        assert AuditEvent.objects.get(action="sessions.ended").detail == {"devices": ["Safari on iPhone"]}

    def test_reaches_nobody_elses(self, laptop, eve):
        other = sign_in(eve, CHROME, "203.0.113.9")

        answer = laptop.post(f"/account/sessions/{UserSession.objects.get(user=eve).pk}/end")

        assert answer.status_code == 404
        assert is_signed_in(other)

    def test_is_not_how_to_sign_out_here(self, laptop):
        assert laptop.post(f"/account/sessions/{rows(laptop)['Firefox on Linux'].id}/end").status_code == 404
        assert is_signed_in(laptop)

    @pytest.mark.parametrize("path", ["/account/sessions/end", "/account/sessions/1/end"])
    def test_is_not_done_by_reading(self, laptop, path):
        assert laptop.get(path).status_code == 405


class TestEndOthers:
    def test_signs_out_everywhere_but_here(self, laptop, phone, ada):
        third = sign_in(ada, CHROME, "203.0.113.9")

        answer = laptop.post("/account/sessions/end", follow=True)

        assert [is_signed_in(client) for client in (laptop, phone, third)] == [True, False, False]
        assert "Signed out in 2 other places." in answer.content.decode()

    def test_touches_nobody_else(self, laptop, eve):
        other = sign_in(eve, CHROME, "203.0.113.9")

        laptop.post("/account/sessions/end")

        assert is_signed_in(other)


class TestAPassword:
    def change(self, client):
        new = "another horse battery"
        return client.post("/accounts/password/change/", {"oldpassword": PASSWORD, "password1": new, "password2": new})

    def test_that_is_changed_signs_out_everywhere_else(self, laptop, phone, ada):
        answer = self.change(laptop)

        assert answer.headers["Location"] == "/account"
        assert [is_signed_in(laptop), is_signed_in(phone)] == [True, False]
        assert list(rows(laptop)) == ["Firefox on Linux"]
        assert AuditEvent.objects.filter(user_id=ada.pk, action="password.changed").exists()


class TestDeviceOf:
    @pytest.mark.parametrize(
        ("agent", "device"),
        [
            (FIREFOX, "Firefox on Linux"),
            (IPHONE, "Safari on iPhone"),
            (CHROME, "Chrome on Windows"),
            (f"{CHROME} Edg/143.0.0.0", "Edge on Windows"),
            ("Mozilla/5.0 (Linux; Android 16) Chrome/143.0 Mobile Safari/537.36", "Chrome on Android"),
            ("curl/8.0", "Unknown device"),
            ("", "Unknown device"),
        ],
        ids=["firefox", "iphone", "chrome", "edge", "android", "curl", "nothing"],
    )
    def test_names_browser_and_system(self, agent, device):
        assert device_of(agent) == device
