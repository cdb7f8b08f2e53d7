"""A key service that holds a key for each organization: nothing of one opens by another's, and is destroyed alone."""

import json
import secrets
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta
from io import StringIO
from typing import Any

import pytest
from django.core.management import CommandError, call_command
from django.utils import timezone

from integrations.models import DataKey
from integrations.vault import data_keys, destruction, kek_providers, rotation, vault
from integrations.vault.errors import CredentialUnreadable, VaultFault
from integrations.vault.kek import LocalKeyring
from integrations.vault.key_services import circuit
from integrations.vault.key_services.aws_kms import AwsKms
from integrations.vault.key_services.base import denied, silent
from integrations.vault.key_services.transit import Transit
from rensei.audit.models import AuditEvent
from rensei.core.secret import Secret
from rensei.orgs.models import Org
from tests.integrations.vault.key_services.conftest import Stage
from tests.integrations.vault.key_services.stand_ins import TransitService
from tests.integrations.vault.key_services.test_vault import place

pytestmark = pytest.mark.django_db


@pytest.fixture(autouse=True)
def _anchor_key(settings: Any, _anchors: None) -> None:
    settings.RENSEI_LEDGER_ANCHOR_KEY.write_text(secrets.token_hex(32))
    settings.RENSEI_LEDGER_ANCHOR_KEY.chmod(0o600)


@pytest.fixture(params=["aws", "transit"])
def per_org(request: pytest.FixtureRequest) -> Stage:
    stage: Stage = request.getfixturevalue(request.param)
    stage.url += "&per-org=yes"
    return stage


@pytest.fixture
def other(acme: Org) -> Org:
    return Org.objects.create(name="Other", slug="other")


def destroy() -> dict[str, Any]:
    said = StringIO()
    call_command("vault", "destroy-keys", "--org", "acme", "--confirm", "acme", "--by", "grace", stdout=said)
    receipt: dict[str, Any] = json.loads(said.getvalue())
    return receipt


