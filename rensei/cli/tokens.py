"""
The keyring of the system, where it has one: macOS Keychain, Windows Credential Locker, Secret Service, KWallet.

https://keyring.readthedocs.io/en/latest/. Servers and containers have none; tokens then stay in the configuration
file. The package takes a tenth of a second to load, so it is imported only where it is needed. It is part of
`rensei[full]`: without it, this machine counts as one without a keyring.
"""

from importlib.util import find_spec
from types import ModuleType

from rensei.cli.errors import ADD_ALL, Refused

SERVICE = "rensei"


def keep(*, url: str, org: str, token: str) -> bool:
    """Write the token of a sign-in to the keyring. False if there is none that stores it."""
    if not is_installed():
        return False
    keyring = _keyring(url=url, org=org)
    try:
        keyring.set_password(SERVICE, _name(url, org), token)
        # Some keyrings accept everything and store nothing.
        return bool(keyring.get_password(SERVICE, _name(url, org)) == token)
    except keyring.errors.KeyringError:
        return False


def fetch(*, url: str, org: str) -> str:
    """
    Read the token of a sign-in from the keyring.

    :raises TokenUnreadable: if the keyring is locked or missing, or has no such token
    """
    keyring = _keyring(url=url, org=org)
    try:
        token: str | None = keyring.get_password(SERVICE, _name(url, org))
    except keyring.errors.KeyringError as fault:
        raise TokenUnreadable(url=url, org=org) from fault
    if not token:
        raise TokenUnreadable(url=url, org=org)
    return token


def forget(*, url: str, org: str) -> None:
    """
    Delete the token of a sign-in from the keyring.

    :raises TokenUnreadable: if the keyring has it, and is locked
    """
    keyring = _keyring(url=url, org=org)
    try:
        keyring.delete_password(SERVICE, _name(url, org))
    except keyring.errors.PasswordDeleteError:
        # There is no such token.
        return
    except keyring.errors.KeyringError as fault:
        raise TokenUnreadable(url=url, org=org) from fault


def is_installed() -> bool:
    """Whether this command can open a keyring at all."""
    return find_spec("keyring") is not None


def keyring_name() -> str:
    """The name of the keyring."""
    import keyring

    return str(keyring.get_keyring().name)


class TokenUnreadable(Refused):
    """The keyring does not return the token that was stored in it."""

    def __init__(self, *, url: str, org: str, fix: str = "Unlock the keyring") -> None:
        super().__init__(
            "TOKEN_UNREADABLE",
            f"The keyring of this system does not give the token of {org} at {url}.",
            fix=f"{fix}, or run `rensei setup` to sign in again.",
        )


def _keyring(*, url: str, org: str) -> ModuleType:
    """:raises TokenUnreadable: if the package is no longer installed with this command"""
    try:
        import keyring
        import keyring.errors
    except ModuleNotFoundError as fault:
        raise TokenUnreadable(url=url, org=org, fix=f"The package that opens it is not installed. {ADD_ALL}") from fault
    return keyring


def _name(url: str, org: str) -> str:
    return f"{org} at {url}"
