"""The wheel, and environments of their own that it is installed in as users install it."""

import json
import os
import subprocess
import sys
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
SECONDS_MAX = 240
# The keyring of the person who runs the tests is not to be written to.
NO_KEYRING = {"PYTHON_KEYRING_BACKEND": "keyring.backends.fail.Keyring"}


def build(folder: Path) -> Path:
    """Build the wheel of this checkout."""
    _run(sys.executable, "-m", "hatchling", "build", "--target", "wheel", "--directory", str(folder))
    (wheel,) = folder.glob("*.whl")
    return wheel


def names_in(wheel: Path) -> set[str]:
    with zipfile.ZipFile(wheel) as archive:
        return {name for name in archive.namelist() if ".dist-info/" not in name}


@dataclass(frozen=True, kw_only=True)
class Environment:
    """A virtual environment with its own home folder, in which no checkout is to be found."""

    folder: Path

    @property
    def home(self) -> Path:
        return self.folder / "home"

    def program(self, name: str) -> str:
        return str(self.folder / "bin" / name)

    def variables(self, **more: str) -> dict[str, str]:
        path = f"{self.folder / 'bin'}:/usr/local/bin:/usr/bin:/bin"
        return {"HOME": str(self.home), "PATH": path, "LANG": "C.UTF-8", **NO_KEYRING, **more}

    def packages(self) -> set[str]:
        """Name what is installed in it."""
        listed = _run(*UV, "pip", "list", "--format", "json", "--python", self.program("python")).stdout
        return {package["name"] for package in json.loads(listed)}

    def run(self, *command: str, given: str = "", **more: str) -> "subprocess.CompletedProcess[str]":
        return subprocess.run(
            [self.program(command[0]), *command[1:]],
            cwd=self.home,
            env=self.variables(**more),
            input=given,
            capture_output=True,
            text=True,
            check=False,
            timeout=SECONDS_MAX,
        )

    def succeed(self, *command: str, given: str = "", **more: str) -> str:
        done = self.run(*command, given=given, **more)
        assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
        return done.stdout


UV = (sys.executable, "-m", "uv", "--no-progress")


def install(folder: Path, wheel: Path, *, extra: str = "") -> Environment:
    """
    Make an environment and install the wheel with the locked versions of what it asks for.

    What uv has in its cache is linked and not copied, so only the first time takes long and needs the network.
    """
    made = Environment(folder=folder)
    _run(*UV, "venv", "--quiet", "--python", sys.executable, str(folder))
    made.home.mkdir()
    what = f"rensei[{extra}] @ {wheel.as_uri()}" if extra else f"rensei @ {wheel.as_uri()}"
    locked = ("--constraint", str(ROOT / "requirements.txt"))
    _run(*UV, "pip", "install", "--quiet", "--compile-bytecode", "--python", made.program("python"), *locked, what)
    return made


def _run(*command: str) -> "subprocess.CompletedProcess[Any]":
    done = subprocess.run(
        command, cwd=ROOT, env=_inherited(), capture_output=True, text=True, check=False, timeout=SECONDS_MAX
    )
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done


def _inherited() -> dict[str, str]:
    left_out = ("VIRTUAL_ENV", "PYTHONPATH")
    return {name: value for name, value in os.environ.items() if name not in left_out}
