"""The real application, with a second for a body instead of half a minute."""

from rensei.core import asgi_limits

asgi_limits.BODY_SECONDS = 1

from rensei.asgi import application  # noqa: E402

__all__ = ["application"]
