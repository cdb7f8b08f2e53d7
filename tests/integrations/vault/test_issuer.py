import json
from datetime import timedelta
from threading import Barrier, Thread
from typing import Any

import jwt
import pytest
from django.db import connection
from django.test import Client

from integrations import issuer_pages
from integrations.models import DataKey, IssuerKey
from integrations.vault import issuer, sealed, signing
from integrations.vault.errors import CredentialUnreadable, KeyServiceSilent
from integrations.vault.openings import UNEXPLAINED
from rensei.audit.models import AuditEvent
from rensei.core.clock import database_now
from tests.integrations.federating import published_keys

pytestmark = pytest.mark.django_db

SUBJECT, AUDIENCE = "rensei:organization:org_1", "https://api.example"


@pytest.fixture(autouse=True)
def _nothing_published() -> None:
    issuer_pages.published.clear()


def make_token() -> str:
    return issuer.identity_token(subject=SUBJECT, audience=AUDIENCE, claims={"credential": "int_1"}).reveal()


def kid_of(token: str) -> str:
    return str(jwt.get_unverified_header(token)["kid"])


def verified(token: str) -> dict[str, object]:
    """Verify a token by the published keys, as a provider does, with a library that is not ours."""
    keys = {key["kid"]: key for key in published_keys()}
    found: dict[str, object] = jwt.decode(
        token,
        jwt.PyJWK(keys[kid_of(token)]),
        algorithms=["ES256"],
        audience=AUDIENCE,
        issuer=issuer.issuer_url(),
        options={"require": ["iss", "sub", "aud", "iat", "exp", "jti"]},
    )
    return found


class TestIdentityToken:
    def test_is_verified_by_another_library(self) -> None:
        claims = verified(make_token())

        assert claims["sub"] == SUBJECT
        assert claims["credential"] == "int_1"
        assert int(str(claims["exp"])) - int(str(claims["iat"])) == issuer.IDENTITY_SECONDS

    def test_has_an_id_of_its_own(self) -> None:
        assert verified(make_token())["jti"] != verified(make_token())["jti"]

    def test_signs_as_the_standard_says_whatever_the_numbers(self) -> None:
        """Numbers below 2^248 lose leading zeros where they are not padded."""
        message = b"a.b"
        for _ in range(600):
            private = signing.new_es256_key()
            public = signing.es256_public(private)
            assert len(signing.es256_sign(message, private)) == 64
            assert {len(public["x"]), len(public["y"])} == {43}
            jwk = jwt.PyJWK(public)
            assert jwt.get_algorithm_by_name("ES256").verify(message, jwk.key, signing.es256_sign(message, private))

    def test_needs_the_vault(self, settings: pytest.FixtureRequest) -> None:
        make_token()
        DataKey.objects.all().delete()

        with pytest.raises(CredentialUnreadable):
            make_token()


