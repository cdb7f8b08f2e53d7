"""All of our modules, imported, so that tests can look at what is in them."""

import importlib
import pkgutil
from functools import cache
from pathlib import Path
from types import ModuleType

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("rensei", "integrations", "profiles", "catalog", "billing")
# The command is a program of its own, and the simulator another: neither is part of the server.
STRANGERS = ("rensei.cli", "rensei.simulator")


@cache
def modules() -> list[ModuleType]:
    """Import every module of the server but the migrations."""
    found = [importlib.import_module(package) for package in PACKAGES]
    names = [info.name for package in found for info in pkgutil.walk_packages(package.__path__, f"{package.__name__}.")]
    ours = [name for name in names if ".migrations" not in name and not name.startswith(STRANGERS)]
    return found + [importlib.import_module(name) for name in ours]
