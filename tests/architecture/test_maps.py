"""The maps of README and docs/architecture.md show the packages that there are, in the order that is held."""

import re

import pytest

from tests.architecture.modules import ROOT
from tests.architecture.test_layers import CONTRACTS, LAYERS

# These have no place in the order: they import nothing of the server.
APART = {"rensei/cli", "rensei/simulator", "tests"}
ROOTS = {"rensei/urls", "rensei/worker"}
LAYER_OF = {package.replace(".", "/"): place for place, layer in enumerate(LAYERS) for package in layer}


def readme_packages() -> list[str]:
    text = (ROOT / "README.md").read_text()
    return re.findall(r"^\| `([\w/]+)` \|", text.split("## The packages")[1].split("\n## ")[0], flags=re.MULTILINE)


def drawn_packages() -> list[str]:
    block = (ROOT / "docs/architecture.md").read_text().split("```")[1]
    names = (re.findall(r"[\w/]+", line[:38].replace(".py", "")) for line in block.splitlines())
    return [name for line in names for name in line]


class TestMaps:
    def test_of_the_readme_has_every_package(self) -> None:
        assert set(readme_packages()) == set(LAYER_OF) - ROOTS | APART

    def test_of_the_architecture_has_every_package(self) -> None:
        assert set(drawn_packages()) == set(LAYER_OF)

    @pytest.mark.parametrize("packages", [readme_packages, drawn_packages])
    def test_go_downward(self, packages) -> None:
        places = [LAYER_OF[package] for package in packages() if package in LAYER_OF]

        assert places == sorted(places)

    @pytest.mark.parametrize("contract", [one for one in CONTRACTS if "containers" in one], ids=lambda one: one["name"])
    def test_of_the_architecture_has_the_order_inside(self, contract) -> None:
        """What is not worth drawing is left out: addresses and the like."""
        (container,) = contract["containers"]
        line = next(
            line
            for line in (ROOT / "docs/architecture.md").read_text().splitlines()
            if line.startswith(container.replace(".", "/") + " ") and "→" in line
        )
        drawn = re.findall(r"\w+", line.removeprefix(container.replace(".", "/")))
        held = [name for layer in contract["layers"] for name in re.findall(r"\w+", layer)]

        assert drawn == [name for name in held if name != "urls"]
