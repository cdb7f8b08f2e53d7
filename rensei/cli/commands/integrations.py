"""The organization's own keys at providers."""

from typing import Annotated, Any

import typer

from rensei.cli.app import group
from rensei.cli.client import at
from rensei.cli.errors import Refused
from rensei.cli.inputs import read_secret
from rensei.cli.output import Columns, Text
from rensei.cli.session import Session, command

integrations = group("integration", help="The organization's own keys at providers (byok).")

Id = Annotated[str, typer.Argument(metavar="ID", help="Id of the integration", show_default=False)]
Rule = Annotated[str, typer.Option("--federation-rule", help="Id of a federation rule (fdrl_…): no key is stored then")]
Organization = Annotated[str, typer.Option("--federation-organization", help="UUID of the Anthropic organization")]
ServiceAccount = Annotated[
    str, typer.Option("--federation-service-account", help="Id of the service account (svac_…) that the rule names")
]
COLUMNS: Columns = {
    "Id": "id",
    "Provider": "provider",
    "Name": Text("name"),
    "Key": "keyHint",
    "Status": "status",
    "Tested": "testedAt",
    "Default": "isDefault",
    "Age in days": "keyAgeDays",
    "Last used": "lastUsedAt",
}


@command(integrations, "list")
def list_integrations(session: Session) -> None:
    """List the connected keys. The keys themselves are never shown."""
    session.output.table(session.client.list("integrations"), COLUMNS)


@command(integrations, "add")
def add_integration(
    session: Session,
    provider: Annotated[str, typer.Option(help="Provider, such as claude")] = "claude",
    name: Annotated[str, typer.Option(help="Name for people")] = "",
    base_url: Annotated[str, typer.Option(help="Address of a gateway in place of the provider's own")] = "",
    workspace_id: Annotated[str, typer.Option(help="Workspace of the key, where the provider asks for it")] = "",
    default: Annotated[bool | None, typer.Option(help="Use it where a profile names none")] = None,
    federation_rule: Rule = "",
    federation_organization: Organization = "",
    federation_service_account: ServiceAccount = "",
) -> None:
    """
    Connect a key, which is asked for or read from standard input, and test it. Ends with 1 where that fails.

    With the ids of a federation there is no key: `integration identity` shows what to enter at the provider first.
    """
    body = {
        "provider": provider,
        "name": name,
        **_given("API key", federation_rule, federation_organization, federation_service_account),
        "baseUrl": base_url,
        "workspaceId": workspace_id,
        "isDefault": default,
    }
    integration_id = session.client.post("integrations", body)["id"]
    verdict = session.client.post(at("integrations", integration_id, "test"), timeout_seconds=90)
    session.output.details(session.client.get(at("integrations", integration_id)), COLUMNS)
    if not verdict["ok"]:
        detail = f"The key is stored, but does not work: {verdict['message']}"
        raise Refused(verdict["code"], detail, fix=verdict["fix"])


@command(integrations, "identity")
def show_identity(
    session: Session, provider: Annotated[str, typer.Option(help="Provider, such as claude")] = "claude"
) -> None:
    """Show what to enter at the provider, so that it trusts this server and no key has to be stored."""
    columns: Columns = {"Issuer": "issuer", "Keys": "jwksUrl", "Subject": "subject", "Audience": "audience"}
    session.output.details(session.client.get(at("providers", provider, "identity")), columns)


@command(integrations, "destroy-keys")
def destroy_keys(
    session: Session,
    confirm: Annotated[str, typer.Option(metavar="ORG", help="The organization's id, typed again", show_default=False)],
) -> None:
    """Make every stored key of the organization unreadable, for good, and print the signed receipt. For owners."""
    session.output.json(session.client.post("data-keys/destroy", {"confirm": confirm}))


@command(integrations, "test")
def test_integration(session: Session, integration_id: Id) -> None:
    """Test a key by a free call to the provider."""
    verdict = session.client.post(at("integrations", integration_id, "test"), timeout_seconds=90)
    _show_verdict(session, verdict)


@command(integrations, "rotate")
def rotate_integration(
    session: Session,
    integration_id: Id,
    force: Annotated[bool, typer.Option("--force", help="Store the new key without a test")] = False,
    federation_rule: Rule = "",
    federation_organization: Organization = "",
    federation_service_account: ServiceAccount = "",
) -> None:
    """Replace a key by a new one, which is asked for or read from standard input, or by a federation."""
    given = _given("New API key", federation_rule, federation_organization, federation_service_account)
    body = {**given, "force": force}
    integration = session.client.post(at("integrations", integration_id, "rotate"), body, timeout_seconds=90)
    session.output.details(integration, COLUMNS)


@command(integrations, "remind")
def remind_of_integration(
    session: Session,
    integration_id: Id,
    after_days: Annotated[int, typer.Option(help="Age of the key; 0: no reminder", show_default=False)],
) -> None:
    """Have owners and admins reminded by mail, once, when a key has an age. Rotating it begins anew."""
    body = {"remindAfterDays": after_days or None}
    integration = session.client.patch(at("integrations", integration_id), body)
    session.output.details(integration, {**COLUMNS, "Reminder after days": "remindAfterDays"})


@command(integrations, "remove")
def remove_integration(session: Session, integration_id: Id) -> None:
    """Remove a key from Rensei. At the provider it stays."""
    session.client.delete(at("integrations", integration_id))
    session.output.done(None, f"Removed {integration_id}.")


def _given(asked_for: str, rule: str, organization: str, service_account: str) -> dict[str, Any]:
    """Return the ids of a federation, if one is named, else a key, which is asked for."""
    if rule or organization or service_account:
        return {"federation": {"ruleId": rule, "organizationId": organization, "serviceAccountId": service_account}}
    return {"apiKey": read_secret(asked_for)}


def _show_verdict(session: Session, verdict: dict[str, Any]) -> None:
    columns: Columns = {
        "Works": "ok",
        "Code": "code",
        "Message": "message",
        "Next": "fix",
        "Models": lambda v: len(v["models"]),
    }
    session.output.details(verdict, columns)
    if not verdict["ok"]:
        raise Refused(verdict["code"], "The key does not work.")
