"""Connect your app: its token opens the gateway only, and it waits for the person's own first request."""

import re
from datetime import timedelta

import pytest

from rensei.core.clock import database_now
from rensei.core.ids import first_id_of
from rensei.dispatch.models import Run
from rensei.tokens.models import ApiToken

URL = "/o/acme/connect"


class TestConnect:
    def test_creates_a_token_for_the_gateway_and_shows_it_once(self, page, profile):
        created = page.post(URL, {"name": "ci"}).content.decode()
        again = page.get(URL).content.decode()

        token = ApiToken.objects.get()
        (secret,) = set(re.findall(r"rsk_live_[0-9a-f]{64}", created))
        assert (token.scopes, token.name) == (["gateway"], "ci")
        assert timedelta(days=89) < token.expires_at - database_now() <= timedelta(days=90)
        assert created.count(secret) >= 5
        assert "rsk_live_" not in again
        assert "$RENSEI_AUTH_TOKEN" in again

    def test_needs_a_profile(self, page, acme):
        assert "No profile yet" in page.get(URL).content.decode()

    def test_creates_none_for_an_auditor(self, page_as, otto, profile):
        page_as(otto).post(URL, {"name": "ci"})

        assert not ApiToken.objects.exists()

    @pytest.mark.parametrize(
        ("via", "mine", "arrived"),
        [
            ("gateway", True, True),
            ("queue", True, False),
            ("gateway", False, False),
        ],
    )
    def test_waits_for_the_first_request_of_the_person(self, page, run, mia, via, mine, arrived):
        since = first_id_of("run", database_now() - timedelta(minutes=1))
        Run.objects.filter(pk=run.pk).update(via=via, created_by=run.created_by if mine else mia)

        html = page.get(f"{URL}?since={since}").content.decode()

        assert ("Your app is connected." in html) is arrived
        assert ("Waiting for your first request" in html) is not arrived
