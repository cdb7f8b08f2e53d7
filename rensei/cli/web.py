"""`--web`: the page of the server that shows what a command would."""

from typing import Annotated

import typer

from rensei.cli.session import Session

Web = Annotated[bool, typer.Option("--web", help="Open its page in the browser")]


def open_page(session: Session, *parts: str) -> None:
    """Open a page of the organization, and say its address, which is all that there is where no browser is."""
    import webbrowser

    address = session.page(*parts)
    session.output.done({"url": address}, address)
    webbrowser.open(address)
