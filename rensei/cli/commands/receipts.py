"""Receipts: fetch the signed receipt of a run, and verify one without a server."""

from pathlib import Path
from typing import Annotated, Any

import typer

from rensei.cli import receipts as verifier
from rensei.cli.app import group
from rensei.cli.client import at
from rensei.cli.commands.runs import Id
from rensei.cli.inputs import read_document
from rensei.cli.output import Columns
from rensei.cli.session import Session, command

receipts = group("receipt", help="Signed receipts of runs.")

CONTENT: Columns = {
    "Run": "run.id",
    "State": "run.state",
    "Organization": "organization.slug",
    "Issuer": "issuer",
    "Issued": "issuedAt",
    "Auth mode": "authMode",
    "Payer": "payer",
    "Credential": "credential.id",
    "Model": "model.served",
    "Pool": "place.pool",
    "Machine": "place.host.name",
    "Cost $": "total.amountUsd",
    "Billed $": "total.billedUsd",
    "Estimated": "total.estimated",
    "Started": "run.startedAt",
    "Ended": "run.finishedAt",
    "Places in the ledger": lambda receipt: [str(line["seal"]["seq"]) for line in receipt["lines"]],
    "Signed end": "ledger.anchor.counter",
}


@command(receipts, "show")
def show_receipt(session: Session, run_id: Id) -> None:
    """Write the signed receipt of a run as JSON, to keep it in a file."""
    session.output.json(session.client.get(at("runs", run_id, "receipt")))


@command(receipts, "keys")
def show_keys(session: Session) -> None:
    """Write the server's public keys as JSON, to keep them in a file."""
    session.output.json(session.client.get("receipt-keys"))


@command(receipts, "verify")
def verify_receipt(
    session: Session,
    file: Annotated[
        str, typer.Argument(metavar="FILE|-", help="A receipt; - reads standard input", show_default=False)
    ],
    keys: Annotated[
        Path | None, typer.Option(metavar="FILE", help="The issuer's public keys; else those of the server")
    ] = None,
) -> None:
    """
    Verify a receipt, and show what it says. Ends with 1 if anything in it was changed.

    With --keys, which `rensei receipt keys` wrote, it needs no server.
    """
    document = verifier.parse(read_document(file))
    known: dict[str, Any] = (
        session.client.get("receipt-keys") if keys is None else verifier.parse(read_document(str(keys)))
    )
    receipt = verifier.verify(document, known)
    session.output.details(receipt, CONTENT)
    session.output.note("The receipt is genuine: its issuer has signed exactly this.")
