"""`python -m rensei.cli.docs` writes the list of commands into docs/cli.md, from the commands themselves."""

from pathlib import Path
from typing import Any

import typer.main

from rensei.cli import main as commands  # noqa: F401 - adds the commands
from rensei.cli.app import app

DOCUMENT = Path(__file__).resolve().parents[2] / "docs/cli.md"
MARK = "<!-- From here on, `python -m rensei.cli.docs` writes what the commands say of themselves. -->"


def main() -> None:
    before, _, _ = DOCUMENT.read_text().partition(MARK)
    DOCUMENT.write_text(f"{before}{MARK}\n\n{reference()}")


def reference() -> str:
    """Write every command with its arguments and options."""
    root: Any = typer.main.get_command(app)
    common = {option.name for option in root.params}
    parts = ["## Options of every command\n", _table([one for one in root.params if one.name.startswith("global_")])]
    for name, found in _commands(root, "rensei"):
        usage = " ".join(["", *(_argument(one) for one in found.params if _is_argument(one))])
        parts.append(f"## {name}\n\n```\n{name}{usage}\n```\n\n{_text(found.help)}\n")
        own = [one for one in found.params if one.name not in common and one.name != "help"]
        if own:
            parts.append(_table(own))
    return "\n".join(parts)


def _commands(group: Any, path: str) -> list[tuple[str, Any]]:
    found = []
    # Sorted, because commands are added in the order in which their modules happen to be imported.
    for name, one in sorted(group.commands.items()):
        found += _commands(one, f"{path} {name}") if hasattr(one, "commands") else [(f"{path} {name}", one)]
    return found


def _table(params: list[Any]) -> str:
    lines = ["| | |", "|---|---|"]
    for one in params:
        names = _argument(one) if _is_argument(one) else _option(one)
        lines.append(f"| `{_cell(names)}` | {_cell(one.help or '')}{' (required)' if one.required else ''} |")
    return "\n".join(lines) + "\n"


def _option(option: Any) -> str:
    names = " / ".join([*option.opts, *option.secondary_opts])
    return names if option.is_flag else f"{names} {option.metavar or option.name.removeprefix('global_').upper()}"


def _is_argument(param: Any) -> bool:
    return bool(param.param_type_name == "argument")


def _argument(argument: Any) -> str:
    return str(argument.metavar or argument.name.upper())


def _text(text: str | None) -> str:
    return "\n".join(line.strip() for line in (text or "").strip().splitlines())


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


if __name__ == "__main__":
    main()
