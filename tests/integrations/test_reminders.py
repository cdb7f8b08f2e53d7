"""The age of a key, and the reminder that its owners ask for."""

import threading
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
from django.core import mail
from django.db import connection
from django.test import Client
from django.utils import timezone
from rest_framework.test import APIClient

from integrations.keys import platform, reminders, services
from integrations.models import Integration, PlatformKey
from rensei.audit.models import AuditEvent
from rensei.core.secret import Secret
from rensei.orgs.access import Access
from rensei.orgs.models import User
from tests import factories
from tests.integrations.federating import make_federation

INTEGRATIONS = "/api/v1/integrations"


def age(integration: Integration, days: int) -> None:
    """Let a key be so many days old."""
    found = Integration.objects.get(pk=integration.pk)
    # The database has a clock of its own, which may be a little behind.
    found.key_created_at = timezone.now() - timedelta(days=days, minutes=1)
    if found.remind_after_days:
        found.remind_at = found.key_created_at + timedelta(days=found.remind_after_days)
    found.save(update_fields=["key_created_at", "remind_at"])


class TestAge:
    def test_is_told_by_rest_and_on_the_card(
        self, connected: Integration, ada: User, api_as: Callable[..., APIClient], page_as: Callable[[User], Client]
    ) -> None:
        age(connected, 12)

        answer = api_as(ada).get(f"{INTEGRATIONS}/{connected.id}").json()

        assert answer["keyAgeDays"] == 12
        assert answer["keyCreatedAt"] < answer["createdAt"]
        assert "12 days" in page_as(ada).get("/o/acme/settings/integrations").content.decode()

    def test_begins_anew_with_another_key_and_with_nothing_else(
        self, connected: Integration, ada_access: Access, make_key: Callable[..., str]
    ) -> None:
        age(connected, 12)
        connected.refresh_from_db()
        services.update_integration(ada_access, connected, workspace_id="wrkspc_1", name="Other")
        assert Integration.objects.get().key_age_days == 12

        services.rotate_integration(ada_access, connected, api_key=Secret(make_key()), force=True)

        assert Integration.objects.get().key_age_days == 0

    def test_is_not_told_where_no_key_is_stored(
        self, connected: Integration, ada_access: Access, ada: User, api_as: Callable[..., APIClient]
    ) -> None:
        services.rotate_integration(ada_access, connected, federation=make_federation(), force=True)

        answer = api_as(ada).get(f"{INTEGRATIONS}/{connected.id}").json()

        assert (answer["keyAgeDays"], answer["keyCreatedAt"]) == (None, None)

    def test_of_a_platform_key_is_in_the_admin(
        self, grace: User, page_as: Callable[[User], Client], make_key: Callable[..., str]
    ) -> None:
        key = platform.add_platform_key(
            actor=grace, provider="claude", pool="metered", name="one", api_key=Secret(make_key())
        )
        PlatformKey.objects.update(key_created_at=timezone.now() - timedelta(days=40))
        assert "40 days" in page_as(grace).get("/admin/integrations/platformkey/").content.decode()

        platform.replace_key(key, actor=grace, api_key=Secret(make_key()))

        assert PlatformKey.objects.get().key_age_days == 0


