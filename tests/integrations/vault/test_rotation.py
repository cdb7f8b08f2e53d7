"""Re-wrapping by another outer key, sealing again by new data keys, and that nothing sealed is left out of it."""

import base64
import re
from collections.abc import Callable
from datetime import timedelta
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from allauth.mfa.models import Authenticator
from django.apps import apps
from django.core.management import CommandError, call_command
from django.db.models import BinaryField

from integrations.keys import credentials, platform
from integrations.keys import services as integrations
from integrations.models import DataKey, Integration, KeyCheck, PlatformKey
from integrations.vault import data_keys, envelope, keyring, rotation, sealed, vault
from integrations.vault.errors import CredentialUnreadable
from integrations.vault.kek import LocalKeyring
from rensei import mfa_adapter
from rensei.audit.models import AuditEvent
from rensei.audit.record import record_system
from rensei.core.clock import database_now
from rensei.core.secret import Secret
from rensei.orgs.models import Org, User
from tests.architecture.modules import ROOT
from tests.chaos import rotation as chaos
from tests.database import database_url


def place(org: Org | None) -> vault.SealContext:
    return vault.SealContext(
        org=org, record_id="int_1", field="api_key", version=1, provider="claude", destination="default"
    )


def manage(*arguments: str) -> str:
    said = StringIO()
    call_command("vault", *arguments, stdout=said, stderr=said)
    return said.getvalue()


@pytest.fixture(autouse=True)
def _in_this_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    """The threads that call key services would not see the rows of a test's transaction."""
    monkeypatch.setattr(LocalKeyring, "is_remote", False)


@pytest.fixture
def ring(settings: Any) -> Path:
    path: Path = settings.RENSEI_VAULT_KEYRING
    return path


@pytest.fixture
def records(acme: Org) -> list[tuple[Org | None, bytes]]:
    """Sealed records of five owners, the platform included, and a fingerprint's key."""
    vault.fingerprints(Secret("x"), org_id=acme.pk, provider="claude")
    others = Org.objects.bulk_create([Org(name=f"Org {number}", slug=f"org-{number}") for number in range(3)])
    return [(org, vault.seal(Secret("text"), context=place(org))) for org in (acme, None, *others)]


def assert_open(records: list[tuple[Org | None, bytes]]) -> None:
    data_keys.unwrapped.clear()
    assert {vault.open_sealed(record, context=place(org)).reveal() for org, record in records} == {"text"}


