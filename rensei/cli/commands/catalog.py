"""The models that may be named."""

from typing import Annotated, Any

import typer

from rensei.cli import completion
from rensei.cli.app import group
from rensei.cli.client import at
from rensei.cli.inputs import Yes, confirm
from rensei.cli.output import Columns, Text
from rensei.cli.session import Session, command
from rensei.cli.web import Web, open_page

catalog = group("catalog", help="Models your profiles can use, with their prices.")

Id = Annotated[
    str,
    typer.Argument(metavar="MODEL", help="Id of the model", show_default=False, autocompletion=completion.models),
]
LIFECYCLES = ("active", "deprecated", "retired")
COLUMNS: Columns = {
    "Model": "modelId",
    "Name": Text("displayName"),
    "Lifecycle": "lifecycle",
    "Served by": lambda model: None if model["servedBy"] == model["modelId"] else model["servedBy"],
    "Context": "contextWindow",
    "Efforts": lambda model: [effort["value"] for effort in model["efforts"]],
    "Input ¢/MTok": "pricing.inputPerMTokenCents",
    "Output ¢/MTok": "pricing.outputPerMTokenCents",
}
DETAILS: Columns = {
    **COLUMNS,
    "Provider": "provider",
    "Description": "description",
    "Retires on": "retiresOn",
    "Replaced by": "replacedBy",
    "Longest answer": "maxOutputTokens",
    "Capabilities": "capabilities",
    "Auth modes": "authModes",
    "Also called": "aliases",
    "Answered by": "answeredBy",
    "Of": "scope",
}


@command(catalog, "list")
def list_models(
    session: Session,
    provider: Annotated[str | None, typer.Option(help="Only this provider's, such as claude")] = None,
    lifecycle: Annotated[
        str | None,
        typer.Option(help="Only active, deprecated or retired ones", autocompletion=completion.of_words(*LIFECYCLES)),
    ] = None,
) -> None:
    """List the models."""
    stage = lifecycle.lower() if lifecycle else None
    session.output.table(session.client.list("catalog", provider=provider, lifecycle=stage), COLUMNS)


@command(catalog, "show")
def show_model(
    session: Session,
    model_id: Id,
    provider: Annotated[str | None, typer.Option(help="Provider, where several have this model")] = None,
    web: Web = False,
) -> None:
    """Show one model, with its prices today."""
    model = session.client.get(at("catalog", *model_id.split("/")), provider=provider)
    if web:
        open_page(session, "settings", "catalog", model["provider"], *model["modelId"].split("/"))
        return
    session.output.details(model, DETAILS)


@command(catalog, "create")
def create_model(
    session: Session,
    provider: Annotated[str, typer.Option(help="Provider, such as claude", show_default=False)],
    model_id: Annotated[str, typer.Option(help="Id of the model, as the provider has it", show_default=False)],
    display_name: Annotated[str, typer.Option(help="Name for people", show_default=False)],
    description: Annotated[str | None, typer.Option(help="What it is good for")] = None,
    context_window: Annotated[int | None, typer.Option(help="Tokens that it reads at most")] = None,
    max_output_tokens: Annotated[int | None, typer.Option(help="Tokens that it writes at most")] = None,
) -> None:
    """Add a model to the organization's catalog. One that is there already is shown."""
    body: dict[str, Any] = {"provider": provider, "modelId": model_id, "displayName": display_name}
    optional = {"description": description, "contextWindow": context_window, "maxOutputTokens": max_output_tokens}
    body |= {name: value for name, value in optional.items() if value is not None}
    session.output.details(session.client.post("catalog", body), DETAILS)


@command(catalog, "delete")
def delete_model(
    session: Session,
    model_id: Id,
    provider: Annotated[str | None, typer.Option(help="Provider, where several have this model")] = None,
    yes: Yes = False,
) -> None:
    """Delete a model that the organization has added. Its past runs and costs stay."""
    confirm(f"Delete {model_id} from the organization's catalog?", yes=yes, otherwise=f"{model_id} was not deleted.")
    session.client.delete(at("catalog", *model_id.split("/")), provider=provider)
    session.output.done(None, f"Deleted {model_id}.")
