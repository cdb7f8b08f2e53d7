"""The signed-in person, and the current organization of several."""

from typing import Annotated

import typer

from rensei.cli import config, tokens
from rensei.cli.app import app, group
from rensei.cli.errors import Refused
from rensei.cli.output import Columns
from rensei.cli.session import Session, command, note_versions

ME: Columns = {
    "Person": "user.email",
    "Organization": "org.slug",
    "Role": "role",
    "Project of the token": "projectId",
    "Machine": "host.name",
    "Scopes": "scopes",
}

contexts = group("context", help="The organizations that this machine is signed in to.")


@command(app, "whoami")
def whoami(session: Session) -> None:
    """Show the person, the organization and the machine of the token."""
    me = session.client.get("me")
    session.output.details(me, {**ME, "Server": lambda _: session.client.url})
    note_versions(session.client, session.output)


@command(app, "logout")
def logout(session: Session) -> None:
    """
    Forget the sign-in to the current organization, or to the one that --org names, with its token.

    The token is removed from this machine, and not revoked: that is done in Settings, or by `rensei host revoke`.
    """
    context = session.context
    if context is None:
        raise Refused("NOT_SIGNED_IN", "This machine is not signed in there.", fix="`rensei context list` shows where.")
    if context.token is None:
        tokens.forget(url=context.url, org=context.org)
    left = session.config.without(context)
    config.save(left)
    session.output.done({"org": context.org, "url": context.url}, f"Signed out of {context.org} at {context.url}.")
    if context.host_id:
        session.output.note(f"The machine stays registered as {context.host_id}: Settings → Machines shuts it out.")
    if left.current:
        session.output.note(f"{left.current.org} at {left.current.url} is the current organization now.")


@command(contexts, "list")
def list_contexts(session: Session) -> None:
    """List the organizations; the first one is the current one."""
    rows = [
        {
            "org": one.org,
            "url": one.url,
            "project": one.project,
            "hostId": one.host_id,
            "login": one.login,
            "tokenIn": "file" if one.token else "keyring",
        }
        for one in session.config.contexts
    ]
    columns: Columns = {
        "Organization": "org",
        "Server": "url",
        "Project": "project",
        "Machine": "hostId",
        "Login": "login",
        "Token in": "tokenIn",
    }
    session.output.table(
        {"next": None, "previous": None, "results": rows},
        columns,
        empty="This machine is not signed in: run `rensei setup`.",
    )


@command(contexts, "use")
def use_context(
    session: Session, org: Annotated[str, typer.Argument(help="Slug of the organization", show_default=False)]
) -> None:
    """Make an organization the current one."""
    found = session.config.find(url=session.url, org=org)
    if found is None:
        raise Refused("ORG_UNKNOWN", f"This machine is not signed in to {org}.", fix=f"Run `rensei setup --org {org}`.")
    config.save(session.config.with_current(found))
    session.output.done(None, f"{org} at {found.url} is the current organization.")
