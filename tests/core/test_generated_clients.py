"""
What checks the OpenAPI document and makes clients of it, as users have it. `make clients` installs it, and runs this.
"""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from rensei.orgs.access import Access
from rensei.orgs.models import Org, User
from rensei.orgs.scopes import DEFAULT
from rensei.tokens.services import create_token
from tests import answers
from tests.dispatch.reconcile import assert_explained
from tests.gateway.line import MODEL
from tests.gateway.programs import find_installed, run
from tests.journeys.stack import Stack, start

FILES = Path(__file__).parent / "clients"
BIN = "schema/node_modules/.bin"
# What a body may leave out has a default, and is not asked of the caller.
OPTIONS = ["--default-non-nullable", "false"]

pytestmark = [pytest.mark.outside, pytest.mark.timeout(300)]


@pytest.fixture
def document(tmp_path: Path) -> Path:
    place = tmp_path / "openapi.json"
    place.write_text(json.dumps(answers.document()))
    return place


@pytest.fixture
def stack(transactional_db: None, catalog: None, simulator: Any, settings: Any, tmp_path: Path) -> Iterator[Stack]:
    folder = tmp_path / "stack"
    folder.mkdir()
    with start(folder=folder, simulator_url=simulator.url) as running:
        settings.RENSEI_VAULT_KEYRING = running.keyring
        yield running


@pytest.fixture
def environment(stack: Stack, acme: Org, ada: User, access_of: Callable[..., Access], make_key: Any) -> dict[str, str]:
    _, token = create_token(access_of(ada), name="client", scopes=list(DEFAULT))
    return {"RENSEI": stack.url, "TOKEN": token.reveal(), "KEY": make_key(), "MODEL": MODEL}


class TestTheDocument:
    def test_satisfies_redocly(self, document: Path, tmp_path: Path) -> None:
        command = [find_installed(f"{BIN}/redocly"), "lint", "--config", str(FILES / "redocly.yaml"), str(document)]

        run(command, home=tmp_path / "home", REDOCLY_TELEMETRY="off", REDOCLY_SUPPRESS_UPDATE_NOTICE="true")

    def test_satisfies_spectral(self, document: Path, tmp_path: Path) -> None:
        command = [find_installed(f"{BIN}/spectral"), "lint", "--ruleset", str(FILES / "spectral.yaml")]

        said = run([*command, "--fail-severity", "hint", str(document)], home=tmp_path / "home")

        assert "No results" in said


@pytest.mark.django_db(transaction=True)
class TestAClient:
    def test_of_typescript_connects_makes_a_profile_and_dispatches(
        self, document: Path, environment: dict[str, str], tmp_path: Path, simulator: Any
    ) -> None:
        home = tmp_path / "home"
        home.mkdir()
        (home / "node_modules").symlink_to(find_installed("schema/node_modules"))
        for name in ("journey.ts", "tsconfig.json"):
            (home / name).write_bytes((FILES / name).read_bytes())
        (home / "package.json").write_text('{"type": "module"}')

        run([find_installed(f"{BIN}/openapi-typescript"), str(document), "-o", "rensei.d.ts", *OPTIONS], home=home)
        run([find_installed(f"{BIN}/tsc"), "--project", "."], home=home)
        found = json.loads(run(["node", "journey.js"], home=home, **environment).splitlines()[-1])

        assert_went_through(found, profile="prof_typescript", simulator=simulator)

    def test_of_python_connects_makes_a_profile_and_dispatches(
        self, document: Path, environment: dict[str, str], tmp_path: Path, simulator: Any
    ) -> None:
        home = tmp_path / "home"
        home.mkdir()
        python = find_installed("schema-python/bin/python")
        generate = [find_installed("schema-python/bin/openapi-python-client"), "generate", "--path", str(document)]

        generate += ["--meta", "none", "--output-path", "rensei_client", "--config", str(FILES / "python-client.yaml")]
        run([*generate, "--fail-on-warning"], home=home)
        run([python, "-m", "compileall", "-q", "rensei_client"], home=home)
        every = "import importlib, pkgutil, rensei_client as c; "
        every += "[importlib.import_module(m.name) for m in pkgutil.walk_packages(c.__path__, 'rensei_client.')]"
        run([python, "-c", every], home=home)
        (home / "journey.py").write_bytes((FILES / "journey.py").read_bytes())
        found = json.loads(run([python, "journey.py"], home=home, **environment).splitlines()[-1])

        assert_went_through(found, profile="prof_python", simulator=simulator)


def assert_went_through(found: dict[str, Any], *, profile: str, simulator: Any) -> None:
    assert found["integration"] == "untested"
    assert found["profile"] == profile
    assert found["state"] == "SUCCEEDED"
    assert f"answering as {MODEL}" in found["text"]
    assert float(found["cost"]) > 0
    assert found["refused"] == "NOT_FOUND"
    assert_explained(simulator)
