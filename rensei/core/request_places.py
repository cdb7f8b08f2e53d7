"""
The requests that REST and the pages answer at the same time in this process: a share for each organization, and one for
each address that sends them.

A request holds a place of its address from the end of its body, and one of its organization from the check of its
caller, until it is answered. Where it only waits for something to happen, it holds neither. A body that is slow to come
holds none: it takes no thread, and a few addresses that send such bodies would otherwise hold all places.
"""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from weakref import WeakValueDictionary

from django.conf import settings
from django.http import HttpRequest, HttpResponseBase

from rensei.core import database_pool
from rensei.core.computing import outside_of_turn
from rensei.core.errors import RateLimited
from rensei.core.limits import limit
from rensei.core.shares import ByteShares
from rensei.core.transactions import leave_database

ORG_WAIT_SECONDS = limit(
    2,
    "seconds",
    what="Time that a request to REST or a page waits for one of its organization's requests to end",
    told="the caller: 429 `RATE_LIMITED` with `retry-after`",
)
OF_ADDRESS_MAX = limit(
    200,
    "requests",
    what="Requests under way to REST and pages of one address, each process; waits, event streams and requests whose "
    "bodies still come are not counted",
    told="the caller: 429 `RATE_LIMITED` with `retry-after`, and the connection is closed",
)
OF_ALL_MAX = limit(
    2000,
    "requests",
    what="Requests under way to REST and pages, each process; one address has at most half as many as are free",
    told="the caller: 429 `RATE_LIMITED` with `retry-after`, and the connection is closed",
)
_PLACE = "place_of_org"

_org_places: WeakValueDictionary[str, threading.Semaphore] = WeakValueDictionary()
_addresses = ByteShares()
_lock = threading.Lock()
_leave_address: ContextVar[Callable[[], None] | None] = ContextVar("leave_address", default=None)


@contextmanager
def of_address(address: str) -> Iterator[Callable[[], bool]]:
    """
    Return a place of an address after the block, or at `leave_address`.

    Yields what takes the place once; it returns False if the address has none left.
    """
    is_held = False

    def take() -> bool:
        nonlocal is_held
        with _lock:
            is_held = _addresses.take(address, 1, most=OF_ADDRESS_MAX, of_all=OF_ALL_MAX)
            return is_held

    def leave() -> None:
        nonlocal is_held
        with _lock:
            if is_held:
                is_held = False
                _addresses.leave(address, 1)

    reset = _leave_address.set(leave)
    try:
        yield take
    finally:
        _leave_address.reset(reset)
        leave()


def leave_address() -> None:
    """Return the place of this request's address before the request ends, because it only waits from now on."""
    leave = _leave_address.get()
    if leave is not None:
        leave()


def take_of_org(request: HttpRequest, org_id: str) -> None:
    """
    Take a place of the caller's organization for a request, and wait for one without a connection to the database.

    :raises RateLimited: if none becomes free in time
    """
    if hasattr(request, _PLACE):
        return
    with _lock:
        places = _org_places.setdefault(org_id, threading.Semaphore(settings.RENSEI_ORG_REQUESTS_AT_ONCE))
    if not places.acquire(blocking=False):
        leave_database()
        with outside_of_turn():
            is_free = places.acquire(timeout=ORG_WAIT_SECONDS)
        if not is_free:
            raise RateLimited(seconds=1, extra={"retryAfter": 1})
    setattr(request, _PLACE, places)
    database_pool.count_for_org(org_id)


def leave_of_org(request: HttpRequest) -> None:
    """Return the place of a request's organization, if it holds one."""
    places: threading.Semaphore | None = request.__dict__.pop(_PLACE, None)
    if places is not None:
        database_pool.count_for_none()
        places.release()


def places_of_orgs(
    get_response: Callable[[HttpRequest], HttpResponseBase],
) -> Callable[[HttpRequest], HttpResponseBase]:
    """Return the place when a request is answered. An answer that is streamed is read without it."""

    def middleware(request: HttpRequest) -> HttpResponseBase:
        try:
            return get_response(request)
        finally:
            leave_of_org(request)

    return middleware
