"""How the OpenAPI description names the ways to prove who one is."""

from drf_spectacular.extensions import OpenApiAuthenticationExtension

from rensei.orgs.authentication import TokenAuthentication


class TokenSecurity(OpenApiAuthenticationExtension):  # type: ignore[no-untyped-call]
    """The API token."""

    target_class = TokenAuthentication
    name = "token"

    def get_security_definition(self, auto_schema: object) -> dict[str, str]:
        return {"type": "http", "scheme": "bearer", "description": "An API token, `rsk_live_…`."}