class TestReminder:
    def test_is_mailed_once_to_those_who_manage_keys(
        self, connected: Integration, ada_access: Access, alan: User, mia: User
    ) -> None:
        services.update_integration(ada_access, connected, remind_after_days=90)
        age(connected, 89)
        reminders.remind()
        assert mail.outbox == []

        age(connected, 91)
        for _ in range(2):
            reminders.remind()

        (message,) = mail.outbox
        assert sorted(message.recipients()) == ["ada@acme.test", "alan@acme.test"]
        assert "is 91 days old" in message.subject
        assert f"/o/acme/settings/integrations/{connected.id}/rotate" in message.body
        event = AuditEvent.objects.get(action="integration.reminded")
        assert (event.object_id, event.org_id) == (connected.id, ada_access.org.id)

    def test_is_on_the_overview_until_the_key_is_replaced(
        self,
        connected: Integration,
        ada_access: Access,
        ada: User,
        page_as: Callable[[User], Client],
        make_key: Callable[..., str],
    ) -> None:
        factories.past_run(ada_access.org, ada)
        services.update_integration(ada_access, connected, remind_after_days=90)
        age(connected, 91)
        page = page_as(ada)
        overview = page.get("/o/acme/").content.decode()
        assert "the key is 91 days old" in overview
        assert f"/o/acme/settings/integrations/{connected.id}/rotate" in overview
        assert "Time to rotate" in page.get("/o/acme/settings/integrations").content.decode()

        connected.refresh_from_db()
        services.rotate_integration(ada_access, connected, api_key=Secret(make_key()), force=True)
        reminders.remind()

        assert "days old" not in page.get("/o/acme/").content.decode()
        assert mail.outbox == []
        again = Integration.objects.get()
        assert again.remind_at == again.key_created_at + timedelta(days=90)

    @pytest.mark.django_db(transaction=True)
    def test_is_mailed_once_by_two_workers_at_once(self, connected: Integration, ada_access: Access) -> None:
        services.update_integration(ada_access, connected, remind_after_days=1)
        age(connected, 2)

        def work() -> None:
            reminders.remind()
            connection.close()

        threads = [threading.Thread(target=work) for _ in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

        assert len(mail.outbox) == 1

    @pytest.mark.parametrize("days", [0, -1, 3651, "soon", 1.5])
    def test_refuses_what_is_no_age(
        self, days: Any, connected: Integration, ada: User, api_as: Callable[..., APIClient]
    ) -> None:
        answer = api_as(ada).patch(f"{INTEGRATIONS}/{connected.id}", {"remindAfterDays": days})

        assert (answer.status_code, answer.json()["code"]) == (400, "VALIDATION_FAILED")
        assert Integration.objects.get().remind_after_days is None

    def test_is_set_and_removed_by_rest(
        self, connected: Integration, ada: User, api_as: Callable[..., APIClient], key: str
    ) -> None:
        client = api_as(ada)
        path = f"{INTEGRATIONS}/{connected.id}"

        assert client.patch(path, {"remindAfterDays": 30}).json()["remindAfterDays"] == 30
        assert client.patch(path, {"name": "Other"}).json()["remindAfterDays"] == 30
        assert client.patch(path, {"remindAfterDays": None}).json()["remindAfterDays"] is None
        made = client.post(INTEGRATIONS, {"provider": "claude", "apiKey": key, "remindAfterDays": 10}).json()
        assert made["remindAfterDays"] == 10

    def test_is_set_on_the_page_of_the_key_and_not_by_others(
        self, connected: Integration, ada: User, mia: User, eve: User, page_as: Callable[[User], Client]
    ) -> None:
        path = f"/o/acme/settings/integrations/{connected.id}/edit"
        fields = {"name": "Main", "remind_after_days": "45"}

        assert page_as(mia).post(path, fields).status_code == 403
        assert page_as(eve).post(path, fields).status_code == 404
        assert page_as(ada).post(path, fields).status_code == 302
        assert Integration.objects.get().remind_after_days == 45

    def test_that_was_sent_is_not_sent_again_when_the_page_is_saved(
        self, connected: Integration, ada_access: Access, ada: User, page_as: Callable[[User], Client]
    ) -> None:
        services.update_integration(ada_access, connected, remind_after_days=1)
        age(connected, 2)
        reminders.remind()
        path = f"/o/acme/settings/integrations/{connected.id}/edit"

        page_as(ada).post(path, {"name": "Renamed", "remind_after_days": "1"})
        reminders.remind()

        assert Integration.objects.get().name == "Renamed"
        assert len(mail.outbox) == 1
