"""How the REST views describe themselves in OpenAPI."""

from drf_spectacular.openapi import AutoSchema


class Schema(AutoSchema):
    """The stock description; refusals are documented once, in `docs/errors.md`."""
