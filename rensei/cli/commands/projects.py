"""Projects and access policies."""

import json
from typing import Annotated, Any

import typer

from rensei.cli import completion
from rensei.cli.app import group
from rensei.cli.client import at
from rensei.cli.errors import Refused
from rensei.cli.inputs import Yes, confirm, read_document
from rensei.cli.output import Columns, Text
from rensei.cli.session import Session, command
from rensei.cli.web import Web, open_page

projects = group("project", help="Projects of the organization.")
policies = group("policy", help="Which auth modes are allowed, by organization or project.")

COLUMNS: Columns = {"Id": "id", "Name": Text("name"), "Pool": "pool", "Created": "createdAt"}


@command(projects, "list")
def list_projects(session: Session) -> None:
    """List the projects."""
    session.output.table(session.client.list("projects"), COLUMNS)


@command(projects, "create")
def create_project(
    session: Session,
    project_id: Annotated[str, typer.Argument(metavar="ID", help="Id, such as my-project", show_default=False)],
    name: Annotated[str | None, typer.Option(help="Name for people; the id where it is left out")] = None,
) -> None:
    """Create a project."""
    project = session.client.post("projects", {"id": project_id, "name": name or project_id})
    session.output.details(project, COLUMNS)


@command(projects, "pool")
def set_project_pool(
    session: Session,
    project_id: Annotated[
        str,
        typer.Argument(metavar="ID", help="Id of the project", show_default=False, autocompletion=completion.projects),
    ],
    pool: Annotated[str, typer.Argument(help="Name of the pool; local for none", show_default=False)],
) -> None:
    """Set the default pool of a project, for its runs that name none."""
    found = session.client.put(at("projects", project_id, "pool"), {"pool": pool})
    session.output.done(found, f"Runs of {project_id} that name no pool execute on {found['pool'] or 'local'}.")


@command(projects, "delete")
def delete_project(
    session: Session,
    project_id: Annotated[
        str,
        typer.Argument(metavar="ID", help="Id of the project", show_default=False, autocompletion=completion.projects),
    ],
    yes: Yes = False,
) -> None:
    """Delete a project. Its runs and their costs stay."""
    confirm(f"Delete the project {project_id}?", yes=yes, otherwise=f"{project_id} was not deleted.")
    session.client.delete(at("projects", project_id))
    session.output.done(None, f"Deleted {project_id}.")


@command(policies, "show")
def show_policy(session: Session, web: Web = False) -> None:
    """
    Show the policy of the organization, or of the project that --project names, with all above it.

    A mode is allowed where neither the platform nor the organization nor the project denies it.
    """
    if web:
        project = session.flags.project
        open_page(session, "settings", *(("projects", project, "access") if project else ("access",)))
        return
    _show(session, session.client.get(_path(session)))


@command(policies, "set")
def set_policy(
    session: Session,
    matrix: Annotated[
        str,
        typer.Argument(
            metavar="FILE|-",
            help='JSON: {"*": {"shared": {"allowed": false}}}, a row for all, a provider or a model; - reads input',
            show_default=False,
        ),
    ],
) -> None:
    """Replace the policy of the organization, or of the project that --project names."""
    try:
        document = json.loads(read_document(matrix))
    except ValueError as fault:
        raise Refused("POLICY_INVALID", f"{matrix} is not JSON: {fault}.") from fault
    _show(session, session.client.put(_path(session), {"matrix": document}))


def _path(session: Session) -> str:
    # A policy has far-reaching effects: it needs a project named in this call, not the stored default.
    project = session.flags.project
    return at("projects", project, "access-policy") if project else "access-policy"


def _show(session: Session, policy: dict[str, Any]) -> None:
    if session.output.as_json:
        session.output.json(policy)
        return
    modes = list(next(iter(policy["effective"].values())))
    rows = [
        {"row": row, **{mode: _verdict(verdict) for mode, verdict in verdicts.items()}}
        for row, verdicts in policy["effective"].items()
    ]
    columns: Columns = {"For": "row", **{mode: mode for mode in modes}}
    session.output.table({"results": rows}, columns)
    session.output.note(f"Stored here: {json.dumps(policy['matrix'])}")


def _verdict(verdict: dict[str, Any]) -> str:
    return "allowed" if verdict["allowed"] else f"denied by {verdict['deniedBy']}"
