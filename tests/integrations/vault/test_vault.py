import copy
import json
import logging
import os
import pickle
import secrets
import time
from pathlib import Path
from threading import Barrier, Thread
from typing import Any

import pytest
from django.db import connection

from integrations.models import DataKey, Integration, KeyCheck, PlatformKey
from integrations.vault import data_keys, keyring, vault
from integrations.vault.errors import CredentialUnreadable
from rensei.core.secret import Secret
from rensei.orgs.models import Org

pytestmark = pytest.mark.usefixtures("keyring_elsewhere")


def place(org: Org | None, **changes: Any) -> vault.SealContext:
    fields: dict[str, Any] = {
        "org": org,
        "record_id": "int_1",
        "field": "api_key",
        "version": 1,
        "provider": "claude",
        "destination": "default",
        "pool": "" if org else "metered",
    }
    return vault.SealContext(**{**fields, **changes})


@pytest.fixture
def evil(make_user: Any) -> Org:
    return Org.objects.create(name="Evil", slug="evil")


@pytest.fixture
def ring(settings: Any) -> Path:
    path: Path = settings.RENSEI_VAULT_KEYRING
    return path


@pytest.fixture
def text() -> str:
    return secrets.token_hex(40)


def use_keyring(path: Path, document: dict[str, Any]) -> None:
    """Put another keyring in place, as after a restart: nothing is remembered."""
    path.write_text(json.dumps(document))
    path.chmod(0o600)
    data_keys.unwrapped.clear()


