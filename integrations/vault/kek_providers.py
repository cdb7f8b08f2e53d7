"""
The configured providers of key-encryption keys: the addresses in RENSEI_KEK_URL, separated by blanks.

The first one wraps new data keys; each of them unwraps what it has wrapped. So moving to another one is a rotation.
"""

import importlib
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from urllib.parse import SplitResult, urlsplit

from django.conf import settings

from integrations.vault.errors import KekNotFound, KekUnavailable
from integrations.vault.kek import KekProvider, LocalKeyring
from integrations.vault.key_services.base import AddressInvalid, KeyService
from integrations.vault.key_services.circuit import Circuit

# Each is imported only where it is configured.
SERVICES = {
    "awskms": ("aws_kms", "AwsKms"),
    "azurekv": ("azure_hsm", "AzureHsm"),
    "gcpkms": ("google_kms", "GoogleKms"),
    "pkcs11": ("pkcs11_hsm", "Pkcs11"),
    "vault": ("transit", "Transit"),
}
KEYRING = "file"


def current() -> KekProvider:
    """
    Return the provider that wraps new data keys.

    :raises KekUnavailable: if RENSEI_KEK_URL cannot be used
    """
    return configured()[0]


def holding(kek_id: str) -> KekProvider:
    """
    Return the provider of a key.

    :raises KekNotFound: if it is none of the configured ones
    :raises KekUnavailable: if RENSEI_KEK_URL cannot be used
    """
    for provider in configured():
        if provider.holds(kek_id):
            return provider
    raise KekNotFound("the key that sealed is in no provider that this server is configured with")


def configured() -> tuple[KekProvider, ...]:
    """:raises KekUnavailable: if RENSEI_KEK_URL cannot be used"""
    try:
        return _built(settings.RENSEI_KEK_URL, settings.RENSEI_VAULT_KEYRING)
    except AddressInvalid:
        # The check of the settings tells the operator why.
        raise KekUnavailable("RENSEI_KEK_URL of this server cannot be used") from None


def keyring_paths() -> Iterator[Path]:
    """List the files of the local keyrings among the configured providers."""
    for address in map(urlsplit, settings.RENSEI_KEK_URL.split()):
        if address.scheme == KEYRING:
            yield Path(address.path) if address.path else settings.RENSEI_VAULT_KEYRING


def faults() -> Iterator[str]:
    """List what is wrong with RENSEI_KEK_URL."""
    try:
        _built(settings.RENSEI_KEK_URL, settings.RENSEI_VAULT_KEYRING)
    except AddressInvalid as fault:
        yield str(fault)


@lru_cache(maxsize=4)
def _built(urls: str, keyring: Path) -> tuple[KekProvider, ...]:
    """
    Build the providers once, since each keeps its connections and its circuit.

    :raises AddressInvalid: with the scheme of the address that cannot be used, but not the address
    """
    providers: list[KekProvider] = []
    services: set[str] = set()
    for address in map(urlsplit, urls.split()):
        if address.scheme == KEYRING:
            if any(isinstance(provider, LocalKeyring) for provider in providers):
                raise AddressInvalid(f"{KEYRING}: only one keyring can be used; it holds any number of keys")
            providers.append(LocalKeyring(Path(address.path) if address.path else keyring))
            continue
        service = _service(address)
        if service.kek_id in services:
            raise AddressInvalid(f"{address.scheme}: two addresses have the same key; add #<name> to one of them")
        services.add(service.kek_id)
        providers.append(Circuit(service))
    if not providers:
        raise AddressInvalid("it is empty; the keyring is `file:`")
    return tuple(providers)


def _service(address: SplitResult) -> KeyService:
    if address.scheme not in SERVICES:
        raise AddressInvalid(f"{address.scheme or 'an address'}: known are {', '.join([KEYRING, *sorted(SERVICES)])}")
    module, name = SERVICES[address.scheme]
    try:
        service: KeyService = getattr(importlib.import_module(f"integrations.vault.key_services.{module}"), name)(
            address
        )
    except AddressInvalid as fault:
        raise AddressInvalid(f"{address.scheme}: {fault}") from None
    return service
