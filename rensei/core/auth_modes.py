"""The auth modes in their order of preference, and who pays under each."""

from django.db import models


class AuthMode(models.TextChoices):
    """Whose credential signs a call. The order of the members is the order of preference."""

    BYOK = "byok", "BYOK"
    METERED = "metered", "Metered"
    SHARED = "shared", "Shared"
    HOST_SESSION = "host-session", "Host session"
    LOCAL = "local", "Local endpoint"


class Payer(models.TextChoices):
    """Who is billed for a call."""

    ORGANIZATION = "organization", "Your organization, billed directly by the provider"
    ORGANIZATION_VIA_RENSEI = "organization-via-rensei", "Your organization, through Rensei's cost ledger"
    PLATFORM = "platform", "The platform's free tier"
    HOST_ACCOUNT = "host-account", "The account logged in on the developer's machine"
    SELF_HOSTED = "self-hosted", "The party that runs the local endpoint"


PAYER_OF = {
    AuthMode.BYOK: Payer.ORGANIZATION,
    AuthMode.METERED: Payer.ORGANIZATION_VIA_RENSEI,
    AuthMode.SHARED: Payer.PLATFORM,
    AuthMode.HOST_SESSION: Payer.HOST_ACCOUNT,
    AuthMode.LOCAL: Payer.SELF_HOSTED,
}
# In these, keys of the platform sign: it pays, or bills the organization.
PLATFORM_MODES = frozenset({AuthMode.METERED, AuthMode.SHARED})
PREFERENCE = {mode: place for place, mode in enumerate(AuthMode)}


def in_preference_order(modes: list[str]) -> list[str]:
    """Sort modes from the most to the least preferred; their order in the input has no effect."""
    return sorted(modes, key=lambda mode: PREFERENCE[AuthMode(mode)])
