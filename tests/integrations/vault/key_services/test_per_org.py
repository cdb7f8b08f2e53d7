"""A key service that holds a key for each organization: nothing of one opens by another's, and is destroyed alone."""

import json
import secrets
from collections.abc import Callable
from datetime import datetime, timedelta
from io import StringIO
from typing import Any

import pytest
from django.core.management import CommandError, call_command
from django.utils import timezone

from integrations.models import DataKey
from integrations.vault import data_keys, kek_providers, rotation, vault
from integrations.vault.errors import CredentialUnreadable
from integrations.vault.kek import LocalKeyring
from integrations.vault.key_services import circuit
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


@pytest.mark.parametrize("value", ["", "no", "true"])
def test_refuses_other_words(transit: Stage, use: Callable[..., None], value: str) -> None:
    use(f"{transit.url}&per-org={value}")

    assert list(kek_providers.faults()) == ["vault: per-org is `yes`, or is left out"]
