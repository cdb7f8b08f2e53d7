"""
Workload identity federation: `POST /v1/oauth/token` exchanges a JWT of a registered issuer for a short access token.

What is registered here takes the place of the Console's pages. Every refused assertion gets the same message, as from
the API, and the reason is in the history only.
Source: https://platform.claude.com/docs/en/manage-claude/wif-reference
"""

import asyncio
import json
import re
import secrets
import time
import urllib.request
from base64 import urlsafe_b64decode
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from hashlib import sha256
from typing import Any

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature
from cryptography.hazmat.primitives.hashes import SHA256

from rensei.simulator.errors import ApiError, invalid

_GRANT = "urn:ietf:params:oauth:grant-type:jwt-bearer"
_ASSERTION_BYTES_MAX = 16 * 1024
_LEEWAY_SECONDS = 30
_ASSERTION_SECONDS_MAX = 3600
_REQUIRED = ("grant_type", "assertion", "federation_rule_id", "organization_id", "service_account_id")
_RULE = re.compile(r"fdrl_[A-Za-z0-9]+")
_WORKSPACE = re.compile(r"wrkspc_[A-Za-z0-9]+|default")
_HELD_MAX = 100_000


class Denied(Exception):
    """An assertion that is not accepted. The reason is shown in the history only."""


@dataclass(frozen=True, kw_only=True)
class Rule:
    """A federation rule. `words` select the behaviour of the account, as those of a key do."""

    id: str
    organization_id: str
    service_account_id: str
    subject: str
    audience: str
    workspaces: tuple[str, ...] = ("default",)
    token_seconds: int = 600
    archived: bool = False
    words: str = "federated"
    delay_seconds: float = 0.0


@dataclass(kw_only=True)
class _Issued:
    expires_at: float
    service_account_id: str


@dataclass
class Federation:
    """The registered issuer and rules, the tokens that were issued, and the history of exchanges."""

    issuer: str = ""
    inline_keys: list[dict[str, Any]] | None = None
    cached_seconds: float = 60.0
    rules: dict[str, Rule] = field(default_factory=dict)
    history: deque[dict[str, Any]] = field(default_factory=lambda: deque(maxlen=_HELD_MAX))
    _tokens: dict[str, _Issued] = field(default_factory=dict)
    _used: set[str] = field(default_factory=set)
    _fetched: tuple[float, list[dict[str, Any]]] = (0.0, [])

    def register(self, document: Mapping[str, Any]) -> None:
        """Register an issuer with its rules, in place of the earlier one."""
        self.issuer = document["issuer"]
        self.inline_keys = document.get("keys")
        self.cached_seconds = document.get("cachedSeconds", 60.0)
        self.rules = {row["id"]: Rule(**{**row, "workspaces": tuple(row["workspaces"])}) for row in document["rules"]}
        self._fetched = (0.0, [])

    def revoke_tokens(self) -> None:
        """End all tokens before their time."""
        for issued in self._tokens.values():
            issued.expires_at = 0.0

    @property
    def digests(self) -> frozenset[str]:
        return frozenset(self._tokens)

    def check_token(self, digest: str, headers: Mapping[str, str]) -> None:
        """
        Check a token that was issued here, when it is used.

        :raises ApiError: 401 after its end; 400 if the request names a workspace, which the token does already
        """
        issued = self._tokens.get(digest)
        if issued is None:
            return
        if time.time() >= issued.expires_at:
            raise ApiError(401, "OAuth token has expired. Please obtain a new token or refresh your existing token.")
        if "anthropic-workspace-id" in headers:
            raise ApiError(400, "anthropic-workspace-id is not supported with a federated token")

    async def exchange(self, raw: bytes) -> dict[str, Any]:
        """
        Exchange an assertion for a token.

        :raises ApiError: 400 if the request is malformed, 401 for every assertion that is not accepted
        """
        request = _read(raw)
        entry: dict[str, Any] = {"ruleId": request["federation_rule_id"], "reason": None}
        try:
            rule = self._rule(request["federation_rule_id"])
            claims = await self._verified(request["assertion"])
            entry["claims"] = claims
            _match(rule, claims, request)
            self._require_unused(claims)
            await asyncio.sleep(rule.delay_seconds)
        except Denied as denied:
            entry["reason"] = str(denied)
            raise ApiError(401, "Authentication failed") from None
        finally:
            self.history.append(entry)
        seconds = max(60, min(rule.token_seconds, int(2 * (claims["exp"] - time.time()))))
        token = f"sk-ant-oat01-{rule.words}-{secrets.token_hex(24)}"
        self._tokens[sha256(token.encode()).hexdigest()] = _Issued(
            expires_at=time.time() + seconds, service_account_id=rule.service_account_id
        )
        return {
            "access_token": token,
            "token_type": "Bearer",
            "expires_in": seconds,
            "scope": "workspace:developer",
        }

    def _rule(self, rule_id: str) -> Rule:
        rule = self.rules.get(rule_id)
        if rule is None or rule.archived:
            raise Denied("rule_unknown")
        return rule

    async def _verified(self, assertion: str) -> dict[str, Any]:
        """:raises Denied: if the signature, the issuer or the times are wrong"""
        if len(assertion.encode()) > _ASSERTION_BYTES_MAX:
            raise Denied("assertion_too_large")
        try:
            header_part, claims_part, signature_part = assertion.split(".")
            header, claims = json.loads(_decoded(header_part)), json.loads(_decoded(claims_part))
            signature = _decoded(signature_part)
        except ValueError:
            raise Denied("assertion_malformed") from None
        if header.get("alg") != "ES256":
            raise Denied("alg_not_allowed")  # Others are allowed by the API, and not verified here.
        if claims.get("iss") != self.issuer:
            raise Denied("issuer_mismatch")
        key = next((one for one in await self._keys() if one["kid"] == header.get("kid")), None)
        if key is None:
            raise Denied("kid_unknown")
        if not _is_signed(f"{header_part}.{claims_part}".encode(), signature, key):
            raise Denied("signature_invalid")
        _check_times(claims)
        if not claims.get("sub"):
            raise Denied("sub_missing")
        return dict(claims)

    async def _keys(self) -> list[dict[str, Any]]:
        if self.inline_keys is not None:
            return self.inline_keys
        fetched_at, keys = self._fetched
        if not keys or time.monotonic() - fetched_at >= self.cached_seconds:
            try:
                keys = await asyncio.to_thread(_fetch_keys, self.issuer)
            except (OSError, ValueError, KeyError):
                raise Denied("jwks_unavailable") from None
            self._fetched = (time.monotonic(), keys)
        return keys

    def _require_unused(self, claims: Mapping[str, Any]) -> None:
        used = claims.get("jti")
        if used in self._used:
            raise Denied("jti_reused")
        if used:
            self._used.add(used)


