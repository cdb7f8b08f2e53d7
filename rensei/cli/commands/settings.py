"""Tokens, machines, capacity pools and usage: the settings besides keys and profiles."""

import json
from typing import Annotated, Any

import typer

from rensei.cli import completion
from rensei.cli.app import app, group
from rensei.cli.client import at
from rensei.cli.errors import Refused
from rensei.cli.inputs import Yes, confirm
from rensei.cli.output import Columns, Text
from rensei.cli.session import Session, command

tokens = group("token", help="API tokens.")
hosts = group("host", help="Machines that ran `rensei setup`.")
pools = group("pool", help="Capacity pools: where runs run.")
capacity = group("capacity", help="Where runs can run now.")
capacity_pools = group("pool", help="The organization's own capacity pools.", under=capacity)

TOKENS: Columns = {
    "Id": "id",
    "Name": Text("name"),
    "Ends in": "hint",
    "Member": "member",
    "Project": "projectId",
    "Machine": "hostId",
    "Scopes": "scopes",
    "Networks": "allowedNetworks",
    "Cap $": "cap.amountUsd",
    "Spent $": "cap.usedUsd",
    "Expires": "expiresAt",
    "Last used": "lastUsedAt",
    "Revoked": "revokedAt",
}
HOSTS: Columns = {
    "Id": "id",
    "Name": Text("name"),
    "Owner": "owner",
    "Login": "login",
    "Seen": "lastSeenAt",
    "Revoked": "revokedAt",
}
POOLS: Columns = {
    "Id": "id",
    "Name": "name",
    "Provider": "providerId",
    "State": "state",
    "Slots": "slots",
    "Running": "running",
    "Waiting": "waiting",
    "Config": Text("config"),
    "Reason": Text("reason"),
    "Fix": Text("fix"),
}
CAPACITY: Columns = {
    "Pool": "name",
    "Provider": "providerId",
    "State": "state",
    "Slots": "slots",
    "Running": "running",
    "Waiting": "waiting",
    "Reason": Text("reason"),
    "Fix": Text("fix"),
}
CAPACITY_COST: Columns = {
    "Pool": "pool",
    "Provider": "providerId",
    "Sandboxes": "sandboxes",
    "Seconds": "seconds",
    "Cost $": "amountUsd",
    "Unpriced": "unpriced",
}
USAGE: Columns = {
    "Calls": "calls",
    "Cost $": "amountUsd",
    "Billed $": "billedUsd",
    "Unpriced": "unpriced",
    "Input": "usage.inputTokens",
    "Output": "usage.outputTokens",
    "Cache read": "usage.cacheReadTokens",
}


GROUPS = ("day", "model", "mode", "project", "profile")


@command(app, "usage")
def usage(
    session: Session,
    since: Annotated[str | None, typer.Option("--from", metavar="DAY", help="First day, 2026-11-01")] = None,
    until: Annotated[str | None, typer.Option("--to", metavar="DAY", help="Last day, included")] = None,
    group_by: Annotated[
        str, typer.Option(help="day, model, mode, project or profile", autocompletion=completion.of_words(*GROUPS))
    ] = "day",
) -> None:
    """Show what was used, and what it cost. Amounts leave out what has no price, which is counted as unpriced."""
    report = session.client.get("usage", **{"from": since, "to": until, "groupBy": group_by})
    if session.output.as_json:
        session.output.json(report)
        return
    total = {**report["total"], "key": "total"}
    session.output.table({"results": [*report["results"], total]}, {group_by.capitalize(): "key", **USAGE})
    if total["unpriced"]:
        session.output.note(
            f"The price of {total['unpriced']} of the lines in the ledger is unknown. The amounts leave them out."
        )


@command(tokens, "list")
def list_tokens(session: Session) -> None:
    """List the tokens. The tokens themselves are shown once, when they are made."""
    session.output.table(session.client.list("tokens"), TOKENS)


@command(tokens, "create")
def create_token(
    session: Session,
    name: Annotated[str, typer.Option(help="What it is for", show_default=False)],
    project_id: Annotated[
        str | None, typer.Option(help="Bind it to a project", autocompletion=completion.projects)
    ] = None,
    expires_at: Annotated[str | None, typer.Option(help="End of its life, such as 2027-01-01T00:00:00Z")] = None,
    scope: Annotated[
        list[str] | None,
        typer.Option(help="What it may be used for: read, runs, gateway, manage, billing; may be repeated"),
    ] = None,
    network: Annotated[
        list[str] | None, typer.Option(help="From where it may be used, such as 192.0.2.0/24; may be repeated")
    ] = None,
    cap: Annotated[
        str | None, typer.Option(metavar="USD", help="The most that its runs may cost in a month, such as 25.00")
    ] = None,
) -> None:
    """Make a token. It is written to standard output, only now. Without --scope it gets all that yours has."""
    body: dict[str, Any] = {
        "name": name,
        "projectId": project_id,
        "expiresAt": expires_at,
        "allowedNetworks": network or [],
    }
    if scope:
        body["scopes"] = scope
    if cap is not None:
        body["cap"] = {"amountUsd": cap}
    token = session.client.post("tokens", body)
    if session.output.as_json:
        session.output.json(token)
    else:
        print(token["token"])
        session.output.note(f"{token['id']} is shown only now. Keep it like a password.")


