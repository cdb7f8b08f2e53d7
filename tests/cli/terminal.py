"""Somebody at a terminal: a home of their own, the `rensei` command, and a shell that runs what is printed."""

import json
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rensei.cli import install
from tests.architecture.modules import ROOT

SECONDS_MAX = 100
# The keyring of whoever runs the tests is not theirs to write to.
NO_KEYRING = {"PYTHON_KEYRING_BACKEND": "keyring.backends.fail.Keyring"}


@dataclass
class Terminal:
    """A home folder. Nothing of the machine that the tests run on reaches the commands."""

    home: Path
    variables: dict[str, str] = field(default_factory=dict)
    # The folder of a `rensei` that need not be loaded, for the lines that are waited for.
    prepared: Path | None = None

    def __post_init__(self) -> None:
        self.programs = self.home / "bin"
        self.programs.mkdir(parents=True)
        install.install(self.programs)

    def environment(self) -> dict[str, str]:
        path = f"{self.programs}:/usr/local/bin:/usr/bin:/bin"
        return {"HOME": str(self.home), "PATH": path, "LANG": "C.UTF-8", **NO_KEYRING, **self.variables}

    def run(self, line: str, *, given: str = "", **variables: str) -> "subprocess.CompletedProcess[str]":
        """Have a shell run what somebody typed."""
        return subprocess.run(
            ["bash", "-o", "pipefail", "-c", line],
            input=given,
            cwd=self.home,
            env=self._prepared() | variables,
            capture_output=True,
            text=True,
            timeout=SECONDS_MAX,
            check=False,
        )

    def _prepared(self) -> dict[str, str]:
        environment = self.environment()
        if self.prepared:
            environment["PATH"] = f"{self.prepared}:{environment['PATH']}"
        return environment

    def succeed(self, line: str, *, given: str = "", **variables: str) -> str:
        """Run a line that has to succeed, and give what it wrote."""
        result = self.run(line, given=given, **variables)
        assert result.returncode == 0, f"{line}\n{result.stdout}\n{result.stderr}"
        return result.stdout

    def read(self, line: str, **variables: str) -> Any:
        """Run a line that writes JSON."""
        return json.loads(self.succeed(line, **variables))

    def start(self, line: str) -> "subprocess.Popen[str]":
        """Start a line that goes on by itself, in a group of its own as a shell does."""
        return subprocess.Popen(
            ["bash", "-c", f"exec {line}"],
            cwd=self.home,
            env=self.environment(),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )

    @property
    def config_file(self) -> Path:
        return self.home / ".config/rensei/config.json"

    def config(self) -> Mapping[str, Any]:
        document: dict[str, Any] = json.loads(self.config_file.read_text())
        return document

    def everything_kept(self) -> bytes:
        """All that this command wrote into the home."""
        return b"".join(path.read_bytes() for path in (self.home / ".config/rensei").rglob("*") if path.is_file())

    def install_program(self, name: str, text: str) -> None:
        program = self.programs / name
        program.write_text(text)
        program.chmod(0o755)


def on_screens(
    terminal: Terminal, lines: Sequence[str], *, widths: Sequence[int]
) -> Iterator[tuple[str, str, list[str]]]:
    """Run lines in a pipe and on pseudo-terminals, and give for each what it wrote there to standard output."""
    places = [None, *widths]
    done = subprocess.run(
        [sys.executable, "-m", "tests.cli.on_screens"],
        cwd=ROOT,
        env=terminal.environment(),
        input=json.dumps([[line, place] for line in lines for place in places]),
        capture_output=True,
        text=True,
        timeout=SECONDS_MAX,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    written = json.loads(done.stdout)
    for place, line in enumerate(lines):
        piped, *shown = written[place * len(places) :][: len(places)]
        assert piped["code"] == 0, (line, done.stderr)
        yield line, piped["written"], [one["written"] for one in shown]
