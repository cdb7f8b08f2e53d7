"""The `rensei` command: the list of its commands, which are in `commands/`."""

import typer

from rensei.cli.commands import (
    account,
    api,
    catalog,
    dispatch,
    integrations,
    people,
    profiles,
    projects,
    run_client,
    runs,
    settings,
    setup,
    shell,
    worker,
    workflows,
)
from rensei.cli.output import prepare_streams
from rensei.cli.session import before_commands

app = typer.Typer(
    name="rensei",
    help="Rensei decides, for every call to a language model, whose credential signs it, who pays, and where it runs.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    # Plain help starts in half the time: the library that draws boxes takes as long to load as everything else.
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.callback()(before_commands)
for nouns in (
    setup,
    account,
    dispatch,
    run_client,
    api,
    runs,
    profiles,
    integrations,
    catalog,
    projects,
    people,
    workflows,
    settings,
    worker,
    shell,
):
    nouns.add_to(app)


def main() -> None:
    prepare_streams()
    app(prog_name="rensei")
