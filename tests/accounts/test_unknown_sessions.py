"""Session cookies that are none of ours cost few look-ups, and shut no other person out."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from django.db import connection
from django.test import Client
from django.test.utils import CaptureQueriesContext

from rensei.orgs.models import Org, User
from rensei.tokens.unknown_tokens import unknown_tokens

PASSWORD = "correct horse battery"


@contextmanager
def look_ups() -> Iterator[list[str]]:
    """List the queries for sessions."""
    found: list[str] = []
    with CaptureQueriesContext(connection) as captured:
        yield found
    found += [query["sql"] for query in captured.captured_queries if "django_session" in query["sql"]]


def ask(key: str) -> Any:
    client = Client()
    client.cookies["session"] = key
    return client.get("/account")


class TestAForgedCookie:
    def test_costs_one_look_up_however_often_it_comes(self, acme: Org) -> None:
        with look_ups() as found:
            answers = [ask("f" * 32) for _ in range(5)]

        assert len(found) == 1
        assert {answer.headers["Location"] for answer in answers} == {"/accounts/login/?next=/account"}

    def test_costs_none_when_its_address_has_sent_too_many(self, acme: Org, settings: Any) -> None:
        settings.RENSEI_RATE_UNKNOWN_TOKENS = "3/min"

        with look_ups() as found:
            for number in range(20):
                ask(f"{number:032}")

        assert len(found) == 3


class TestAPerson:
    @pytest.fixture
    def browser(self, acme: Org, ada: User) -> Client:
        client = Client()
        client.post("/accounts/login/", {"login": ada.email, "password": PASSWORD})
        assert client.get("/account").status_code == 200
        return client

    def test_passes_whatever_others_at_the_address_send(self, browser: Client, settings: Any) -> None:
        settings.RENSEI_RATE_UNKNOWN_TOKENS = "3/min"
        for number in range(20):
            ask(f"{number:032}")

        assert browser.get("/account").status_code == 200

    def test_who_is_not_remembered_keeps_the_cookie_for_later(self, browser: Client, settings: Any) -> None:
        settings.RENSEI_RATE_UNKNOWN_TOKENS = "3/min"
        unknown_tokens.forget()
        for number in range(20):
            ask(f"{number:032}")

        answer = browser.get("/account")

        assert answer.status_code == 302
        assert "session" not in answer.cookies
        settings.RENSEI_RATE_UNKNOWN_TOKENS = "1000/min"
        assert browser.get("/account").status_code == 200
