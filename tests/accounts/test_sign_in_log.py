"""The log tells who signed in, which tries failed, and what was refused to whom."""

import logging
from typing import Any

import pytest
from django.test import Client
from rest_framework.test import APIClient

from rensei.orgs.models import Org, User
from rensei.tokens.models import ApiToken


def told_in(caplog: pytest.LogCaptureFixture, *events: str) -> list[dict[str, Any]]:
    """List what was logged of these events, read at the end: a logger that was used before cannot be replaced."""
    documents = [record.msg for record in caplog.records if isinstance(record.msg, dict)]
    # What every line has is left out.
    plain = [
        {name: each[name] for name in each.keys() - {"timestamp", "logger", "level", "request_id"}}
        for each in documents
    ]
    return [each for each in plain if each["event"] in events]


@pytest.fixture(autouse=True)
def everything_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)


class TestTheLog:
    def test_says_who_signed_in_and_that_a_try_failed(
        self, acme: Org, ada: User, caplog: pytest.LogCaptureFixture
    ) -> None:
        client = Client(REMOTE_ADDR="198.51.100.1")
        client.post("/accounts/login/", {"login": ada.email, "password": "a wrong one, quite"})
        client.post("/accounts/login/", {"login": ada.email, "password": "correct horse battery"})
        client.post("/accounts/logout/")

        assert told_in(caplog, "sign_in_failed", "signed_in", "signed_out") == [
            {"event": "sign_in_failed", "address": "198.51.100.1"},
            {"event": "signed_in", "user_id": ada.pk, "address": "198.51.100.1"},
            {"event": "signed_out", "user_id": ada.pk},
        ]

    @pytest.mark.parametrize("token", ["", "rsk_live_" + "0" * 64])
    def test_says_what_was_refused_to_an_unknown_caller(
        self, db: None, token: str, caplog: pytest.LogCaptureFixture
    ) -> None:
        client = APIClient(headers={"Authorization": f"Bearer {token}"} if token else {})

        assert client.get("/api/v1/me").status_code == 401

        (told,) = told_in(caplog, "access_refused")
        assert (told["code"], told["path"], told["token_id"]) == ("NOT_AUTHENTICATED", "/api/v1/me", "")
        assert "rsk_live" not in caplog.text

    def test_says_what_was_refused_to_whom(
        self, acme: Org, mia: User, api_as: object, caplog: pytest.LogCaptureFixture
    ) -> None:
        client = api_as(mia)  # type: ignore[operator]

        assert client.post("/api/v1/projects", {"id": "new", "name": "New"}).status_code == 403

        (told,) = told_in(caplog, "access_refused")
        assert told["code"] == "NOT_PERMITTED"
        assert told["token_id"] == ApiToken.objects.get().pk
