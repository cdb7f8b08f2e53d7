"""
A small OpenID provider on loopback, for the tests: the authorization code flow with PKCE, over real HTTP.

https://openid.net/specs/openid-connect-core-1_0.html, https://openid.net/specs/openid-connect-discovery-1_0.html,
https://www.rfc-editor.org/rfc/rfc7636
"""

import base64
import hashlib
import json
import secrets
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qsl, urlencode, urlsplit

import jwt
from cryptography.hazmat.primitives.asymmetric import rsa
from jwt.algorithms import RSAAlgorithm

CLIENT_ID = "rensei"


class OpenIdProvider:
    """
    A provider with one person, whoever `person` says, who agrees to every sign-in.

    `token_claims` overrides claims of the id token, `forge` signs it with a key that is not published, and
    `leaves_out_id_token` gives none.
    """

    def __init__(self) -> None:
        self.client_secret = secrets.token_urlsafe(24)
        self.person: dict[str, Any] = {}
        self.token_claims: dict[str, Any] = {}
        self.forge = self.refuse = self.leaves_out_id_token = False
        self.requests: list[str] = []
        self._key, self._strange_key = (rsa.generate_private_key(65537, 2048) for _ in range(2))
        self._codes: dict[str, dict[str, str]] = {}
        self._access_tokens: set[str] = set()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _handler_of(self))
        self.issuer = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def stop(self) -> None:
        self._server.shutdown()
        self._server.server_close()

    def configuration(self) -> dict[str, Any]:
        return {
            "issuer": self.issuer,
            "authorization_endpoint": f"{self.issuer}/authorize",
            "token_endpoint": f"{self.issuer}/token",
            "userinfo_endpoint": f"{self.issuer}/userinfo",
            "jwks_uri": f"{self.issuer}/jwks",
            "response_types_supported": ["code"],
            "subject_types_supported": ["public"],
            "id_token_signing_alg_values_supported": ["RS256"],
            "token_endpoint_auth_methods_supported": ["client_secret_basic"],
            "code_challenge_methods_supported": ["S256"],
        }

    def keys(self) -> dict[str, Any]:
        public = json.loads(RSAAlgorithm.to_jwk(self._key.public_key()))
        return {"keys": [{**public, "kid": "one", "use": "sig", "alg": "RS256"}]}

    def authorize(self, asked: dict[str, str]) -> str:
        """Give the address that the browser is sent back to."""
        assert asked["response_type"] == "code"
        assert asked["client_id"] == CLIENT_ID
        assert "openid" in asked["scope"].split()
        assert asked["code_challenge_method"] == "S256"
        answer = {"state": asked["state"]}
        if self.refuse:
            answer["error"] = "access_denied"
        else:
            answer["code"] = code = secrets.token_urlsafe(16)
            self._codes[code] = asked
        return f"{asked['redirect_uri']}?{urlencode(answer)}"

    def token(self, given: dict[str, str], authorization: str) -> dict[str, Any] | None:
        """Exchange a code, once, for the client that proves that it asked for it."""
        expected = base64.b64encode(f"{CLIENT_ID}:{self.client_secret}".encode()).decode()
        asked = self._codes.pop(given.get("code", ""), None)
        if authorization != f"Basic {expected}" or asked is None or given["redirect_uri"] != asked["redirect_uri"]:
            return None
        digest = hashlib.sha256(given["code_verifier"].encode()).digest()
        if base64.urlsafe_b64encode(digest).rstrip(b"=").decode() != asked["code_challenge"]:
            return None
        now = int(time.time())
        claims = {
            "iss": self.issuer,
            "aud": CLIENT_ID,
            "iat": now,
            "exp": now + 300,
            "nonce": asked["nonce"],
            **self.person,
            **self.token_claims,
        }
        key = self._strange_key if self.forge else self._key
        access_token = secrets.token_urlsafe(16)
        self._access_tokens.add(access_token)
        answer = {"access_token": access_token, "token_type": "Bearer", "expires_in": 300}
        if not self.leaves_out_id_token:
            answer["id_token"] = jwt.encode(claims, key, algorithm="RS256", headers={"kid": "one"})
        return answer

    def user_info(self, authorization: str) -> dict[str, Any] | None:
        known = authorization.removeprefix("Bearer ") in self._access_tokens
        return self.person if known else None


def _handler_of(provider: OpenIdProvider) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            path = urlsplit(self.path)
            provider.requests.append(path.path)
            match path.path:
                case "/.well-known/openid-configuration":
                    self._answer(provider.configuration())
                case "/jwks":
                    self._answer(provider.keys())
                case "/userinfo":
                    self._answer(provider.user_info(self.headers.get("Authorization", "")))
                case "/authorize":
                    self.send_response(302)
                    self.send_header("Location", provider.authorize(dict(parse_qsl(path.query))))
                    self.send_header("Content-Length", "0")
                    self.end_headers()
                case _:
                    self._answer(None)

        def do_POST(self) -> None:
            provider.requests.append(self.path)
            form = dict(parse_qsl(self.rfile.read(int(self.headers["Content-Length"])).decode()))
            self._answer(provider.token(form, self.headers.get("Authorization", "")))

        def _answer(self, body: dict[str, Any] | None) -> None:
            payload = json.dumps(body or {"error": "invalid_request"}).encode()
            self.send_response(200 if body else 400)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(payload)))
            self.end_headers()
            self.wfile.write(payload)

        def log_message(self, *args: Any) -> None:
            """Keep quiet."""

    return Handler
