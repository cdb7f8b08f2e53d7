"""Model profiles: named ways to call a model."""

import json
from dataclasses import dataclass
from typing import Annotated, Any

import typer

from rensei.cli import completion
from rensei.cli.app import group
from rensei.cli.client import at
from rensei.cli.errors import Refused
from rensei.cli.inputs import Yes, confirm, read_text
from rensei.cli.output import Columns, Text
from rensei.cli.session import Session, command
from rensei.cli.web import Web, open_page

profiles = group("profile", help="Named ways to call a model.")

Id = Annotated[
    str,
    typer.Argument(metavar="PROFILE", help="Id of the profile", show_default=False, autocompletion=completion.profiles),
]
Effort = Annotated[
    str | None,
    typer.Option(
        help="Reasoning effort, such as high; `rensei catalog show` lists those of a model",
        autocompletion=completion.efforts,
    ),
]
Pool = Annotated[str | None, typer.Option(help="Capacity pool", autocompletion=completion.pools)]
PROJECT_ID = typer.Option(help="Project that the profile belongs to", autocompletion=completion.projects)


@dataclass(frozen=True, kw_only=True)
class Options:
    """The fields of a profile besides its name, its model and its auth modes."""

    effort: Effort = None
    scope: Annotated[str | None, typer.Option(help="organization or project")] = None
    project_id: Annotated[str | None, PROJECT_ID] = None
    integration_id: Annotated[str | None, typer.Option(help="Key that byok uses; else the default one")] = None
    system: Annotated[str | None, typer.Option(help="System prompt; - reads standard input")] = None
    max_tokens: Annotated[int | None, typer.Option(help="Longest answer, in tokens")] = None
    prompt_caching: Annotated[str | None, typer.Option(help="ephemeral, static or off")] = None
    provider_config: Annotated[
        str | None, typer.Option(metavar="JSON", help='Such as {"anthropic": {"contextWindow": 100000}}')
    ] = None
    default: Annotated[bool | None, typer.Option(help="Use it where a dispatch names none")] = None

    def body(self) -> dict[str, Any]:
        """Return the given options as the fields of a request."""
        fields = {
            "effort": self.effort,
            "scope": self.scope,
            "projectId": self.project_id,
            "integrationId": self.integration_id,
            "system": None if self.system is None else read_text(self.system),
            "maxTokens": self.max_tokens,
            "promptCaching": self.prompt_caching,
            "providerConfig": None if self.provider_config is None else read_json(self.provider_config),
            "isDefault": self.default,
        }
        return {name: value for name, value in fields.items() if value is not None}


COLUMNS: Columns = {
    "Id": "id",
    "Name": Text("name"),
    "Model": "modelId",
    "Served by": lambda one: None if one["servedModel"] == one["modelId"] else one["servedModel"],
    "Auth modes": "authModes",
    "Effort": "effort",
    "Project": "projectId",
    "Default": "isDefault",
}
DETAILS: Columns = {
    **COLUMNS,
    "Provider": "provider",
    "Lifecycle": "lifecycle",
    "Scope": "scope",
    "Integration": "integrationId",
    "System prompt": "system",
    "Longest answer": "maxTokens",
    "Prompt caching": "promptCaching",
    "Provider config": "providerConfig",
    "Changed": "updatedAt",
}


@command(profiles, "list")
def list_profiles(session: Session) -> None:
    """List the profiles."""
    session.output.table(session.client.list("profiles"), COLUMNS)


@command(profiles, "show")
def show_profile(session: Session, profile_id: Id, web: Web = False) -> None:
    """Show one profile."""
    if web:
        open_page(session, "settings", "profiles", profile_id)
        return
    session.output.details(session.client.get(at("profiles", profile_id)), DETAILS)