class TestRotate:
    def test_rewraps_every_data_key_and_nothing_else(self, records: Any, ring: Path, monkeypatch: Any) -> None:
        monkeypatch.setattr(rotation, "BATCH", 2)
        old = keyring.load(ring).current
        before = dict(DataKey.objects.values_list("pk", "version"))

        manage("new-key")
        assert "6 data key(s) would be re-wrapped" in manage("rotate", "--dry-run")
        assert DataKey.objects.filter(kek_id=old).count() == 6
        said = manage("rotate")

        assert "Re-wrapped 6 data key(s)" in said
        assert not DataKey.objects.filter(kek_id=old).exists()
        assert dict(DataKey.objects.values_list("pk", "version")) == before
        assert_open(records)
        assert "Re-wrapped 0 data key(s)" in manage("rotate")
        assert "Every data key unwraps" in manage("verify")

    def test_makes_a_staged_key_current_only_when_told(self, records: Any, ring: Path) -> None:
        old = keyring.load(ring).current

        manage("new-key", "--staged")
        (new,) = keyring.load(ring).keys.keys() - {old}
        assert keyring.load(ring).current == old
        assert "Re-wrapped 0" in manage("rotate")
        manage("rotate", "--to", new)

        assert set(DataKey.objects.values_list("kek_id", flat=True)) == {new}
        assert_open(records)

    def test_leaves_a_row_that_was_changed_meanwhile(self, acme: Org, records: Any, monkeypatch: Any) -> None:
        manage("new-key")
        wrap, mine = data_keys.wrap, DataKey.objects.get(org=acme)

        def wrap_slowly(row: DataKey, key: bytes) -> None:
            wrap(row, key)
            if row.pk == mine.pk:
                DataKey.objects.filter(pk=mine.pk).delete()

        monkeypatch.setattr(data_keys, "wrap", wrap_slowly)
        manage("rotate")

        assert not DataKey.objects.filter(pk=mine.pk).exists(), "a destroyed key must not come back"

    def test_names_what_does_not_unwrap_and_goes_on(self, acme: Org, records: Any, ring: Path) -> None:
        old = keyring.load(ring).current
        DataKey.objects.filter(org=acme).update(wrapped=bytes(60))
        manage("new-key")

        with pytest.raises(CommandError, match="1 data key"):
            manage("rotate")

        assert list(DataKey.objects.filter(kek_id=old).values_list("org", flat=True)) == [acme.pk]
        with pytest.raises(CommandError, match="1 data key"):
            manage("verify")

    def test_retires_an_outer_key_when_no_data_key_and_no_backup_needs_it(self, records: Any, ring: Path) -> None:
        old = keyring.load(ring).current
        manage("new-key")
        with pytest.raises(CommandError, match=r"6 data key\(s\) need"):
            manage("retire", old, "--no-backup-needs-it")
        manage("rotate")
        with pytest.raises(CommandError, match="may be wrapping"):
            manage("retire", old, "--no-backup-needs-it")
        KeyCheck.objects.update(emptied_at=database_now() - timedelta(hours=1))

        assert "Backups of the database from before" in manage("retire", old)
        assert old in keyring.load(ring).keys
        manage("retire", old, "--no-backup-needs-it")

        assert set(keyring.load(ring).keys) == {keyring.load(ring).current}
        assert not KeyCheck.objects.filter(pk=old).exists()
        with pytest.raises(CommandError, match="is the current key"):
            manage("retire", keyring.load(ring).current)
        assert_open(records)

    def test_retires_no_key_that_is_used_while_it_does(
        self, acme: Org, records: Any, ring: Path, monkeypatch: Any
    ) -> None:
        old = keyring.load(ring).current
        manage("new-key")
        manage("rotate")
        KeyCheck.objects.update(emptied_at=database_now() - timedelta(hours=1))

        def record_slowly(*arguments: Any, **options: Any) -> Any:
            DataKey.objects.filter(org=acme).update(kek_id=old)
            return record_system(*arguments, **options)

        monkeypatch.setattr("integrations.vault.rotation.record_system", record_slowly)
        with pytest.raises(CommandError, match=r"1 data key\(s\) need"):
            manage("retire", old, "--no-backup-needs-it")

        assert old in keyring.load(ring).keys
        newest = AuditEvent.objects.filter(object_id=old).order_by("pk").values_list("action", flat=True)
        assert list(newest)[-2:] == ["vault.outer_key_retired", "vault.outer_key_kept"]

    def test_lets_no_machine_with_an_older_keyring_begin_with_a_retired_key(
        self, records: Any, ring: Path, settings: Any
    ) -> None:
        copied, old = ring.read_text(), keyring.load(ring).current
        manage("new-key")
        manage("rotate")
        KeyCheck.objects.update(emptied_at=database_now() - timedelta(hours=1))
        manage("retire", old, "--no-backup-needs-it")

        ring.write_text(copied)
        with pytest.raises(CredentialUnreadable, match="was retired"):
            vault.seal(Secret("text"), context=place(Org.objects.create(name="New", slug="new")))

        assert not DataKey.objects.filter(kek_id=old).exists()

    def test_is_in_the_audit_log_whatever_it_does(
        self, records: Any, ring: Path, tmp_path: Path, settings: Any
    ) -> None:
        old = keyring.load(ring).current
        settings.SECRET_KEY_PATH = tmp_path / "secret_key"
        settings.SECRET_KEY_PATH.write_text(f"{settings.SECRET_KEY}\n")
        manage("new-key", "--staged")
        (new,) = keyring.load(ring).keys.keys() - {old}
        manage("rotate", "--to", new)
        KeyCheck.objects.update(emptied_at=database_now() - timedelta(hours=1))
        manage("retire", old, "--no-backup-needs-it")
        manage("rotate-data-keys")
        manage("rotate-secret-key")

        told = AuditEvent.objects.filter(actor="command").order_by("pk").values_list("action", "object_id")
        assert [one for one in told if "rotation_" not in one[0]] == [
            ("vault.outer_key_added", new),
            ("vault.outer_key_chosen", new),
            ("vault.outer_key_retired", old),
            ("vault.data_keys_rotated", "all"),
            ("vault.secret_key_rotated", "SECRET_KEY"),
        ]

    def test_shows_what_wraps_the_data_keys(self, records: Any, ring: Path) -> None:
        manage("new-key")

        said = manage("status")

        assert "6 data keys" in said
        assert "6 to re-wrap" in said
        assert f"current local keyring {ring}" in said

    @pytest.mark.django_db(transaction=True)
    def test_survives_kill_9_while_keys_are_opened(self, ring: Path) -> None:
        """A slice of what `make chaos` does with 100,000 organizations and 50 kills."""
        chaos.make_owners(400)
        keyring.add_key(ring, current=True)
        environment = {
            "DATABASE_URL": database_url(),
            "RENSEI_VAULT_KEYRING": str(ring),
            "DJANGO_SETTINGS_MODULE": "tests.settings",
        }

        verdict = chaos.carry_out(kills=2, batch=10, seconds=0.1, environment=environment)

        assert (verdict.left, verdict.failed) == (0, [])
        assert verdict.kills
        assert verdict.opened


