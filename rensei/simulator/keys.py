"""The credential of a request, and the words in it that select a behaviour."""

import hashlib
import re
from dataclasses import dataclass, field

from rensei.simulator.errors import ApiError
from rensei.simulator.model_facts import Lifecycle, Model, all_models, find_model

_SHAPE = re.compile(r"sk-ant-(api|admin|oat)(\d\d)-([A-Za-z0-9_-]{8,})")
_LINES = {"haiku", "sonnet", "opus", "fable", "mythos"}


@dataclass(frozen=True, kw_only=True)
class Account:
    """
    The organization behind a key.

    Only the key's digest is stored, so that neither a log nor a repr can show the key itself.
    """

    key_sha256: str
    words: frozenset[str] = field(default_factory=frozenset)

    @property
    def organization_id(self) -> str:
        part = self.key_sha256
        return f"{part[:8]}-{part[8:12]}-4{part[13:16]}-8{part[17:20]}-{part[20:32]}"

    @property
    def workspace_id(self) -> str:
        return f"wrkspc_{self.key_sha256[:24]}"

    def lifecycle_of(self, model: Model) -> Lifecycle:
        """
        Return the stage of a model for this organization.

        A `legacy` key represents an organization that may still call models that are retired for all others.
        """
        if model.lifecycle == "retired" and "legacy" in self.words:
            return "deprecated"
        return model.lifecycle

    def sees(self, model: Model) -> bool:
        """Whether the model is in this organization's list, regardless of its stage."""
        if "nomodels" in self.words or (model.never_served and "legacy" not in self.words):
            return False
        if model.line == "mythos" and "verified" not in self.words:
            return False
        return "only" not in self.words or model.line in self.words & _LINES

    def visible_models(self) -> list[Model]:
        return [model for model in all_models().values() if self.sees(model)]

    def model_to_serve(self, name: str) -> Model:
        """
        Find the model that a request names.

        :raises ApiError: 404, the same for an unknown, a retired and a forbidden model
        """
        model = find_model(name)
        if model is None or not self.sees(model) or self.lifecycle_of(model) == "retired":
            raise ApiError(404, f"model: {name}")
        return model


def key_digest(headers: dict[str, str]) -> str | None:
    """Return the SHA-256 of the request's credential of either kind."""
    key = _key_of(headers)
    return hashlib.sha256(key.encode()).hexdigest() if key else None


def authenticate(headers: dict[str, str], *, accepted: frozenset[str] | None) -> Account:
    """
    Authenticate a request by its key, sent as `x-api-key` or as a bearer token.

    :param accepted: if given, the SHA-256 digests of the only keys that work
    :raises ApiError: 401 as the API answers it
    """
    key = _key_of(headers)
    if not key:
        raise ApiError(401, "x-api-key header is required")
    shape = _SHAPE.fullmatch(key)
    digest = hashlib.sha256(key.encode()).hexdigest()
    if shape is None or (accepted is not None and digest not in accepted):
        raise ApiError(401, "invalid x-api-key" if "x-api-key" in headers else "Invalid bearer token")
    kind, number, secret = shape.groups()
    words = frozenset(re.split(r"[-_]", secret.lower()))
    if kind == "admin":
        raise ApiError(401, "admin credentials do not work on the Messages API")
    if kind == "api" and number == "01":
        raise ApiError(403, "This key is scoped to the Analytics and Compliance APIs.")
    if kind == "oat":
        _check_oauth_token(words, betas=headers.get("anthropic-beta", ""))
    return Account(key_sha256=digest, words=words)


def _key_of(headers: dict[str, str]) -> str:
    scheme, _, token = headers.get("authorization", "").partition(" ")
    bearer = token.strip() if scheme.lower() == "bearer" else ""
    return headers.get("x-api-key", "").strip() or bearer


def _check_oauth_token(words: frozenset[str], *, betas: str) -> None:
    if "oauth-2025-04-20" not in betas:
        raise ApiError(401, "OAuth authentication is currently not supported.")
    if "expired" in words:
        raise ApiError(401, "OAuth token has expired. Please obtain a new token or refresh your existing token.")
    if "revoked" in words:
        raise ApiError(401, "OAuth token has been revoked. Please obtain a new token.")
