"""The kinds of keys that Anthropic issues, and which of them a server may store."""

import re

from integrations.providers.base import KeyKindRefused
from rensei.core.errors import FieldError
from rensei.core.secret import Secret

_KEYS_PAGE = "https://platform.claude.com/settings/keys"
_CHARACTERS_MAX = 512
_API_KEY = re.compile(r"sk-ant-api\d\d-[A-Za-z0-9_-]{20,}")
# Source for the kinds: https://platform.claude.com/docs/en/manage-claude/authentication
_REFUSED_KINDS = (
    (
        re.compile(r"sk-ant-admin"),
        (
            "This is an Admin key (sk-ant-admin…). It manages a whole Anthropic organization and cannot call models. "
            f"Make an API key (sk-ant-api03-…) at {_KEYS_PAGE}."
        ),
    ),
    (
        re.compile(r"sk-ant-oat"),
        (
            "This is an OAuth access token (sk-ant-oat…) of someone's own sign-in and must not leave their machine. "
            "Use auth mode host-session for it, or make an API key (sk-ant-api03-…)."
        ),
    ),
    (
        re.compile(r"sk-ant-ort"),
        (
            "This is an OAuth refresh token (sk-ant-ort…) of someone's own sign-in and must not leave their machine. "
            "Use auth mode host-session for it, or make an API key (sk-ant-api03-…)."
        ),
    ),
    (
        re.compile(r"sk-ant-api01-"),
        (
            "This is a Claude Enterprise key (sk-ant-api01-…) for the Analytics and Compliance APIs, and cannot call "
            f"models. Make an API key (sk-ant-api03-…) at {_KEYS_PAGE}."
        ),
    ),
    (re.compile(r"rsk_"), f"This is a Rensei token (rsk_…). Here belongs an API key of Anthropic, from {_KEYS_PAGE}."),
    (
        re.compile(r"sk-(proj|svcacct|or)-"),
        f"This looks like the key of another provider. Here belongs an API key of Anthropic, from {_KEYS_PAGE}.",
    ),
)


def check_key(key: Secret, *, base_url: str = "") -> None:
    """
    Check the format of a pasted key, without network access. No message repeats any part of it.

    At an organization's own address, a gateway may use keys of any format.

    :raises KeyKindRefused: if it is a key of another kind
    :raises FieldError: if it is not a key
    """
    text = key.reveal()
    if not text.strip():
        raise _malformed("The API key is empty. Paste the key.")
    for kind, reason in _REFUSED_KINDS:
        if kind.match(text.strip()):
            raise KeyKindRefused(reason=reason)
    if len(text) > _CHARACTERS_MAX:
        raise _malformed(f"The API key is longer than {_CHARACTERS_MAX} characters. Paste the key and nothing else.")
    if any(character.isspace() for character in text):
        raise _malformed("The API key has a space or line break around it or in it. Copy it again, on one line.")
    if not text.isascii() or not text.isprintable():
        raise _malformed("The API key has characters that no key has. Copy it again, directly from the Console.")
    if base_url and len(text) < 8:
        raise _malformed("The API key is too short. Copy it again.")
    if not base_url and not _API_KEY.fullmatch(text):
        raise _malformed(
            f"This does not look like an API key of Anthropic. One begins with sk-ant-api03- and is shown once, "
            f"when it is made at {_KEYS_PAGE}."
        )


def _malformed(reason: str) -> FieldError:
    return FieldError(pointer="/apiKey", reason=reason)
