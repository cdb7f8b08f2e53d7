"""Destroying an organization's keys: nothing opens afterwards, and a receipt says so."""

import json
import secrets
from collections.abc import Callable
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from django.core.management import CommandError, call_command
from django.db import connection
from django.test.utils import CaptureQueriesContext

from integrations.keys import credentials
from integrations.keys import services as integrations
from integrations.models import DataKey, Integration
from integrations.vault import data_keys, sealed
from integrations.vault.errors import CredentialUnreadable
from rensei.audit.models import AuditEvent
from rensei.core.secret import Secret
from rensei.orgs.models import Org, User
from tests.integrations.federating import make_federation


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

    def test_lists_the_federations_whose_ids_stay_readable(
        self, integration: Integration, ada: User, access_of: Any
    ) -> None:
        federation = make_federation()
        added = integrations.add_integration(access_of(ada), provider="claude", federation=federation, name="Other")

        assert destroy()["stillReadable"] == [{"integration": added.pk, **federation.wire()}]
        assert Integration.objects.get(pk=added.pk).federation == federation.wire()

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
        assert receipt["stillReadable"] == []
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

    def test_leaves_no_key_that_a_rotation_makes_meanwhile(
        self, integration: Integration, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """It was wrapped before, perhaps by an outer key that is destroyed too, and is stored after."""
        make = data_keys._make

        def make_late(**options: Any) -> DataKey:
            row = make(**options)
            destroy()
            return row

        monkeypatch.setattr(data_keys, "_make", make_late)
        with pytest.raises(CredentialUnreadable, match="destroyed meanwhile"):
            sealed.rotate_data_key(integration.org)

        assert not DataKey.objects.filter(org=integration.org).exists()

    def test_locks_data_keys_in_the_order_of_a_rotation(self, integration: Integration) -> None:
        """Both lock several rows of one organization, so another order can be a deadlock."""
        with CaptureQueriesContext(connection) as queries:
            destroy()

        locking = [q["sql"] for q in queries if 'FROM "integrations_datakey"' in q["sql"] and "ORDER BY" in q["sql"]]
        assert locking
        assert all(sql.partition("ORDER BY ")[2].startswith('"integrations_datakey"."id"') for sql in locking)

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


class TestByAnOwner:
    """The same from the page, by REST and by the command, for owners only and with the name typed again."""

    PAGE = "/o/acme/settings/organization/destroy-keys"
    RECEIPT = "/o/acme/settings/organization/destroyed-keys"

    def test_by_rest(self, integration: Integration, api_as: Callable[..., Any], ada: User, tmp_path: Path) -> None:
        receipt = api_as(ada).post("/api/v1/data-keys/destroy", {"confirm": "acme"})

        assert receipt.status_code == 200, receipt.json()
        assert not DataKey.objects.filter(org=integration.org_id).exists()
        assert receipt.json()["orderedBy"] == ada.email
        event = AuditEvent.objects.get(action="vault.keys_destroyed")
        assert (event.user_id, event.org_id, event.detail) == (ada.pk, integration.org_id, receipt.json())
        file = tmp_path / "receipt.json"
        file.write_text(json.dumps(receipt.json()))
        assert "genuine" in manage("check-receipt", str(file))

    @pytest.mark.parametrize("typed", ["", "Acme", "acme ", "evil"])
    def test_needs_the_name(
        self, integration: Integration, api_as: Callable[..., Any], page_as: Any, ada: User, typed: str
    ) -> None:
        answer = api_as(ada).post("/api/v1/data-keys/destroy", {"confirm": typed})
        # White space around a text is removed, as everywhere in REST.
        assert answer.status_code == (200 if typed == "acme " else 400)
        if typed != "acme ":
            assert page_as(ada).post(self.PAGE, {"typed": typed}).status_code == 422
            assert DataKey.objects.filter(org=integration.org_id).exists()

    @pytest.mark.parametrize("name", ["alan", "mia", "otto"])
    def test_is_for_owners(
        self,
        request: pytest.FixtureRequest,
        integration: Integration,
        api_as: Callable[..., Any],
        page_as: Any,
        name: str,
    ) -> None:
        person = request.getfixturevalue(name)
        assert api_as(person).post("/api/v1/data-keys/destroy", {"confirm": "acme"}).status_code == 403
        assert page_as(person).post(self.PAGE, {"typed": "acme"}).status_code == 403
        assert page_as(person).get(self.RECEIPT).status_code == (403 if name == "mia" else 200)
        assert DataKey.objects.filter(org=integration.org_id).exists()

    def test_by_a_token_of_one_project_is_refused(
        self, integration: Integration, api_as: Callable[..., Any], ada: User, project: Any
    ) -> None:
        answer = api_as(ada, project=project).post("/api/v1/data-keys/destroy", {"confirm": "acme"})
        assert answer.status_code == 403
        assert DataKey.objects.filter(org=integration.org_id).exists()

    def test_on_the_page(self, integration: Integration, page_as: Any, ada: User) -> None:
        page = page_as(ada)
        assert "Destroy keys" in page.get("/o/acme/settings/organization").content.decode()
        assert "Type" in page.get(self.PAGE).content.decode()

        assert page.post(self.PAGE, {"typed": "acme"})["Location"] == self.RECEIPT
        assert not DataKey.objects.filter(org=integration.org_id).exists()
        shown = page.get(self.RECEIPT).content.decode()
        assert integration.key_hint in shown
        assert "How long backups are kept is not known" in shown
        assert page.get(f"{self.RECEIPT}?format=json").json()["orderedBy"] == ada.email

    def test_says_until_when_a_backup_could_open(
        self, integration: Integration, page_as: Any, ada: User, settings: Any
    ) -> None:
        settings.RENSEI_BACKUPS_KEPT_DAYS = 30
        page_as(ada).post(self.PAGE, {"typed": "acme"})
        assert "until" in page_as(ada).get(self.RECEIPT).content.decode()

    def test_of_nothing_is_not_found(self, acme: Org, api_as: Callable[..., Any], ada: User) -> None:
        answer = api_as(ada).post("/api/v1/data-keys/destroy", {"confirm": "acme"})
        assert (answer.status_code, answer.json()["code"]) == (404, "NOT_FOUND")

    def test_without_a_signature_destroys_nothing(
        self, integration: Integration, api_as: Callable[..., Any], ada: User, settings: Any
    ) -> None:
        settings.RENSEI_LEDGER_ANCHOR_KEY.chmod(0o644)
        answer = api_as(ada).post("/api/v1/data-keys/destroy", {"confirm": "acme"})
        assert answer.json()["code"] == "RECEIPT_KEY_UNAVAILABLE"
        assert DataKey.objects.filter(org=integration.org_id).exists()

    def test_ends_a_federation_too(
        self, simulator: Any, integration: Integration, access: Any, page_as: Any, ada: User
    ) -> None:
        found = integrations.add_integration(access, provider="claude", federation=make_federation(), name="F")
        page_as(ada).post(self.PAGE, {"typed": "acme"})
        with pytest.raises(CredentialUnreadable):
            credentials.open_key(Integration.objects.get(pk=found.pk))
