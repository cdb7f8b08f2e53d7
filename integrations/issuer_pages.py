"""The two public documents of an OIDC issuer. They name no organization, and are the same for all callers."""

from django.http import HttpRequest, HttpResponse, JsonResponse
from django.views.decorators.http import require_safe

from integrations.vault import issuer
from integrations.vault.errors import CredentialUnreadable

# For caches on the way. A new key is published long before it signs.
CACHED_SECONDS = 60


class _PublishedKeys:
    """The public keys, which are opened once, so that an anonymous request costs no more than one query."""

    def __init__(self) -> None:
        self._opened: tuple[list[str], list[dict[str, str]]] = ([], [])

    def get(self) -> list[dict[str, str]]:
        """:raises CredentialUnreadable: if the vault cannot open the keys now"""
        ids = issuer.key_ids()
        if ids != self._opened[0]:
            found = issuer.published_keys()
            self._opened = ([key["kid"] for key in found], found)
        return self._opened[1]

    def clear(self) -> None:
        self._opened = ([], [])


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
