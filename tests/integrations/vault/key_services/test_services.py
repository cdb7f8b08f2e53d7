"""Each key service keeps to one contract: AWS by moto, PKCS#11 by SoftHSM, the others by stand-ins."""

import os
import secrets
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from integrations.vault import kek_providers
from integrations.vault.errors import (
    KekChanged,
    KekDenied,
    KekDisabled,
    KekNotFound,
    KekUnavailable,
    KeyServiceSilent,
    WrapInvalid,
)
from integrations.vault.kek import KekProvider, Wrapped
from integrations.vault.key_services.aws_kms import AwsKms
from integrations.vault.key_services.base import library
from integrations.vault.key_services.crc32c import crc32c
from tests.integrations.vault.key_services.conftest import Stage
from tests.integrations.vault.key_services.stand_ins import AwsRefusals, serving

CONTEXT = {"domain": "rensei.dek.v1", "owner": "org_1", "version": "1"}


@pytest.fixture
def provider(stage: Stage, use: Callable[..., None]) -> KekProvider:
    use(stage.url)
    return kek_providers.current()


@pytest.fixture
def wrapped(provider: KekProvider) -> Wrapped:
    return provider.wrap(b"k" * 32, kek_id=provider.current_id(), context=CONTEXT)


def altered(wrapped: Wrapped) -> Iterator[bytes]:
    """The first, a middle and the last bit flipped, a byte less, the head alone, and nothing."""
    blob = wrapped.blob
    for position in (0, len(blob) // 2, len(blob) - 1):
        yield blob[:position] + bytes([blob[position] ^ 1]) + blob[position + 1 :]
    yield from (blob[:-1], blob[:20], b"")


class TestEveryService:
    def test_unwraps_what_it_wrapped_and_keeps_the_key_out_of_it(self, provider: KekProvider) -> None:
        key = os.urandom(32)

        wrapped = provider.wrap(key, kek_id=provider.current_id(), context=CONTEXT)

        assert provider.unwrap(wrapped, kek_id=provider.current_id(), context=CONTEXT) == key
        assert key not in wrapped.blob
        assert len(provider.current_id()) <= 255
        assert "127.0.0.1" not in provider.current_id(), "a service may move to another host"

    @pytest.mark.parametrize("other", [{"owner": "org_2"}, {"version": "2"}, {"extra": ""}], ids=str)
    def test_refuses_another_context(self, provider: KekProvider, wrapped: Wrapped, other: dict[str, str]) -> None:
        with pytest.raises(WrapInvalid):
            provider.unwrap(wrapped, kek_id=provider.current_id(), context={**CONTEXT, **other})

    def test_refuses_what_was_altered(self, provider: KekProvider, wrapped: Wrapped) -> None:
        for blob in altered(wrapped):
            with pytest.raises((WrapInvalid, KekDenied, KekNotFound, KekDisabled)):
                provider.unwrap(
                    Wrapped(blob=blob, version=wrapped.version), kek_id=provider.current_id(), context=CONTEXT
                )
        # Nothing of that has broken the session.
        assert provider.unwrap(wrapped, kek_id=provider.current_id(), context=CONTEXT) == b"k" * 32

    def test_recognises_its_key_and_another_one_of_the_same_name(
        self, provider: KekProvider, stage: Stage, use: Callable[..., None]
    ) -> None:
        kek_id = provider.current_id()
        value = provider.check_value(kek_id)
        provider.check(kek_id, value)
        if stage.replace is None:
            return  # AWS never gives an id to a second key.
        stage.replace()
        use(stage.url)

        with pytest.raises(KekChanged):
            kek_providers.current().check(kek_id, value)

    def test_describes_itself_without_a_secret(self, provider: KekProvider, stage: Stage) -> None:
        assert stage.service is None or stage.service.token not in provider.describe() + provider.current_id()


class TestAServiceWithVersions:
    def test_wraps_by_the_newest_and_unwraps_by_each(self, versioned: Stage, use: Callable[..., None]) -> None:
        use(versioned.url)
        provider, service = kek_providers.current(), versioned.service
        assert service is not None
        kek_id, before = provider.current_id(), provider.current_version()
        old = provider.wrap(b"k" * 32, kek_id=kek_id, context=CONTEXT)

        service.rotate()

        new = provider.wrap(b"k" * 32, kek_id=kek_id, context=CONTEXT)
        assert (old.version, new.version) == (before, provider.current_version())
        assert old.version != new.version
        for wrapped in (old, new):
            assert provider.unwrap(wrapped, kek_id=kek_id, context=CONTEXT) == b"k" * 32

    def test_names_what_an_operator_did_to_the_key(self, versioned: Stage, use: Callable[..., None]) -> None:
        use(versioned.url)
        provider, service = kek_providers.current(), versioned.service
        assert service is not None
        wrapped = provider.wrap(b"k" * 32, kek_id=provider.current_id(), context=CONTEXT)

        def unwrap() -> None:
            provider.unwrap(wrapped, kek_id=provider.current_id(), context=CONTEXT)

        service.disable_all()
        with pytest.raises(KekDisabled):
            unwrap()
        service.disabled.clear()
        service.exists = False
        with pytest.raises(KekNotFound):
            unwrap()
        service.exists, service.token = True, "another"
        with pytest.raises(KekDenied):
            unwrap()


class TestAws:
    @pytest.mark.parametrize(
        ("code", "fault"),
        [
            ("DisabledException", KekDisabled),
            ("KMSInvalidStateException", KekDisabled),
            ("NotFoundException", KekNotFound),
            ("AccessDeniedException", KekDenied),
            ("IncorrectKeyException", WrapInvalid),
            ("InvalidCiphertextException", WrapInvalid),
            ("ThrottlingException", KeyServiceSilent),
            ("KeyUnavailableException", KeyServiceSilent),
            ("SomethingNewException", KekUnavailable),
        ],
    )
    def test_translates_the_answers_of_the_service(
        self, aws_credentials: None, code: str, fault: type[Exception]
    ) -> None:
        answers = AwsRefusals()
        answers.code = code
        with serving(answers) as url:
            service = AwsKms(urlsplit(f"awskms://eu-central-1/mrk-{secrets.token_hex(16)}?endpoint={url}"))
            with pytest.raises(fault) as caught:
                service.unwrap(Wrapped(blob=b"x"), kek_id=service.kek_id, context=CONTEXT)
        assert type(caught.value) is fault
        assert answers.calls == ["TrentService.Decrypt"], "the circuit repeats, the library does not"


@pytest.mark.softhsm
class TestHsm:
    def test_needs_a_private_file_with_the_pin(self, hsm: Stage, use: Callable[..., None], tmp_path: Path) -> None:
        pin = tmp_path / "pin"
        pin.write_text("wrong")
        pin.chmod(0o644)
        address = hsm.url.partition("&pin-source")[0] + f"&pin-source=file:{pin}"

        use(address)
        with pytest.raises(KekUnavailable, match="chmod 600"):
            kek_providers.current().check_value("x")

    def test_names_a_key_and_a_token_that_are_not_there(self, hsm: Stage, use: Callable[..., None]) -> None:
        for address in (hsm.url.replace("object=", "object=no"), hsm.url.replace("token=", "token=no")):
            use(address)
            with pytest.raises(KekNotFound):
                kek_providers.current().check_value("x")


class TestAddresses:
    @pytest.mark.parametrize(
        "urls",
        [
            "",
            "keyring.json",
            "s3://bucket/key",
            "file: file:/other",
            "awskms://eu-central-1/alias/rensei",
            "awskms://Europe/12345678-1234-1234-1234-123456789012",
            "awskms://eu-central-1/12345678-1234-1234-1234-123456789012?endpoint=http://kms.example",
            "vault://vault.example/rensei",
            "vault://vault.example/transit/rensei?tls=off",
            "vault://vault.example/transit/rensei?token=abc",
            "vault://a.example/transit/rensei vault://b.example/transit/rensei",
            "gcpkms://projects/p/keyRings/r",
            "azurekv://made-up.managedhsm.azure.net/",
            "pkcs11:token=rensei?module-path=/x.so&pin-source=file:/pin",
            f"vault://vault.example/transit/{'k' * 260}",
        ],
    )
    def test_that_cannot_be_used_are_named_by_the_check_of_the_settings(
        self, use: Callable[..., None], urls: str
    ) -> None:
        use(urls)

        (fault,) = kek_providers.faults()

        assert "token=abc" not in fault
        with pytest.raises(KekUnavailable):
            kek_providers.current()

    def test_of_two_services_with_the_same_key_are_told_apart_by_a_name(self, use: Callable[..., None]) -> None:
        use("vault://a.example/transit/rensei", "vault://b.example/transit/rensei#new")

        assert [provider.current_id() for provider in kek_providers.configured()] == [
            "vault:transit/rensei",
            "vault:transit/rensei#new",
        ]

    def test_are_the_keyring_alone_by_default(self, settings: Any) -> None:
        assert settings.RENSEI_KEK_URL == "file:"
        assert list(kek_providers.keyring_paths()) == [settings.RENSEI_VAULT_KEYRING]


def test_a_missing_library_is_named_with_its_extra() -> None:
    with pytest.raises(KekUnavailable, match=r"rensei\[server,aws\]"):
        library("no_such_library_here", extra="aws")


def test_the_checksum_is_the_one_of_the_rfc() -> None:
    # RFC 3720, B.4.
    assert crc32c(bytes(32)) == 0x8A9136AA
    assert crc32c(b"\xff" * 32) == 0x62A8AB43
    assert crc32c(bytes(range(32))) == 0x46DD794E
