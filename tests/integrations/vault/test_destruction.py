"""Destroying an organization's keys: nothing opens afterwards, and a receipt says so."""

import json
import secrets
from collections.abc import Callable
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from django.core.management import CommandError, call_command

from integrations.keys import credentials
from integrations.keys import services as integrations
from integrations.models import DataKey, Integration
from integrations.vault import data_keys
from integrations.vault.errors import CredentialUnreadable
from rensei.audit.models import AuditEvent
from rensei.core.secret import Secret
from rensei.orgs.models import Org, User


@pytest.fixture(autouse=True)
def _anchor_key(settings: Any, _anchors: None) -> None:
    settings.RENSEI_LEDGER_ANCHOR_KEY.write_text(secrets.token_hex(32))
    settings.RENSEI_LEDGER_ANCHOR_KEY.chmod(0o600)


@pytest.fixture
def integration(simulator: Any, acme: Org, ada: User, access_of: Any, make_key: Callable[..., str]) -> Integration:
    return integrations.add_integration(access_of(ada), provider="claude", api_key=Secret(make_key()))


@pytest.fixture
def other(integration: Integration, eve: User, access_of: Any, make_key: Callable[..., str]) -> Integration:
    return integrations.add_integration(access_of(eve, "evil"), provider="claude", api_key=Secret(make_key()))


def manage(*arguments: str) -> str:
    said = StringIO()
    call_command("vault", *arguments, stdout=said)
    return said.getvalue()


def destroy() -> dict[str, Any]:
    receipt: dict[str, Any] = json.loads(
        manage("destroy-keys", "--org", "acme", "--confirm", "acme", "--by", "grace@platform.test")
    )
    return receipt


class TestDestroyKeys:
    def test_lets_nothing_of_the_organization_open_again(self, integration: Integration, other: Integration) -> None:
        destroy()

        with pytest.raises(CredentialUnreadable, match="is gone"):
            credentials.open_key(Integration.objects.get(pk=integration.pk))
        assert credentials.open_key(Integration.objects.get(pk=other.pk)), "another organization's"
        stored = Integration.objects.get(pk=integration.pk)
        assert (stored.status, stored.last_error and stored.last_error["code"]) == ("failing", "CREDENTIAL_UNREADABLE")

    def test_takes_a_new_key_afterwards(
        self, integration: Integration, ada: User, access_of: Any, make_key: Callable[..., str]
    ) -> None:
        destroy()

        key = make_key()
        integrations.rotate_integration(access_of(ada), Integration.objects.get(), api_key=Secret(key))

        assert credentials.open_key(Integration.objects.get()).secret.reveal() == key

    def test_names_what_it_destroyed_in_the_receipt_and_in_the_audit_log(
        self, integration: Integration, settings: Any
    ) -> None:
        key = DataKey.objects.get(org=integration.org)
        settings.RENSEI_BACKUPS_KEPT_DAYS = 35

        receipt = destroy()

        assert receipt["dataKeys"] == [{"id": str(key.pk), "version": 1, "wrappedBy": key.kek_id}]
        assert receipt["integrations"] == [{"id": integration.pk, "keyHint": integration.key_hint}]
        assert receipt["backups"]["madeBefore"] == receipt["destroyedAt"] < receipt["backups"]["keptUntil"]
        event = AuditEvent.objects.get(action="vault.keys_destroyed")
        assert (event.detail, event.actor) == (receipt, "grace@platform.test")

    def test_does_not_claim_to_know_of_backups(self, integration: Integration) -> None:
        assert destroy()["backups"]["keptUntil"] is None

    @pytest.mark.parametrize(
        ("arguments", "said"),
        [
            (["--org", "acme", "--confirm", "Acme"], "names differ"),
            (["--org", "none", "--confirm", "none"], "no organization"),
        ],
    )
    def test_needs_the_name_typed_again(self, integration: Integration, arguments: list[str], said: str) -> None:
        with pytest.raises(CommandError, match=said):
            manage("destroy-keys", "--by", "grace", *arguments)

        assert credentials.open_key(Integration.objects.get())

    def test_destroys_nothing_that_it_cannot_sign_for(self, integration: Integration, settings: Any) -> None:
        settings.RENSEI_LEDGER_ANCHOR_KEY.unlink()

        with pytest.raises(CommandError):
            destroy()

        data_keys.unwrapped.clear()
        assert credentials.open_key(Integration.objects.get())
        assert not AuditEvent.objects.filter(action="vault.keys_destroyed").exists()

    def test_says_that_there_is_nothing(self, acme: Org) -> None:
        with pytest.raises(CommandError, match="has no data key"):
            destroy()


class TestCheckReceipt:
    def test_knows_its_own_and_no_changed_one(self, integration: Integration, tmp_path: Path) -> None:
        key = DataKey.objects.get(org=integration.org)
        receipt = destroy()
        file = tmp_path / "receipt.json"
        file.write_text(json.dumps(receipt, indent=4))

        assert "genuine, and this database has none" in manage("check-receipt", str(file))
        DataKey.objects.bulk_create([key])
        with pytest.raises(CommandError, match="1 of its data keys"):
            manage("check-receipt", str(file))
        file.write_text(json.dumps({**receipt, "slug": "evil"}))
        with pytest.raises(CommandError, match="was changed"):
            manage("check-receipt", str(file))
        file.write_text("[]")
        with pytest.raises(CommandError, match="no receipt"):
            manage("check-receipt", str(file))
