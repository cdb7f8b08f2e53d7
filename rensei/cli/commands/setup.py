"""`rensei setup` signs this machine in, step by step; `rensei doctor` checks every step again."""

import platform
import sys
import time
from dataclasses import replace
from typing import Annotated, Any

import typer

from rensei.cli import config
from rensei.cli.app import app
from rensei.cli.checks import check_all, show
from rensei.cli.client import Client, at
from rensei.cli.config import Context
from rensei.cli.errors import Refused
from rensei.cli.inputs import read_secret
from rensei.cli.machine import logins
from rensei.cli.machine.runners import Login
from rensei.cli.output import Output
from rensei.cli.session import Flags, Session, check_org, check_url, command, note_versions
from rensei.cli.tokens import TokenUnreadable

USUAL_URL = "http://127.0.0.1:8000"
GUIDE = """\
To run host-session profiles here, log in with one of Anthropic's own tools:
  ant auth login       a Console login; the account of its organization pays
  claude, then /login  your own Claude plan, used through your own `claude` program
Rensei never sees either login. Run `rensei setup` again afterwards."""


@command(app, "setup")
def setup(
    session: Session,
    interactive: Annotated[bool, typer.Option("--interactive/--no-interactive", help="Ask for what is missing")] = True,
    host_name: Annotated[str | None, typer.Option(help="What to call this machine; else its own name")] = None,
    login: Annotated[str | None, typer.Option(help="Login to Anthropic: console, claude-code or none")] = None,
    anthropic_profile: Annotated[
        str | None, typer.Option(help="Profile of the Anthropic SDK, where it is not the active one")
    ] = None,
) -> None:
    """
    Sign in, choose a project, register this machine, and find its login to Anthropic.

    Signing in happens in the browser, by a code that both sides show, or with a token. Running it again is harmless.
    """
    if login not in (None, *logins.CHOICES):
        raise typer.BadParameter(f"One of {', '.join(logins.CHOICES)}.", param_hint="--login")
    steps = _Setup(
        session, asks=interactive and sys.stdin.isatty(), host_name=host_name or platform.node() or "machine"
    )
    steps.sign_in()
    steps.choose_project()
    steps.register()
    steps.choose_login(login, anthropic_profile)
    steps.end()


@command(app, "doctor")
def doctor(session: Session) -> None:
    """Check everything that this command needs. Ends with 1 where something is missing."""
    show(session.output, check_all(session))