@command(tokens, "cap")
def cap_token(
    session: Session,
    token_id: Annotated[str, typer.Argument(metavar="ID", help="Id of the token", show_default=False)],
    amount: Annotated[str, typer.Argument(metavar="USD", help="Such as 25.00, or none", show_default=False)],
) -> None:
    """Set the most that the runs of a token may cost in a month, or remove it with none."""
    body = {"cap": None if amount == "none" else {"amountUsd": amount}}
    token = session.client.patch(at("tokens", token_id), body)
    cap = token["cap"]
    done = f"Runs of {token_id} may cost ${cap['amountUsd']} in a month." if cap else f"{token_id} has no cap now."
    session.output.done(token, done)


@command(tokens, "revoke")
def revoke_token(
    session: Session, token_id: Annotated[str, typer.Argument(metavar="ID", help="Id of the token", show_default=False)]
) -> None:
    """Shut a token, at once."""
    session.client.delete(at("tokens", token_id))
    session.output.done(None, f"Revoked {token_id}.")


@command(hosts, "list")
def list_hosts(session: Session) -> None:
    """List the machines."""
    session.output.table(session.client.list("hosts"), HOSTS)


@command(hosts, "revoke")
def revoke_host(
    session: Session,
    host_id: Annotated[str, typer.Argument(metavar="ID", help="Id of the machine", show_default=False)],
) -> None:
    """Shut a machine and its tokens out, at once."""
    session.client.delete(at("hosts", host_id))
    session.output.done(None, f"Revoked {host_id}.")


@command(capacity_pools, "list")
@command(pools, "list")
def list_pools(session: Session) -> None:
    """List the pools. `local` is always there, and not listed."""
    session.output.table(session.client.list("pools"), POOLS, empty="Only `local`, which is built in.")


@command(capacity, "show")
def show_capacity(session: Session) -> None:
    """Show where runs can run now: the built-in pools and the organization's, and the runs on each."""
    session.output.table(session.client.get("capacity"), CAPACITY)


@command(capacity, "cost")
def show_capacity_cost(
    session: Session,
    window: Annotated[
        str, typer.Option(help="24h, 7d or 30d", autocompletion=completion.of_words("24h", "7d", "30d"))
    ] = "30d",
) -> None:
    """Show what sandboxes in clouds have cost by pool, without the models that they call."""
    found = session.client.get("capacity/cost", window=window)
    session.output.table(found, CAPACITY_COST, empty=f"No sandbox in a cloud has ended in the last {window}.")


@command(capacity_pools, "add")
@command(pools, "create")
def create_pool(
    session: Session,
    name: Annotated[str, typer.Option(help="Name that dispatches use", show_default=False)],
    provider: Annotated[str, typer.Option(help="local, sandbox, e2b, vercel or modal", show_default=False)],
    config: Annotated[str, typer.Option(metavar="JSON", help="Settings of the provider")] = "{}",
) -> None:
    """Create a pool."""
    body = {"name": name, "providerId": provider, "config": _settings(config)}
    session.output.details(session.client.post("pools", body), POOLS)


@command(capacity_pools, "change")
def change_pool(
    session: Session,
    name: Annotated[str, typer.Argument(help="Name of the pool", show_default=False)],
    active: Annotated[bool | None, typer.Option("--active/--inactive", help="Whether dispatches may use it")] = None,
    config: Annotated[
        str | None, typer.Option(metavar="JSON", help="New settings of the provider, all of them")
    ] = None,
) -> None:
    """Switch a pool on or off, or replace its settings. Runs that have started keep theirs."""
    body: dict[str, Any] = {} if active is None else {"active": active}
    if config is not None:
        body["config"] = _settings(config)
    session.output.details(session.client.patch(at("pools", _pool_id(session, name)), body), POOLS)


@command(capacity_pools, "remove")
def remove_pool(
    session: Session,
    name: Annotated[str, typer.Argument(help="Name of the pool", show_default=False)],
    yes: Yes = False,
) -> None:
    """Remove a pool. Runs that wait for a sandbox in a cloud fail when it is their turn."""
    pool_id = _pool_id(session, name)
    confirm(f"Remove the pool {name}?", yes=yes, otherwise=f"{name} was not removed.")
    session.client.delete(at("pools", pool_id))
    session.output.done(None, f"Removed {name}.")


def _settings(config: str) -> Any:
    """:raises Refused: if it is not JSON"""
    try:
        return json.loads(config)
    except ValueError as fault:
        raise Refused("JSON_INVALID", f"--config is not JSON: {fault}.") from fault


def _pool_id(session: Session, name: str) -> str:
    """:raises Refused: if the organization has no pool of that name"""
    for pool in session.client.list("pools")["results"]:
        if pool["name"] == name:
            return str(pool["id"])
    raise Refused("NOT_FOUND", f"There is no pool '{name}' of the organization.", fix="rensei capacity pool list")
