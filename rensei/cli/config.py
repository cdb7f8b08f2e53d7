"""The configuration of this machine: one context for each organization with a sign-in."""

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from rensei.cli import tokens
from rensei.cli.errors import Refused


@dataclass(frozen=True, kw_only=True)
class Context:
    """A sign-in: the server, the organization, the token, and the machine that the token belongs to."""

    url: str
    org: str
    token: str | None = field(default=None, repr=False)
    """None where the keyring of the system keeps it."""
    project: str | None = None
    host_id: str | None = None
    login: str = "none"
    """How this machine reaches Anthropic: console, claude-code or none."""
    anthropic_profile: str | None = None
    """A profile of the Anthropic SDK, where it is not the active one."""


@dataclass(frozen=True, kw_only=True)
class Config:
    """All contexts. The first one is the current one."""

    contexts: tuple[Context, ...] = ()

    @property
    def current(self) -> Context | None:
        return self.contexts[0] if self.contexts else None

    def find(self, *, url: str | None = None, org: str | None = None) -> Context | None:
        """Find the sign-in for a server, an organization, or both; the current one comes first."""
        for context in self.contexts:
            if url in (None, context.url) and org in (None, context.org):
                return context
        return None

    def with_current(self, context: Context) -> "Config":
        """Put a context first, and remove an older one of the same server and organization."""
        others = [one for one in self.contexts if (one.url, one.org) != (context.url, context.org)]
        return replace(self, contexts=(context, *others))

    def without(self, context: Context) -> "Config":
        """Return the configuration without a sign-in."""
        return replace(self, contexts=tuple(one for one in self.contexts if one != context))


def token_of(context: Context) -> str:
    """:raises TokenUnreadable: if the token is in the keyring of the system, which does not return it"""
    return context.token or tokens.fetch(url=context.url, org=context.org)


def path() -> Path:
    """The path of the file: `~/.config/rensei/config.json` on Linux."""
    import platformdirs

    return platformdirs.user_config_path("rensei") / "config.json"


def load() -> Config:
    """
    Read the file; without one there are no contexts.

    :raises Refused: if it is not a configuration of this command
    """
    try:
        document = json.loads(path().read_text())
        return Config(contexts=tuple(_context(one) for one in document["contexts"]))
    except FileNotFoundError:
        return Config()
    except (OSError, ValueError, TypeError, KeyError) as fault:
        raise Refused(
            "CONFIG_UNREADABLE",
            f"{path()} cannot be read as the configuration of this command.",
            fix="Mend it, or remove it and run `rensei setup` again.",
        ) from fault


def save(config: Config) -> None:
    """
    Write the tokens to the keyring of the system, and the rest to the file.

    Without a keyring the tokens are in the file too, so it is created complete and unreadable for other users.
    """
    stored = [asdict(_without_kept_token(context)) for context in config.contexts]
    place = path()
    place.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    scratch = place.with_suffix(f".{os.getpid()}")
    with os.fdopen(os.open(scratch, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        json.dump({"contexts": stored}, file, indent=2)
        file.write("\n")
    scratch.replace(place)


def _without_kept_token(context: Context) -> Context:
    if context.token is not None and tokens.keep(url=context.url, org=context.org, token=context.token):
        return replace(context, token=None)
    return context


def _context(document: Mapping[str, Any]) -> Context:
    known = {one.name for one in fields(Context)}
    return Context(**{name: value for name, value in document.items() if name in known})
