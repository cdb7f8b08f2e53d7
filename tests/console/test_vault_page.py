"""The operators' page of the vault: outer keys, a dry run, a rotation and its progress, and retiring a key."""

from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from django.contrib.auth.models import Permission
from django.db import connection
from django.test import Client
from django.test.utils import CaptureQueriesContext

from integrations.keys import rotations
from integrations.models import DataKey, KeyCheck, Rotation
from integrations.vault import data_keys, keyring
from integrations.vault.kek import LocalKeyring
from rensei.audit.models import AuditEvent
from rensei.core.clock import database_now
from rensei.orgs.models import Org, User
from tests.pages import html_of

pytestmark = pytest.mark.django_db

PAGE = "/admin/integrations/rotation/"
START = f"{PAGE}start/re-wrap/"


@pytest.fixture(autouse=True)
def _in_this_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(LocalKeyring, "is_remote", False)


@pytest.fixture
def admin(grace: User, page_as: Callable[[User], Client]) -> Client:
    return page_as(grace)


@pytest.fixture
def ring(settings: Any) -> Path:
    path: Path = settings.RENSEI_VAULT_KEYRING
    return path


@pytest.fixture
def old(acme: Org, ring: Path) -> str:
    """The outer key before the current one, which wraps a data key."""
    data_keys.current_key(org=acme)
    before = keyring.load(ring).current
    keyring.add_key(ring, current=True)
    return before


def text_of(client: Client, path: str = PAGE, status: int = 200) -> str:
    answer = client.get(path)
    assert answer.status_code == status
    return html_of(answer)


