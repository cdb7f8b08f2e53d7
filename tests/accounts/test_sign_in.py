"""Signing in, with a password that was lost, guessed at, or changed."""

import re

import pytest
from django.core import mail
from django.test import Client

from rensei.accounts.throttling import SignInThrottle
from rensei.core.later import later

PASSWORD = "correct horse battery"


def sign_in(client, email, password=PASSWORD):
    return client.post("/accounts/login/", {"login": email, "password": password})


def is_signed_in(client):
    return "_auth_user_id" in client.session


class TestLogin:
    @pytest.mark.parametrize("email", ["ada@acme.test", "ADA@Acme.Test"])
    def test_takes_the_email_however_it_is_written(self, acme, client, email):
        sign_in(client, email)

        assert is_signed_in(client)

    def test_gives_a_new_session(self, acme, client):
        client.get("/accounts/login/")
        before = client.session.session_key

        sign_in(client, "ada@acme.test")

        assert client.session.session_key != before

    def test_tells_no_wrong_password_from_an_unknown_person(self, acme, client):
        wrong = sign_in(client, "ada@acme.test", "wrong horse battery")
        unknown = sign_in(Client(), "nobody@acme.test", "wrong horse battery")

        def without_what_was_typed(answer):
            text = re.sub(r'name="csrfmiddlewaretoken" value="\w+"', "", answer.content.decode())
            return text.replace("ada@acme.test", "").replace("nobody@acme.test", "")

        assert wrong.status_code == unknown.status_code == 200
        assert not is_signed_in(client)
        assert without_what_was_typed(wrong) == without_what_was_typed(unknown)

    def test_locks_after_several_wrong_passwords(self, acme, client):
        for _ in range(10):
            sign_in(client, "ada@acme.test", "wrong horse battery")

        sign_in(client, "ada@acme.test")

        assert not is_signed_in(client)

    def test_is_shut_to_an_inactive_person(self, acme, ada, client):
        ada.is_active = False
        ada.save()

        sign_in(client, "ada@acme.test")

        assert not is_signed_in(client)

    def test_does_not_lead_to_another_site(self, acme, client):
        answer = client.post(
            "/accounts/login/", {"login": "ada@acme.test", "password": PASSWORD, "next": "https://evil.test/"}
        )

        assert answer.headers["Location"] == "/"


class TestSignup:
    def test_is_closed(self, db, client):
        answer = client.post(
            "/accounts/signup/", {"email": "new@acme.test", "password1": PASSWORD, "password2": PASSWORD}
        )

        assert "_auth_user_id" not in client.session
        assert answer.status_code in {200, 403}


class TestLogout:
    def test_asks_for_a_post(self, acme, ada, page_as):
        browser = page_as(ada)

        browser.get("/accounts/logout/")
        still = is_signed_in(browser)
        browser.post("/accounts/logout/")

        assert still
        assert not is_signed_in(browser)


@pytest.mark.django_db(transaction=True)
class TestPasswordReset:
    def test_mails_a_link_that_works_once(self, acme, client):
        client.post("/accounts/password/reset/", {"email": "ada@acme.test"})
        later.wait()
        [message] = mail.outbox
        link = re.search(r"https?://[^/]+(/\S+)", message.body)[1]

        form = client.get(link, follow=True)
        done = client.post(
            form.request["PATH_INFO"], {"password1": "another horse battery", "password2": "another horse battery"}
        )

        assert message.to == ["ada@acme.test"]
        assert done.status_code == 302
        fresh = Client()
        sign_in(fresh, "ada@acme.test", "another horse battery")
        assert is_signed_in(fresh)
        assert b"password1" not in Client().get(link, follow=True).content

    @pytest.mark.parametrize("host", ["localhost", "127.0.0.1:9999", "other.example"])
    def test_mails_a_link_to_the_public_address_whatever_host_was_asked(self, acme, settings, host):
        settings.ALLOWED_HOSTS = ["localhost", "127.0.0.1", "other.example"]
        settings.PUBLIC_URL = "https://rensei.example:8443"

        Client().post("/accounts/password/reset/", {"email": "ada@acme.test"}, headers={"host": host})

        later.wait()
        [message] = mail.outbox
        said = f"{message.subject} {message.body}"
        assert re.findall(r"https?://[^/\s]+", said) == ["https://rensei.example:8443"]
        assert host not in said
        assert message.subject.startswith("[rensei.example:8443]")

    def test_answers_an_unknown_person_alike(self, acme, client):
        known = client.post("/accounts/password/reset/", {"email": "ada@acme.test"})
        unknown = client.post("/accounts/password/reset/", {"email": "nobody@acme.test"})

        assert (known.status_code, known.headers["Location"]) == (unknown.status_code, unknown.headers["Location"])


class TestPasswordChange:
    def test_ends_every_other_session(self, acme, ada, page_as):
        here, elsewhere = page_as(ada), page_as(ada)

        here.post(
            "/accounts/password/change/",
            {
                "oldpassword": PASSWORD,
                "password1": "another horse battery",
                "password2": "another horse battery",
            },
        )

        ada.refresh_from_db()
        assert ada.check_password("another horse battery")
        assert elsewhere.get("/api/v1/me").status_code == 401
        assert here.get("/api/v1/me").status_code == 200

    def test_refuses_a_weak_password(self, acme, ada, page_as):
        page_as(ada).post(
            "/accounts/password/change/",
            {"oldpassword": PASSWORD, "password1": "password12", "password2": "password12"},
        )

        ada.refresh_from_db()
        assert ada.check_password(PASSWORD)


class TestPages:
    @pytest.mark.parametrize("path", ["/accounts/password/change/", "/", "/admin/"])
    def test_are_for_people_who_are_signed_in(self, db, client, path):
        answer = client.get(path)

        assert answer.status_code in {302, 404}
        if answer.status_code == 302:
            assert "login" in answer.headers["Location"] or answer.headers["Location"].startswith("/setup")


class TestEmail:
    def test_is_not_changed_by_oneself(self, acme, ada, page_as):
        assert page_as(ada).get("/accounts/email/").status_code == 404


class TestLimits:
    def test_count_people_behind_a_proxy_apart(self, acme, settings):
        settings.RENSEI_TRUSTED_PROXIES = ["127.0.0.1"]
        guesser, ada = (
            Client(headers={"X-Forwarded-For": "198.51.100.1"}),
            Client(headers={"X-Forwarded-For": "198.51.100.2"}),
        )
        for place in range(40):
            sign_in(guesser, f"nobody{place}@acme.test", "wrong horse battery")

        sign_in(ada, "ada@acme.test")

        assert is_signed_in(ada)


class TestTheRateOfSigningIn:
    def test_refuses_the_next_try_and_says_when_to_come_back(self, acme, client, monkeypatch):
        monkeypatch.setattr(SignInThrottle, "rate", "3/min", raising=False)

        answers = [sign_in(client, "ada@acme.test", "wrong horse battery") for _ in range(4)]

        assert [answer.status_code for answer in answers] == [200, 200, 200, 429]
        assert 0 < int(answers[-1].headers["Retry-After"]) <= 60
