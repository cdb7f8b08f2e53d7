"""One call of the command: its flags, the environment, the configuration, and the client made from them."""

import functools
import inspect
import os
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, fields, is_dataclass, replace
from enum import StrEnum
from functools import cached_property
from typing import Annotated, Any
from urllib.parse import urlsplit

import typer

from rensei import __version__
from rensei.cli import config
from rensei.cli.client import Client, at
from rensei.cli.config import Context
from rensei.cli.errors import ADD_ALL, Refused, refusal_of_this_machine
from rensei.cli.output import Output, compile_filter, drop_unwritable_output

INTERRUPTED = 130
LOOPBACK = ("127.0.0.1", "localhost", "::1")
GLOBAL = "global_"


class Format(StrEnum):
    TABLE = "table"
    JSON = "json"


def _projects(ctx: typer.Context, incomplete: str) -> list[str]:
    # The completion of values needs a session itself.
    from rensei.cli.completion import projects

    return projects(ctx, incomplete)


@dataclass(frozen=True, kw_only=True)
class Flags:
    """The options of every command. Those after the subcommand have priority over those before it."""

    url: Annotated[str | None, typer.Option("--url", help="Address of the server [env: RENSEI_API_URL]")] = None
    token: Annotated[
        str | None,
        typer.Option("--token", metavar="-", help="Read the token from standard input [env: RENSEI_AUTH_TOKEN]"),
    ] = None
    org: Annotated[str | None, typer.Option("--org", help="Organization, of those signed in to")] = None
    project: Annotated[str | None, typer.Option("--project", help="Project to work in", autocompletion=_projects)] = (
        None
    )
    json: Annotated[bool, typer.Option("--json", help="Write the server's JSON")] = False
    format: Annotated[Format | None, typer.Option("--format", help="table or json")] = None
    jq: Annotated[str | None, typer.Option("--jq", metavar="PROGRAM", help="Write what this program of jq selects")] = (
        None
    )
    debug: Annotated[bool, typer.Option("--debug", help="Show where an error comes from")] = False

    def over(self, earlier: "Flags") -> "Flags":
        given = {one.name: getattr(self, one.name) for one in fields(self) if getattr(self, one.name)}
        return replace(earlier, **given)


@dataclass
class Session:
    """The context of a command. Each value is read at its first use."""

    flags: Flags
    _stack: ExitStack = field(default_factory=ExitStack)

    @cached_property
    def output(self) -> Output:
        """:raises BadParameter: if the program of --jq is not valid, or no library to run it is installed"""
        jq = self.flags.jq
        try:
            compiled = None if jq is None else compile_filter(jq)
        except ModuleNotFoundError as fault:
            raise typer.BadParameter(f"the library of jq is not installed. {ADD_ALL}", param_hint="--jq") from fault
        except ValueError as fault:
            reason = str(fault).splitlines()[0].removeprefix("jq: error: ")
            raise typer.BadParameter(f"this is no program of jq: {reason}.", param_hint="--jq") from fault
        return Output(as_json=self.flags.json or self.flags.format is Format.JSON, jq=compiled)

    @cached_property
    def config(self) -> config.Config:
        return config.load()

    @cached_property
    def url(self) -> str | None:
        """The server that the flags or the environment name."""
        given = self.flags.url or os.environ.get("RENSEI_API_URL")
        return check_url(given) if given else None

    @cached_property
    def explicit_token(self) -> str | None:
        """The token that was given for this call."""
        if self.flags.token is not None:
            # A pipe may end with a newline or not.
            token = sys.stdin.readline().strip()
            if not token:
                raise Refused("TOKEN_MISSING", "--token - reads the token from standard input, which was empty.")
            return token
        return os.environ.get("RENSEI_AUTH_TOKEN") or None

    @cached_property
    def context(self) -> Context | None:
        """The stored sign-in for the flags, never one of another server, to which its token would leak."""
        return self.config.find(url=self.url, org=self.flags.org)

    @cached_property
    def client(self) -> Client:
        """
        Make a client that is signed in.

        :raises Refused: if no server or no token is configured, or the token is of another organization than requested
        """
        url = self.url or (self.context.url if self.context else None)
        token = self.explicit_token or (config.token_of(self.context) if self.context else None)
        if self.flags.org and token is None and self.config.contexts:
            known = ", ".join(sorted({context.org for context in self.config.contexts}))
            raise Refused(
                "ORG_UNKNOWN",
                f"This machine is not signed in to {self.flags.org}. Known: {known}.",
                fix=f"Run `rensei setup --org {self.flags.org}`.",
            )
        if url is None or token is None:
            raise Refused(
                "NOT_SIGNED_IN",
                f"No {'server' if url is None else f'token for {url}'} is known.",
                fix="Run `rensei setup`, or set RENSEI_API_URL and RENSEI_AUTH_TOKEN.",
            )
        client = self._stack.enter_context(Client(url=url, token=token))
        if self.flags.org and self.explicit_token:
            check_org(client.get("me"), self.flags.org)
        return client

    def page(self, *parts: str) -> str:
        """The address of a page of the organization."""
        org = self.client.get("me")["org"]["slug"]
        return f"{self.client.url}/o/{at(org, *parts)}"

    @property
    def project(self) -> str | None:
        return self.flags.project or (self.context.project if self.context else None)

    def close(self) -> None:
        self._stack.close()


