"""Packages know only those below them: by what they import, and by what their rows point to."""

import ast
import re
import subprocess
import sys
import tomllib

import pytest
from django.apps import apps

from tests.architecture.modules import PACKAGES, ROOT

# From the highest to the lowest, as import-linter holds them. Packages side by side do not know each other.
CONTRACTS = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
LAYERS = [set(re.findall(r"[\w.]+", layer)) for layer in CONTRACTS[0]["layers"]]
OURS = [model for model in apps.get_models() if model.__module__.split(".")[0] in PACKAGES]


def package_of(model):
    return apps.get_app_config(model._meta.app_label).name


def layer_of(package):
    return next(place for place, packages in enumerate(LAYERS) if package in packages)


class TestImports:
    def test_go_downward(self):
        linter = subprocess.run(
            [sys.executable, "-c", "from importlinter.cli import lint_imports_command; lint_imports_command()"],
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=False,
        )

        assert linter.returncode == 0, linter.stdout + linter.stderr
        assert "0 broken" in linter.stdout


@pytest.mark.parametrize("model", OURS, ids=lambda model: model._meta.label)
class TestRelations:
    def test_point_downward(self, model):
        for field in model._meta.get_fields():
            if not field.concrete or not field.is_relation or field.related_model not in OURS:
                continue
            source, target = package_of(model), package_of(field.related_model)
            assert source == target or layer_of(source) < layer_of(target), f"{model._meta.label}.{field.name}"


class TestTheCommand:
    def test_makes_every_address_with_an_id_by_one_function(self):
        """An id that is pasted into an address may lead to another one."""
        calls = {"get", "post", "put", "patch", "delete", "call", "list", "stream"}
        pasted = [
            f"{path.relative_to(ROOT)}:{node.lineno}"
            for path in (ROOT / "rensei/cli").rglob("*.py")
            for node in ast.walk(ast.parse(path.read_text()))
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in calls
            for argument in node.args[: 2 if node.func.attr in {"call", "stream"} else 1]
            if isinstance(argument, ast.JoinedStr | ast.BinOp)
        ]

        assert pasted == []
