"""The vault with its outer key in a key service: one call for each organization, outages, and two providers at once."""

import json
from collections.abc import Callable
from threading import Barrier, Thread
from typing import Any

import pytest
from django.db import connection
from django.test import Client

from integrations.keys import rotations
from integrations.models import DataKey, Rotation
from integrations.vault import data_keys, kek_providers, vault
from integrations.vault.errors import CredentialUnreadable
from integrations.vault.key_services import circuit
from rensei.core.clock import database_now
from rensei.core.models import WorkerHeartbeat
from rensei.core.secret import Secret
from rensei.gateway.answers import refusal_answer
from rensei.orgs.models import Org
from tests.integrations.vault.key_services.conftest import Stage
from tests.integrations.vault.key_services.stand_ins import Service


def place(org: Org | None) -> vault.SealContext:
    return vault.SealContext(
        org=org, record_id="int_1", field="api_key", version=1, provider="claude", destination="default"
    )


def service_of(stage: Stage) -> Service:
    assert stage.service is not None
    return stage.service


class TestSealing:
    def test_opens_by_every_service(self, stage: Stage, use: Callable[..., None], acme: Org) -> None:
        use(stage.url)
        sealed = vault.seal(Secret("text"), context=place(acme))
        data_keys.unwrapped.clear()

        assert vault.open_sealed(sealed, context=place(acme)).reveal() == "text"
        assert vault.health().ok

    def test_keeps_the_name_of_a_version_with_the_data_key(
        self, versioned: Stage, use: Callable[..., None], acme: Org
    ) -> None:
        use(versioned.url)
        vault.seal(Secret("text"), context=place(acme))

        assert DataKey.objects.get().kek_version

    def test_opens_what_another_provider_sealed_while_that_is_configured(
        self, transit: Stage, use: Callable[..., None], acme: Org
    ) -> None:
        other = Org.objects.create(name="Other", slug="other")
        old = vault.seal(Secret("old"), context=place(acme))

        use(transit.url, "file:")
        new = vault.seal(Secret("new"), context=place(other))

        assert vault.open_sealed(old, context=place(acme)).reveal() == "old"
        assert DataKey.objects.get(org=other).kek_id == "vault:transit/rensei"
        use("file:")
        assert vault.open_sealed(old, context=place(acme)).reveal() == "old"
        with pytest.raises(CredentialUnreadable, match="is in no provider"):
            vault.open_sealed(new, context=place(other))
        assert "vault:transit/rensei" in vault.health().detail


