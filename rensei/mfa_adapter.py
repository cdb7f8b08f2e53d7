"""
How the secrets of two-step sign-in are stored: sealed by the vault, which is above the package of accounts.

https://docs.allauth.org/en/latest/mfa/adapter.html
"""

import base64
from collections.abc import Callable, Iterator
from itertools import chain
from typing import Any

from allauth.core import context
from allauth.mfa.adapter import DefaultMFAAdapter
from allauth.mfa.models import Authenticator
from django.db.models.signals import post_init
from django.dispatch import receiver
from django.http import HttpRequest
from django.http.response import HttpResponseBase

from integrations.vault import sealed, vault
from integrations.vault.errors import CredentialUnreadable
from integrations.vault.openings import Reason, Why
from integrations.vault.sealed import Record
from integrations.vault.vault import SealContext
from rensei.accounts import second_factor
from rensei.core.querysets import pages
from rensei.core.secret import Secret
from rensei.core.transactions import durable
from rensei.orgs.models import Org, User

# The names under which the library stores what it sealed: an app's key, and the seed of the recovery codes.
SEALED_NAMES = {"secret", "seed"}


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


class VaultBeforeTwoStep:
    """
    Fetches the platform's data key before a form of two-step sign-in is processed.

    The library seals and opens inside transactions of its own, and fetching the key may be a call to a key service.
    """

    def __init__(self, get_response: Callable[[HttpRequest], HttpResponseBase]) -> None:
        self.get_response = get_response

    def __call__(self, request: HttpRequest) -> HttpResponseBase:
        return self.get_response(request)

    def process_view(self, request: HttpRequest, *view: object) -> None:
        match = request.resolver_match
        if request.method == "POST" and match is not None and (match.url_name or "").startswith("mfa_"):
            try:
                vault.fetch_key(org=None)
            except CredentialUnreadable as refusal:
                request.vault_refusal = refusal  # type: ignore[attr-defined]


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
        _require_key()
        user = context.request.user
        assert isinstance(user, User), "Two-step sign-in is set up by a person who is signed in"
        return base64.b64encode(vault.seal(Secret(text), context=_place_of(user.pk))).decode()

    def decrypt(self, encrypted_text: str) -> str:
        """:raises CredentialUnreadable: if the vault has no key or another one, or the text was another person's"""
        assert isinstance(encrypted_text, SealedText), "Only what a row holds is opened"
        _require_key()
        sealed = base64.b64decode(encrypted_text)
        why = Why(reason=Reason.SIGN_IN, actor=f"person {encrypted_text.user_id}")
        return vault.open_sealed(sealed, context=_place_of(encrypted_text.user_id), why=why).reveal()

    def can_delete_authenticator(self, authenticator: Authenticator) -> bool:
        return not second_factor.is_required(authenticator.user)


def _owned(text: str, user_id: int) -> SealedText:
    owned = SealedText(text)
    owned.user_id = user_id
    return owned


def _require_key() -> None:
    """:raises CredentialUnreadable: if the platform's data key could not be fetched before"""
    refusal = getattr(context.request, "vault_refusal", None)
    if refusal is not None:
        raise refusal


def _place_of(user_id: int) -> SealContext:
    return SealContext(
        org=None,
        record_id=f"two-step-sign-in-of-{user_id}",
        field="secret",
        version=1,
        provider="",
        destination=vault.DEFAULT_DESTINATION,
    )


class SealedAuthenticators:
    """The secrets of two-step sign-in among the platform's sealed records: texts inside a JSON column."""

    columns = (f"{Authenticator._meta.label}.data",)  # noqa: SLF001 - Django's documented way from a model

    def of(self, org: Org | None) -> Iterator[Record]:
        if org is None:
            for row in chain.from_iterable(pages(Authenticator.objects.all(), size=sealed.BATCH)):
                for name in SEALED_NAMES & row.data.keys():
                    yield self._record(row, name)

    def _record(self, row: Authenticator, name: str) -> Record:
        text = str(row.data[name])

        def replace(new: bytes) -> bool:
            with durable():
                stored = Authenticator.objects.select_for_update().filter(pk=row.pk).first()
                if stored is None or stored.data.get(name) != text:
                    return False
                stored.data = {**stored.data, name: base64.b64encode(new).decode()}
                stored.save(update_fields=["data"])
                return True

        return Record(
            name=f"Authenticator {row.pk}",
            sealed=base64.b64decode(text),
            context=_place_of(row.user_id),
            replace=replace,
        )


sealed.register(SealedAuthenticators())
