"""
The keyring of the system, where it has one: macOS Keychain, Windows Credential Locker, Secret Service, KWallet.

https://keyring.readthedocs.io/en/latest/. Servers and containers have none; tokens then stay in our own file. The
package takes a tenth of a second to load, so only what needs it does.
"""

from rensei.cli.errors import Refused

SERVICE = "rensei"


def keep(*, url: str, org: str, token: str) -> bool:
    """Put the token of a sign-in into the keyring. False where there is none that keeps it."""
    import keyring
    from keyring.errors import KeyringError

    try:
        keyring.set_password(SERVICE, _name(url, org), token)
        # There are keyrings that take everything and keep nothing.
        return keyring.get_password(SERVICE, _name(url, org)) == token
    except KeyringError:
        return False


def fetch(*, url: str, org: str) -> str:
    """
    Take the token of a sign-in out of the keyring.

    :raises TokenUnreadable: if the keyring is locked or gone, or has no such token
    """
    import keyring
    from keyring.errors import KeyringError

    try:
        token = keyring.get_password(SERVICE, _name(url, org))
    except KeyringError as fault:
        raise TokenUnreadable(url=url, org=org) from fault
    if not token:
        raise TokenUnreadable(url=url, org=org)
    return token


def forget(*, url: str, org: str) -> None:
    """
    Take the token of a sign-in out of the keyring for good.

    :raises TokenUnreadable: if the keyring has it, and is locked
    """
    import keyring
    from keyring.errors import KeyringError, PasswordDeleteError

    try:
        keyring.delete_password(SERVICE, _name(url, org))
    except PasswordDeleteError:
        # There is none.
        return
    except KeyringError as fault:
        raise TokenUnreadable(url=url, org=org) from fault


def keyring_name() -> str:
    """What the keyring is called."""
    import keyring

    return str(keyring.get_keyring().name)


class TokenUnreadable(Refused):
    """The keyring does not give the token that it was given."""

    def __init__(self, *, url: str, org: str) -> None:
        super().__init__(
            "TOKEN_UNREADABLE",
            f"The keyring of this system does not give the token of {org} at {url}.",
            fix="Unlock the keyring, or run `rensei setup` to sign in again.",
        )


def _name(url: str, org: str) -> str:
    return f"{org} at {url}"
