"""The WSGI application, for tools that require one. Live events need the ASGI one."""

import os

from django.core.wsgi import get_wsgi_application

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "rensei.settings")
os.environ.setdefault("DB_STATEMENT_SECONDS", "30")
application = get_wsgi_application()
