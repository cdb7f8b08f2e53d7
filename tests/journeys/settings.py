"""
The settings of the server and the worker that the journeys start: those of the tests, with the static files, and with
the connections of an installation. Without its pool, each request would open a connection to PostgreSQL anew.
"""

from tests.settings import *  # noqa: F403
from tests.settings import DATABASES, POOL, UNSYNCED

if POOL is not None:
    DATABASES["default"]["OPTIONS"]["pool"] = POOL
else:
    sqlite = DATABASES["default"]["OPTIONS"]
    sqlite["init_command"] = sqlite["init_command"].removesuffix(UNSYNCED)

# Served from where they lie, because collecting and compressing them takes longer than the journeys.
WHITENOISE_USE_FINDERS = True
# Mail lies in a folder that the test reads, because it is another process than the server.
EMAIL_BACKEND = "django.core.mail.backends.filebased.EmailBackend"
EMAIL_FILE_PATH = DATA_DIR / "mail"  # noqa: F405
