"""A running gateway, the wire to its provider, and clients that know nothing of either."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from datetime import timedelta
from typing import Any

import anthropic
import pytest

from billing.models import Entitlement
from integrations.keys import platform
from integrations.models import Integration, PlatformKey
from profiles.models import ModelProfile
from rensei.core.clock import database_now
from rensei.core.models import WorkerHeartbeat
from rensei.core.secret import Secret
from rensei.dispatch.execution.sandboxes import Sandboxes
from rensei.dispatch.models import Run
from rensei.gateway import routing
from rensei.gateway.routing import Route
from rensei.orgs.access import Access
from rensei.tokens.look_up import for_token
from rensei.tokens.services import create_token
from tests.gateway import server as servers
from tests.gateway.line import MODEL, Answer, exchange, settled
from tests.gateway.server import Server
from tests.gateway.wire import Wire, stretch
from tests.waiting import wait_until

# Models of each kind, and efforts for the profiles of the additions' tests.
EFFORTS = {
    "claude-opus-5-5": ["", "low", "max"],
    "claude-opus-4-8": ["", "high"],
    "claude-opus-4-6": ["", "medium"],
    "claude-opus-4-5-20251101": ["", "low"],
    "claude-haiku-4-5-20251001": ["", "low", "high"],
    "claude-sonnet-5-5": ["xhigh"],
}


@pytest.fixture(scope="package")
def wire_for_all(simulator_process: Any) -> Iterator[Wire]:
    with stretch(simulator_process.url) as wire:
        yield wire


@pytest.fixture(scope="package")
def server_for_all(
    django_db_setup: None, wire_for_all: Wire, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Server]:
    with servers.start(folder=tmp_path_factory.mktemp("gateway"), upstream=wire_for_all.url) as running:
        yield running


@pytest.fixture(autouse=True)
def _vault(settings: Any, server_for_all: Server) -> None:
    """What a test arranges is sealed with the keys of the running server."""
    settings.RENSEI_VAULT_KEYRING = server_for_all.folder / "keyring.json"
    settings.DATA_DIR = server_for_all.folder


@pytest.fixture
def wire(wire_for_all: Wire, simulator: Any) -> Wire:
    wire_for_all.passed.clear()
    return wire_for_all


@pytest.fixture
def server(transactional_db: None, server_for_all: Server, wire: Wire, catalog: None) -> Iterator[Server]:
    """The running server, with an empty database but for the catalog. No call outlives its test."""
    yield server_for_all
    settled()


@pytest.fixture
def client_wire(server: Server) -> Iterator[Wire]:
    """A wire between a client and the gateway, which shows what the client sends."""
    with stretch(server.url) as between:
        yield between


@pytest.fixture
def start_server(
    transactional_db: None, server_for_all: Server, wire: Wire, catalog: None
) -> Iterator[Callable[..., Server]]:
    """Start another server, set as a test needs it."""
    with ExitStack() as stack:

        def start(**options: Any) -> Server:
            options.setdefault("upstream", wire.url)
            return stack.enter_context(servers.start(folder=server_for_all.folder, **options))

        yield start


@pytest.fixture
def connect(connect: Callable[..., Integration], simulator: Any) -> Callable[..., Integration]:
    """Connect a key, where the settings name the simulator as the provider."""
    return connect


@pytest.fixture
def add_key(make_key: Callable[..., str], db: None) -> Callable[..., PlatformKey]:
    """Put a key of the platform's into a pool. One with a word, which fails, is all but certain to be chosen first."""

    def add(pool: str, word: str = "", **fields: Any) -> PlatformKey:
        return platform.add_platform_key(
            actor=None,
            provider="claude",
            pool=pool,
            name=word or "good",
            api_key=Secret(make_key(word)),
            model_ids=[MODEL] if pool == "shared" else [],
            max_tokens_cap=fields.pop("max_tokens_cap", 2000 if pool == "shared" else None),
            weight=30_000 if word else 1,
            **fields,
        )

    return add


@pytest.fixture
def byok(connect: Callable[..., Integration], make_profile: Callable[..., ModelProfile]) -> ModelProfile:
    """Acme's own key signs."""
    connect()
    return make_profile(is_default=True)


