"""
A key of the transit secrets engine of HashiCorp Vault or OpenBao.

`vault://<host>[:port]/<mount>/<key>?token-file=…&namespace=…&ca=…&tls=off`. The key is of a type with associated data
(`aes256-gcm96` is the default). The token is read from the file for each call, as an agent renews it there; without
the option it is VAULT_TOKEN. With `per-org=yes`, each organization has a key of its own beside it, made at its first
use: `<key>-<organization>`.
https://developer.hashicorp.com/vault/api-docs/secret/transit
"""

import base64
import binascii
import os
import re
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import SplitResult

from integrations.vault.errors import KekNotFound, KekUnavailable, VaultFault
from integrations.vault.framing import length_prefixed
from integrations.vault.kek import Context, DestroyedKey, Wrapped
from integrations.vault.key_services.base import (
    AddressInvalid,
    KeyService,
    altered,
    denied,
    disabled,
    is_per_org,
    name_of,
    not_found,
    options,
    own_key_of,
    require_safe,
    unexpected,
)
from integrations.vault.key_services.rest import NO_CONTENT, Rest

OK, FORBIDDEN, MISSING = 200, 403, 404
_KEY_TYPE = "aes256-gcm96"
_MISSING_SAID = ("encryption key not found", "no existing key named", "could not delete key; not found")
_WRAPPED = re.compile(rb"vault:v([1-9]\d{0,8}):[A-Za-z0-9+/=]+")


class Transit(KeyService):
    def __init__(self, address: SplitResult) -> None:
        chosen = options(address, "token-file", "namespace", "ca", "tls", "per-org")
        mount, _, key = address.path.strip("/").rpartition("/")
        if not address.hostname or not mount or not key:
            raise AddressInvalid("it is vault://<host>/<mount>/<key>")
        scheme = "http" if chosen.get("tls") == "off" else "https"
        self._rest = Rest(require_safe(f"{scheme}://{address.netloc}"), authority=chosen.get("ca", ""))
        self._mount, self._key = mount, key
        self._token_file = chosen.get("token-file", "")
        self._namespace = chosen.get("namespace", "")
        self._is_per_org = is_per_org(chosen)
        self.kek_id = name_of(address, f"{mount}/{key}" + ("/per-org" if self._is_per_org else ""))

    def current_version(self) -> str:
        if self._is_per_org:
            return ""  # Each key has versions of its own.
        version = self._call("GET", "keys", self._key).get("latest_version")
        if version is None:
            raise unexpected("no version")
        return str(version)

    def wrap(self, key: bytes, *, kek_id: str, context: Context) -> Wrapped:
        name = self._key_for(context)
        if name != self._key:
            # Where it exists, nothing changes.
            self._call("POST", "keys", name, {"type": _KEY_TYPE})
        body = {"plaintext": _encoded(key), "associated_data": _encoded(length_prefixed(*context.values()))}
        blob = str(self._call("POST", "encrypt", name, body).get("ciphertext")).encode()
        found = _WRAPPED.fullmatch(blob)
        if found is None:
            raise unexpected("no ciphertext")
        return Wrapped(blob=blob, version="" if self._is_per_org else found[1].decode())

    def unwrap(self, wrapped: Wrapped, *, kek_id: str, context: Context) -> bytes:
        if not _WRAPPED.fullmatch(wrapped.blob):
            raise altered()
        body = {
            "ciphertext": wrapped.blob.decode(),
            "associated_data": _encoded(length_prefixed(*context.values())),
        }
        try:
            return base64.b64decode(
                str(self._call("POST", "decrypt", self._key_for(context), body)["plaintext"]), validate=True
            )
        except (KeyError, binascii.Error):
            raise unexpected("no plaintext") from None

    def destroy_key_of(self, owner: str, *, has_wrapped: bool) -> DestroyedKey | None:
        if not self._is_per_org:
            return None
        name = self._own_key(owner)
        try:
            self._call("POST", "keys", f"{name}/config", {"deletion_allowed": True})
            self._call("DELETE", "keys", name)
        except KekNotFound:
            if not has_wrapped:
                return None
        return DestroyedKey(name=f"vault:{self._mount}/{name}", final_at=datetime.now(UTC))

    def _key_for(self, context: Context) -> str:
        owner = own_key_of(context) if self._is_per_org else ""
        return self._own_key(owner) if owner else self._key

    def _own_key(self, owner: str) -> str:
        return f"{self._key}-{owner}"

    def _call(self, method: str, operation: str, key: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
        headers = {"x-vault-token": self._token(), "x-vault-request": "true"}
        if self._namespace:
            headers["x-vault-namespace"] = self._namespace
        path = f"/v1/{self._mount}/{operation}/{key}"
        status, document = self._rest.call(method, path, headers=headers, body=body)
        if status == OK and isinstance(document.get("data"), dict):
            data: dict[str, Any] = document["data"]
            return data
        if status == NO_CONTENT:
            return {}
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
    if status == MISSING or any(sentence in said for sentence in _MISSING_SAID):
        return not_found()
    if "disallowed by policy" in said:
        return disabled()
    if "authentication failed" in said or "invalid ciphertext" in said or "unable to decrypt" in said:
        return altered()
    return unexpected(f"status {status}")


def _encoded(value: bytes) -> str:
    return base64.b64encode(value).decode()
