"""`--web`: the page of the server that shows what a command would."""

from typing import Annotated

import typer

from rensei.cli.session import Session

Web = Annotated[bool, typer.Option("--web", help="Open its page in the browser")]


def open_page(session: Session, *parts: str) -> None:
    """Open a page of the organization, and print its address, for machines without a browser."""
    import webbrowser

    address = session.page(*parts)
    session.output.done({"url": address}, address)
    webbrowser.open(address)
