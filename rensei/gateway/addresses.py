"""
Paths that clients call by mistake. The response has the client's own format and names the correct URL.

Clients append different paths to a base URL: some `/v1/messages`, some only `/messages`, and clients of OpenAI's API
other paths. Each wrong base URL leads to one of these paths.
"""

import re
from collections.abc import Mapping
from functools import lru_cache

from django.conf import settings
from django.http.request import split_domain_port, validate_host

from rensei.core.errors import FieldError, RenseiError, Said

PREFIX = "/v1/"
MESSAGES = "/v1/messages"
COUNT_TOKENS = "/v1/messages/count_tokens"
MODELS = "/v1/models"
_OF_ANTHROPIC = r"complete|messages(?:/count_tokens|/batches(?:/.*)?)?"
_OF_OPENAI = (
    r"(?:chat/completions|completions|responses|embeddings|moderations|images|audio|realtime|assistants|threads|batches|"
    r"fine_tuning|vector_stores|uploads)(?:/.*)?"
)
# Possible wrong base URLs: none, that of REST, that of another gateway, or one with an extra `/v1`.
_BASE = r"(?:/api)?(?:/anthropic|/openai)?(?:/v1){0,2}/"
# These never match a page or a REST path.
_STRAYED = re.compile(rf"{_BASE}(?:{_OF_ANTHROPIC}|{_OF_OPENAI})/?")
_OPENAIS_CALL = re.compile(rf"{_BASE}(?:{_OF_OPENAI})")
# Both APIs have files at this path; only Anthropic's sends the header `anthropic-version`.
_FILES = re.compile(r"(?:/v1)+/files(?:/.*)?")


class NotServed(RenseiError):
    """The gateway does not serve that path."""

    code = "NOT_FOUND"
    status = 404
    title = "Not served here"
    message = Said(
        "There is nothing at {path}.",
        (
            "{what}POST /v1/messages, POST /v1/messages/count_tokens and GET /v1/models are served here. As "
            "its base URL, give {url} to a client that adds /v1/messages, such as Anthropic's SDKs and "
            "Claude Code, or {url}/v1 to one that adds /messages, such as Vercel's AI SDK."
        ),
    )

    def __init__(self, path: str, *, is_openais: bool) -> None:
        self.is_openais = is_openais
        what = "This gateway speaks Anthropic's Messages API, not OpenAI's. " if is_openais else ""
        super().__init__(path=path[:100], what=what, url=settings.PUBLIC_URL)


def is_gateways(path: str) -> bool:
    """Return whether the gateway handles a path: its own, or one that a client with a wrong base URL calls."""
    return path.startswith(PREFIX) or _STRAYED.fullmatch(path) is not None


def require_host(host: str) -> None:
    """:raises FieldError: if the server does not accept the host name, which may be followed by a port"""
    if not _is_allowed(host):
        raise FieldError(
            pointer="/headers/Host",
            reason=f"This server does not answer to the host name of the request. Use {settings.PUBLIC_URL}, or have "
            "its operator add the name to RENSEI_ALLOWED_HOSTS.",
        )


@lru_cache(maxsize=256)
def _is_allowed(host: str) -> bool:
    domain, _ = split_domain_port(host)
    return bool(domain) and validate_host(domain, settings.ALLOWED_HOSTS)


def require_served(path: str, headers: Mapping[str, str]) -> None:
    """:raises NotServed: if nothing is served at this path, which has no trailing slash"""
    if path not in (MESSAGES, COUNT_TOKENS, MODELS) and not path.startswith(f"{MODELS}/"):
        is_file = _FILES.fullmatch(path) is not None and "anthropic-version" not in headers
        raise NotServed(path, is_openais=is_file or _OPENAIS_CALL.fullmatch(path) is not None)
