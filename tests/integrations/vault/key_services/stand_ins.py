"""
Strict stand-ins for key services that cannot run here, over HTTP on loopback with real AES-GCM.

They are written from the public descriptions of the interfaces, and refuse what those refuse: wrong associated data,
wrong or unknown versions, disabled and destroyed keys, tokens that are not theirs, and requests in another form.
"""

import base64
import binascii
import json
import secrets
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

import jwt
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from integrations.vault.key_services.crc32c import crc32c

Answer = tuple[int, dict[str, Any]]


class Refusal(Exception):
    def __init__(self, status: int, document: dict[str, Any]) -> None:
        super().__init__(status)
        self.status, self.document = status, document


class Service:
    """One key with versions. `down` makes every call fail as an overloaded service does."""

    def __init__(self) -> None:
        self.token = secrets.token_urlsafe(24)
        self.down = False
        self.exists = True
        self.disabled: set[int] = set()
        self.calls: list[str] = []
        self.keys: list[bytes] = []
        self.rotate()

    def rotate(self) -> None:
        self.keys.append(AESGCM.generate_key(256))

    def replace(self) -> None:
        """Another key under the same name, with as many versions."""
        self.keys = [AESGCM.generate_key(256) for _ in self.keys]

    def disable_all(self) -> None:
        self.disabled = set(range(1, len(self.keys) + 1))

    def answer(self, method: str, address: str, headers: Any, body: bytes) -> Answer:
        if self.down:
            self.calls.append("down")
            return 503, {"errors": ["down"]}
        try:
            return self.route(method, address, headers, body)
        except Refusal as refusal:
            return refusal.status, refusal.document

    def route(self, method: str, address: str, headers: Any, body: bytes) -> Answer:
        raise NotImplementedError


class TransitService(Service):
    """Vault's and OpenBao's transit engine: https://developer.hashicorp.com/vault/api-docs/secret/transit"""

    deletable = False

    def __init__(self) -> None:
        super().__init__()
        self.own: dict[str, TransitService] = {}

    def route(self, method: str, address: str, headers: Any, body: bytes) -> Answer:
        if headers["x-vault-token"] != self.token or headers["x-vault-namespace"] != "team":
            raise self.error(403, "permission denied")
        operation, _, key = address.removeprefix("/v1/transit/").partition("/")
        if key.startswith("rensei-"):
            return self.route_own(method, operation, key, body)
        if key != "rensei" or operation not in ("keys", "encrypt", "decrypt"):
            raise self.error(404)
        if not self.exists:
            raise self.error(404) if operation == "keys" else self.error(400, "encryption key not found")
        if (operation == "keys") != (method == "GET"):
            raise self.error(405, "unsupported operation")
        self.calls.append(operation)
        if operation == "keys":
            return 200, {"data": {"type": "aes256-gcm96", "latest_version": len(self.keys)}}
        request = json.loads(body)
        return 200, {"data": self.encrypt(request) if operation == "encrypt" else self.decrypt(request)}

    def route_own(self, method: str, operation: str, name: str, body: bytes) -> Answer:
        """The keys that are made for one organization each: made, used, and deleted once that is allowed."""
        name, _, part = name.partition("/")
        own = self.own.get(name)
        request = json.loads(body) if body else {}
        self.calls.append(f"{method} {operation} {name} {part}".strip())
        match method, operation, part:
            case "POST", "keys", "":
                self.own.setdefault(name, TransitService())
                return 200, {"data": {"type": request["type"], "latest_version": 1}}
            case "POST", "keys", "config":
                if own is None:
                    raise self.error(400, f"no existing key named {name} could be found")
                own.deletable = request["deletion_allowed"]
                return 204, {}
            case "DELETE", "keys", "":
                if own is None or not own.deletable:
                    raise self.error(400, "error deleting policy: deletion is not allowed for this key")
                del self.own[name]
                return 204, {}
            case "POST", ("encrypt" | "decrypt"), "":
                if own is None:
                    raise self.error(400, "encryption key not found")
                return 200, {"data": own.encrypt(request) if operation == "encrypt" else own.decrypt(request)}
        raise self.error(404)

    def encrypt(self, request: dict[str, Any]) -> dict[str, Any]:
        plaintext, bound = self.decode(request["plaintext"]), self.decode(request["associated_data"])
        version, nonce = len(self.keys), secrets.token_bytes(12)
        blob = nonce + AESGCM(self.keys[-1]).encrypt(nonce, plaintext, bound)
        return {"ciphertext": f"vault:v{version}:{base64.b64encode(blob).decode()}", "key_version": version}

    def decrypt(self, request: dict[str, Any]) -> dict[str, Any]:
        prefix, version, text = request["ciphertext"].split(":")
        bound = self.decode(request["associated_data"])
        blob = self.decode(text, what="invalid ciphertext: could not decode base64")
        number = int(version.removeprefix("v"))
        if prefix != "vault" or number > len(self.keys):
            raise self.error(400, "invalid ciphertext: version is too new")
        if number in self.disabled:
            raise self.error(400, "ciphertext or signature version is disallowed by policy (too old)")
        try:
            plaintext = AESGCM(self.keys[number - 1]).decrypt(blob[:12], blob[12:], bound)
        except (InvalidTag, ValueError):
            raise self.error(400, "cipher: message authentication failed") from None
        return {"plaintext": base64.b64encode(plaintext).decode()}

    def decode(self, text: str, *, what: str = "illegal base64 data") -> bytes:
        try:
            return base64.b64decode(text, validate=True)
        except binascii.Error:
            raise self.error(400, what) from None

    def error(self, status: int, *said: str) -> Refusal:
        return Refusal(status, {"errors": list(said)})


