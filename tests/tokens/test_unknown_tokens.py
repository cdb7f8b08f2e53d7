"""Tokens that are none of ours: what they may cost, and whom they may not hold up."""

import secrets

import pytest
from rest_framework.test import APIClient

from rensei.core.errors import RateLimited
from rensei.tokens import unknown_tokens as guard
from rensei.tokens.look_up import TOKEN_PREFIX
from rensei.tokens.services import create_token, revoke_token, visible_tokens
from rensei.tokens.unknown_tokens import UnknownTokens


def client(token, address="192.0.2.7"):
    return APIClient(headers={"Authorization": f"Bearer {token}"}, REMOTE_ADDR=address)


def bogus():
    return TOKEN_PREFIX + secrets.token_urlsafe(32)


@pytest.fixture
def token(acme, ada, access_of):
    _, secret = create_token(access_of(ada), name="good")
    return secret.reveal()


@pytest.fixture
def three(settings):
    settings.RENSEI_RATE_UNKNOWN_TOKENS = "3/min"


class TestAnUnknownToken:
    def test_costs_one_look_up_however_often_it_comes(self, acme, django_assert_num_queries):
        stranger = client(bogus())
        with django_assert_num_queries(1):
            first = stranger.get("/api/v1/me")
        with django_assert_num_queries(0):
            others = [stranger.get("/api/v1/me").status_code for _ in range(20)]

        assert first.status_code == 401
        assert set(others) == {401}

    def test_costs_none_when_its_address_has_sent_too_many(self, acme, three, django_assert_num_queries):
        with django_assert_num_queries(3):
            answers = [client(bogus()).get("/api/v1/me") for _ in range(30)]

        assert [answer.status_code for answer in answers] == [401] * 3 + [429] * 27
        assert answers[-1].json()["code"] == "RATE_LIMITED"
        assert 1 <= int(answers[-1].headers["Retry-After"]) <= 60

    @pytest.mark.parametrize(
        ("address", "status"),
        [("192.0.2.8", 401), ("2001:db8:0:1::9", 401), ("::ffff:192.0.2.7", 429), ("192.0.2.7", 429)],
    )
    def test_is_counted_for_its_address(self, acme, three, address, status):
        for _ in range(4):
            client(bogus()).get("/api/v1/me")

        assert client(bogus(), address).get("/api/v1/me").status_code == status

    def test_is_counted_by_the_network_of_a_connection_in_ipv6(self, acme, three):
        answers = [client(bogus(), f"2001:db8::{place:x}").get("/api/v1/me").status_code for place in range(1, 6)]

        assert answers == [401] * 3 + [429] * 2


class TestAGoodToken:
    def test_passes_whatever_others_at_its_address_send(self, acme, token, three):
        good = client(token)
        before = good.get("/api/v1/me").status_code
        for _ in range(10):
            client(bogus()).get("/api/v1/me")

        assert (before, good.get("/api/v1/me").status_code) == (200, 200)

    def test_that_is_revoked_is_refused_at_once(self, acme, ada, access_of, token):
        good = client(token)
        before = good.get("/api/v1/me").status_code
        access = access_of(ada)
        revoke_token(access, visible_tokens(access).get(name="good"))

        assert (before, good.get("/api/v1/me").status_code) == (200, 401)


class TestARunToken:
    def test_is_looked_up_whatever_others_at_its_address_send(self, acme, three):
        for _ in range(4):
            client(bogus()).get("/api/v1/me")

        with pytest.raises(RateLimited):
            guard.unknown_tokens.require_look_up("digest", address="192.0.2.7")
        guard.unknown_run_tokens.require_look_up("digest", address="192.0.2.7")


class TestMemory:
    def test_is_bounded(self, monkeypatch):
        monkeypatch.setattr(guard, "KEPT_MAX", 100)
        known = UnknownTokens("test")
        for place in range(1000):
            known.note(f"good {place}", found=True, address=None)
            known.note(f"unknown {place}", found=False, address=None)

        assert len(known._good._noted) == len(known._unknown._noted) == 100