@command(profiles, "create")
def create_profile(
    session: Session,
    name: Annotated[str, typer.Option(help="Name; the id is made from it", show_default=False)],
    provider: Annotated[str, typer.Option(help="Provider, such as claude", show_default=False)],
    model_id: Annotated[
        str,
        typer.Option(help="Model, as the catalog lists it", show_default=False, autocompletion=completion.models),
    ],
    auth_modes: Annotated[
        str, typer.Option(help="byok, metered, shared, host-session, separated by commas", show_default=False)
    ],
    options: Options,
    public_id: Annotated[str | None, typer.Option("--id", help="Id, such as prof_support")] = None,
) -> None:
    """Create a profile."""
    if options.project_id:
        _check_project(session, options.project_id)
    body = {"name": name, "provider": provider, "modelId": model_id, "authModes": _modes(auth_modes)}
    if public_id is not None:
        body["id"] = public_id
    session.output.details(session.client.post("profiles", body | options.body()), DETAILS)


@command(profiles, "update")
def update_profile(
    session: Session,
    profile_id: Id,
    *,
    name: Annotated[str | None, typer.Option(help="Name; the id stays")] = None,
    model_id: Annotated[
        str | None, typer.Option(help="Model, as the catalog lists it", autocompletion=completion.models)
    ] = None,
    auth_modes: Annotated[
        str | None, typer.Option(help="byok, metered, shared, host-session, separated by commas")
    ] = None,
    options: Options,
) -> None:
    """Change what is given, and leave the rest. An empty value takes an optional one away."""
    body = options.body()
    if name is not None:
        body["name"] = name
    if model_id is not None:
        body["modelId"] = model_id
    if auth_modes is not None:
        body["authModes"] = _modes(auth_modes)
    for optional in ("integrationId", "projectId"):
        if body.get(optional) == "":
            body[optional] = None
    session.output.details(session.client.patch(at("profiles", profile_id), body), DETAILS)


@command(profiles, "delete")
def delete_profile(session: Session, profile_id: Id, yes: Yes = False) -> None:
    """Delete a profile. Its runs and their costs stay."""
    confirm(f"Delete the profile {profile_id}?", yes=yes, otherwise=f"{profile_id} was not deleted.")
    session.client.delete(at("profiles", profile_id))
    session.output.done(None, f"Deleted {profile_id}.")


@command(profiles, "resolve")
def resolve_profile(
    session: Session,
    profile_id: Id,
    pool: Pool = None,
    effort: Effort = None,
) -> None:
    """Say what a dispatch would do now, and why, without doing it. Ends with 1 where it would be refused."""
    asked = {"pool": pool, "effort": effort, "projectId": session.project}
    verdict = session.client.post(
        at("profiles", profile_id, "resolve"), {name: value for name, value in asked.items() if value}
    )
    columns: Columns = {
        "Would run": "wouldRun",
        "Auth mode": "authMode",
        "Payer": "payer",
        "Model": "model",
        "Served by": "servedModel",
    }
    session.output.details(verdict, columns)
    if not session.output.as_json:
        for step in verdict["trace"]:
            session.output.note(_step(step))
    if not verdict["wouldRun"]:
        raise Refused(verdict["code"] or "REFUSED", verdict["detail"] or "This dispatch would be refused.")


def _step(step: dict[str, Any]) -> str:
    return "  ".join(str(value) for value in ("", *step.values()) if value is not None)


def read_json(given: str) -> Any:
    """:raises Refused: if a text is not JSON"""
    try:
        return json.loads(given)
    except ValueError as fault:
        raise Refused("JSON_INVALID", f"The provider config is not JSON: {fault}.") from fault


def _modes(given: str) -> list[str]:
    return [mode.strip() for mode in given.split(",") if mode.strip()]


def _check_project(session: Session, project_id: str) -> None:
    try:
        session.client.get(at("projects", project_id))
    except Refused as refused:
        if refused.code != "NOT_FOUND":
            raise
        raise Refused(
            "NOT_FOUND",
            f"There is no project {project_id} here.",
            fix=f"Create it: rensei project create {project_id}",
        ) from refused
