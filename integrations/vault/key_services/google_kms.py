"""
A symmetric key of Google Cloud KMS.

`gcpkms://projects/<p>/locations/<l>/keyRings/<r>/cryptoKeys/<k>?endpoint=…`. The context of a data key is its
additional authenticated data; checksums are compared both ways. Credentials are Google's application default ones.
https://docs.cloud.google.com/kms/docs/reference/rest
"""

import base64
import binascii
import re
import threading
from functools import partial
from typing import Any
from urllib.parse import SplitResult

from integrations.vault.errors import KekUnavailable, VaultFault
from integrations.vault.framing import length_prefixed
from integrations.vault.kek import Context, Wrapped
from integrations.vault.key_services.base import (
    AddressInvalid,
    KeyService,
    altered,
    denied,
    disabled,
    library,
    name_of,
    not_found,
    options,
    require_safe,
    silent,
    unexpected,
)
from integrations.vault.key_services.crc32c import crc32c
from integrations.vault.key_services.rest import ANSWER_SECONDS, Rest

ENDPOINT = "https://cloudkms.googleapis.com"
SCOPE = "https://www.googleapis.com/auth/cloudkms"
KEY = re.compile(r"projects/[^/]+/locations/[^/]+/keyRings/[^/]+/cryptoKeys/[^/]+")
OK = 200
FAULTS = {
    "PERMISSION_DENIED": denied,
    "UNAUTHENTICATED": denied,
    "NOT_FOUND": not_found,
    # A version that is disabled, scheduled for destruction or destroyed.
    "FAILED_PRECONDITION": disabled,
    "INVALID_ARGUMENT": altered,
}


class GoogleKms(KeyService):
    def __init__(self, address: SplitResult) -> None:
        endpoint = options(address, "endpoint").get("endpoint", ENDPOINT)
        self._key = f"{address.netloc}{address.path}".strip("/")
        if not KEY.fullmatch(self._key):
            raise AddressInvalid("it is gcpkms://projects/…/locations/…/keyRings/…/cryptoKeys/…")
        self._rest = Rest(require_safe(endpoint))
        self._lock = threading.Lock()
        self._credentials: Any = None
        self.kek_id = name_of(address, self._key)

    def current_version(self) -> str:
        primary = self._call("GET", "").get("primary") or {}
        return _version(str(primary.get("name", "")))

    def wrap(self, key: bytes, *, kek_id: str, context: Context) -> Wrapped:
        bound = length_prefixed(*context.values())
        body = {
            "plaintext": _encoded(key),
            "plaintextCrc32c": str(crc32c(key)),
            "additionalAuthenticatedData": _encoded(bound),
            "additionalAuthenticatedDataCrc32c": str(crc32c(bound)),
        }
        answer = self._call("POST", ":encrypt", body)
        blob = _decoded(answer.get("ciphertext"), answer.get("ciphertextCrc32c"))
        if not answer.get("verifiedPlaintextCrc32c") or not answer.get("verifiedAdditionalAuthenticatedDataCrc32c"):
            raise silent("checksum")
        return Wrapped(blob=blob, version=_version(str(answer.get("name", ""))))

    def unwrap(self, wrapped: Wrapped, *, kek_id: str, context: Context) -> bytes:
        bound = length_prefixed(*context.values())
        body = {
            "ciphertext": _encoded(wrapped.blob),
            "ciphertextCrc32c": str(crc32c(wrapped.blob)),
            "additionalAuthenticatedData": _encoded(bound),
            "additionalAuthenticatedDataCrc32c": str(crc32c(bound)),
        }
        answer = self._call("POST", ":decrypt", body)
        return _decoded(answer.get("plaintext"), answer.get("plaintextCrc32c"))

    def _call(self, method: str, operation: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
        headers = {"authorization": f"Bearer {self._token()}"}
        status, document = self._rest.call(method, f"/v1/{self._key}{operation}", headers=headers, body=body)
        if status == OK:
            return document
        raise _fault(status, document)

    def _token(self) -> str:
        """:raises KekUnavailable: if this server has no credentials for Google Cloud"""
        auth = library("google.auth", extra="gcp")
        faults = library("google.auth.exceptions", extra="gcp")
        transport = library("google.auth.transport.requests", extra="gcp")
        with self._lock:
            try:
                if self._credentials is None:
                    self._credentials, _ = auth.default(scopes=[SCOPE])
                if not self._credentials.valid:
                    with library("requests", extra="gcp").Session() as session:
                        self._credentials.refresh(partial(transport.Request(session), timeout=ANSWER_SECONDS))
            except faults.DefaultCredentialsError:
                raise KekUnavailable("this server has no credentials for its key service") from None
            except faults.GoogleAuthError as fault:
                raise silent(type(fault).__name__) from None
            return str(self._credentials.token)


def _fault(status: int, document: dict[str, Any]) -> VaultFault:
    error = document.get("error")
    code = str(error.get("status", "")) if isinstance(error, dict) else ""
    return FAULTS[code]() if code in FAULTS else unexpected(f"status {status}")


def _version(name: str) -> str:
    """:raises KekUnavailable: if it is not the name of a version"""
    _, found, version = name.partition("/cryptoKeyVersions/")
    if not found or not version:
        raise unexpected("no version")
    return version


def _encoded(value: bytes) -> str:
    return base64.b64encode(value).decode()


def _decoded(value: object, checksum: object) -> bytes:
    """:raises KeyServiceSilent: if it arrived damaged: the same request may succeed"""
    try:
        found = base64.b64decode(str(value), validate=True)
    except binascii.Error:
        raise unexpected("no content") from None
    if str(checksum) != str(crc32c(found)):
        raise silent("checksum")
    return found
