"""The ASGI application, served by granian."""

import os

from django.core.asgi import get_asgi_application

from rensei.core.asgi_limits import limit_bodies

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "rensei.settings")
application = limit_bodies(get_asgi_application())
