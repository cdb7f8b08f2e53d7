"""The `rensei` command: the list of its commands, which are in `commands/`."""

from importlib import import_module

from rensei.cli.app import app
from rensei.cli.output import prepare_streams
from rensei.cli.session import before_commands

# In the order in which the help lists them.
COMMANDS = (
    "setup account runs dispatch agents why run_client receipts api profiles integrations catalog projects people "
    "workflows settings worker shell"
)

app.callback()(before_commands)
for name in COMMANDS.split():
    import_module(f"rensei.cli.commands.{name}")


def main() -> None:
    prepare_streams()
    app(prog_name="rensei")
