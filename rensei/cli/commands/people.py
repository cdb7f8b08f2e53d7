"""The members of the organization, and its audit log."""

from typing import Annotated

import typer

from rensei.cli import completion
from rensei.cli.app import group
from rensei.cli.client import at
from rensei.cli.errors import Refused
from rensei.cli.inputs import Yes, confirm
from rensei.cli.output import Columns, Text
from rensei.cli.session import Session, command

members = group("member", help="The people of the organization, and their roles.")
audits = group("audit", help="The audit log: who did what to which object.")

ROLES = ("owner", "admin", "member", "auditor")
MEMBERS: Columns = {"Email": "email", "Role": "role", "Name": Text("name"), "Since": "createdAt", "Id": "id"}
INVITATION: Columns = {
    "Invitation": "id",
    "Email": "email",
    "Role": "role",
    "Mailed": "mailed",
    "Expires": "expiresAt",
    "Link": "link",
}
EVENTS: Columns = {
    "When": "occurredAt",
    "Action": "action",
    "Object": "objectId",
    "Actor": Text("actor"),
    "Detail": Text("detail"),
    "From": "address",
    "Token": "tokenId",
}
Member = Annotated[
    str,
    typer.Argument(
        metavar="MEMBER", help="Email or id of the member", show_default=False, autocompletion=completion.members
    ),
]
Role = Annotated[
    str,
    typer.Option(
        help="owner, admin, member or auditor", show_default=False, autocompletion=completion.of_words(*ROLES)
    ),
]


@command(members, "list")
def list_members(session: Session) -> None:
    """List the members."""
    session.output.table(session.client.list("members"), MEMBERS)


@command(members, "invite")
def invite_member(
    session: Session,
    email: Annotated[str, typer.Argument(metavar="EMAIL", help="Whom to invite", show_default=False)],
    role: Role = "member",
) -> None:
    """Invite a person by mail. Where the server sends no mail, the link is shown once: hand it over."""
    invitation = session.client.post("members", {"email": email, "role": role.lower()})
    session.output.details(invitation, INVITATION)


@command(members, "role")
def change_role(session: Session, member: Member, role: Role) -> None:
    """Give a member another role."""
    changed = session.client.patch(at("members", _find(session, member)), {"role": role.lower()})
    session.output.details(changed, MEMBERS)


@command(members, "remove")
def remove_member(session: Session, member: Member, yes: Yes = False) -> None:
    """Remove a member. The member's tokens and machines end at once."""
    member_id = _find(session, member)
    confirm(f"Remove {member} from the organization?", yes=yes, otherwise=f"{member} was not removed.")
    session.client.delete(at("members", member_id))
    session.output.done(None, f"Removed {member}.")


@command(audits, "list")
def list_events(
    session: Session,
    actor: Annotated[str | None, typer.Option(help="Only what this person or command did")] = None,
    action: Annotated[str | None, typer.Option(help="Only this action, such as integration.rotated")] = None,
    object_id: Annotated[str | None, typer.Option("--object", metavar="ID", help="Only what concerns this")] = None,
    words: Annotated[str | None, typer.Option("--search", metavar="WORDS", help="Only where each word occurs")] = None,
    since: Annotated[str | None, typer.Option("--from", metavar="DAY", help="First day, 2026-11-01")] = None,
    until: Annotated[str | None, typer.Option("--to", metavar="DAY", help="Last day, included")] = None,
    limit: Annotated[int, typer.Option(help="How many, the newest first", min=1)] = 20,
) -> None:
    """List events, the newest first. Owners, admins and auditors may."""
    query = {"actor": actor, "action": action, "objectId": object_id, "q": words, "from": since, "to": until}
    session.output.table(session.client.list("audit-events", limit=limit, **query), EVENTS)


def _find(session: Session, member: str) -> str:
    """
    Return an id unchanged, and look up an email address.

    :raises Refused: if no member has this address
    """
    if "@" not in member:
        return member
    for row in session.client.list("members")["results"]:
        if row["email"].lower() == member.lower():
            return str(row["id"])
    raise Refused("NOT_FOUND", f"No member has the address {member}.", fix="`rensei member list` shows them.")