@pytest.fixture
def metered(ada_access: Access, add_key: Callable[..., PlatformKey], make_profile: Any) -> ModelProfile:
    """A key of the platform signs, and Acme is billed."""
    add_key("metered")
    Entitlement.objects.filter(org=ada_access.org).update(metered_enabled=True)
    profile: ModelProfile = make_profile(auth_modes=["metered"], is_default=True)
    return profile


@pytest.fixture
def shared(ada_access: Access, add_key: Callable[..., PlatformKey], make_profile: Any) -> ModelProfile:
    """A key of the platform signs and the platform pays, for twenty runs a day."""
    add_key("shared")
    Entitlement.objects.filter(org=ada_access.org).update(shared_runs_per_day=20)
    profile: ModelProfile = make_profile(auth_modes=["shared"], is_default=True)
    return profile


@pytest.fixture
def make_token(ada_access: Access) -> Callable[..., str]:
    def make(access: Access = ada_access, **options: Any) -> str:
        _, secret = create_token(access, name="program", **options)
        return secret.reveal()

    return make


@pytest.fixture
def token(make_token: Callable[..., str]) -> str:
    return make_token()


@pytest.fixture
def sdk() -> Iterator[Callable[..., anthropic.Anthropic]]:
    """Make clients of the official SDK. They are closed after the test: what is left open is collected in another."""
    with ExitStack() as stack:
        yield lambda **options: stack.enter_context(anthropic.Anthropic(**{"max_retries": 0, **options}))


@pytest.fixture
def client(server: Server, token: str, sdk: Callable[..., anthropic.Anthropic]) -> anthropic.Anthropic:
    """The official SDK, which is told the address and the token and nothing else."""
    return sdk(base_url=server.url, api_key=token)


@pytest.fixture
def ask(server: Server, token: str) -> Callable[..., Answer]:
    """Send bytes, and read the answer as it is on the line."""

    def send(
        body: Any = None, *, path: str = "/v1/messages", method: str = "POST", to: Server = server, **headers: str
    ) -> Answer:
        return exchange(to, body, path=path, method=method, headers={"x-api-key": token, **_named(headers)})

    return send


def _named(headers: dict[str, str]) -> dict[str, str]:
    return {name.replace("_", "-"): value for name, value in headers.items()}


@pytest.fixture
def way(ada_access: Any, connect: Any, make_profile: Any, token_access: Any) -> Any:
    """Find the way of a profile's calls."""
    connect()

    def find(name: str, **fields: Any) -> Route:
        profile = make_profile(name=name, **fields)
        found = routing.load(token_access, profile.public_id)
        assert isinstance(found, Route), found
        return found

    return find


@pytest.fixture
def token_access(ada_access: Any, make_token: Any) -> Any:
    access = for_token(token=make_token())
    assert access is not None
    return access


@pytest.fixture
def ways(way: Any) -> list[Route]:
    """Profiles of each kind of model, with and without an effort, for each way of caching."""
    return [
        way(f"{model_id} {effort} {caching}", model_id=model_id, effort=effort, prompt_caching=caching)
        for model_id, efforts in EFFORTS.items()
        for effort in efforts
        for caching in ("ephemeral", "static")
    ]


@pytest.fixture
def running(server: Server, settings: Any) -> Iterator[Sandboxes]:
    """The sandboxes of a worker, whose heartbeat offers them."""
    settings.PUBLIC_URL = server.url
    running = Sandboxes(owner="test:sandboxes")
    running.open()
    if running.refusal:
        pytest.skip(f"No sandboxes here: {running.refusal}")
    # None follows it, however long a test takes.
    seen_at = database_now() + timedelta(minutes=10)
    WorkerHeartbeat.objects.create(worker="test", seen_at=seen_at, offers_sandboxes=True)
    yield running
    running.close(seconds=10)


@pytest.fixture
def finish(running: Sandboxes) -> Callable[[Run], Run]:
    """Carry a run to its end."""

    def carry(run: Run) -> Run:
        assert running.start_next()
        wait_until(lambda: not running._running, what="the sandbox")
        run.refresh_from_db()
        return run

    return carry
