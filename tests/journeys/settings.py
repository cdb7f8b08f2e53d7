"""The settings of the server and the worker that the journeys start: those of the tests, with the static files."""

from tests.settings import *  # noqa: F403

# Served from where they lie, because collecting and compressing them takes longer than the journeys.
WHITENOISE_USE_FINDERS = True