class TestThePage:
    def test_of_a_new_installation_says_that_nothing_is_sealed(self, admin: Client) -> None:
        assert "Nothing has been sealed yet." in text_of(admin)

    def test_leads_through_a_rotation(self, admin: Client, grace: User, old: str, ring: Path) -> None:
        before = text_of(admin)
        assert old in before
        assert "To re-wrap" in before
        assert "1 data key</strong> would be re-wrapped" in text_of(admin, START)
        assert not Rotation.objects.exists(), "a dry run starts nothing"

        assert admin.post(START).status_code == 302
        under_way = text_of(admin)
        assert "Under way" in under_way
        assert grace.email in under_way
        assert "0 done, 1 left" in under_way
        assert "Dry run and start" not in under_way
        rotations.carry_on()
        after = text_of(admin)

        assert "1 done" in after
        assert "Empty since" in after
        assert f"{PAGE}retire/{old}/" in after
        events = AuditEvent.objects.filter(action="vault.rotation_started")
        assert events.get().actor == grace.email
        keys = [text for text in ring.read_text().split('"') if len(text) == 44]
        assert keys
        assert not any(key in page for key in keys for page in (before, under_way, after))

    def test_shows_why_a_rotation_waits_and_what_failed(self, admin: Client, old: str, acme: Org) -> None:
        admin.post(START)
        Rotation.objects.update(waiting="the key service does not answer (timeout)")
        assert "Waiting: the key service does not answer" in text_of(admin)
        DataKey.objects.filter(org=acme).update(wrapped=bytes(60))
        rotations.carry_on()

        page = text_of(admin)

        assert "Done, with failures: 1" in page
        assert "does not open" in page

    def test_refuses_a_second_rotation(self, admin: Client, old: str) -> None:
        admin.post(START)

        answer = admin.post(f"{PAGE}start/verify/")

        assert answer.status_code == 409
        assert "A rotation is under way" in answer.content.decode()

    def test_stops_a_rotation(self, admin: Client, old: str) -> None:
        admin.post(START)
        (row,) = Rotation.objects.all()
        assert "0 done, 1 left" in text_of(admin, f"{PAGE}{row.pk}/stop/")

        admin.post(f"{PAGE}{row.pk}/stop/")

        row.refresh_from_db()
        assert row.state == "stopped"
        assert "Stopped" in text_of(admin)

    @pytest.mark.parametrize("kind", ["verify", "fingerprints"])
    def test_starts_the_others_as_well(self, admin: Client, old: str, kind: str) -> None:
        assert "would be" in text_of(admin, f"{PAGE}start/{kind}/")
        admin.post(f"{PAGE}start/{kind}/")

        rotations.carry_on()

        assert Rotation.objects.get().state == "done"

    def test_retires_a_key_when_nothing_needs_it(self, admin: Client, old: str, ring: Path, settings: Any) -> None:
        settings.RENSEI_BACKUPS_KEPT_DAYS = 7
        page = f"{PAGE}retire/{old}/"
        refused = admin.post(page, {"no_backup": "on"})
        assert refused.status_code == 409
        assert "1 data key(s) need" in refused.content.decode()
        rotations.follow(rotations.start(Rotation.Kind.REWRAP, actor="test"))

        assert admin.post(page, {"no_backup": "on"}).status_code == 409, "a process may be wrapping by it"
        KeyCheck.objects.update(emptied_at=database_now() - timedelta(hours=1))

        until = database_now() + timedelta(days=7, hours=-1)
        assert f"kept until {until:%Y-%m-%d}" in text_of(admin, page)
        assert admin.post(page).status_code == 409
        assert KeyCheck.objects.filter(pk=old).exists()
        assert admin.post(page, {"no_backup": "on"}).status_code == 302

        assert old not in keyring.load(ring).keys
        assert not KeyCheck.objects.filter(pk=old).exists()
        assert AuditEvent.objects.filter(action="vault.outer_key_retired", object_id=old).exists()
        assert text_of(admin, page, status=404)

    def test_resumes_fingerprints_that_were_stopped(
        self, admin: Client, old: str, simulator: Any, connect: Any
    ) -> None:
        connect()
        admin.post(f"{PAGE}start/fingerprints/")
        admin.post(f"{PAGE}{Rotation.objects.get().pk}/stop/")

        admin.post(f"{PAGE}start/fingerprints/")
        rotations.carry_on()

        assert DataKey.objects.filter(purpose="fingerprint").count() == 2
        assert Rotation.objects.get(state="done").done == 1

    def test_is_up_while_the_keyring_is_missing(self, admin: Client, old: str, ring: Path) -> None:
        ring.unlink()

        assert "The current outer key cannot be used: the keyring cannot be read" in text_of(admin)
        assert "It cannot be started now" in text_of(admin, START, status=409)
        assert admin.post(START).status_code == 409
        assert not Rotation.objects.exists()

    def test_asks_the_database_as_often_for_many_keys(self, admin: Client, old: str, ring: Path) -> None:
        def count() -> int:
            with CaptureQueriesContext(
                connection,
            ) as queries:
                text_of(admin)
            return len(queries)

        count()
        before = count()
        KeyCheck.objects.bulk_create([KeyCheck(kek_id=f"kek_{place}", value=b"x") for place in range(20)])

        assert count() == before


class TestAccess:
    def test_is_for_operators_who_may_rotate(
        self, make_user: Callable[..., User], page_as: Callable[[User], Client], old: str, ada: User
    ) -> None:
        reader = make_user("reader@rensei.test", is_staff=True)
        reader.user_permissions.add(Permission.objects.get(codename="view_rotation"))
        client = page_as(reader)
        rotations.start(Rotation.Kind.VERIFY, actor="test")
        row = Rotation.objects.get()

        assert "Stop…" not in text_of(client)
        for page in (START, f"{PAGE}{row.pk}/stop/", f"{PAGE}retire/{old}/"):
            assert client.get(page).status_code == client.post(page, {"no_backup": "on"}).status_code == 403
        assert page_as(ada).get(PAGE).status_code == 302
        nobody = page_as(make_user("nobody@rensei.test", is_staff=True))
        assert nobody.get(PAGE).status_code == 403

    def test_of_what_is_not_there_is_404(self, admin: Client) -> None:
        for page in (f"{PAGE}start/other/", f"{PAGE}rot_x/stop/", f"{PAGE}retire/kek_x/"):
            assert admin.get(page).status_code == 404
