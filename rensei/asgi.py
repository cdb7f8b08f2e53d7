"""The ASGI application, served by granian."""

import gc
import os
import sys
import threading

import django

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "rensei.settings")
os.environ.setdefault("DB_STATEMENT_SECONDS", "30")
django.setup(set_prefix=False)

# These read the settings while they are imported.
from integrations.providers.base import ADAPTERS  # noqa: E402
from rensei.accounts.senders import sender_of  # noqa: E402
from rensei.core.asgi_limits import limit_bodies, pace_bodies, take_file_handles  # noqa: E402
from rensei.core.rates import start_exchanging  # noqa: E402
from rensei.core.request_threads import Handler  # noqa: E402
from rensei.core.unknown_names import start_storing  # noqa: E402
from rensei.gateway.app import with_gateway  # noqa: E402

# Python's switch interval between threads. The event loop must pass on calls while the writers compute.
TURN_SECONDS = 0.001
# Calls in progress hold thousands of objects, and almost none are in a cycle, so they are freed without the collector.
# With Python's default of 700, the collector scanned them a hundred times a second and found nothing.
COLLECTED_OBJECTS = 20_000
YOUNG_COLLECTIONS = 10
NEVER = 1_000_000_000


def _start() -> None:
    """Start what a serving process needs, and not on import: tests and tools import this module too."""
    take_file_handles()
    sys.setswitchinterval(TURN_SECONDS)
    # The gateway collects the oldest objects, when no call is under way: a thousand event streams hold 250,000.
    gc.set_threshold(COLLECTED_OBJECTS, YOUNG_COLLECTIONS, NEVER)
    threading.Thread(target=_warm_up, name="warm-up", daemon=True).start()
    start_storing()
    start_exchanging()


def _warm_up() -> None:
    """Load what the first Test Connection would load, which takes seconds, before a request waits for it."""
    for adapter in ADAPTERS.values():
        adapter.warm_up()
    # The objects loaded so far are permanent. Scanning all of them for garbage stopped every call for 0.1 s.
    gc.collect()
    gc.freeze()


application = pace_bodies(with_gateway(limit_bodies(Handler(), sender_of=sender_of), on_startup=_start))
