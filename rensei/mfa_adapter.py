"""
How the secrets of two-step sign-in are stored: sealed by the vault, which is above the package of accounts.

https://docs.allauth.org/en/latest/mfa/adapter.html
"""

import base64
from typing import Any

from allauth.core import context
from allauth.mfa.adapter import DefaultMFAAdapter
from allauth.mfa.models import Authenticator
from django.db.models.signals import post_init
from django.dispatch import receiver

from integrations.vault import vault
from integrations.vault.vault import SealContext
from rensei.accounts import second_factor
from rensei.core.secret import Secret
from rensei.orgs.models import User


class SealedText(str):
    """A sealed secret as it is stored, with the id of the person whose row holds it."""

    user_id: int


@receiver(post_init, sender=Authenticator)
def _note_the_owner(instance: Authenticator, **rest: Any) -> None:
    """Mark stored text with its owner, since the library passes only the text to `decrypt`."""
    stored = vars(instance)
    if isinstance(stored.get("data"), dict) and "user_id" in stored:
        instance.data = {
            name: _owned(value, stored["user_id"]) if isinstance(value, str) else value
            for name, value in stored["data"].items()
        }


class SealedMfaAdapter(DefaultMFAAdapter):  # type: ignore[misc]
    """Seals what the library stores, and prevents those who must have a second factor from turning it off."""

    error_messages = {
        **DefaultMFAAdapter.error_messages,
        "incorrect_code": "This code is not right. It changes every 30 seconds: type the one that is shown now.",
        "cannot_delete_authenticator": "Operators of this server need two-step sign-in, so it cannot be turned off.",
    }

    def encrypt(self, text: str) -> str:
        """
        Seal a secret for the person who is signed in, since people set up two-step sign-in for themselves only.

        :raises CredentialUnreadable: if the vault has no key
        """
        user = context.request.user
        assert isinstance(user, User), "Two-step sign-in is set up by a person who is signed in"
        return base64.b64encode(vault.seal(Secret(text), context=_place_of(user.pk))).decode()

    def decrypt(self, encrypted_text: str) -> str:
        """:raises CredentialUnreadable: if the vault has no key or another one, or the text was another person's"""
        assert isinstance(encrypted_text, SealedText), "Only what a row holds is opened"
        sealed = base64.b64decode(encrypted_text)
        return vault.open_sealed(sealed, context=_place_of(encrypted_text.user_id)).reveal()

    def can_delete_authenticator(self, authenticator: Authenticator) -> bool:
        return not second_factor.is_required(authenticator.user)


def _owned(text: str, user_id: int) -> SealedText:
    owned = SealedText(text)
    owned.user_id = user_id
    return owned


def _place_of(user_id: int) -> SealContext:
    return SealContext(
        org=None,
        record_id=f"two-step-sign-in-of-{user_id}",
        field="secret",
        version=1,
        provider="",
        destination=vault.DEFAULT_DESTINATION,
    )
