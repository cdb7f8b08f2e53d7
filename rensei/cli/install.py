"""
`python -m rensei.cli.install` writes the `rensei` command of a checkout beside the Python that runs it.

Installed packages include the command. A checkout is not installed, so that it needs no build tools: its command is
a file of two lines, which works from every folder.
"""

import os
import shlex
import sys
from pathlib import Path

CHECKOUT = Path(__file__).resolve().parents[2]


def main() -> None:
    # Not resolved: the Python of a virtual environment is a link, and the command belongs beside the link.
    install(Path(sys.executable).parent)


def install(folder: Path) -> None:
    """Write the command into a folder of programs."""
    if os.name == "nt":
        (folder / "rensei.cmd").write_text(
            f'@set "PYTHONPATH={CHECKOUT}"\n@"{sys.executable}" -P -m rensei.cli %*\n', encoding="utf-8"
        )
        return
    script = folder / "rensei"
    path, python = shlex.quote(str(CHECKOUT)), shlex.quote(sys.executable)
    script.write_text(f'#!/bin/sh\nPYTHONPATH={path} exec {python} -P -m rensei.cli "$@"\n')
    script.chmod(0o755)


if __name__ == "__main__":
    main()
