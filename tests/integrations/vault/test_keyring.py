import base64
import hashlib
import json
import os
import secrets
import stat
from pathlib import Path
from threading import Barrier, Thread
from typing import Any

import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from integrations.models import DataKey
from integrations.vault import keyring, vault
from integrations.vault.errors import KekUnavailable
from rensei.core.secret import Secret
from rensei.orgs.models import Org


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "deep" / "ring.json"


def _write(path: Path, document: Any, mode: int = 0o600) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_text(document if isinstance(document, str) else json.dumps(document))
    path.chmod(mode)


def _ring_of(key: bytes) -> dict[str, Any]:
    return {"current": "kek_1", "keys": {"kek_1": base64.b64encode(key).decode()}}


class TestAddKey:
    def test_loses_no_key_where_many_are_added_at_once(self, path: Path) -> None:
        keyring.create(path)
        barrier, added = Barrier(8), []

        def add() -> None:
            barrier.wait()
            added.append(keyring.add_key(path, current=False))

        threads = [Thread(target=add) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

        assert len(added) == 8
        assert set(added) <= set(keyring.load(path).keys)

    def test_says_that_there_is_no_keyring(self, path: Path) -> None:
        with pytest.raises(KekUnavailable, match="No such file"):
            keyring.add_key(path, current=True)


class TestCreate:
    def test_writes_one_random_key_that_only_its_owner_can_read(self, path: Path) -> None:
        keyring.create(path)

        loaded = keyring.load(path)
        assert list(loaded.keys) == [loaded.current]
        assert len(loaded.keys[loaded.current]) == 32
        assert stat.S_IMODE(path.stat().st_mode) == 0o600

    def test_ignores_a_generous_umask(self, path: Path) -> None:
        before = os.umask(0)
        try:
            keyring.create(path)
        finally:
            os.umask(before)

        assert stat.S_IMODE(path.stat().st_mode) == 0o600

    def test_never_replaces_a_file(self, path: Path) -> None:
        _write(path, "precious")

        with pytest.raises(FileExistsError):
            keyring.create(path)

        assert path.read_text() == "precious"

    def test_leaves_no_draft_behind(self, path: Path) -> None:
        keyring.create(path)
        with pytest.raises(FileExistsError):
            keyring.create(path)

        assert list(path.parent.iterdir()) == [path]

    def test_lets_one_of_many_at_once_succeed(self, path: Path) -> None:
        start, made = Barrier(8), []

        def make() -> None:
            start.wait()
            try:
                keyring.create(path)
                made.append(True)
            except FileExistsError:
                made.append(False)

        threads = [Thread(target=make) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

        assert sorted(made) == [False] * 7 + [True]
        assert keyring.load(path).keys


class TestEnsure:
    def test_creates_the_first_keyring(self, db: None, path: Path) -> None:
        assert keyring.ensure(path) is True
        assert keyring.load(path).keys

    def test_leaves_an_existing_one_alone(self, db: None, path: Path) -> None:
        keyring.create(path)
        before = path.read_bytes()

        assert keyring.ensure(path) is False
        assert path.read_bytes() == before

    def test_makes_no_new_one_once_something_was_sealed(self, acme: Org, settings: Any) -> None:
        vault.seal(Secret("x"), context=_context(acme))
        assert DataKey.objects.exists()
        settings.RENSEI_VAULT_KEYRING.unlink()

        assert keyring.ensure(settings.RENSEI_VAULT_KEYRING) is False
        assert not settings.RENSEI_VAULT_KEYRING.exists()


class TestLoad:
    def test_reads_several_keys(self, path: Path) -> None:
        keys = {f"kek_{number}": secrets.token_bytes(32) for number in (1, 2)}
        encoded = {kek_id: base64.b64encode(key).decode() for kek_id, key in keys.items()}
        _write(path, {"current": "kek_2", "keys": encoded})

        loaded = keyring.load(path)

        assert (loaded.current, loaded.keys) == ("kek_2", keys)

    def test_hides_the_keys_when_printed(self, path: Path) -> None:
        keyring.create(path)

        assert str(next(iter(keyring.load(path).keys.values()))) not in repr(keyring.load(path))

    def test_says_that_the_file_is_missing(self, path: Path) -> None:
        with pytest.raises(KekUnavailable, match="cannot be read"):
            keyring.load(path)

    @pytest.mark.parametrize("mode", [0o640, 0o604, 0o660, 0o622, 0o777, 0o601])
    def test_refuses_a_file_that_is_open_to_others(self, path: Path, mode: int) -> None:
        _write(path, _ring_of(secrets.token_bytes(32)), mode)

        with pytest.raises(KekUnavailable, match="chmod 600"):
            keyring.load(path)

    @pytest.mark.parametrize("mode", [0o600, 0o400])
    def test_takes_a_file_of_its_owner_alone(self, path: Path, mode: int) -> None:
        _write(path, _ring_of(secrets.token_bytes(32)), mode)

        assert keyring.load(path).current == "kek_1"

    def test_refuses_the_file_of_another_user(self, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        keyring.create(path)
        monkeypatch.setattr(os, "geteuid", lambda: path.stat().st_uid + 1)

        with pytest.raises(KekUnavailable, match="another user"):
            keyring.load(path)

    @pytest.mark.parametrize(
        ("key", "reason"),
        [
            (b"", "0 bytes"),
            (b"short", "5 bytes"),
            (bytes(range(31)), "31 bytes"),
            (bytes(range(33)), "33 bytes"),
            (bytes(32), "equal"),
            (b"\xff" * 32, "equal"),
        ],
    )
    def test_refuses_a_weak_key(self, path: Path, key: bytes, reason: str) -> None:
        _write(path, _ring_of(key))

        with pytest.raises(KekUnavailable, match=reason):
            keyring.load(path)

    @pytest.mark.parametrize(
        "derive",
        [
            lambda secret: secret[:32],
            lambda secret: hashlib.sha256(secret).digest(),
            lambda secret: hashlib.sha512(secret).digest()[:32],
        ],
    )
    def test_refuses_a_key_made_from_the_secret_key(self, path: Path, settings: Any, derive: Any) -> None:
        _write(path, _ring_of(derive(settings.SECRET_KEY.encode())))

        with pytest.raises(KekUnavailable, match="SECRET_KEY"):
            keyring.load(path)

    @pytest.mark.parametrize(
        "document",
        [
            "",
            "{",
            "[]",
            "null",
            {"keys": {}},
            {"current": "a", "keys": []},
            {"current": "a", "keys": {"a": 5}},
            {"current": "a", "keys": {"a": "not base64!"}},
            {"current": "b", "keys": {}},
            {"current": ["b"], "keys": {}},
        ],
    )
    def test_refuses_a_damaged_file(self, path: Path, document: Any) -> None:
        _write(path, document)

        with pytest.raises(KekUnavailable):
            keyring.load(path)

    def test_refuses_a_file_that_was_cut_short_without_showing_it(self, path: Path) -> None:
        keyring.create(path)
        text = path.read_text()
        for length in range(len(text) - 2):
            path.write_text(text[:length])

            with pytest.raises(KekUnavailable) as caught:
                keyring.load(path)
            assert caught.value.__cause__ is None
            assert text[40:60] not in str(caught.value)

    @hypothesis_settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
    @given(junk=st.binary(max_size=200) | st.text(max_size=200).map(lambda text: json.dumps(text).encode()))
    def test_answers_any_bytes_with_one_kind_of_error(self, path: Path, junk: bytes) -> None:
        path.parent.mkdir(exist_ok=True)
        path.touch(mode=0o600)
        path.write_bytes(junk)

        with pytest.raises(KekUnavailable):
            keyring.load(path)


def _context(org: Org) -> vault.SealContext:
    return vault.SealContext(
        org=org, record_id="int_1", field="api_key", version=1, provider="claude", destination="default"
    )
