"""Replacing the key of the fingerprints while keys are connected: duplicates are found before, meanwhile and after."""

from collections.abc import Callable
from datetime import timedelta
from io import StringIO
from typing import Any

import pytest
from django.core.management import CommandError, call_command

from integrations.keys import fingerprints, services
from integrations.models import DataKey, Integration
from integrations.vault import data_keys
from integrations.vault.errors import CredentialUnreadable, KeyServiceSilent
from rensei.core.clock import database_now
from rensei.core.errors import AlreadyExists
from rensei.core.secret import Secret
from rensei.orgs.access import Access

pytestmark = [pytest.mark.django_db, pytest.mark.usefixtures("simulator")]


def manage(*arguments: str) -> str:
    said = StringIO()
    call_command("vault", "rotate-fingerprint-key", *arguments, stdout=said, stderr=said)
    return said.getvalue()


def add(access: Access, key: Secret, **more: Any) -> Integration:
    return services.add_integration(access, provider="claude", api_key=key, **more)


def keys() -> list[int]:
    return sorted(DataKey.objects.filter(purpose="fingerprint").values_list("version", flat=True))


@pytest.fixture
def key(make_key: Callable[..., str]) -> Secret:
    return Secret(make_key())


class TestRotation:
    def test_makes_all_anew_and_deletes_the_old_key_later(self, access: Access, make_key: Callable[..., str]) -> None:
        held = [Secret(make_key()) for _ in range(3)]
        before = {add(access, key, name=str(place)).fingerprint for place, key in enumerate(held)}

        assert "Made 3 fingerprint(s) anew" in manage()
        after = set(Integration.objects.values_list("fingerprint", flat=True))
        assert not before & after
        assert keys() == [1, 2], "a fingerprint may be on its way into the database"

        DataKey.objects.update(created_at=database_now() - timedelta(hours=2))
        assert "Made 0 fingerprint(s) anew" in manage("--resume")
        assert keys() == [2]
        assert set(Integration.objects.values_list("fingerprint", flat=True)) == after
        for key in held:
            with pytest.raises(AlreadyExists, match="with this key"):
                add(access, key)

    def test_finds_a_key_that_is_connected_again_meanwhile(self, access: Access, key: Secret, make_key: Any) -> None:
        other = Secret(make_key())
        add(access, key)
        fingerprints.add_key()
        add(access, other, name="Other")
        assert sorted(Integration.objects.values_list("fingerprint_version", flat=True)) == [1, 2]

        for known in (key, other):
            with pytest.raises(AlreadyExists, match="with this key"):
                add(access, known, name="Again")

    def test_resumes_where_it_was_killed(self, access: Access, make_key: Any, monkeypatch: Any) -> None:
        for place in range(3):
            add(access, Secret(make_key()), name=str(place))
        recompute, done = fingerprints._recompute_one, []

        def die(integration: Integration) -> bool:
            if len(done) == 2:
                raise KeyboardInterrupt
            done.append(integration.pk)
            return recompute(integration)

        monkeypatch.setattr(fingerprints, "_recompute_one", die)
        with pytest.raises(KeyboardInterrupt):
            manage()
        monkeypatch.undo()

        assert "Made 1 fingerprint(s) anew" in manage("--resume")
        assert not fingerprints.outdated().exists()

    def test_leaves_a_key_that_was_replaced_meanwhile(self, access: Access, key: Secret, monkeypatch: Any) -> None:
        integration = add(access, key)
        fingerprints.add_key()
        stale = Integration.objects.select_related("org").get()
        services.rotate_integration(access, integration, api_key=Secret(f"{key.reveal()[:-1]}0"), force=True)
        now = Integration.objects.get().fingerprint

        assert fingerprints._recompute_one(stale) is False
        assert Integration.objects.get().fingerprint == now

    def test_of_a_destroyed_key_keeps_no_old_key(self, access: Access, key: Secret) -> None:
        add(access, key)
        DataKey.objects.filter(org=access.org).delete()

        assert "Made 1 fingerprint(s) anew" in manage()

        assert Integration.objects.get().fingerprint_version == 2

    def test_names_a_record_that_does_not_open_and_keeps_the_key(
        self, access: Access, key: Secret, make_key: Any
    ) -> None:
        add(access, Secret(make_key()), name="Good")
        bad = add(access, key, name="Bad")
        Integration.objects.filter(pk=bad.pk).update(sealed_key=bytes(bad.sealed_key)[:-1])

        with pytest.raises(CommandError, match=r"1 fingerprint\(s\) are as they were"):
            manage()

        DataKey.objects.update(created_at=database_now() - timedelta(hours=2))
        with pytest.raises(CommandError):
            manage("--resume")
        assert keys() == [1, 2]
        assert list(fingerprints.outdated()) == [bad]

    def test_stops_while_the_key_service_is_silent(self, access: Access, key: Secret, monkeypatch: Any) -> None:
        add(access, key)
        fingerprints.add_key()
        data_keys.unwrapped.clear()

        def silent(row: DataKey) -> bytes:
            raise KeyServiceSilent("the key service does not answer (timeout)")

        monkeypatch.setattr(data_keys, "unwrap", silent)
        with pytest.raises(CredentialUnreadable):
            fingerprints.recompute_batch()
        monkeypatch.undo()

        assert fingerprints.recompute_batch().done == 1
