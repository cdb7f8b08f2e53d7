"""A running Rensei, and somebody at a terminal who uses it."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from integrations.models import Integration
from profiles.models import ModelProfile
from rensei.orgs.access import Access
from rensei.orgs.models import Org, Project
from rensei.tokens.services import create_token
from tests.architecture.modules import ROOT
from tests.cli import logins, prepared
from tests.cli.terminal import Terminal
from tests.journeys.stack import Stack, start

MODEL = "claude-sonnet-5-5"
CLAUDE = ROOT / ".venv/clients/node_modules/.bin/claude"


@pytest.fixture(scope="package")
def stack(django_db_setup: None, simulator_process: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """The processes, for these tests alone: a worker would take the runs of others."""
    with start(folder=tmp_path_factory.mktemp("stack"), simulator_url=simulator_process.url) as running:
        yield running


@pytest.fixture(autouse=True)
def _vault(settings: Any, tmp_path: Path) -> None:
    """Only the running server seals, with its own keys; tests that need it name `server`."""


@pytest.fixture
def server(transactional_db: None, stack: Stack, simulator: Any, settings: Any, catalog: None) -> Stack:
    """The running server, with an empty database but for the catalog."""
    settings.RENSEI_VAULT_KEYRING = stack.keyring
    settings.DATA_DIR = stack.folder
    settings.PUBLIC_URL = stack.url
    return stack


@pytest.fixture
def make_token(server: Stack, ada_access: Access) -> Callable[..., str]:
    def make(access: Access = ada_access, **options: Any) -> str:
        _, secret = create_token(access, name="terminal", **options)
        return secret.reveal()

    return make


@pytest.fixture(scope="package")
def prepared_command(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A `rensei` that starts at once."""
    with prepared.start(tmp_path_factory.mktemp("prepared")) as programs:
        yield programs


@pytest.fixture
def make_terminal(server: Stack, tmp_path: Path, prepared_command: Path) -> Callable[..., Terminal]:
    def make(name: str = "ada", **variables: str) -> Terminal:
        return Terminal(tmp_path / name, {"RENSEI_API_URL": server.url, **variables}, prepared=prepared_command)

    return make


@pytest.fixture
def terminal(make_terminal: Callable[..., Terminal], make_token: Callable[..., str]) -> Terminal:
    """Ada's terminal, signed in by the environment."""
    return make_terminal(RENSEI_AUTH_TOKEN=make_token())


@pytest.fixture
def machine(make_terminal: Callable[..., Terminal], make_token: Callable[..., str]) -> Terminal:
    """Ada's machine, registered by `rensei setup`, without a login to Anthropic."""
    signed_in = make_terminal("machine")
    signed_in.succeed("rensei setup --token - --login none", given=make_token())
    return signed_in


@pytest.fixture
def connect(server: Stack, connect: Callable[..., Integration]) -> Callable[..., Integration]:
    """Connect a key, sealed with the keys of the running server."""
    return connect


@pytest.fixture
def make_profile(server: Stack, make_profile: Callable[..., ModelProfile]) -> Callable[..., str]:
    """Create a profile, and give its id."""
    return lambda **fields: make_profile(**{"name": "quick", "model_id": MODEL, **fields}).public_id


@pytest.fixture
def my_project(acme: Org, project: Project) -> Project:
    return project


@pytest.fixture
def here(make_profile: Callable[..., str]) -> str:
    """A profile whose runs are signed on the machine."""
    return make_profile(name="here", auth_modes=["host-session"])


@pytest.fixture
def console(machine: Terminal, simulator: Any) -> str:
    """The machine with a Console login. Gives the login's token."""
    token = logins.log_in_to_console(machine, base_url=simulator.url)
    machine.succeed("rensei setup")
    return token


@pytest.fixture
def real_claude(machine: Terminal, simulator: Any) -> str:
    """The machine with the real program, logged in. Gives the login's token."""
    if not CLAUDE.exists():
        pytest.skip("`make clients` installs the real program")
    # https://www.npmjs.com/package/@anthropic-ai/claude-code
    (machine.programs / "claude").symlink_to(CLAUDE)
    token = logins.log_in_to_claude(machine, base_url=simulator.url)
    machine.succeed("rensei setup --login claude-code")
    return token
