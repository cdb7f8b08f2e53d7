"""The ASGI application, served by granian."""

import os

from django.core.asgi import get_asgi_application

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "rensei.settings")
_django = get_asgi_application()

from rensei.core.asgi_limits import limit_bodies  # noqa: E402 – reads the settings while it is imported

application = limit_bodies(_django)
