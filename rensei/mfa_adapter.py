"""
How the secrets of two-step sign-in are kept: sealed by the vault, which lies above the room of people.

https://docs.allauth.org/en/latest/mfa/adapter.html
"""

import base64

from allauth.mfa.adapter import DefaultMFAAdapter
from allauth.mfa.models import Authenticator

from integrations.vault import vault
from integrations.vault.vault import SealContext
from rensei.core.secret import Secret
from rensei.orgs import second_factor

# The library names neither the person nor the row to this hook, so all records share one place.
PLACE = SealContext(
    org=None,
    record_id="two-step-sign-in",
    field="secret",
    version=1,
    provider="",
    destination=vault.DEFAULT_DESTINATION,
)


class SealedMfaAdapter(DefaultMFAAdapter):  # type: ignore[misc]
    """Seals what the library stores, and keeps those who must have a second factor from turning it off."""

    error_messages = {
        **DefaultMFAAdapter.error_messages,
        "incorrect_code": "This code is not right. It changes every 30 seconds: type the one that is shown now.",
        "cannot_delete_authenticator": "Operators of this server need two-step sign-in, so it cannot be turned off.",
    }

    def encrypt(self, text: str) -> str:
        """:raises CredentialUnreadable: if the vault has no key"""
        return base64.b64encode(vault.seal(Secret(text), context=PLACE)).decode()

    def decrypt(self, encrypted_text: str) -> str:
        """:raises CredentialUnreadable: if the vault has no key, or another one than that which sealed"""
        return vault.open_sealed(base64.b64decode(encrypted_text), context=PLACE).reveal()

    def can_delete_authenticator(self, authenticator: Authenticator) -> bool:
        return not second_factor.is_required(authenticator.user)
