"""`rensei completion`: the script with which a shell completes commands, options and values."""

from enum import StrEnum
from typing import Annotated

import typer

from rensei.cli.app import app
from rensei.cli.session import Session, command


class Shell(StrEnum):
    BASH = "bash"
    ZSH = "zsh"
    FISH = "fish"


@command(app, "completion")
def completion(
    session: Session, shell: Annotated[Shell, typer.Argument(help="bash, zsh or fish", show_default=False)]
) -> None:
    """
    Write the script that completes commands, options and values in a shell.

    bash: eval "$(rensei completion bash)" in ~/.bashrc. zsh: eval "$(rensei completion zsh)" in ~/.zshrc, after
    compinit. fish: rensei completion fish > ~/.config/fish/completions/rensei.fish.
    """
    # The library has no public name for it. A test completes with the written script in a shell.
    from typer._completion_shared import get_completion_script

    script = get_completion_script(prog_name="rensei", complete_var="_RENSEI_COMPLETE", shell=shell.value)
    session.output.done({"shell": shell.value, "script": script}, script)
