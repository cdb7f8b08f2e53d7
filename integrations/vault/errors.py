"""
All errors of the vault: a closed set.

    VaultFault                 inside the vault; names the key concerned, and never contains key bytes
    ├── KekUnavailable         the key-encryption keys cannot be reached, or are refused in their present state
    │   └── KeyServiceSilent   the key service does not answer: the same request may succeed in a moment
    ├── KekDenied              the key service refuses this server the use of the key
    ├── KekDisabled            the key, or the version that wrapped, is disabled or destroyed
    ├── KekNotFound            no configured provider has the required key
    ├── KekChanged             it is another key under the same id
    ├── WrapInvalid            the wrapped data key does not open: it was altered, or belongs elsewhere
    ├── DataKeyNotFound        the record names a data key that this owner does not have
    ├── RecordInvalid          the record does not open: it was altered, cut, or belongs elsewhere
    └── AddressChanged         it would be sent to another address than operators have approved

    CredentialUnreadable       raised to callers outside the vault for all of these
"""

from rensei.core.errors import RenseiError, Said


class VaultFault(Exception):
    """A reason why the vault cannot seal or open. Members read it too, so it names no host, path or account."""


class KekUnavailable(VaultFault):
    pass


class KeyServiceSilent(KekUnavailable):
    pass


class KekDenied(VaultFault):
    pass


class KekDisabled(VaultFault):
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


class AddressChanged(VaultFault):
    pass


class CredentialUnreadable(RenseiError):
    """
    A sealed credential cannot be opened, or a new one cannot be sealed. Nothing was overwritten.

    It is retryable where only the key service does not answer.
    """

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

    def __init__(self, *, reason: VaultFault) -> None:
        super().__init__(reason=reason)
        self.retryable = isinstance(reason, KeyServiceSilent)
        self.is_gone = isinstance(reason, DataKeyNotFound)
        if isinstance(reason, AddressChanged):
            self.fix = (
                "Ask the operator: a second one approves the new address in the admin, under Break-glass, or the "
                "former one is set again."
            )
        if self.is_gone:
            self.fix = (
                "Its data key is not in the database: it was destroyed, or a backup without it was restored. Save "
                "the key anew, or ask the operator to restore a backup that has it."
            )
