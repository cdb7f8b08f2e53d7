"""
A symmetric key of an Azure Managed HSM.

`azurekv://<name>.managedhsm.azure.net/<key>?endpoint=…`. The key is of type `oct-HSM` with 256 bits; the context of a
data key is the additional data of AES-GCM. An RSA key of a vault is refused: with its public half, anyone could wrap a
data key of their own making. Credentials are those of Azure's default chain, such as a managed identity.
https://learn.microsoft.com/en-us/rest/api/keyvault/keys/encrypt/encrypt
"""

import base64
import binascii
import re
import threading
import time
from typing import Any
from urllib.parse import SplitResult

from integrations.vault.errors import KekUnavailable, VaultFault
from integrations.vault.framing import length_prefixed
from integrations.vault.kek import NONCE_BYTES, Context, Wrapped
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
from integrations.vault.key_services.rest import ANSWER_SECONDS, CONNECT_SECONDS, Rest

API = "api-version=7.4"
SCOPE = "https://managedhsm.azure.net/.default"
KEY = re.compile(r"[0-9A-Za-z-]{1,127}")
VERSION = re.compile(r"[0-9a-f]{32}")
ALGORITHM = "A256GCM"
TAG_BYTES = 16
RENEWED_BEFORE_SECONDS = 300
OK, BAD_REQUEST, UNAUTHORIZED, FORBIDDEN, MISSING = 200, 400, 401, 403, 404


class AzureHsm(KeyService):
    def __init__(self, address: SplitResult) -> None:
        endpoint = options(address, "endpoint").get("endpoint", f"https://{address.netloc}")
        self._key = address.path.strip("/")
        if not address.hostname or not KEY.fullmatch(self._key):
            raise AddressInvalid("it is azurekv://<name>.managedhsm.azure.net/<key>")
        self._rest = Rest(require_safe(endpoint))
        self._lock = threading.Lock()
        self._credential: Any = None
        self._found_token, self._token_until = "", 0.0
        self.kek_id = name_of(address, f"{address.hostname}/{self._key}")

    def current_version(self) -> str:
        key = self._call("GET", "").get("key")
        if not isinstance(key, dict) or key.get("kty") not in ("oct-HSM", "oct"):
            raise KekUnavailable("the key in the key service is not a symmetric one (oct-HSM)")
        return _version(str(key.get("kid", "")))

    def wrap(self, key: bytes, *, kek_id: str, context: Context) -> Wrapped:
        version = self.current_version()
        body = {"alg": ALGORITHM, "value": _encoded(key), "aad": _encoded(length_prefixed(*context.values()))}
        answer = self._call("POST", f"/{version}/encrypt", body)
        nonce, text, tag = (_decoded(answer.get(name)) for name in ("iv", "value", "tag"))
        if (len(nonce), len(tag)) != (NONCE_BYTES, TAG_BYTES) or _version(str(answer.get("kid", ""))) != version:
            raise unexpected("another form of ciphertext")
        return Wrapped(blob=nonce + text + tag, version=version)

    def unwrap(self, wrapped: Wrapped, *, kek_id: str, context: Context) -> bytes:
        if len(wrapped.blob) < NONCE_BYTES + TAG_BYTES or not VERSION.fullmatch(wrapped.version):
            raise altered()
        body = {
            "alg": ALGORITHM,
            "iv": _encoded(wrapped.blob[:NONCE_BYTES]),
            "value": _encoded(wrapped.blob[NONCE_BYTES:-TAG_BYTES]),
            "tag": _encoded(wrapped.blob[-TAG_BYTES:]),
            "aad": _encoded(length_prefixed(*context.values())),
        }
        return _decoded(self._call("POST", f"/{wrapped.version}/decrypt", body).get("value"))

    def _call(self, method: str, operation: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
        headers = {"authorization": f"Bearer {self._token()}"}
        path = f"/keys/{self._key}{operation}?{API}"
        status, document = self._rest.call(method, path, headers=headers, body=body)
        if status == OK:
            return document
        raise _fault(status, document)

    def _token(self) -> str:
        """:raises VaultFault: if this server has no credentials for Azure"""
        identity = library("azure.identity", extra="azure")
        faults = library("azure.core.exceptions", extra="azure")
        with self._lock:
            if self._token_until > time.time():
                return self._found_token
            if self._credential is None:
                self._credential = identity.DefaultAzureCredential(
                    connection_timeout=CONNECT_SECONDS, read_timeout=ANSWER_SECONDS, retry_total=1
                )
            try:
                found = self._credential.get_token(SCOPE)
            except faults.ClientAuthenticationError:
                raise KekUnavailable("this server has no credentials for its key service") from None
            except faults.AzureError as fault:
                raise silent(type(fault).__name__) from None
            # The library keeps tokens as well, and takes a dozen lines of log and a millisecond for each question.
            self._found_token, self._token_until = str(found.token), found.expires_on - RENEWED_BEFORE_SECONDS
            return self._found_token


def _fault(status: int, document: dict[str, Any]) -> VaultFault:
    error = document.get("error")
    error = error if isinstance(error, dict) else {}
    inner = error.get("innererror")
    codes = {error.get("code"), inner.get("code") if isinstance(inner, dict) else None}
    if codes & {"KeyDisabled", "KeyNotYetValid", "KeyExpired"}:
        return disabled()
    if status in (UNAUTHORIZED, FORBIDDEN):
        return denied()
    if status == MISSING:
        return not_found()
    return altered() if status == BAD_REQUEST else unexpected(f"status {status}")


def _version(key_address: str) -> str:
    """:raises KekUnavailable: if the address does not end with a version"""
    version = key_address.rpartition("/")[2]
    if not VERSION.fullmatch(version):
        raise unexpected("no version")
    return version


def _encoded(value: bytes) -> str:
    return base64.urlsafe_b64encode(value).rstrip(b"=").decode()


def _decoded(value: object) -> bytes:
    text = str(value)
    try:
        return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))
    except (binascii.Error, ValueError):
        raise unexpected("no content") from None
