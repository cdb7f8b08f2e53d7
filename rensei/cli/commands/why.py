"""`rensei why`: every gate of a dispatch, without making it."""

from typing import Annotated, Any

import typer

from rensei.cli import completion
from rensei.cli.app import app
from rensei.cli.commands.profiles import Effort, Pool
from rensei.cli.errors import Refused
from rensei.cli.output import Columns, Text
from rensei.cli.session import Session, command

DETAILS: Columns = {
    "Member": "member",
    "Role": "role",
    "Profile": "profileId",
    "Project": "projectId",
    "Pool": "pool",
    "Would run": "wouldRun",
    "Auth mode": "authMode",
    "Payer": "payer",
}
GATES: Columns = {
    "Gate": Text("title"),
    "Verdict": "verdict",
    "Code": "code",
    "Looked at": Text(lambda gate: "; ".join(f"{seen['name']}: {seen['value']}" for seen in gate["lookedAt"])),
}
ALTERNATIVES: Columns = {
    "Other mode": "mode",
    "In the profile": "inProfile",
    "Would run": "wouldRun",
    "Code": "code",
}


@command(app, "why")
def why(
    session: Session,
    *,
    profile: Annotated[
        str | None,
        typer.Option(help="Id of the profile; else the default one", autocompletion=completion.profiles),
    ] = None,
    member: Annotated[
        str | None, typer.Option("--as", metavar="MEMBER", help="Address of another member, for those who may ask")
    ] = None,
    pool: Pool = None,
    host: Annotated[str | None, typer.Option(help="Machine of a host-session run")] = None,
    effort: Effort = None,
    max_tokens: Annotated[int | None, typer.Option(help="Longest answer, in tokens")] = None,
    text: Annotated[str | None, typer.Option("--input", metavar="TEXT", help="What would be asked")] = None,
) -> None:
    """
    Explain why a dispatch would be refused: every gate, what it looked at, and what would mend it.

    Nothing is dispatched, held or called. Ends with 1 where the dispatch would be refused.
    """
    asked: dict[str, Any] = {
        "profileId": profile,
        "projectId": session.project,
        "asMember": member,
        "pool": pool,
        "hostId": host,
        "effort": effort.lower() if effort else None,
        "maxTokens": max_tokens,
        "input": text,
    }
    answer = session.client.post("why", {name: value for name, value in asked.items() if value is not None})
    if session.output.as_json:
        session.output.json(answer)
    else:
        session.output.details(answer, DETAILS)
        session.output.table({"results": answer["gates"]}, GATES)
        if answer["alternatives"]:
            session.output.table({"results": answer["alternatives"]}, ALTERNATIVES)
    if not answer["wouldRun"]:
        raise Refused(answer["code"], answer["detail"])
