"""
All errors of the vault: a closed set.

    VaultFault                 inside the vault; names the key concerned, and never contains key bytes
    ├── KekUnavailable         the keyring cannot be read, or is refused in its present state
    ├── KekNotFound            it can be read, but does not contain the required key
    ├── KekChanged             it contains other bytes under that key's id
    ├── WrapInvalid            the wrapped data key does not open: it was altered, or belongs elsewhere
    ├── DataKeyNotFound        the record names a data key that this owner does not have
    └── RecordInvalid          the record does not open: it was altered, cut, or belongs elsewhere

    CredentialUnreadable       raised to callers outside the vault for all of these
"""

from rensei.core.errors import RenseiError, Said


class VaultFault(Exception):
    """A reason why the vault cannot seal or open, described for the operator."""


class KekUnavailable(VaultFault):
    pass


class KekNotFound(VaultFault):
    pass


class KekChanged(VaultFault):
    pass


class WrapInvalid(VaultFault):
    pass


class DataKeyNotFound(VaultFault):
    pass


class RecordInvalid(VaultFault):
    pass


class CredentialUnreadable(RenseiError):
    """A sealed credential cannot be opened, or a new one cannot be sealed. Nothing was overwritten."""

    code = "CREDENTIAL_UNREADABLE"
    status = 503
    title = "Credential cannot be read"
    message = Said(
        "Stored credentials cannot be used now: {reason}.",
        (
            "Nothing was changed or lost. Ask the operator to look at the vault's state at /readyz; with the "
            "right key back, everything opens again."
        ),
    )
