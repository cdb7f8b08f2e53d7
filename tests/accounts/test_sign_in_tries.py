"""Guessing passwords: slow for who guesses, never shut for the person, and the same for an account that is none."""

import re

import pytest
from django.contrib.auth.hashers import MD5PasswordHasher
from django.core import mail
from django.db import connection
from django.test import Client
from django.test.utils import CaptureQueriesContext

from rensei.accounts import sign_in_tries
from rensei.accounts.models import Invitation
from rensei.accounts.throttling import SignInThrottle
from rensei.core.later import later
from rensei.orgs.models import Membership, User

PASSWORD = "correct horse battery"
WRONG = "wrong horse battery"
UNKNOWN = "not-there@acme.test"


def browser(address="192.0.2.1", **options):
    return Client(REMOTE_ADDR=address, **options)


def sign_in(client, email="ada@acme.test", password=PASSWORD):
    return client.post("/accounts/login/", {"login": email, "password": password})


def is_signed_in(client):
    return "_auth_user_id" in client.session


def guess(times, *, address="203.0.113.9", email="ada@acme.test"):
    for _ in range(times):
        sign_in(browser(address), email, WRONG)


class TestAKnownAddress:
    def test_is_locked_out_by_wrong_passwords_from_one_address_only_there(self, acme):
        guess(30)
        there, elsewhere = browser("203.0.113.9"), browser()

        sign_in(there)
        sign_in(elsewhere)

        assert not is_signed_in(there)
        assert is_signed_in(elsewhere)

    def test_leaves_each_address_a_try_however_many_guess(self, acme, monkeypatch):
        monkeypatch.setattr(sign_in_tries, "EVERYWHERE_MAX", 4)
        for place in range(10):
            guess(3, address=f"203.0.113.{place}")
        second_try, first_try = browser("198.51.100.1"), browser("198.51.100.2")
        sign_in(second_try, password=WRONG)

        sign_in(second_try)
        sign_in(first_try)

        assert not is_signed_in(second_try)
        assert is_signed_in(first_try)

    def test_is_not_tried_by_more_addresses_than_their_network(self, acme):
        for place in range(1, 8):
            guess(1, address=f"2001:db8::{place:x}")
        there = browser("2001:db8::99")

        sign_in(there)

        assert not is_signed_in(there)


class TestABrowserThatHasSignedInBefore:
    @pytest.fixture
    def known(self, acme):
        client = browser()
        sign_in(client)
        client.post("/accounts/logout/")
        assert not is_signed_in(client)
        return client

    def test_passes_what_others_did_at_its_address(self, known, monkeypatch):
        monkeypatch.setattr(SignInThrottle, "rate", "8/min", raising=False)
        monkeypatch.setattr(sign_in_tries, "EVERYWHERE_MAX", 4)
        guess(30, address="192.0.2.1")
        other = browser("192.0.2.1")

        refused = sign_in(other)
        sign_in(known)

        assert refused.status_code == 429
        assert is_signed_in(known)

    def test_has_its_own_tries_and_no_more(self, known):
        for _ in range(5):
            sign_in(known, password=WRONG)

        sign_in(known)

        assert not is_signed_in(known)

    def test_is_known_for_its_own_account_alone(self, known, mia):
        guess(10, address="192.0.2.1", email=mia.email)

        sign_in(known, mia.email)

        assert not is_signed_in(known)

    def test_is_known_by_a_cookie_that_is_signed_and_names_no_address(self, known):
        cookie = known.cookies["known-browser"]
        assert (cookie["httponly"], cookie["samesite"]) == (True, "Lax")
        assert "ada" not in cookie.value
        guess(10, address="192.0.2.1")
        known.cookies["known-browser"] = cookie.value[:-2] + "xx"

        sign_in(known)

        assert not is_signed_in(known)


class TestARightPassword:
    def test_is_no_try(self, acme):
        for _ in range(12):
            client = browser()
            sign_in(client)

            assert is_signed_in(client)