def _read(raw: bytes) -> dict[str, str]:
    try:
        request = json.loads(raw)
    except ValueError:
        raise ApiError(400, "The body is not JSON.") from None
    for name in _REQUIRED:
        if not isinstance(request, dict) or not isinstance(request.get(name), str):
            raise invalid(name, "Field required")
    if request["grant_type"] != _GRANT:
        raise invalid("grant_type", "is not supported")
    if not _RULE.fullmatch(request["federation_rule_id"]):
        raise invalid("federation_rule_id", "must be a well-formed fdrl_ ID")
    workspace = request.get("workspace_id")
    if workspace is not None and not _WORKSPACE.fullmatch(str(workspace)):
        raise invalid("workspace_id", "must be a wrkspc_ ID or the literal `default`")
    return dict(request)


def _match(rule: Rule, claims: Mapping[str, Any], request: Mapping[str, str]) -> None:
    subject, audience = claims["sub"], claims.get("aud")
    prefix, is_prefix = rule.subject.removesuffix("*"), rule.subject.endswith("*")
    if not (subject.startswith(prefix) if is_prefix else subject == rule.subject):
        raise Denied("match_subject_prefix")
    if rule.audience not in (audience if isinstance(audience, list) else [audience]):
        raise Denied("match_audience")
    if request["organization_id"].lower() != rule.organization_id.lower():
        raise Denied("organization_mismatch")
    if request["service_account_id"] != rule.service_account_id:
        raise Denied("service_account_mismatch")
    workspace = request.get("workspace_id")
    if workspace is None and len(rule.workspaces) > 1:
        raise Denied("workspace_id_required")
    if workspace is not None and workspace not in rule.workspaces:
        raise Denied("workspace_not_enabled")


def _check_times(claims: Mapping[str, Any]) -> None:
    now = time.time()
    issued, expires = claims.get("iat"), claims.get("exp")
    if not isinstance(issued, int) or issued > now + _LEEWAY_SECONDS:
        raise Denied("iat_invalid")
    if not isinstance(expires, int) or expires < now - _LEEWAY_SECONDS:
        raise Denied("expired")
    if expires - issued > _ASSERTION_SECONDS_MAX:
        raise Denied("lifetime_too_long")


def _is_signed(message: bytes, signature: bytes, key: Mapping[str, str]) -> bool:
    x, y = (int.from_bytes(_decoded(key[name])) for name in ("x", "y"))
    if len(signature) != 64:
        return False
    der = encode_dss_signature(int.from_bytes(signature[:32]), int.from_bytes(signature[32:]))
    try:
        ec.EllipticCurvePublicNumbers(x, y, ec.SECP256R1()).public_key().verify(der, message, ec.ECDSA(SHA256()))
    except InvalidSignature:
        return False
    return True


def _fetch_keys(issuer: str) -> list[dict[str, Any]]:
    """Read the keys as discovery does. Here the issuer may be at `http`, on loopback."""
    with urllib.request.urlopen(f"{issuer}/.well-known/openid-configuration", timeout=5) as answer:  # noqa: S310
        document = json.load(answer)
    if document["issuer"] != issuer:
        raise ValueError("another issuer")
    with urllib.request.urlopen(document["jwks_uri"], timeout=5) as answer:  # noqa: S310
        return list(json.load(answer)["keys"])


def _decoded(text: str) -> bytes:
    return urlsafe_b64decode(text + "=" * (-len(text) % 4))
