"""Django's checks at the start: that single sign-on is completely configured, and secure."""

from typing import Any
from urllib.parse import urlsplit

from django.conf import settings
from django.core.checks import Error, register

from rensei.core.networks import LOOPBACK


@register
def single_sign_on(app_configs: Any, **options: Any) -> list[Error]:
    """Reject an incomplete configuration, and an issuer without TLS, whose answers could be forged on the network."""
    if not settings.RENSEI_OIDC_ISSUER:
        return []
    issuer = urlsplit(settings.RENSEI_OIDC_ISSUER)
    found = []
    if issuer.scheme != "https" and issuer.hostname not in LOOPBACK:
        found.append(Error("RENSEI_OIDC_ISSUER must begin with https://, except on this machine.", id="rensei.E001"))
    if not settings.RENSEI_OIDC_CLIENT_ID or not settings.RENSEI_OIDC_CLIENT_SECRET:
        found.append(
            Error("RENSEI_OIDC_ISSUER needs RENSEI_OIDC_CLIENT_ID and RENSEI_OIDC_CLIENT_SECRET.", id="rensei.E002")
        )
    return found