@pytest.mark.django_db(transaction=True)
class TestThePerson:
    def test_is_told_by_mail_once(self, acme):
        for place in range(3):
            guess(8, address=f"203.0.113.{place}")
        guess(8, email=UNKNOWN)
        later.wait()

        [message] = mail.outbox
        assert message.to == ["ada@acme.test"]
        assert "wrong passwords" in message.body
        assert re.findall(r"https?://\S+", message.body)

    def test_signs_in_with_a_new_password_where_the_tries_were_used_up(self, acme):
        guess(8, address="192.0.2.1")
        client = browser()
        client.post("/accounts/password/reset/", {"email": "ada@acme.test"})
        later.wait()
        link = re.search(r"https?://[^/]+(/accounts/password/reset/key/\S+)", mail.outbox[-1].body)[1]
        form = client.get(link, follow=True)
        new = "another horse battery"
        client.post(form.request["PATH_INFO"], {"password1": new, "password2": new})

        again = browser()
        sign_in(again, password=new)

        assert is_signed_in(again)

    def test_keeps_a_good_link_when_others_ask_for_more(self, acme):
        for place in range(12):
            browser(f"203.0.113.{place}").post("/accounts/password/reset/", {"email": "ada@acme.test"})
        later.wait()

        assert len(mail.outbox) == sign_in_tries.RESET_MAILS_MAX


def test_of_a_reset_page_are_those_of_a_whole_network(acme):
    asked = [
        browser(f"2001:db8::{place:x}").post("/accounts/password/reset/", {"email": UNKNOWN}).status_code
        for place in range(1, 22)
    ]

    assert asked == [302] * 20 + [429]


class Counting(MD5PasswordHasher):
    """The hasher of the tests, which counts."""

    count = 0

    def encode(self, password, salt):
        Counting.count += 1
        return super().encode(password, salt)


def work(send):
    """Count what an answer waits for: passwords hashed, statements made."""
    Counting.count = 0
    with CaptureQueriesContext(
        connection,
    ) as queries:
        answer = send()
    statements = [re.sub(r"'[^']*'|\d+(\.\d+)?(e\+\d+)?", "?", query["sql"]) for query in queries]
    return answer.status_code, Counting.count, [statement for statement in statements if "SAVEPOINT" not in statement]


class TestEqualWork:
    @pytest.fixture(autouse=True)
    def _counted(self, settings):
        settings.PASSWORD_HASHERS = [f"{__name__}.Counting"]

    @pytest.fixture
    def people(self, acme, ada, mia, otto):
        ada.set_password(PASSWORD)
        ada.save()
        mia.is_active = False
        mia.set_password(PASSWORD)
        mia.save()
        otto.set_unusable_password()
        otto.save()
        return [ada.email, mia.email, otto.email]

    def test_signs_in_to_no_account_as_to_one(self, people):
        found = {email: work(lambda email=email: sign_in(browser(), email, WRONG)) for email in [*people, UNKNOWN]}

        assert found[UNKNOWN][:2] == (200, 1)
        for email in people:
            assert found[email] == found[UNKNOWN], email

    def test_resets_no_password_as_it_resets_one(self, people):
        def ask(email):
            return work(lambda: browser().post("/accounts/password/reset/", {"email": email}))

        found = {email: ask(email) for email in [*people, UNKNOWN]}

        assert found[UNKNOWN][:2] == (302, 0)
        for email in people:
            assert found[email] == found[UNKNOWN], email
        assert mail.outbox == []

    def test_invites_no_account_as_it_invites_one(self, people):
        # Who is a member already is known to the organization.
        Membership.objects.exclude(user__email=people[0]).delete()
        owner = browser()
        owner.force_login(User.objects.get(email=people[0]))

        def invite(email):
            return work(lambda: owner.post("/o/acme/settings/members", {"email": email, "role": "member"}))

        invite("first@acme.test")
        found = {email: invite(email) for email in [*people[1:], UNKNOWN]}

        assert found[UNKNOWN][:2] == (302, 0)
        assert Invitation.objects.count() == 1 + len(found)
        for email in people[1:]:
            assert found[email] == found[UNKNOWN], email

    def test_refuses_further_tries_alike(self, people):
        found = {}
        for email in [*people, UNKNOWN]:
            guess(5, address="192.0.2.1", email=email)
            found[email] = [work(lambda email=email: sign_in(browser(), email)) for _ in range(2)]

        for email in people:
            assert found[email] == found[UNKNOWN], email
