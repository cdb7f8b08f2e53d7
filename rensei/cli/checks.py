"""The checks of `rensei doctor`: the configuration, the server, the sign-in, and the login to Anthropic."""

import platform
import sys
from dataclasses import dataclass

from rensei import __version__
from rensei.cli import config, tokens
from rensei.cli.client import Client, at
from rensei.cli.errors import ADD_ALL, Refused
from rensei.cli.machine import logins
from rensei.cli.machine.runners import Login
from rensei.cli.output import Columns, Output, Text
from rensei.cli.session import Session


def show(output: Output, checks: "list[Check]") -> None:
    """:raises Refused: if something is missing"""
    columns: Columns = {
        "": lambda row: "ok" if row["ok"] else "MISSING",
        "What": "what",
        "Found": Text("found"),
    }
    rows = [{"what": one.what, "ok": one.ok, "found": one.found, "fix": one.fix} for one in checks]
    output.table({"next": None, "previous": None, "results": rows}, columns)
    for one in checks:
        if one.fix and not output.as_json:
            output.text(f"{one.what}: {one.found.rstrip('.')}. Next: {one.fix}\n")
    missing = [one.what for one in checks if not one.ok]
    if missing:
        raise Refused("SETUP_INCOMPLETE", f"Something is missing: {', '.join(missing)}.")


@dataclass(frozen=True, kw_only=True)
class Check:
    what: str
    ok: bool
    found: str
    fix: str = ""


def check_all(session: Session, *, login: Login | None = None) -> list[Check]:
    """Check every step. Checking a login takes seconds, so one that was already checked is not checked again."""
    checks = [Check(what="Command", ok=True, found=f"version {__version__}, Python {platform.python_version()}")]
    place = config.path()
    if place.exists():
        closed = place.stat().st_mode & 0o077 == 0 or sys.platform == "win32"
        checks.append(
            Check(what="Configuration", ok=closed, found=str(place), fix="" if closed else f"chmod 600 {place}")
        )
    try:
        if session.explicit_token or session.context:
            checks.append(_check_token(session))
        client = session.client
        me = client.get("me")
    except Refused as refused:
        return [*checks, Check(what="Server", ok=False, found=refused.detail, fix=refused.fix)]
    version = client.server_version or "unknown"
    same = client.server_version in (None, __version__)
    checks.append(
        Check(
            what="Server",
            ok=same,
            found=f"{client.url}, version {version}",
            fix="" if same else f"Install version {version} of this command.",
        )
    )
    checks.append(Check(what="Sign-in", ok=True, found=f"{me['user']['email']}, {me['role']} of {me['org']['slug']}"))
    if session.project:
        checks.append(_check_project(client, session.project))
    context = session.context
    if context and context.host_id and session.explicit_token and me["host"] is None:
        other = f"the token of this call is not that of {context.host_id}: no host sessions"
        return [*checks, Check(what="Machine", ok=True, found=other, fix="Leave RENSEI_AUTH_TOKEN and --token out.")]
    if me["host"] is None or context is None:
        return [
            *checks,
            Check(what="Machine", ok=True, found="not registered: no host sessions here", fix="rensei setup"),
        ]
    checks.append(Check(what="Machine", ok=True, found=f"{me['host']['name']} ({me['host']['id']})"))
    try:
        found = login or logins.runner_for(context).look()
    except Refused as refused:
        # Only host sessions need a login.
        return [*checks, Check(what="Anthropic login", ok=True, found="none: no host sessions here", fix=refused.fix)]
    return [*checks, Check(what="Anthropic login", ok=found.works, found=found.detail, fix=found.fix)]


def _check_token(session: Session) -> Check:
    """:raises Refused: if the keyring has the token, and does not return it"""
    context = session.context
    if session.explicit_token or context is None:
        where = "--token" if session.flags.token else "RENSEI_AUTH_TOKEN"
        return Check(what="Token", ok=True, found=f"{where}, for this call")
    config.token_of(context)
    if not context.token:
        return Check(what="Token", ok=True, found=f"the keyring: {tokens.keyring_name()}")
    fix = "" if tokens.is_installed() else f"The keyring of this system could keep it. {ADD_ALL}"
    return Check(what="Token", ok=True, found=f"{config.path()}, which only you can read", fix=fix)


def _check_project(client: Client, project: str) -> Check:
    try:
        found = client.get(at("projects", project))
    except Refused as refused:
        return Check(what="Project", ok=False, found=refused.detail, fix=f"rensei project create {project}")
    return Check(what="Project", ok=True, found=f"{found['id']}, {found['name']}")
