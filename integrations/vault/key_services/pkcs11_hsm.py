"""
An AES-256 key in a hardware security module, by PKCS#11.

`pkcs11:token=<label>;object=<label>?module-path=<library>&pin-source=file:<file>`, as RFC 7512 writes it. A data key
is wrapped as `nonce 12 | ciphertext | tag 16` of CKM_AES_GCM inside the module.
"""

import os
import secrets
import threading
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from typing import Any
from urllib.parse import SplitResult, unquote

from integrations.vault import keyring
from integrations.vault.errors import KekUnavailable, VaultFault
from integrations.vault.framing import length_prefixed
from integrations.vault.kek import NONCE_BYTES, Context, Wrapped
from integrations.vault.key_services.base import (
    AddressInvalid,
    KeyService,
    altered,
    denied,
    library,
    name_of,
    not_found,
    options,
    silent,
    unexpected,
)

ANSWER_SECONDS = 3.0
TAG_BITS = 128
TAG_BYTES = 16
MAY_PASS = {"DeviceError", "DeviceMemory", "DeviceRemoved", "SessionClosed", "SessionHandleInvalid", "SessionCount"}


class _Library:
    """A loaded module. It takes one operation at a time here, and is loaded anew in a process that was forked."""

    def __init__(self) -> None:
        self.busy = threading.Lock()
        self.loaded_by = 0


_libraries: dict[str, _Library] = {}


class Pkcs11(KeyService):
    def __init__(self, address: SplitResult) -> None:
        chosen = options(address, "module-path", "pin-source")
        named = dict(part.partition("=")[::2] for part in address.path.split(";"))
        if set(named) != {"token", "object"} or set(chosen) != {"module-path", "pin-source"}:
            raise AddressInvalid("it is pkcs11:token=…;object=…?module-path=…&pin-source=file:…")
        self._token, self._object = unquote(named["token"]), unquote(named["object"])
        self._module = chosen["module-path"]
        self._pin = Path(chosen["pin-source"].removeprefix("file:"))
        self._session: tuple[int, Any, Any] | None = None
        self._library = _libraries.setdefault(self._module, _Library())
        self.kek_id = name_of(address, f"{self._token}/{self._object}")

    def describe(self) -> str:
        return f"PKCS#11 token {self._token}: {self._object}"

    def wrap(self, key: bytes, *, kek_id: str, context: Context) -> Wrapped:
        nonce = secrets.token_bytes(NONCE_BYTES)
        bound = length_prefixed(*context.values())
        return Wrapped(blob=nonce + self._in_time(lambda: self._use("encrypt", key, nonce=nonce, bound_to=bound)))

    def unwrap(self, wrapped: Wrapped, *, kek_id: str, context: Context) -> bytes:
        nonce, text = wrapped.blob[:NONCE_BYTES], wrapped.blob[NONCE_BYTES:]
        if len(text) <= TAG_BYTES:
            raise altered()
        bound = length_prefixed(*context.values())
        return self._in_time(lambda: self._decrypt(text, nonce=nonce, bound_to=bound))

    def _decrypt(self, text: bytes, *, nonce: bytes, bound_to: bytes) -> bytes:
        faults = library("pkcs11.exceptions", extra="pkcs11")
        try:
            return self._use("decrypt", text, nonce=nonce, bound_to=bound_to)
        except (faults.EncryptedDataInvalid, faults.EncryptedDataLenRange):
            raise altered() from None
        except faults.GeneralError:
            # Some modules have no code of their own for a wrong tag. If the key still works, that was it.
            probe = self._use("encrypt", b"", nonce=secrets.token_bytes(NONCE_BYTES), bound_to=b"")
            raise (altered() if probe else silent("GeneralError")) from None

    def _use(self, operation: str, value: bytes, *, nonce: bytes, bound_to: bytes) -> bytes:
        mechanisms = library("pkcs11.mechanisms", extra="pkcs11")
        result: bytes = getattr(self._key(), operation)(
            value,
            mechanism=mechanisms.Mechanism.AES_GCM,
            mechanism_param=mechanisms.GCMParams(nonce, bound_to, TAG_BITS),
        )
        return result

    def _in_time(self, work: Callable[[], bytes]) -> bytes:
        """
        Use the module in a thread of its own, so that one that hangs does not hold up the thread of a request.

        :raises VaultFault: if the module refuses, or does not answer in time
        """
        faults = library("pkcs11.exceptions", extra="pkcs11")
        if not self._library.busy.acquire(timeout=ANSWER_SECONDS):
            raise silent("busy")
        future: Future[bytes] = Future()
        threading.Thread(target=self._do, args=(work, future), name="pkcs11", daemon=True).start()
        try:
            return future.result(timeout=ANSWER_SECONDS)
        except TimeoutError:
            raise silent("timeout") from None
        except VaultFault:
            raise
        except (faults.PKCS11Error, RuntimeError, OSError) as fault:
            raise _fault(fault) from None

    def _do(self, work: Callable[[], bytes], future: "Future[bytes]") -> None:
        try:
            future.set_result(work())
        except Exception as fault:  # noqa: BLE001 - the waiting thread raises it
            if not isinstance(fault, VaultFault):
                self._session = None  # The next use opens another one, as after the module was restarted.
            future.set_exception(fault)
        finally:
            self._library.busy.release()

    def _key(self) -> Any:
        if self._session is None or self._session[0] != os.getpid():
            self._session = (os.getpid(), *self._open())
        return self._session[2]

    def _open(self) -> tuple[Any, Any]:
        pkcs11 = library("pkcs11", extra="pkcs11")
        if self._library.loaded_by not in (0, os.getpid()):
            pkcs11.unload(self._module)
        self._library.loaded_by = os.getpid()
        token = pkcs11.lib(self._module).get_token(token_label=self._token)
        try:
            session = token.open(user_pin=self._read_pin())
        except pkcs11.exceptions.UserAlreadyLoggedIn:
            session = token.open()  # All sessions of a process with one token share the login.
        return session, session.get_key(label=self._object, object_class=pkcs11.ObjectClass.SECRET_KEY)

    def _read_pin(self) -> str:
        try:
            with self._pin.open() as file:
                keyring.refuse_open_file(os.fstat(file.fileno()), what="the file with the PIN")
                return file.read().strip()
        except OSError as fault:
            raise KekUnavailable(f"the file with the PIN cannot be read ({fault.strerror})") from None


def _fault(fault: Exception) -> VaultFault:
    name = type(fault).__name__
    if name in {"NoSuchKey", "NoSuchToken", "TokenNotPresent", "TokenNotRecognised"}:
        return not_found()
    if name in {"PinIncorrect", "PinInvalid", "PinExpired", "PinLocked", "PinLenRange", "UserNotLoggedIn"}:
        return denied()
    if name in MAY_PASS:
        return silent(name)
    return unexpected(name)
