"""Of a body over 16 KiB, no more is received until its sender is known."""

import pytest
from django.conf import settings

from rensei.accounts.senders import sender_of
from rensei.core.errors import RateLimited
from rensei.core.problems import NotAuthenticated
from rensei.tokens.services import create_token


def scope(**headers):
    named = [(name.encode(), value.encode()) for name, value in headers.items()]
    return {"type": "http", "client": ("192.0.2.7", 1), "headers": named}


def of_session(key):
    return scope(cookie=f"a=b; {settings.SESSION_COOKIE_NAME}={key}")


@pytest.mark.django_db
class TestTheSender:
    def test_is_the_organization_of_a_token(self, acme, ada, access_of):
        _, secret = create_token(access_of(ada), name="good")

        assert sender_of(scope(Authorization=f"Bearer {secret.reveal()}")) == acme.pk

    def test_is_the_organization_of_a_person(self, acme, ada, client):
        client.force_login(ada)

        assert sender_of(of_session(client.session.session_key)) == acme.pk

    def test_is_the_person_where_there_is_no_organization(self, grace, client):
        client.force_login(grace)

        assert sender_of(of_session(client.session.session_key)) == f"user {grace.pk}"

    @pytest.mark.parametrize(
        "made_up",
        [
            scope(authorization="Bearer rsk_live_made-up"),
            scope(authorization="Bearer x"),
            scope(authorization="Basic x"),
            scope(**{"x-api-key": "rsk_live_made-up"}),
            of_session("made-up"),
            scope(),
        ],
        ids=str,
    )
    def test_is_none_of_what_is_made_up(self, made_up):
        with pytest.raises(NotAuthenticated):
            sender_of(made_up)

    def test_is_none_of_a_session_without_a_person(self, client):
        session = client.session
        session["next"] = "/o/acme"
        session.save()

        with pytest.raises(NotAuthenticated):
            sender_of(of_session(session.session_key))

    def test_that_is_unknown_costs_no_more_than_a_few_look_ups(self, settings, django_assert_max_num_queries):
        settings.RENSEI_RATE_UNKNOWN_TOKENS = "3/min"

        with django_assert_max_num_queries(3):
            for number in range(20):
                with pytest.raises((NotAuthenticated, RateLimited)):
                    sender_of(scope(authorization=f"Bearer rsk_live_made-up-{number}"))