class TestRotateDataKeys:
    @pytest.fixture
    def integration(self, acme: Org, ada: User, access_of: Any, make_key: Callable[..., str]) -> Integration:
        return integrations.add_integration(access_of(ada), provider="claude", api_key=Secret(make_key()))

    @pytest.fixture
    def pool_key(self, make_key: Callable[..., str]) -> PlatformKey:
        return platform.add_platform_key(
            actor=None, provider="claude", pool="metered", name="x", api_key=Secret(make_key())
        )

    def test_seals_every_record_again_and_they_open_as_before(
        self, simulator: Any, integration: Integration, pool_key: PlatformKey, ada: User
    ) -> None:
        text = vault.seal(Secret("app key"), context=mfa_adapter._place_of(ada.pk))
        mfa = Authenticator.objects.create(user=ada, type="totp", data={"secret": base64.b64encode(text).decode()})
        before = (
            credentials.open_key(integration).secret.reveal(),
            platform.open_platform_key(pool_key).secret.reveal(),
        )
        old = set(DataKey.objects.filter(purpose="seal").values_list("pk", flat=True))

        assert "Sealed 3 record(s) again" in manage("rotate-data-keys")

        integration, pool_key = Integration.objects.get(), PlatformKey.objects.get()
        assert before == (
            credentials.open_key(integration).secret.reveal(),
            platform.open_platform_key(pool_key).secret.reveal(),
        )
        mfa.refresh_from_db()
        stored = base64.b64decode(mfa.data["secret"])
        assert vault.open_sealed(stored, context=mfa_adapter._place_of(ada.pk)).reveal() == "app key"
        used = {envelope.key_id_of(bytes(each)) for each in (integration.sealed_key, pool_key.sealed_key, stored)}
        assert not used & old
        assert old <= set(DataKey.objects.values_list("pk", flat=True)), "a record may be on its way into the database"

        DataKey.objects.update(created_at=database_now() - timedelta(hours=2))
        assert "Sealed 0 record(s) again, and deleted 2" in manage("rotate-data-keys", "--resume")
        assert not old & set(DataKey.objects.values_list("pk", flat=True))
        assert credentials.open_key(Integration.objects.get()).secret.reveal() == before[0]

    def test_is_for_one_organization_if_named(self, simulator: Any, integration: Integration, pool_key: Any) -> None:
        assert "Sealed 1 record(s) again" in manage("rotate-data-keys", "--org", "acme")
        with pytest.raises(CommandError, match="nobody"):
            manage("rotate-data-keys", "--org", "nobody")

    def test_keeps_a_data_key_that_a_record_still_needs(
        self, simulator: Any, integration: Integration, monkeypatch: Any
    ) -> None:
        """A record that was sealed by the old key and stored while the others were sealed again."""
        straggler = bytes(Integration.objects.get().sealed_key)
        manage("rotate-data-keys")
        Integration.objects.update(sealed_key=straggler)
        DataKey.objects.update(created_at=database_now() - timedelta(hours=2))

        assert "Sealed 1 record(s) again" in manage("rotate-data-keys", "--resume")

        assert credentials.open_key(Integration.objects.get())

    def test_keeps_a_data_key_that_is_newer_than_its_own(
        self, simulator: Any, integration: Integration, acme: Org, monkeypatch: Any
    ) -> None:
        """Another rotation has added it after this one began, and records are sealed by it already."""
        began = data_keys.current_key(org=acme)
        manage("rotate-data-keys")
        DataKey.objects.update(created_at=database_now() - timedelta(hours=2))
        monkeypatch.setattr(data_keys, "current_key", lambda *, org: began)

        sealed.reseal(acme)

        assert DataKey.objects.filter(org=acme, purpose="seal").count() == 2

    def test_names_a_record_that_does_not_open_and_keeps_its_key(
        self, simulator: Any, integration: Integration, pool_key: PlatformKey
    ) -> None:
        damaged = bytearray(bytes(integration.sealed_key))
        damaged[-1] ^= 1
        Integration.objects.update(sealed_key=bytes(damaged))

        with pytest.raises(CommandError, match=r"1 record\(s\) do not open"):
            manage("rotate-data-keys")

        assert bytes(Integration.objects.get().sealed_key) == bytes(damaged)