def check_url(url: str) -> str:
    """
    Normalize a URL to the form in which it is stored.

    :raises Refused: if it is not the URL of a web server
    """
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.username or parts.query or parts.fragment:
        raise Refused(
            "URL_INVALID",
            "The address of the server is not one of a web server.",
            fix="It looks like https://rensei.example or http://127.0.0.1:8000.",
        )
    return url.rstrip("/").removesuffix("/api/v1")


def check_org(me: dict[str, Any], org: str) -> None:
    """:raises Refused: if a token is not of this organization"""
    if me["org"]["slug"] != org:
        raise Refused(
            "ORG_MISMATCH",
            f"The token is of the organization {me['org']['slug']}, not of {org}.",
            fix="A token is of one organization: make one in the other, or leave --org out.",
        )


def note_versions(client: Client, output: Output) -> None:
    """Print a note if this command and the server have different versions."""
    if client.server_version and client.server_version != __version__:
        output.note(
            f"This command is version {__version__}, the server {client.server_version}. "
            "Install the same version where something is missing or refused."
        )


def command(
    group: typer.Typer, name: str, *, context_settings: dict[str, Any] | None = None
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """
    Make a function a command of a group. Its first argument is the session; the options of every command are added.

    A parameter whose type is a dataclass becomes one option for each of its fields. Refusals of the function are
    written to standard error, and end the command with 1.
    """

    def register(function: Callable[..., None]) -> Callable[..., None]:
        @functools.wraps(function)
        def run(ctx: typer.Context, **values: Any) -> None:
            session = Session(flags=_take(Flags, values, prefix=GLOBAL).over(ctx.obj or Flags()))
            groups = {one.name: _take(one.annotation, values) for one in own if is_dataclass(one.annotation)}
            with _ends(session):
                function(session, **values, **groups)

        own = list(inspect.signature(function, eval_str=True).parameters.values())[1:]
        parameters = [inspect.Parameter("ctx", inspect.Parameter.POSITIONAL_OR_KEYWORD, annotation=typer.Context)]
        for one in own:
            if is_dataclass(one.annotation):
                parameters += _parameters(one.annotation)
            else:
                parameters.append(one.replace(kind=inspect.Parameter.KEYWORD_ONLY))
        parameters += _parameters(Flags, prefix=GLOBAL)
        run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        run.__annotations__ = {}
        group.command(name, context_settings=context_settings)(run)
        return function

    return register


def before_commands(ctx: typer.Context, **values: Any) -> None:
    """Store the flags that come before the subcommand."""
    ctx.obj = _take(Flags, values, prefix=GLOBAL)


def _show_version(asked: bool) -> None:
    if asked:
        print(f"rensei {__version__}")
        raise typer.Exit


def _take(kind: Any, values: dict[str, Any], *, prefix: str = "") -> Any:
    """Remove the values of a dataclass from those of Typer, and build it from them."""
    return kind(**{one.name: values.pop(prefix + one.name) for one in fields(kind)})


def _parameters(kind: Any, *, prefix: str = "") -> list[inspect.Parameter]:
    """The fields of a dataclass as parameters. A prefix distinguishes them from a command's own."""
    return [
        inspect.Parameter(prefix + one.name, inspect.Parameter.KEYWORD_ONLY, default=one.default, annotation=one.type)
        for one in fields(kind)
    ]


before_commands.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
    [
        inspect.Parameter("ctx", inspect.Parameter.POSITIONAL_OR_KEYWORD, annotation=typer.Context),
        inspect.Parameter(
            "version",
            inspect.Parameter.KEYWORD_ONLY,
            default=False,
            annotation=Annotated[
                bool,
                typer.Option("--version", is_eager=True, callback=_show_version, help="Show this command's version"),
            ],
        ),
        *_parameters(Flags, prefix=GLOBAL),
    ]
)


@contextmanager
def _ends(session: Session) -> Iterator[None]:
    try:
        if session.flags.token not in (None, "-"):
            raise typer.BadParameter(
                "give - and send the token to standard input, or set RENSEI_AUTH_TOKEN: "
                "other users of this machine can read command lines.",
                param_hint="--token",
            )
        # An invalid program of --jq is reported before the command does anything.
        _ = session.output
        yield
        sys.stdout.flush()
    except BrokenPipeError:
        # The reader of a pipe has closed it, as `head` does: the library ends the command silently.
        raise
    except (Refused, OSError, UnicodeError) as fault:
        if session.flags.debug:
            traceback.print_exc()
        session.output.refusal(fault if isinstance(fault, Refused) else refusal_of_this_machine(fault))
        raise typer.Exit(1) from None
    except KeyboardInterrupt:
        raise typer.Exit(INTERRUPTED) from None
    finally:
        session.close()
        drop_unwritable_output()
