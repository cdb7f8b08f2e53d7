"""
A key of the transit secrets engine of HashiCorp Vault or OpenBao.

`vault://<host>[:port]/<mount>/<key>?token-file=…&namespace=…&ca=…&tls=off`. The key is of a type with associated data
(`aes256-gcm96` is the default). The token is read from the file for each call, as an agent renews it there; without
the option it is VAULT_TOKEN.
https://developer.hashicorp.com/vault/api-docs/secret/transit
"""

import base64
import binascii
import os
import re
from pathlib import Path
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
    name_of,
    not_found,
    options,
    require_safe,
    unexpected,
)
from integrations.vault.key_services.rest import Rest

OK, FORBIDDEN, MISSING = 200, 403, 404
_WRAPPED = re.compile(rb"vault:v([1-9]\d{0,8}):[A-Za-z0-9+/=]+")


class Transit(KeyService):
    def __init__(self, address: SplitResult) -> None:
        chosen = options(address, "token-file", "namespace", "ca", "tls")
        mount, _, key = address.path.strip("/").rpartition("/")
        if not address.hostname or not mount or not key:
            raise AddressInvalid("it is vault://<host>/<mount>/<key>")
        scheme = "http" if chosen.get("tls") == "off" else "https"
        self._rest = Rest(require_safe(f"{scheme}://{address.netloc}"), authority=chosen.get("ca", ""))
        self._mount, self._key = mount, key
        self._token_file = chosen.get("token-file", "")
        self._namespace = chosen.get("namespace", "")
        self.kek_id = name_of(address, f"{mount}/{key}")

    def current_version(self) -> str:
        version = self._call("GET", "keys").get("latest_version")
        if version is None:
            raise unexpected("no version")
        return str(version)

    def wrap(self, key: bytes, *, kek_id: str, context: Context) -> Wrapped:
        body = {"plaintext": _encoded(key), "associated_data": _encoded(length_prefixed(*context.values()))}
        blob = str(self._call("POST", "encrypt", body).get("ciphertext")).encode()
        found = _WRAPPED.fullmatch(blob)
        if found is None:
            raise unexpected("no ciphertext")
        return Wrapped(blob=blob, version=found[1].decode())

    def unwrap(self, wrapped: Wrapped, *, kek_id: str, context: Context) -> bytes:
        if not _WRAPPED.fullmatch(wrapped.blob):
            raise altered()
        body = {
            "ciphertext": wrapped.blob.decode(),
            "associated_data": _encoded(length_prefixed(*context.values())),
        }
        try:
            return base64.b64decode(str(self._call("POST", "decrypt", body)["plaintext"]), validate=True)
        except (KeyError, binascii.Error):
            raise unexpected("no plaintext") from None

    def _call(self, method: str, operation: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
        headers = {"x-vault-token": self._token(), "x-vault-request": "true"}
        if self._namespace:
            headers["x-vault-namespace"] = self._namespace
        path = f"/v1/{self._mount}/{operation}/{self._key}"
        status, document = self._rest.call(method, path, headers=headers, body=body)
        if status == OK and isinstance(document.get("data"), dict):
            data: dict[str, Any] = document["data"]
            return data
        raise _fault(status, " ".join(map(str, document.get("errors") or [])).lower())

    def _token(self) -> str:
        try:
            token = Path(self._token_file).read_text() if self._token_file else os.environ.get("VAULT_TOKEN", "")
        except (OSError, UnicodeDecodeError):
            token = ""
        if not token.strip():
            raise KekUnavailable("this server has no token for its key service")
        return token.strip()


def _fault(status: int, said: str) -> VaultFault:
    """Translate an answer. The service tells the cases of status 400 apart by its sentences alone."""
    if status == FORBIDDEN:
        return denied()
    if status == MISSING or "encryption key not found" in said:
        return not_found()
    if "disallowed by policy" in said:
        return disabled()
    if "authentication failed" in said or "invalid ciphertext" in said or "unable to decrypt" in said:
        return altered()
    return unexpected(f"status {status}")


def _encoded(value: bytes) -> str:
    return base64.b64encode(value).decode()