class GoogleService(Service):
    """Google Cloud KMS and the token endpoint of service accounts: https://docs.cloud.google.com/kms/docs/reference"""

    name = "projects/p/locations/global/keyRings/r/cryptoKeys/rensei"

    def __init__(self) -> None:
        super().__init__()
        self.account = rsa.generate_private_key(public_exponent=65537, key_size=2048)

    def account_file(self, url: str) -> dict[str, str]:
        private = self.account.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        return {
            "type": "service_account",
            "client_email": "rensei@p.iam.gserviceaccount.com",
            "private_key_id": "1",
            "private_key": private.decode(),
            "token_uri": f"{url}/token",
        }

    def route(self, method: str, address: str, headers: Any, body: bytes) -> Answer:
        if address == "/token":
            return 200, self.exchange(parse_qs(body.decode()))
        if headers["authorization"] != f"Bearer {self.token}":
            raise self.error(401, "UNAUTHENTICATED")
        key, _, operation = address.removeprefix("/v1/").partition(":")
        if key != self.name or not self.exists:
            raise self.error(404, "NOT_FOUND")
        self.calls.append(operation or "get")
        if method == "GET":
            return 200, {"name": self.name, "primary": {"name": self.version_name(len(self.keys)), "state": "ENABLED"}}
        request = json.loads(body)
        bound = self.decode(request, "additionalAuthenticatedData")
        return 200, self.encrypt(request, bound) if operation == "encrypt" else self.decrypt(request, bound)

    def exchange(self, form: dict[str, list[str]]) -> dict[str, Any]:
        assert form["grant_type"] == ["urn:ietf:params:oauth:grant-type:jwt-bearer"]
        claims = jwt.decode(
            form["assertion"][0], self.account.public_key(), algorithms=["RS256"], options={"verify_aud": False}
        )
        assert claims["scope"] == "https://www.googleapis.com/auth/cloudkms"
        return {"access_token": self.token, "expires_in": 3600, "token_type": "Bearer"}

    def encrypt(self, request: dict[str, Any], bound: bytes) -> dict[str, Any]:
        version, nonce = len(self.keys), secrets.token_bytes(12)
        self.require_enabled(version)
        text = AESGCM(self.keys[-1]).encrypt(nonce, self.decode(request, "plaintext"), bound)
        blob = bytes([version]) + nonce + text
        return {
            "name": self.version_name(version),
            "ciphertext": base64.b64encode(blob).decode(),
            "ciphertextCrc32c": str(crc32c(blob)),
            "verifiedPlaintextCrc32c": True,
            "verifiedAdditionalAuthenticatedDataCrc32c": True,
        }

    def decrypt(self, request: dict[str, Any], bound: bytes) -> dict[str, Any]:
        blob = self.decode(request, "ciphertext")
        if not blob or not 0 < blob[0] <= len(self.keys):
            raise self.error(400, "INVALID_ARGUMENT")
        self.require_enabled(blob[0])
        try:
            plaintext = AESGCM(self.keys[blob[0] - 1]).decrypt(blob[1:13], blob[13:], bound)
        except (InvalidTag, ValueError):
            raise self.error(400, "INVALID_ARGUMENT") from None
        return {"plaintext": base64.b64encode(plaintext).decode(), "plaintextCrc32c": str(crc32c(plaintext))}

    def decode(self, request: dict[str, Any], field: str) -> bytes:
        value = base64.b64decode(request[field], validate=True)
        if request[f"{field}Crc32c"] != str(crc32c(value)):
            raise self.error(400, "INVALID_ARGUMENT")
        return value

    def require_enabled(self, version: int) -> None:
        if version in self.disabled:
            raise self.error(400, "FAILED_PRECONDITION")

    def version_name(self, version: int) -> str:
        return f"{self.name}/cryptoKeyVersions/{version}"

    def error(self, status: int, code: str) -> Refusal:
        return Refusal(status, {"error": {"code": status, "status": code, "message": "…"}})