class TestSeal:
    def test_opens_again_in_the_same_place(self, acme: Org, text: str) -> None:
        sealed = vault.seal(Secret(text), context=place(acme))

        assert vault.open_sealed(sealed, context=place(acme)).reveal() == text

    def test_opens_again_from_the_bytes_that_the_database_gives(self, acme: Org, text: str) -> None:
        sealed = vault.seal(Secret(text), context=place(acme))

        assert vault.open_sealed(memoryview(sealed), context=place(acme)).reveal() == text

    def test_gives_each_organization_and_the_platform_one_data_key(self, acme: Org, evil: Org) -> None:
        for org in (acme, evil, None, acme, None):
            vault.seal(Secret("x"), context=place(org))

        assert list(DataKey.objects.values_list("version", "purpose")) == [(1, "seal")] * 3
        assert {key.org for key in DataKey.objects.all()} == {acme, evil, None}

    def test_stores_no_key_in_the_clear(self, acme: Org, ring: Path) -> None:
        _, key = data_keys.current_key(org=acme)
        kek = next(iter(keyring.load(ring).keys.values()))

        stored = b"".join(bytes(row) for row in DataKey.objects.values_list("wrapped", flat=True))
        stored += b"".join(bytes(row) for row in KeyCheck.objects.values_list("value", flat=True))
        assert key not in stored
        assert kek not in stored

    def test_makes_a_new_data_key_when_the_first_one_is_gone(self, acme: Org, text: str) -> None:
        vault.seal(Secret("x"), context=place(acme))
        DataKey.objects.all().delete()

        sealed = vault.seal(Secret(text), context=place(acme))
        data_keys.unwrapped.clear()
        assert vault.open_sealed(sealed, context=place(acme)).reveal() == text

    @pytest.mark.django_db(transaction=True)
    def test_makes_one_data_key_however_many_come_first_at_once(self, acme: Org, text: str) -> None:
        start = Barrier(8)
        sealed: list[bytes] = []

        def seal() -> None:
            try:
                start.wait()
                sealed.append(vault.seal(Secret(text), context=place(acme)))
            finally:
                connection.close()

        threads = [Thread(target=seal) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

        data_keys.unwrapped.clear()
        assert DataKey.objects.filter(org=acme).count() == 1
        assert [vault.open_sealed(one, context=place(acme)).reveal() for one in sealed] == [text] * 8


class TestOpenSealed:
    @pytest.mark.parametrize(
        "elsewhere",
        [
            {"record_id": "int_2"},
            {"field": "token"},
            {"version": 2},
            {"provider": "toy"},
            {"destination": "https://attacker.example"},
            {"pool": "metered"},
        ],
        ids=str,
    )
    def test_refuses_another_place(self, acme: Org, elsewhere: dict[str, Any]) -> None:
        sealed = vault.seal(Secret("x"), context=place(acme))

        with pytest.raises(CredentialUnreadable):
            vault.open_sealed(sealed, context=place(acme, **elsewhere))

    def test_refuses_another_owner(self, acme: Org, evil: Org) -> None:
        sealed = vault.seal(Secret("x"), context=place(acme))
        vault.seal(Secret("x"), context=place(evil))

        for owner in (evil, None):
            with pytest.raises(CredentialUnreadable):
                vault.open_sealed(sealed, context=place(owner))

    def test_refuses_the_other_pool(self, db: None) -> None:
        sealed = vault.seal(Secret("x"), context=place(None, pool="shared"))

        with pytest.raises(CredentialUnreadable):
            vault.open_sealed(sealed, context=place(None, pool="metered"))

    def test_refuses_a_data_key_that_was_moved_to_another_owner(self, acme: Org, evil: Org) -> None:
        sealed = vault.seal(Secret("x"), context=place(acme))
        DataKey.objects.filter(org=acme).update(org=evil)

        with pytest.raises(CredentialUnreadable):
            vault.open_sealed(sealed, context=place(evil))

    def test_refuses_when_the_data_key_is_gone_even_if_it_was_just_used(self, acme: Org) -> None:
        sealed = vault.seal(Secret("x"), context=place(acme))
        DataKey.objects.all().delete()

        with pytest.raises(CredentialUnreadable, match="is gone"):
            vault.open_sealed(sealed, context=place(acme))

    @pytest.mark.parametrize("junk", [b"", b"RNS1", b"RNS1\x01\x01" + bytes(200), b"\xff" * 300])
    def test_answers_junk_with_a_typed_error(self, acme: Org, junk: bytes) -> None:
        with pytest.raises(CredentialUnreadable):
            vault.open_sealed(junk, context=place(acme))


class TestLostKey:
    """A key-encryption key that is missing or wrong refuses, and harms nothing."""

    def test_refuses_while_the_keyring_is_missing_and_opens_when_it_is_back(
        self, acme: Org, ring: Path, text: str
    ) -> None:
        sealed = vault.seal(Secret(text), context=place(acme))
        rows = list(DataKey.objects.values())
        ring.rename(ring.with_suffix(".away"))
        data_keys.unwrapped.clear()

        with pytest.raises(CredentialUnreadable, match="cannot be read"):
            vault.open_sealed(sealed, context=place(acme))
        with pytest.raises(CredentialUnreadable):
            vault.seal(Secret("x"), context=place(acme))
        assert list(DataKey.objects.values()) == rows

        ring.with_suffix(".away").rename(ring)
        assert vault.open_sealed(sealed, context=place(acme)).reveal() == text

    def test_names_the_id_that_is_missing(self, acme: Org, ring: Path) -> None:
        sealed = vault.seal(Secret("x"), context=place(acme))
        lost = keyring.load(ring).current
        ring.unlink()
        keyring.create(ring)
        data_keys.unwrapped.clear()

        with pytest.raises(CredentialUnreadable, match=lost):
            vault.open_sealed(sealed, context=place(acme))

    def test_notices_other_bytes_under_a_known_id_and_wraps_nothing_with_them(
        self, acme: Org, evil: Org, ring: Path, text: str
    ) -> None:
        sealed = vault.seal(Secret(text), context=place(acme))
        good = json.loads(ring.read_text())
        keyring.create(ring.with_name("other.json"))
        (other,) = json.loads(ring.with_name("other.json").read_text())["keys"].values()
        use_keyring(ring, {**good, "keys": {good["current"]: other}})

        with pytest.raises(CredentialUnreadable, match="bytes differ"):
            vault.open_sealed(sealed, context=place(acme))
        with pytest.raises(CredentialUnreadable, match="bytes differ"):
            vault.seal(Secret("x"), context=place(evil))
        assert not DataKey.objects.filter(org=evil).exists()

        use_keyring(ring, good)
        assert vault.open_sealed(sealed, context=place(acme)).reveal() == text

    def test_opens_old_records_when_another_key_is_current(self, acme: Org, evil: Org, ring: Path, text: str) -> None:
        sealed = vault.seal(Secret(text), context=place(acme))
        old = json.loads(ring.read_text())
        keyring.create(ring.with_name("new.json"))
        new = json.loads(ring.with_name("new.json").read_text())
        use_keyring(ring, {"current": new["current"], "keys": {**old["keys"], **new["keys"]}})

        vault.seal(Secret("x"), context=place(evil))

        assert vault.open_sealed(sealed, context=place(acme)).reveal() == text
        assert DataKey.objects.get(org=evil).kek_id == new["current"]

    def test_answers_with_the_documented_code(self, acme: Org, ring: Path) -> None:
        ring.unlink()

        with pytest.raises(CredentialUnreadable) as caught:
            vault.seal(Secret("x"), context=place(acme))

        assert (caught.value.code, caught.value.status) == ("CREDENTIAL_UNREADABLE", 503)
        assert str(ring.parent) not in caught.value.detail  # Tenants need not know where it is.
        assert not DataKey.objects.exists()

    def test_refuses_a_wrapped_key_that_was_altered(self, acme: Org) -> None:
        sealed = vault.seal(Secret("x"), context=place(acme))
        row = DataKey.objects.get()
        DataKey.objects.update(wrapped=bytes(row.wrapped)[:-1] + bytes([bytes(row.wrapped)[-1] ^ 1]))

        with pytest.raises(CredentialUnreadable, match="altered"):
            vault.open_sealed(sealed, context=place(acme))


class TestUnwrappedKeys:
    def test_forgets_after_two_minutes(self, monkeypatch: pytest.MonkeyPatch) -> None:
        cache, now = data_keys.UnwrappedKeys(), time.monotonic()
        monkeypatch.setattr(time, "monotonic", lambda: now)
        cache.put(("a",), b"k")

        monkeypatch.setattr(time, "monotonic", lambda: now + 119)
        assert cache.get(("a",)) == b"k"
        monkeypatch.setattr(time, "monotonic", lambda: now + 120)
        assert cache.get(("a",)) is None

    def test_keeps_a_thousand_at_most(self) -> None:
        cache = data_keys.UnwrappedKeys()

        for number in range(1200):
            cache.put((number,), b"k")

        assert len(cache) == 1000
        assert cache.get((199,)) is None
        assert cache.get((200,)) == b"k"

    def test_spares_the_keyring(self, acme: Org, ring: Path, text: str) -> None:
        sealed = vault.seal(Secret(text), context=place(acme))
        ring.unlink()

        assert vault.open_sealed(sealed, context=place(acme)).reveal() == text


class TestFingerprint:
    def test_is_the_same_for_the_same_key(self, acme: Org, text: str) -> None:
        first, second = (vault.fingerprints(Secret(text), org_id=acme.id, provider="claude") for _ in range(2))

        assert first == second

    def test_differs_by_key_organization_and_provider(self, db: None, text: str) -> None:
        prints = {
            vault.fingerprints(Secret(key), org_id=org_id, provider=provider)[1]
            for key in (text, text + "x")
            for org_id in ("org_1", "org_2")
            for provider in ("claude", "toy")
        }

        assert len(prints) == 8

    def test_stays_the_same_when_the_keys_that_seal_change(self, acme: Org, text: str) -> None:
        before = vault.fingerprints(Secret(text), org_id=acme.id, provider="claude")
        DataKey.objects.filter(purpose=DataKey.Purpose.SEAL).delete()
        vault.seal(Secret("x"), context=place(None))

        assert vault.fingerprints(Secret(text), org_id=acme.id, provider="claude") == before

    def test_never_lends_its_key_to_a_record(self, db: None, text: str) -> None:
        vault.fingerprints(Secret(text), org_id="org_1", provider="claude")
        sealed = vault.seal(Secret(text), context=place(None))

        pepper = DataKey.objects.get(purpose=DataKey.Purpose.FINGERPRINT)
        assert pepper.id.bytes not in sealed


class TestHealth:
    def test_is_well_before_anything_is_sealed(self, db: None, ring: Path) -> None:
        health = vault.health()

        assert (health.ok, health.kek_id, health.sealed_count) == (True, keyring.load(ring).current, 0)

    def test_says_that_there_is_no_keyring(self, db: None, ring: Path) -> None:
        ring.unlink()

        health = vault.health()

        assert not health.ok
        assert "cannot be read" in health.detail

    def test_names_the_missing_key_and_counts_what_needs_it(self, acme: Org, evil: Org, ring: Path) -> None:
        for number, org in enumerate((acme, acme, evil)):
            Integration.objects.create(
                org=org,
                provider="claude",
                name=str(number),
                sealed_key=vault.seal(Secret("x"), context=place(org)),
                fingerprint=str(number),
            )
        PlatformKey.objects.create(
            provider="claude", pool="metered", name="x", sealed_key=vault.seal(Secret("x"), context=place(None))
        )
        lost = keyring.load(ring).current
        ring.unlink()
        keyring.create(ring)

        health = vault.health()

        assert (health.ok, health.kek_id, health.sealed_count) == (False, lost, 4)
        assert lost in health.detail
        assert "4 stored credential(s)" in health.detail

    def test_notices_wrong_bytes_while_the_right_ones_are_remembered(self, acme: Org, ring: Path) -> None:
        vault.seal(Secret("x"), context=place(acme))
        good = json.loads(ring.read_text())
        keyring.create(ring.with_name("other.json"))
        (other,) = json.loads(ring.with_name("other.json").read_text())["keys"].values()
        ring.write_text(json.dumps({**good, "keys": {good["current"]: other}}))

        assert "bytes differ" in vault.health().detail


class TestSecrecy:
    def test_prints_nothing_of_a_secret(self, acme: Org, ring: Path, text: str, caplog: Any) -> None:
        caplog.set_level(logging.DEBUG)
        secret = Secret(text)
        sealed = vault.seal(secret, context=place(acme))
        opened = vault.open_sealed(sealed, context=place(acme))
        ring.unlink()
        data_keys.unwrapped.clear()
        with pytest.raises(CredentialUnreadable) as caught:
            vault.open_sealed(sealed, context=place(acme))

        shown = f"{secret} {opened!r} {opened} {place(acme)!r} {caught.value} {caught.value.detail} {caplog.text}"
        assert text not in shown
        assert text.encode() not in sealed

    @pytest.mark.parametrize("leave", [pickle.dumps, copy.copy, copy.deepcopy, json.dumps])
    def test_lets_no_secret_leave_the_process(self, leave: Any) -> None:
        with pytest.raises(TypeError):
            leave(Secret(os.urandom(8).hex()))
