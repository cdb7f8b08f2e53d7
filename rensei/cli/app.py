"""The `rensei` command as Typer has it, which the modules in `commands/` add themselves to."""

import typer

app = typer.Typer(
    name="rensei",
    help="Rensei decides, for every call to a language model, whose credential signs it, who pays, and where it runs.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    # Plain help starts in half the time: the library that draws boxes takes as long to load as everything else.
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def group(name: str, *, help: str, under: typer.Typer = app) -> typer.Typer:  # noqa: A002 - the library's name for it
    """Add a group of commands, such as `rensei run …`."""
    commands = typer.Typer(no_args_is_help=True, help=help)
    under.add_typer(commands, name=name)
    return commands