class TestPublishedKeys:
    def test_are_derived_from_the_sealed_ones(self, client: Client) -> None:
        token = make_token()
        document = client.get("/.well-known/openid-configuration").json()
        keys = client.get(document["jwks_uri"].removeprefix(document["issuer"])).json()["keys"]

        assert document["issuer"] == issuer.issuer_url()
        assert [key["kid"] for key in keys] == [kid_of(token)]
        assert set(keys[0]) == {"kty", "crv", "x", "y", "kid", "alg", "use"}

    def test_a_row_that_was_put_into_the_database_is_not_published(self) -> None:
        make_token()
        private = signing.new_es256_key()
        IssuerKey.objects.create(
            id=signing.es256_public(private)["kid"], version=2, sealed_key=private.encode(), signs_from=database_now()
        )

        with pytest.raises(CredentialUnreadable):
            published_keys()

    def test_a_sealed_key_does_not_open_in_another_row(self) -> None:
        make_token()
        first = IssuerKey.objects.get()
        other = signing.es256_public(signing.new_es256_key())["kid"]
        IssuerKey.objects.create(id=other, version=2, sealed_key=first.sealed_key, signs_from=database_now())

        with pytest.raises(CredentialUnreadable):
            published_keys()

    def test_are_opened_once_however_many_ask(self, client: Client, django_assert_num_queries: object) -> None:
        make_token()
        client.get(issuer.KEYS_PATH)

        with django_assert_num_queries(1):  # type: ignore[operator]
            assert client.get(issuer.KEYS_PATH).status_code == 200

    def test_are_those_of_now(self, client: Client) -> None:
        make_token()
        client.get(issuer.KEYS_PATH)
        new = issuer.rotate(actor="test", at_once=True)

        assert [key["kid"] for key in client.get(issuer.KEYS_PATH).json()["keys"]] == [new.id]

    def test_says_that_it_is_unavailable_while_the_vault_is(self, client: Client) -> None:
        make_token()
        DataKey.objects.all().delete()

        answer = client.get(issuer.KEYS_PATH)
        assert answer.status_code == 503
        assert answer["retry-after"]

    def test_goes_on_with_those_that_it_knows_while_the_vault_is_silent(self, client: Client, monkeypatch: Any) -> None:
        make_token()
        before = client.get(issuer.KEYS_PATH).json()["keys"]
        issuer.rotate(actor="test")

        def silent(*arguments: object, **named: object) -> None:
            raise CredentialUnreadable(reason=KeyServiceSilent("the key service does not answer (timeout)"))

        monkeypatch.setattr(issuer, "_open", silent)
        assert client.get(issuer.KEYS_PATH).json()["keys"] == before
        monkeypatch.undo()
        assert len(client.get(issuer.KEYS_PATH).json()["keys"]) == 2

    def test_publishes_no_key_that_was_removed_while_the_vault_is_silent(
        self, client: Client, monkeypatch: Any
    ) -> None:
        make_token()
        client.get(issuer.KEYS_PATH)
        issuer.rotate(actor="test", at_once=True)

        def silent(*arguments: object, **named: object) -> None:
            raise CredentialUnreadable(reason=KeyServiceSilent("the key service does not answer (timeout)"))

        monkeypatch.setattr(issuer, "_open", silent)
        assert client.get(issuer.KEYS_PATH).status_code == 503

    def test_without_a_key_the_set_is_empty(self, client: Client) -> None:
        assert client.get(issuer.KEYS_PATH).json() == {"keys": []}


def advance(seconds: float) -> None:
    """Let time pass, for the rows."""
    for row in IssuerKey.objects.all():
        row.signs_from -= timedelta(seconds=seconds)
        row.save()


class TestRotation:
    def test_a_new_key_is_published_before_it_signs_and_the_old_one_after_it_signed(self) -> None:
        first = make_token()
        new = issuer.rotate(actor="test")
        assert kid_of(make_token()) == kid_of(first) != new.id
        assert {key["kid"] for key in published_keys()} == {kid_of(first), new.id}

        advance(issuer.PUBLISHED_BEFORE_USE.total_seconds() + 1)
        issuer.keep_fresh()
        assert kid_of(make_token()) == new.id
        verified(first)

        advance(issuer.PUBLISHED_AFTER_USE.total_seconds())
        issuer.keep_fresh()
        assert [key["kid"] for key in published_keys()] == [new.id]

    def test_at_once_removes_the_others(self) -> None:
        old = make_token()
        new = issuer.rotate(actor="test", at_once=True)

        assert kid_of(make_token()) == new.id
        assert [key["kid"] for key in published_keys()] == [new.id]
        assert kid_of(old) != new.id
        assert AuditEvent.objects.get(action=issuer.ROTATED).detail["atOnce"] is True

    @pytest.mark.parametrize(("days", "keys"), [(90, 2), (91, 1), (0, 1)])
    def test_an_old_key_is_replaced_by_itself_where_that_is_wanted(
        self, settings: pytest.FixtureRequest, days: int, keys: int
    ) -> None:
        settings.RENSEI_ISSUER_KEY_DAYS = days  # type: ignore[attr-defined]
        make_token()
        advance(90 * 86400 + 60)

        issuer.keep_fresh()
        issuer.keep_fresh()
        assert IssuerKey.objects.count() == keys

    def test_nothing_is_made_where_there_is_no_key(self) -> None:
        issuer.keep_fresh()
        assert not IssuerKey.objects.exists()

    def test_a_new_data_key_seals_the_signing_keys_too(self) -> None:
        token = make_token()
        done = sealed.rotate_data_key(None)

        assert done.records == 1
        assert not done.failed
        verified(token)


@pytest.mark.django_db(transaction=True)
def test_two_first_uses_at_once_make_one_key() -> None:
    together = Barrier(4)

    def use() -> None:
        together.wait()
        try:
            make_token()
        finally:
            connection.close()

    threads = [Thread(target=use) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert IssuerKey.objects.count() == 1


def test_no_private_part_is_stored_or_shown(client: Client) -> None:
    make_token()
    row = IssuerKey.objects.get()
    private = issuer._open(row, UNEXPLAINED).reveal()

    assert private.encode() not in bytes(row.sealed_key)
    assert private not in json.dumps(published_keys())