class _Setup:
    """The steps in order. Each writes its result to `context`, which is stored after every step."""

    def __init__(self, session: Session, *, asks: bool, host_name: str) -> None:
        self._session = session
        self._asks = asks
        self._host_name = host_name
        self._output: Output = session.output
        self._context: Context | None = None
        self._client: Client
        self._me: dict[str, Any]
        self._machine_token: str | None = None
        self._logins: dict[str, Login] = {}

    def sign_in(self) -> None:
        session = self._session
        # A new organization may be on a server that is already configured.
        known = session.context or (session.config.current if session.url is None else None)
        url = session.url or (known.url if known else None)
        if url is None:
            url = check_url(self._ask("Address of the server", USUAL_URL, flag="--url"))
        token = session.explicit_token or (self._stored_token(session.context) if session.context else None)
        if token and not session.explicit_token and not _still_works(url, token):
            self._output.note(f"The stored sign-in to {url} does not work any more.")
            token = None
        if token is None:
            token = self._approve_in_browser(url)
        self._client = Client(url=url, token=token)
        self._me = self._client.get("me")
        slug = self._me["org"]["slug"]
        if session.flags.org:
            check_org(self._me, session.flags.org)
        older = session.config.find(url=url, org=slug)
        if older and older.host_id and not self._me["host"]:
            # Read now, because the next line replaces it by the person's token.
            self._machine_token = self._stored_token(older)
        self._keep(replace(older, token=token) if older else Context(url=url, org=slug, token=token))
        self._output.note(f"Signed in to {slug} at {url} as {self._me['user']['email']}.")
        note_versions(self._client, self._output)

    def choose_project(self) -> None:
        assert self._context
        chosen = self._session.flags.project or self._me["projectId"]
        if chosen is None and self._asks:
            projects = [project["id"] for project in self._client.list("projects")["results"]]
            if projects:
                self._output.note(f"Projects: {', '.join(projects)}")
                chosen = self._ask("Project to work in, or nothing", self._context.project or "", flag="--project")
        if chosen:
            try:
                self._client.get(at("projects", chosen))
            except Refused as refused:
                if refused.code != "NOT_FOUND":
                    raise
                fix = f"Create it: rensei project create {chosen}"
                raise Refused("NOT_FOUND", f"There is no project {chosen} here.", fix=fix) from refused
            self._keep(replace(self._context, project=chosen))

    def register(self) -> None:
        """Register this machine, and store its own token instead of the person's."""
        assert self._context
        host = self._me["host"]
        if host:
            self._keep(replace(self._context, host_id=host["id"]))
        elif self._machine_token and _still_works(self._context.url, self._machine_token):
            self._use_token(self._machine_token)
        elif self._me["role"] == "auditor":
            self._output.note("An auditor does not run anything, so this machine is not registered.")
            return
        elif "manage" not in self._me["scopes"]:
            self._output.note("The token lacks the scope manage, so this machine is not registered: no host sessions.")
            return
        else:
            # The terminal acts for the person: its token has their scopes, and that for carrying out runs.
            scopes = sorted({*self._me["scopes"], "leases"})
            host = self._client.post("hosts", {"name": self._host_name, "scopes": scopes})
            self._keep(replace(self._context, host_id=host["id"]))
            self._use_token(host["token"])
        self._output.note(f"This machine is registered as {self._client.get('me')['host']['name']}.")

    def choose_login(self, login: str | None, profile: str | None) -> None:
        assert self._context
        if self._context.host_id is None:
            return
        profile = profile or self._context.anthropic_profile
        self._logins = found = logins.look_at_all(profile) if login != "none" else {}
        for name, one in found.items():
            self._output.note(f"{name}: {one.detail}")
        if login is None:
            login = self._choose_among(found)
        elif login in found and not found[login].works:
            self._output.note(found[login].fix)
        self._client.patch(at("hosts", str(self._context.host_id)), {"login": login})
        self._keep(replace(self._context, login=login, anthropic_profile=profile))
        if login == "none":
            self._output.note(GUIDE)

    def end(self) -> None:
        """Check everything again, except the login that was just checked, and print what to do next."""
        assert self._context
        if self._output.as_json:
            stored = {"org": self._context.org, "url": self._context.url, "project": self._context.project}
            kept = config.load().find(url=self._context.url, org=self._context.org)
            stored["tokenIn"] = "file" if kept and kept.token else "keyring"
            self._output.json({**stored, "hostId": self._context.host_id, "login": self._context.login})
            return
        session = Session(flags=Flags(url=self._context.url, org=self._context.org))
        checks = check_all(session, login=self._logins.get(self._context.login or ""))
        show(self._output, checks)
        self._output.note("Ready. Next:")
        for line in (
            "rensei doctor                          check everything",
            "rensei catalog list --provider claude  see the models",
            "rensei profile list                    see the profiles",
            'rensei dispatch --input "Hello"        ask with the default profile',
            *(
                ["rensei worker                          carry out what others queue for this machine"]
                if self._context.login != "none"
                else []
            ),
        ):
            self._output.note(f"  {line}")

    def _approve_in_browser(self, url: str) -> str:
        """Wait until the person has approved this machine in the browser, where they are signed in."""
        if not self._asks:
            raise Refused(
                "TOKEN_MISSING",
                f"No token for {url} is known.",
                fix="Send one to standard input with --token -, set RENSEI_AUTH_TOKEN, or run it in a terminal.",
            )
        with Client(url=url, token="") as client:
            try:
                code = client.post("device-codes", {"hostName": self._host_name})
            except Refused as refused:
                if refused.code not in ("NOT_FOUND", "NOT_AUTHENTICATED"):
                    raise
                self._output.note(f"Make a token in the browser: {url}, Settings, API tokens.")
                return read_secret("Token")
            self._output.note(f"Open {code['verificationUriComplete']}")
            self._output.note(f"and approve the code {code['userCode']}, if it is the one that is shown there.")
            deadline = time.monotonic() + code["expiresIn"]
            while time.monotonic() < deadline:
                time.sleep(code["interval"])
                try:
                    return str(client.post("device-codes/token", {"deviceCode": code["deviceCode"]})["token"])
                except Refused as refused:
                    if refused.code != "DEVICE_CODE_PENDING" and not refused.is_temporary:
                        raise
        raise Refused("DEVICE_CODE_INVALID", "The code was not approved in time.", fix="Run `rensei setup` again.")

    def _choose_among(self, found: dict[str, Login]) -> str:
        """Choose a Console login without a question, and the person's own `claude` only with their consent."""
        assert self._context
        if found["console"].works:
            return "console"
        if found["claude-code"].works:
            if self._context.login == "claude-code":
                return "claude-code"
            if self._asks and typer.confirm("Use your own `claude` for your runs on this machine?", err=True):
                return "claude-code"
            self._output.note("`rensei setup --login claude-code` uses your own `claude` for your runs here.")
        return "none"

    def _stored_token(self, context: Context) -> str | None:
        """Return the stored token; None if the keyring does not return it, and the person has to sign in again."""
        try:
            return config.token_of(context)
        except TokenUnreadable as unreadable:
            self._output.note(unreadable.detail)
            return None

    def _use_token(self, token: str) -> None:
        assert self._context
        self._keep(replace(self._context, token=token))
        self._client = Client(url=self._context.url, token=token)

    def _keep(self, context: Context) -> None:
        self._context = context
        config.save(config.load().with_current(context))

    def _ask(self, what: str, usual: str, *, flag: str) -> str:
        if not self._asks:
            raise Refused("SETTING_MISSING", f"{what} is not known.", fix=f"Give it with {flag}.")
        return str(typer.prompt(what, default=usual, err=True, show_default=bool(usual)))


def _still_works(url: str, token: str) -> bool:
    with Client(url=url, token=token) as client:
        try:
            client.get("me")
        except Refused as refused:
            if refused.code != "NOT_AUTHENTICATED":
                raise
            return False
    return True