class TestEach:
    def test_seals_and_opens(self, per_org: Stage, use: Callable[..., None], acme: Org, other: Org) -> None:
        use(per_org.url)
        records = {org: vault.seal(Secret("text"), context=place(org)) for org in (acme, other, None)}
        data_keys.unwrapped.clear()

        assert {vault.open_sealed(record, context=place(org)).reveal() for org, record in records.items()} == {"text"}
        assert vault.health().ok
        assert len(set(DataKey.objects.values_list("kek_id", flat=True))) == 1

    def test_does_not_unwrap_what_anothers_key_has_wrapped(
        self, per_org: Stage, use: Callable[..., None], acme: Org, other: Org
    ) -> None:
        use(per_org.url)
        sealed = vault.seal(Secret("text"), context=place(acme))
        vault.seal(Secret("text"), context=place(other))
        mine = DataKey.objects.get(org=acme)
        DataKey.objects.filter(org=other).update(wrapped=mine.wrapped)
        data_keys.unwrapped.clear()

        with pytest.raises(CredentialUnreadable):
            vault.seal(Secret("text"), context=place(other))
        assert vault.open_sealed(sealed, context=place(acme)).reveal() == "text"

    def test_is_reached_from_a_shared_key_by_a_rotation(
        self, per_org: Stage, use: Callable[..., None], acme: Org, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(LocalKeyring, "is_remote", False)
        monkeypatch.setattr(circuit.Circuit, "is_remote", False)
        shared = per_org.url.removesuffix("&per-org=yes")
        use(shared)
        sealed = vault.seal(Secret("text"), context=place(acme))
        use(per_org.url, shared)

        assert rotation.rewrap_batch().done == 1
        assert not rotation.outdated().exists()

        use(per_org.url)
        data_keys.unwrapped.clear()
        assert vault.open_sealed(sealed, context=place(acme)).reveal() == "text"


class TestDestroying:
    def test_destroys_the_key_in_the_service_and_says_so(
        self, per_org: Stage, use: Callable[..., None], acme: Org, other: Org
    ) -> None:
        use(per_org.url)
        theirs = vault.seal(Secret("text"), context=place(other))
        mine = vault.seal(Secret("text"), context=place(acme))
        rows = list(DataKey.objects.filter(org=acme))

        receipt = destroy()

        (key,) = receipt["outerKeys"]
        waits = timedelta(days=7) if key["id"].startswith("awskms:") else timedelta()
        final = datetime.fromisoformat(key["finalAt"])
        assert abs(final - timezone.now() - waits) < timedelta(hours=1)
        assert receipt["backups"]["openUntil"] == key["finalAt"]
        data_keys.unwrapped.clear()
        assert vault.open_sealed(theirs, context=place(other)).reveal() == "text"
        # A backup of the database with the data key, while the service is configured as before.
        DataKey.objects.bulk_create(rows)
        with pytest.raises(CredentialUnreadable):
            vault.open_sealed(mine, context=place(acme))

    def test_leaves_the_organization_able_to_begin_anew(
        self, per_org: Stage, use: Callable[..., None], acme: Org
    ) -> None:
        use(per_org.url)
        vault.seal(Secret("text"), context=place(acme))
        first = destroy()["outerKeys"]

        sealed = vault.seal(Secret("new"), context=place(acme))
        data_keys.unwrapped.clear()

        assert vault.open_sealed(sealed, context=place(acme)).reveal() == "new"
        second = destroy()["outerKeys"]
        assert len(first) == len(second) == 1

    def test_of_a_key_under_a_shared_one_leaves_backups_to_their_end(
        self, per_org: Stage, use: Callable[..., None], acme: Org, settings: Any
    ) -> None:
        settings.RENSEI_BACKUPS_KEPT_DAYS = 35
        vault.seal(Secret("text"), context=place(acme))
        use(per_org.url, "file:")

        receipt = destroy()

        assert receipt["outerKeys"] == []
        assert receipt["backups"]["openUntil"] == receipt["backups"]["keptUntil"] is not None

    @pytest.mark.parametrize("kept", [None, 35])
    def test_that_was_under_a_shared_key_before_leaves_older_backups_to_their_end(
        self,
        per_org: Stage,
        use: Callable[..., None],
        acme: Org,
        settings: Any,
        monkeypatch: pytest.MonkeyPatch,
        kept: int | None,
    ) -> None:
        """Re-wrapping keeps the data key, so a backup from before has it under the key that was left."""
        monkeypatch.setattr(circuit.Circuit, "is_remote", False)
        settings.RENSEI_BACKUPS_KEPT_DAYS = kept
        vault.seal(Secret("text"), context=place(acme))
        use(per_org.url, "file:")
        assert rotation.rewrap_batch().done == 1
        moved_at = DataKey.objects.get(org=acme).rewrapped_at

        receipt = destroy()

        assert len(receipt["outerKeys"]) == 1
        assert moved_at is not None
        expected = (moved_at + timedelta(days=kept)).isoformat() if kept else None
        assert receipt["backups"]["openUntil"] == expected

    def test_after_a_new_data_key_leaves_backups_with_the_older_one_to_their_end(
        self, per_org: Stage, use: Callable[..., None], acme: Org, settings: Any
    ) -> None:
        settings.RENSEI_BACKUPS_KEPT_DAYS = 35
        use(per_org.url)
        vault.seal(Secret("text"), context=place(acme))
        data_keys.add_version(org=acme, purpose=DataKey.Purpose.SEAL)
        DataKey.objects.filter(version=1).delete()

        backups = destroy()["backups"]

        assert backups["openUntil"] == backups["keptUntil"]

    def test_is_in_the_receipt_of_the_next_try_and_in_the_audit_log(
        self, per_org: Stage, use: Callable[..., None], acme: Org, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Killed after the outer key was destroyed, before the data keys are."""
        use(per_org.url)
        vault.seal(Secret("text"), context=place(acme))

        def die(*arguments: object) -> None:
            raise KeyboardInterrupt

        with monkeypatch.context() as patched:
            patched.setattr(destruction, "_about_backups", die)
            with pytest.raises(KeyboardInterrupt):
                destroy()
        event = AuditEvent.objects.get(action="vault.outer_key_destroyed")

        receipt = destroy()

        (key,) = receipt["outerKeys"]
        assert (key["id"], key["finalAt"]) == (event.detail["id"], event.detail["finalAt"])
        assert receipt["backups"]["openUntil"] == key["finalAt"]

    def test_is_in_the_receipt_if_an_answer_was_lost(
        self, transit: Stage, use: Callable[..., None], acme: Org, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(circuit, "BACKOFF_SECONDS", 0.001)
        use(f"{transit.url}&per-org=yes")
        vault.seal(Secret("text"), context=place(acme))
        call, lost = Transit._call, []

        def lose(self: Transit, method: str, *arguments: Any) -> Any:
            found = call(self, method, *arguments)
            if method == "DELETE" and not lost:
                lost.append(method)
                raise silent("timeout")
            return found

        monkeypatch.setattr(Transit, "_call", lose)

        assert len(destroy()["outerKeys"]) == 1
        assert lost

    def test_frees_its_name_in_the_next_try(
        self, aws: Stage, use: Callable[..., None], acme: Org, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        use(f"{aws.url}&per-org=yes")
        vault.seal(Secret("text"), context=place(acme))

        def die(*arguments: object) -> None:
            raise KeyboardInterrupt

        with monkeypatch.context() as patched:
            patched.setattr(AwsKms, "forget_key_of", die)
            with pytest.raises(KeyboardInterrupt):
                destroy()
        first = AuditEvent.objects.get(action="vault.outer_key_destroyed").detail["id"]

        with pytest.raises(CommandError, match="has no data key"):
            destroy()

        vault.seal(Secret("new"), context=place(acme))
        assert destroy()["outerKeys"][0]["id"] != first

    def test_destroys_nothing_while_the_service_is_silent(
        self, transit: Stage, use: Callable[..., None], acme: Org, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(circuit, "BACKOFF_SECONDS", 0.001)
        monkeypatch.setattr(circuit, "OPEN_SECONDS", 0)
        use(f"{transit.url}&per-org=yes")
        sealed = vault.seal(Secret("text"), context=place(acme))
        assert isinstance(transit.service, TransitService)
        transit.service.down = True

        with pytest.raises(CommandError, match="does not answer"):
            destroy()

        transit.service.down = False
        assert vault.open_sealed(sealed, context=place(acme)).reveal() == "text"
        assert list(transit.service.own) == [f"rensei-{acme.pk}"]
        assert destroy()["outerKeys"]
        assert not transit.service.own

    def test_of_aws_cannot_be_used_while_it_waits_for_its_end(
        self, aws: Stage, moto: str, use: Callable[..., None], acme: Org
    ) -> None:
        import boto3

        use(f"{aws.url}&per-org=yes")
        vault.seal(Secret("text"), context=place(acme))
        key = destroy()["outerKeys"][0]["id"].removeprefix("awskms:")

        client = boto3.session.Session().client("kms", region_name="eu-central-1", endpoint_url=moto)
        found = client.describe_key(KeyId=key)["KeyMetadata"]
        tags = client.list_resource_tags(KeyId=key)["Tags"]
        client.close()
        assert found["KeyState"] == "PendingDeletion"
        assert {"TagKey": "rensei-organization", "TagValue": acme.pk} in tags

    def test_does_not_destroy_the_shared_key(self, transit: Stage, use: Callable[..., None], acme: Org) -> None:
        use(transit.url)
        vault.seal(Secret("text"), context=place(acme))

        assert destroy()["outerKeys"] == []
        assert transit.service is not None
        assert not [call for call in transit.service.calls if "DELETE" in call]


class TestMakingAKey:
    @pytest.fixture
    def keys(self, aws: Stage, moto: str) -> Iterator[Callable[[], set[str]]]:
        """The keys at AWS that are not destroyed."""
        import boto3

        client = boto3.session.Session().client("kms", region_name="eu-central-1", endpoint_url=moto)
        found = (key["KeyId"] for page in client.get_paginator("list_keys").paginate() for key in page["Keys"])
        before = set(found)

        def living() -> set[str]:
            pages = client.get_paginator("list_keys").paginate()
            new = {key["KeyId"] for page in pages for key in page["Keys"]} - before
            states = {key: client.describe_key(KeyId=key)["KeyMetadata"]["KeyState"] for key in new}
            return {key for key, state in states.items() if state != "PendingDeletion"}

        yield living
        client.close()

    @pytest.mark.parametrize("fault", [denied(), silent("timeout")])
    def test_leaves_none_behind_if_it_gets_no_alias(
        self,
        aws: Stage,
        keys: Callable[[], set[str]],
        use: Callable[..., None],
        acme: Org,
        fault: VaultFault,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        monkeypatch.setattr(circuit, "BACKOFF_SECONDS", 0.001)
        use(f"{aws.url}&per-org=yes")
        call = AwsKms._call

        def refuse(self: AwsKms, operation: str, **request: Any) -> Any:
            if operation == "create_alias":
                raise fault
            return call(self, operation, **request)

        monkeypatch.setattr(AwsKms, "_call", refuse)
        with pytest.raises(CredentialUnreadable):
            vault.seal(Secret("text"), context=place(acme))

        assert keys() == set()

    def test_keeps_one_whose_alias_was_made_without_an_answer(
        self,
        aws: Stage,
        keys: Callable[[], set[str]],
        use: Callable[..., None],
        acme: Org,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        use(f"{aws.url}&per-org=yes")
        call = AwsKms._call

        def lose(self: AwsKms, operation: str, **request: Any) -> Any:
            found = call(self, operation, **request)
            if operation == "create_alias":
                raise silent("timeout")
            return found

        monkeypatch.setattr(AwsKms, "_call", lose)

        assert vault.seal(Secret("text"), context=place(acme))
        assert len(keys()) == 1


@pytest.mark.parametrize("value", ["", "no", "true"])
def test_refuses_other_words(transit: Stage, use: Callable[..., None], value: str) -> None:
    use(f"{transit.url}&per-org={value}")

    assert list(kek_providers.faults()) == ["vault: per-org is `yes`, or is left out"]
