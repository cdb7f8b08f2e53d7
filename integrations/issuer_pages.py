"""The two public documents of an OIDC issuer. They name no organization, and are the same for all callers."""

from django.http import HttpRequest, HttpResponse, JsonResponse
from django.views.decorators.http import require_safe

from integrations.vault import issuer
from integrations.vault.errors import CredentialUnreadable

# For caches on the way. A new key is published long before it signs.
CACHED_SECONDS = 60


class _PublishedKeys:
    """
    The public keys, each opened once, so that an anonymous request costs no more than one query.

    While the vault cannot open a new one, those that were opened before are published: the new one does not sign yet.
    """

    def __init__(self) -> None:
        self._opened: dict[str, dict[str, str]] = {}

    def get(self) -> list[dict[str, str]]:
        """:raises CredentialUnreadable: if the vault cannot open any of the keys now"""
        ids = issuer.key_ids()
        known = self._opened
        try:
            for key_id in ids:
                known = known if key_id in known else {**known, key_id: issuer.public_key(key_id)}
        except CredentialUnreadable:
            if not known.keys() & set(ids):
                raise
        self._opened = {key_id: known[key_id] for key_id in ids if key_id in known}
        return list(self._opened.values())

    def clear(self) -> None:
        self._opened = {}


published = _PublishedKeys()


@require_safe
def discovery(request: HttpRequest) -> HttpResponse:
    """Show where the issuer's keys are."""
    return _public(issuer.discovery())


@require_safe
def keys(request: HttpRequest) -> HttpResponse:
    """Show the public keys with which identity tokens are verified."""
    try:
        return _public({"keys": published.get()})
    except CredentialUnreadable:
        return JsonResponse({"error": "temporarily_unavailable"}, status=503, headers={"retry-after": "5"})


def _public(document: dict[str, object]) -> HttpResponse:
    return JsonResponse(document, headers={"cache-control": f"public, max-age={CACHED_SECONDS}"})