class TestTheRegistry:
    # Binary columns that hold no sealed record, and why.
    OTHERS = {
        "integrations.DataKey.wrapped": "wrapped by the outer key, and re-wrapped by a rotation",
        "integrations.KeyCheck.value": "made again by a rotation",
        "dispatch.RunFile.content": "a file that an agent has left, stored as outputs are",
    }

    def test_has_every_binary_column(self) -> None:
        known = {column for records in sealed.registered for column in records.columns}
        found = {
            f"{model._meta.label}.{field.name}"
            for model in apps.get_models()
            for field in model._meta.get_fields()
            if isinstance(field, BinaryField)
        }

        assert found - known - set(self.OTHERS) == set(), "register it in the module that seals it (vault/sealed.py)"

    def test_has_a_kind_of_record_for_every_module_that_seals(self) -> None:
        """Sealed texts may also be in columns of other types."""
        files = [path for package in ("rensei", "integrations", "billing") for path in (ROOT / package).glob("**/*.py")]
        texts = {str(path.relative_to(ROOT)): path.read_text() for path in files}
        sealing = {name for name, text in texts.items() if re.search(r"\bvault\.seal\(", text)}
        registering = {name for name, text in texts.items() if re.search(r"\bsealed\.register\(", text)}

        assert sealing == registering
        assert len(sealing) == 5

    def test_is_whole_where_records_are_sealed_again(self) -> None:
        """A process that has imported nothing else would delete data keys that a record of an unknown kind needs."""
        texts = {
            path: path.read_text()
            for package in ("rensei", "integrations")
            for path in (ROOT / package).glob("**/*.py")
        }
        registering = {path for path, text in texts.items() if re.search(r"\bsealed\.register\(", text)}
        imported = {
            f"{package}.{name.strip()}"
            for package, names in re.findall(
                r"^from (\S+) import ([^#\n]+)", (ROOT / "rensei/sealing.py").read_text(), re.MULTILINE
            )
            for name in names.split(",")
        }
        using = r"\bsealed\.(reseal|rotate_data_key|finish_rotations)\b"

        assert {".".join(path.relative_to(ROOT).with_suffix("").parts) for path in registering} - imported == set()
        assert [path for path, text in texts.items() if re.search(using, text)] == [ROOT / "rensei/sealing.py"]
