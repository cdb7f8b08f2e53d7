"""The log tells who signed in, which tries failed, and what was refused to whom."""

import pytest
from django.test import Client
from rest_framework.test import APIClient
from structlog.testing import capture_logs

from rensei.orgs.models import ApiToken, Org, User


class TestTheLog:
    def test_says_who_signed_in_and_that_a_try_failed(self, acme: Org, ada: User) -> None:
        with capture_logs() as logged:
            client = Client(REMOTE_ADDR="198.51.100.1")
            client.post("/accounts/login/", {"login": ada.email, "password": "a wrong one, quite"})
            client.post("/accounts/login/", {"login": ada.email, "password": "correct horse battery"})
            client.post("/accounts/logout/")

        told = [each for each in logged if each["event"].startswith("sign")]
        assert told == [
            {"event": "sign_in_failed", "log_level": "info", "address": "198.51.100.1"},
            {"event": "signed_in", "log_level": "info", "user_id": ada.pk, "address": "198.51.100.1"},
            {"event": "signed_out", "log_level": "info", "user_id": ada.pk},
        ]

    @pytest.mark.parametrize("token", ["", "rsk_live_" + "0" * 64])
    def test_says_what_was_refused_to_an_unknown_caller(self, db: None, token: str) -> None:
        client = APIClient(headers={"Authorization": f"Bearer {token}"} if token else {})

        with capture_logs() as logged:
            assert client.get("/api/v1/me").status_code == 401

        (told,) = [each for each in logged if each["event"] == "access_refused"]
        assert (told["code"], told["path"], told["token_id"]) == ("NOT_AUTHENTICATED", "/api/v1/me", "")
        assert "rsk_live" not in str(logged)

    def test_says_what_was_refused_to_whom(self, acme: Org, mia: User, api_as: object) -> None:
        client = api_as(mia)  # type: ignore[operator]

        with capture_logs() as logged:
            assert client.post("/api/v1/projects", {"id": "new", "name": "New"}).status_code == 403

        (told,) = [each for each in logged if each["event"] == "access_refused"]
        assert told["code"] == "NOT_PERMITTED"
        assert told["token_id"] == ApiToken.objects.get().pk