class AzureService(Service):
    """A Managed HSM and a managed identity: https://learn.microsoft.com/en-us/rest/api/keyvault/keys"""

    kind = "oct-HSM"

    def __init__(self) -> None:
        self.versions: list[str] = []
        super().__init__()

    def rotate(self) -> None:
        super().rotate()
        self.versions.append(secrets.token_hex(16))

    def route(self, method: str, address: str, headers: Any, body: bytes) -> Answer:
        parts = urlsplit(address)
        query = parse_qs(parts.query)
        if parts.path == "/identity":
            assert headers["x-identity-header"] == "made-up"
            assert query["resource"] == ["https://managedhsm.azure.net"]
            return 200, {"access_token": self.token, "expires_on": "4102444800", "token_type": "Bearer"}
        assert query == {"api-version": ["7.4"]}
        if headers["authorization"] != f"Bearer {self.token}":
            raise self.error(401, "Unauthorized")
        names = parts.path.strip("/").split("/")
        if names[:2] != ["keys", "rensei"] or not self.exists:
            raise self.error(404, "KeyNotFound")
        self.calls.append(names[-1] if len(names) == 4 else "get")
        if method == "GET":
            return 200, {"key": {"kid": self.kid(self.versions[-1]), "kty": self.kind}, "attributes": {"enabled": True}}
        if names[2] not in self.versions:
            raise self.error(404, "KeyNotFound")
        if self.versions.index(names[2]) + 1 in self.disabled:
            raise self.error(403, "Forbidden", inner="KeyDisabled")
        return 200, self.use(names[3], names[2], json.loads(body))

    def use(self, operation: str, version: str, request: dict[str, Any]) -> dict[str, Any]:
        if request["alg"] != "A256GCM":
            raise self.error(400, "BadParameter")
        cipher = AESGCM(self.keys[self.versions.index(version)])
        value, bound = self.decode(request["value"]), self.decode(request["aad"])
        if operation == "encrypt":
            assert "iv" not in request, "The service chooses the nonce"
            nonce = secrets.token_bytes(12)
            found = cipher.encrypt(nonce, value, bound)
            more = {"iv": self.encode(nonce), "tag": self.encode(found[-16:]), "aad": request["aad"]}
            return {"kid": self.kid(version), "value": self.encode(found[:-16]), **more}
        try:
            found = cipher.decrypt(self.decode(request["iv"]), value + self.decode(request["tag"]), bound)
        except (InvalidTag, ValueError):
            raise self.error(400, "BadParameter") from None
        return {"kid": self.kid(version), "value": self.encode(found)}

    def kid(self, version: str) -> str:
        return f"https://made-up.managedhsm.azure.net/keys/rensei/{version}"

    def encode(self, value: bytes) -> str:
        return base64.urlsafe_b64encode(value).rstrip(b"=").decode()

    def decode(self, text: str) -> bytes:
        assert "=" not in text, "base64url has no padding here"
        return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))

    def error(self, status: int, code: str, *, inner: str = "") -> Refusal:
        error: dict[str, Any] = {"code": code, "message": "…"}
        return Refusal(status, {"error": {**error, **({"innererror": {"code": inner}} if inner else {})}})


class AwsRefusals(Service):
    """What moto does not refuse: KMS's answers about keys that are disabled, about to be deleted, or unavailable."""

    code = "DisabledException"

    def route(self, method: str, address: str, headers: Any, body: bytes) -> Answer:
        self.calls.append(headers["x-amz-target"])
        return 400, {"__type": self.code, "message": "…"}


@contextmanager
def serving(service: Service) -> Iterator[str]:
    """Serve a stand-in on a free port of loopback, and give its address."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(service.answer))
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()
    thread.join()


def _handler(answer: Callable[[str, str, Any, bytes], Answer]) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True

        def handle_any(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"] or 0))
            status, document = answer(self.command, self.path, self.headers, body)
            content = b"" if status == 204 else json.dumps(document).encode()
            self.send_response(status)
            self.send_header("content-type", "application/json")
            self.send_header("content-length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        do_GET = do_POST = do_DELETE = handle_any  # noqa: N815 - the library finds them by these names

        def log_message(self, *args: Any) -> None:
            pass

    return Handler
