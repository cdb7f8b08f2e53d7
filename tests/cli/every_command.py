"""
Run every command of the `rensei` command line once, each in a fork of one process, and print how each ended as JSON.

`python -m tests.cli.every_command FOLDER STDIN STDOUT`: STDIN is a file that every command reads, STDOUT a file that it
writes to. Importing the command takes longer than most commands do, so it is imported once.
"""

import json
import os
import sys
from pathlib import Path
from typing import Any

import typer

from rensei.cli.main import app, main
from tests.cli import prepared  # noqa: F401 - loads once what each command would load

# What a command needs; the rest of its parameters is left out.
VALUES = {"file": "-", "matrix": "-", "text": "-", "provider": "claude", "program": "true", "shell": "bash"}


def commands(group: Any, path: tuple[str, ...] = ()) -> list[list[str]]:
    """The words of each command, with a value for every parameter that it requires."""
    if hasattr(group, "commands"):
        return [words for name, one in group.commands.items() for words in commands(one, (*path, name))]
    words = list(path)
    for parameter in group.params:
        if parameter.required and parameter.name:
            value = VALUES.get(parameter.name, "x")
            words += [value] if parameter.param_type_name == "argument" else [parameter.opts[0], value]
    return [words]


def run(words: list[str], folder: Path, stdin: str, stdout: str) -> dict[str, Any]:
    errors = folder / "stderr"
    child = os.fork()
    if child == 0:
        sys.argv = ["rensei", *words]
        opened = [os.open(stdin, os.O_RDONLY), os.open(stdout, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)]
        opened.append(os.open(errors, os.O_WRONLY | os.O_CREAT | os.O_TRUNC))
        for number, descriptor in enumerate(opened):
            os.dup2(descriptor, number)
        code = 0
        try:
            main()
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else 1
        except BaseException:  # noqa: BLE001 - what the interpreter would write is what is tested
            sys.excepthook(*sys.exc_info())
            code = 99
        try:
            sys.stdout.flush()
        except OSError:
            code = 120
        os._exit(code)
    _, status = os.waitpid(child, 0)
    said = errors.read_bytes().decode(errors="replace")
    return {"words": words, "code": os.waitstatus_to_exitcode(status), "stderr": said}


if __name__ == "__main__":
    place, given, taken = Path(sys.argv[1]), sys.argv[2], sys.argv[3]
    every = commands(typer.main.get_command(app))
    print(json.dumps([run(words, place, given, taken) for words in every]))
