"""Calls to a key service: bounded repeats, and a circuit that answers at once while the service does not."""

import random
import threading
import time
from collections.abc import Callable
from typing import TypeVar

import structlog

from integrations.vault.errors import KeyServiceSilent, VaultFault
from integrations.vault.kek import Context, DestroyedKey, Wrapped
from integrations.vault.key_services.base import KeyService
from rensei.core.limits import limit
from rensei.core.transactions import leave_database

ATTEMPTS = 2
BACKOFF_SECONDS = 0.1
OPEN_SECONDS = limit(
    5,
    "s",
    what="Time without calls to a key service that has not answered twice, each process",
    told="the caller: 503 `CREDENTIAL_UNREADABLE`, retryable",
)
# How long the check of a key is valid, so that probes of `/readyz` do not become calls.
CHECKED_SECONDS = 30.0

Result = TypeVar("Result")
logger = structlog.get_logger(__name__)


class Circuit:
    """
    A key service behind a circuit.

    A call that is not answered is repeated once. If that fails too, calls are refused without being made for
    `OPEN_SECONDS`; then one of them is made as a trial, while the others are still refused.
    """

    is_remote = True

    def __init__(self, service: KeyService) -> None:
        self._service = service
        self._lock = threading.Lock()
        self._closed_to = 0.0
        self._is_open = False
        self._checked: dict[tuple[str, bytes], tuple[float, VaultFault | None]] = {}

    def describe(self) -> str:
        return self._service.describe()

    def holds(self, kek_id: str) -> bool:
        return self._service.holds(kek_id)

    def current_id(self) -> str:
        return self._service.current_id()

    def current_version(self) -> str:
        return self._call(self._service.current_version)

    def check_value(self, kek_id: str) -> bytes:
        return self._call(lambda: self._service.check_value(kek_id))

    def check(self, kek_id: str, value: bytes) -> None:
        """Check a key, at most once in `CHECKED_SECONDS`. That the service is silent is not remembered here."""
        until, fault = self._checked.get((kek_id, value), (0.0, None))
        if time.monotonic() >= until:
            fault = None
            try:
                self._call(lambda: self._service.check(kek_id, value))
            except KeyServiceSilent:
                raise
            except VaultFault as found:
                fault = found
            self._checked = {(kek_id, value): (time.monotonic() + CHECKED_SECONDS, fault)}
        if fault is not None:
            raise type(fault)(*fault.args)

    def wrap(self, key: bytes, *, kek_id: str, context: Context) -> Wrapped:
        return self._call(lambda: self._service.wrap(key, kek_id=kek_id, context=context))

    def unwrap(self, wrapped: Wrapped, *, kek_id: str, context: Context) -> bytes:
        return self._call(lambda: self._service.unwrap(wrapped, kek_id=kek_id, context=context))

    def destroy_key_of(self, owner: str, *, has_wrapped: bool) -> DestroyedKey | None:
        return self._call(lambda: self._service.destroy_key_of(owner, has_wrapped=has_wrapped))

    def forget_key_of(self, owner: str) -> None:
        self._call(lambda: self._service.forget_key_of(owner))

    def _call(self, work: Callable[[], Result]) -> Result:
        leave_database()
        self._refuse_if_open()
        for attempt in range(1, ATTEMPTS + 1):
            try:
                result = work()
            except KeyServiceSilent as fault:
                if attempt == ATTEMPTS:
                    self._open(fault)
                    raise
                time.sleep(BACKOFF_SECONDS * random.uniform(1, 2))  # noqa: S311 - it spreads load and guards nothing
            except VaultFault:
                self._close()  # It answered.
                raise
            else:
                self._close()
                return result
        raise AssertionError("The last attempt returns or raises")

    def _refuse_if_open(self) -> None:
        """:raises KeyServiceSilent: while the circuit is open. One caller passes when the time is over."""
        with self._lock:
            if not self._is_open:
                return
            now = time.monotonic()
            if now < self._closed_to:
                raise KeyServiceSilent("the key service does not answer")
            self._closed_to = now + OPEN_SECONDS

    def _open(self, fault: KeyServiceSilent) -> None:
        with self._lock:
            self._is_open = True
            self._closed_to = time.monotonic() + OPEN_SECONDS
        logger.warning("key_service_silent", kek_id=self._service.kek_id, fault=str(fault))

    def _close(self) -> None:
        with self._lock:
            self._is_open = False
