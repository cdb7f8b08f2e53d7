"""Model profiles: named ways to call a model."""

import json
from typing import Annotated, Any

import typer

from rensei.cli.errors import Refused
from rensei.cli.inputs import read_text
from rensei.cli.output import Columns
from rensei.cli.session import Session, command

profiles = typer.Typer(no_args_is_help=True, help="Named ways to call a model.")

Id = Annotated[str, typer.Argument(metavar="PROFILE", help="Id of the profile", show_default=False)]
AuthModes = Annotated[str | None, typer.Option(help="byok, metered, shared, host-session, separated by commas")]
Effort = Annotated[str | None, typer.Option(help="Reasoning effort: low, medium, high")]
Scope = Annotated[str | None, typer.Option(help="organization or project")]
ProjectId = Annotated[str | None, typer.Option(help="Project that the profile belongs to")]
IntegrationId = Annotated[str | None, typer.Option(help="Key that byok uses; else the default one")]
System = Annotated[str | None, typer.Option(help="System prompt; - reads standard input")]
MaxTokens = Annotated[int | None, typer.Option(help="Longest answer, in tokens")]
PromptCaching = Annotated[str | None, typer.Option(help="ephemeral, static or off")]
ProviderConfig = Annotated[
    str | None, typer.Option(metavar="JSON", help='Such as {"anthropic": {"contextWindow": 100000}}')
]
Default = Annotated[bool | None, typer.Option(help="Use it where a dispatch names none")]

COLUMNS: Columns = {
    "Id": "id",
    "Name": "name",
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


def add_to(app: typer.Typer) -> None:
    app.add_typer(profiles, name="profile")


@command(profiles, "list")
def list_profiles(session: Session) -> None:
    """List the profiles."""
    session.output.table(session.client.list("profiles"), COLUMNS)


@command(profiles, "show")
def show_profile(session: Session, profile_id: Id) -> None:
    """Show one profile."""
    session.output.details(session.client.get(f"profiles/{profile_id}"), DETAILS)


@command(profiles, "create")
def create_profile(
    session: Session,
    name: Annotated[str, typer.Option(help="Name; the id is made from it", show_default=False)],
    provider: Annotated[str, typer.Option(help="Provider, such as claude", show_default=False)],
    model_id: Annotated[str, typer.Option(help="Model, as the catalog lists it", show_default=False)],
    auth_modes: Annotated[
        str, typer.Option(help="byok, metered, shared, host-session, separated by commas", show_default=False)
    ],
    effort: Effort = None,
    scope: Scope = None,
    project_id: ProjectId = None,
    integration_id: IntegrationId = None,
    system: System = None,
    max_tokens: MaxTokens = None,
    prompt_caching: PromptCaching = None,
    provider_config: ProviderConfig = None,
    default: Default = None,
) -> None:
    """Create a profile."""
    body = _body(
        name=name,
        provider=provider,
        modelId=model_id,
        authModes=auth_modes,
        effort=effort,
        scope=scope,
        projectId=project_id,
        integrationId=integration_id,
        system=system,
        maxTokens=max_tokens,
        promptCaching=prompt_caching,
        providerConfig=provider_config,
        isDefault=default,
    )
    if project_id:
        _check_project(session, project_id)
    session.output.details(session.client.post("profiles", body), DETAILS)


@command(profiles, "update")
def update_profile(
    session: Session,
    profile_id: Id,
    name: Annotated[str | None, typer.Option(help="Name; the id stays")] = None,
    model_id: Annotated[str | None, typer.Option(help="Model, as the catalog lists it")] = None,
    auth_modes: AuthModes = None,
    effort: Effort = None,
    scope: Scope = None,
    project_id: ProjectId = None,
    integration_id: IntegrationId = None,
    system: System = None,
    max_tokens: MaxTokens = None,
    prompt_caching: PromptCaching = None,
    provider_config: ProviderConfig = None,
    default: Default = None,
) -> None:
    """Change what is given, and leave the rest. An empty value takes an optional one away."""
    body = _body(
        name=name,
        modelId=model_id,
        authModes=auth_modes,
        effort=effort,
        scope=scope,
        projectId=project_id,
        integrationId=integration_id,
        system=system,
        maxTokens=max_tokens,
        promptCaching=prompt_caching,
        providerConfig=provider_config,
        isDefault=default,
    )
    for optional in ("integrationId", "projectId"):
        if body.get(optional) == "":
            body[optional] = None
    session.output.details(session.client.patch(f"profiles/{profile_id}", body), DETAILS)


@command(profiles, "delete")
def delete_profile(session: Session, profile_id: Id) -> None:
    """Delete a profile. Its runs and their costs stay."""
    session.client.delete(f"profiles/{profile_id}")
    session.output.done(None, f"Deleted {profile_id}.")


@command(profiles, "resolve")
def resolve_profile(
    session: Session,
    profile_id: Id,
    pool: Annotated[str | None, typer.Option(help="Capacity pool")] = None,
    effort: Effort = None,
) -> None:
    """Say what a dispatch would do now, and why, without doing it. Ends with 1 where it would be refused."""
    asked = {"pool": pool, "effort": effort, "projectId": session.project}
    verdict = session.client.post(
        f"profiles/{profile_id}/resolve", {name: value for name, value in asked.items() if value}
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


def _body(**values: Any) -> dict[str, Any]:
    body = {name: value for name, value in values.items() if value is not None}
    if "authModes" in body:
        body["authModes"] = [mode.strip() for mode in body["authModes"].split(",") if mode.strip()]
    if "system" in body:
        body["system"] = read_text(body["system"])
    if "providerConfig" in body:
        body["providerConfig"] = read_json(body["providerConfig"])
    return body


def read_json(given: str) -> Any:
    """:raises Refused: if a text is not JSON"""
    try:
        return json.loads(given)
    except ValueError as fault:
        raise Refused("JSON_INVALID", f"The provider config is not JSON: {fault}.") from fault


def _check_project(session: Session, project_id: str) -> None:
    try:
        session.client.get(f"projects/{project_id}")
    except Refused as refused:
        if refused.code != "NOT_FOUND":
            raise
        raise Refused(
            "NOT_FOUND",
            f"There is no project {project_id} here.",
            fix=f"Create it: rensei project create {project_id}",
        ) from refused
