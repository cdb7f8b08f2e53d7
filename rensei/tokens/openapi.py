"""The names of the authentication methods in the OpenAPI document."""

from django.conf import settings
from drf_spectacular.extensions import OpenApiAuthenticationExtension

from rensei.tokens.authentication import BrowserAuthentication, TokenAuthentication


class TokenSecurity(OpenApiAuthenticationExtension):  # type: ignore[no-untyped-call]
    """The API token."""

    target_class = TokenAuthentication
    name = "token"

    def get_security_definition(self, auto_schema: object) -> dict[str, str]:
        return {"type": "http", "scheme": "bearer", "description": "An API token, `rsk_live_…`."}


class BrowserSecurity(OpenApiAuthenticationExtension):  # type: ignore[no-untyped-call]
    """The browser's session."""

    target_class = BrowserAuthentication
    name = "session"

    def get_security_definition(self, auto_schema: object) -> dict[str, str]:
        return {
            "type": "apiKey",
            "in": "cookie",
            "name": settings.SESSION_COOKIE_NAME,
            "description": "A browser's session. Unsafe methods also need the header X-CSRFToken.",
        }