class TestCalls:
    @pytest.mark.django_db(transaction=True)
    def test_are_one_for_each_organization_however_many_open_at_once(
        self, transit: Stage, use: Callable[..., None], acme: Org
    ) -> None:
        use(transit.url)
        sealed = vault.seal(Secret("text"), context=place(acme))
        data_keys.unwrapped.clear()
        service_of(transit).calls.clear()
        start, opened = Barrier(8), []

        def open_it() -> None:
            try:
                start.wait()
                opened.append(vault.open_sealed(sealed, context=place(acme)).reveal())
            finally:
                connection.close()

        threads = [Thread(target=open_it) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        opened += [vault.open_sealed(sealed, context=place(acme)).reveal() for _ in range(20)]

        assert opened == ["text"] * 28
        assert service_of(transit).calls == ["decrypt"]

    def test_grow_with_the_organizations_and_not_with_their_calls(
        self, transit: Stage, use: Callable[..., None], db: None
    ) -> None:
        use(transit.url)
        orgs = [Org(name=f"Org {number}", slug=f"org-{number}") for number in range(40)]
        Org.objects.bulk_create(orgs)
        records = [vault.seal(Secret("x"), context=place(org)) for org in orgs]
        data_keys.unwrapped.clear()
        service_of(transit).calls.clear()

        for _ in range(3):
            for org, sealed in zip(orgs, records, strict=True):
                vault.open_sealed(sealed, context=place(org))

        assert service_of(transit).calls == ["decrypt"] * len(orgs)

    def test_of_probes_are_one_in_half_a_minute(self, transit: Stage, use: Callable[..., None], acme: Org) -> None:
        use(transit.url)
        vault.seal(Secret("x"), context=place(acme))
        service_of(transit).calls.clear()

        assert all(vault.health().ok for _ in range(20))

        assert service_of(transit).calls == []


class TestAnOutage:
    @pytest.fixture
    def sealed(self, transit: Stage, use: Callable[..., None], acme: Org, monkeypatch: pytest.MonkeyPatch) -> bytes:
        monkeypatch.setattr(circuit, "BACKOFF_SECONDS", 0.001)
        use(transit.url)
        return vault.seal(Secret("text"), context=place(acme))

    def test_is_passed_over_while_the_data_key_is_in_memory(self, transit: Stage, sealed: bytes, acme: Org) -> None:
        service_of(transit).down = True

        assert vault.open_sealed(sealed, context=place(acme)).reveal() == "text"

    def test_is_refused_as_retryable_without_further_calls_and_ends_by_itself(
        self, transit: Stage, sealed: bytes, acme: Org, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(circuit, "OPEN_SECONDS", 600)
        service = service_of(transit)
        service.down = True
        data_keys.unwrapped.clear()
        service.calls.clear()

        for _ in range(5):
            with pytest.raises(CredentialUnreadable, match="does not answer") as caught:
                vault.open_sealed(sealed, context=place(acme))
            assert caught.value.retryable
        assert service.calls == ["down"] * 2, "one call, repeated once"

        (provider,) = kek_providers.configured()
        monkeypatch.setattr(provider, "_closed_to", 0.0)
        with pytest.raises(CredentialUnreadable):
            vault.open_sealed(sealed, context=place(acme))
        assert len(service.calls) == 4, "the trial, repeated once"

        service.down = False
        with pytest.raises(CredentialUnreadable):
            vault.open_sealed(sealed, context=place(acme))
        monkeypatch.setattr(provider, "_closed_to", 0.0)
        assert vault.open_sealed(sealed, context=place(acme)).reveal() == "text"
        data_keys.unwrapped.clear()
        assert vault.open_sealed(sealed, context=place(acme)).reveal() == "text"

    def test_leaves_the_pages_up_and_the_server_ready(
        self, transit: Stage, sealed: bytes, catalog: None, settings: Any, client: Client
    ) -> None:
        settings.RENSEI_METRICS_TOKEN = "made-up"
        WorkerHeartbeat.objects.create(worker="w", seen_at=database_now())
        service_of(transit).down = True
        (provider,) = kek_providers.configured()
        provider._checked = {}

        answer = client.get("/readyz", headers={"authorization": "Bearer made-up"})

        assert answer.status_code == 200
        (degraded,) = answer.json()["degraded"]
        assert "key service does not answer" in degraded
        assert "1 stored credential(s)" not in degraded, "nothing was stored here"

    def test_is_503_with_retry_after_at_the_gateway(self, transit: Stage, sealed: bytes, acme: Org) -> None:
        service_of(transit).down = True
        data_keys.unwrapped.clear()
        with pytest.raises(CredentialUnreadable) as caught:
            vault.open_sealed(sealed, context=place(acme))

        status, headers, body = refusal_answer(caught.value, request_id="req_1")

        assert status == 503
        assert dict(headers)[b"retry-after"] == b"5"
        assert json.loads(body)["error"]["code"] == "CREDENTIAL_UNREADABLE"

    def test_of_a_key_that_is_disabled_is_final(self, transit: Stage, sealed: bytes, acme: Org) -> None:
        service_of(transit).disable_all()
        data_keys.unwrapped.clear()

        with pytest.raises(CredentialUnreadable, match="disabled or destroyed") as caught:
            vault.open_sealed(sealed, context=place(acme))

        assert not caught.value.retryable
        assert refusal_answer(caught.value, request_id="req_1")[0] == 403

    def test_of_a_service_whose_key_was_made_anew_is_told_as_that(
        self, transit: Stage, sealed: bytes, acme: Org
    ) -> None:
        service_of(transit).replace()
        data_keys.unwrapped.clear()
        (provider,) = kek_providers.configured()
        provider._checked = {}
        other = Org.objects.create(name="Other", slug="other")

        with pytest.raises(CredentialUnreadable, match="is not the one that sealed"):
            vault.open_sealed(sealed, context=place(acme))
        with pytest.raises(CredentialUnreadable, match="is not the one that sealed"):
            vault.seal(Secret("x"), context=place(other))
        assert not DataKey.objects.filter(org=other).exists()


def rewrap() -> Rotation:
    return rotations.follow(rotations.start(Rotation.Kind.REWRAP, actor="test"))


class TestMoving:
    def test_to_a_service_and_to_its_next_version_and_back(
        self, transit: Stage, use: Callable[..., None], acme: Org
    ) -> None:
        sealed = vault.seal(Secret("text"), context=place(acme))
        service = service_of(transit)

        use(transit.url, "file:")
        assert rewrap().done == 1
        use(transit.url)
        assert vault.open_sealed(sealed, context=place(acme)).reveal() == "text"

        service.rotate()
        assert rewrap().done == 1
        service.disabled = {1}
        use(transit.url)
        assert vault.open_sealed(sealed, context=place(acme)).reveal() == "text"
        assert vault.health().ok, "the check value was made by the new version"

        use("file:", transit.url)
        assert rewrap().done == 1
        use("file:")
        assert vault.open_sealed(sealed, context=place(acme)).reveal() == "text"

    def test_waits_for_a_service_that_is_silent_for_a_while(
        self, transit: Stage, use: Callable[..., None], acme: Org, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(circuit, "BACKOFF_SECONDS", 0.001)
        monkeypatch.setattr(circuit, "OPEN_SECONDS", 0.01)
        monkeypatch.setattr(rotations, "OPEN_SECONDS", 0.02)
        vault.seal(Secret("text"), context=place(acme))
        use(transit.url, "file:")
        service, waited = service_of(transit), []

        row = rotations.start(Rotation.Kind.REWRAP, actor="test")
        service.down = True

        def tell(row: Rotation) -> None:
            waited.append(row.waiting)
            service.down = False

        rotations.follow(row, tell=tell)

        assert "does not answer" in waited[0]
        assert (row.state, row.done, row.left, row.failed, row.waiting) == ("done", 1, 0, {}, "")
