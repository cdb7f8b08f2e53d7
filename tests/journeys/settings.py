"""The settings of the server and the worker that the journeys start: those of the tests, with the static files."""

from tests.settings import *  # noqa: F403

# Served from where they lie, because collecting and compressing them takes longer than the journeys.
WHITENOISE_USE_FINDERS = True
# Mail lies in a folder that the test reads, because it is another process than the server.
EMAIL_BACKEND = "django.core.mail.backends.filebased.EmailBackend"
EMAIL_FILE_PATH = DATA_DIR / "mail"  # noqa: F405
