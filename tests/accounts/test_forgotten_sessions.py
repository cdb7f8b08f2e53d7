"""Sessions that have ended are deleted, and those that anyone can make end soon."""

from datetime import timedelta

import pytest
from allauth.usersessions.models import UserSession
from django.contrib.sessions.models import Session
from django.utils import timezone

from rensei import worker
from rensei.accounts import sessions

pytestmark = pytest.mark.django_db


def age(client):
    return client.session.get_expiry_age()


class TestForgetEnded:
    def test_leaves_the_sessions_that_go_on(self, client, ada, monkeypatch):
        monkeypatch.setattr(sessions, "FORGOTTEN_AT_ONCE", 2)
        client.force_login(ada)
        client.get("/account")
        before = timezone.now() - timedelta(seconds=1)
        for number in range(5):
            Session.objects.create(session_key=f"ended-{number}", session_data="", expire_date=before)
            UserSession.objects.create(user=ada, session_key=f"ended-{number}", ip="192.0.2.1", user_agent="x")

        sessions.forget_ended()

        assert list(Session.objects.values_list("session_key", flat=True)) == [client.session.session_key]
        assert set(UserSession.objects.values_list("session_key", flat=True)) <= {client.session.session_key}

    def test_is_a_job_of_the_worker(self):
        assert sessions.forget_ended in [job.run for job in worker.JOBS]


class TestASessionWithoutAPerson:
    def test_ends_soon(self, client):
        client.get("/invitations/made-up")

        assert age(client) == sessions.UNKNOWN_SECONDS

    def test_lasts_as_any_other_when_somebody_signs_in(self, client, ada):
        client.get("/invitations/made-up")
        client.force_login(ada)

        assert age(client) > 24 * 3600

    def test_of_a_person_is_not_shortened(self, client, ada):
        client.force_login(ada)
        client.get("/invitations/made-up")

        assert age(client) > 24 * 3600
