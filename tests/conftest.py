"""The cast and the stage that every test shares."""

import functools
import os
import secrets
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import hypothesis
import pytest
from django.core.cache import caches
from django.test import Client
from rest_framework.test import APIClient

from integrations.models import Integration
from integrations.vault import keyring, openings
from integrations.vault.kek import LocalKeyring
from profiles.models import ModelProfile
from rensei.core.later import later
from rensei.core.rates import rates
from rensei.operators.health import readiness
from rensei.orgs import services as orgs
from rensei.orgs.access import Access, for_member
from rensei.orgs.models import Membership, Org, Project, Role, User
from rensei.simulator import server as simulator_server
from rensei.tokens.services import create_token
from rensei.tokens.unknown_tokens import unknown_run_tokens, unknown_tokens
from tests import cloud_stand_in, factories
from tests.cloud_stand_in import StandIn
from tests.e2b_stand_in import E2BStandIn
from tests.modal_stand_in import ModalStandIn
from tests.vercel_stand_in import VercelStandIn

# A machine that runs many tests at once is slow at times, which says nothing of what is tested.
hypothesis.settings.register_profile(
    "busy machine", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow]
)
hypothesis.settings.load_profile("busy machine")

pytest_plugins = ["tests.machine", "tests.database", "tests.calls_out", "tests.answers"]


@pytest.fixture(scope="session")
def simulator_process() -> Iterator[Any]:
    handle = simulator_server.start()
    yield handle
    handle.stop()


@pytest.fixture
def simulator(simulator_process: Any, settings: Any) -> Iterator[Any]:
    """The provider: real HTTP on loopback, with an empty log. Whatever a test sends must be a request it would take."""
    simulator_process.reset()
    settings.RENSEI_ANTHROPIC_BASE_URL = simulator_process.url
    yield simulator_process
    assert simulator_process.invalid_requests() == []
    assert not [call for call in simulator_process.requests() if call["outcome"] == "crashed"]


@pytest.fixture(scope="session", autouse=True)
def _nothing_forced_to_the_disk() -> Iterator[None]:
    """What a test writes need not outlive a power cut. Each test waited twice for the disk, for its keyring alone."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda file: None)
        yield


@pytest.fixture(scope="session")
def _folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("own")


@pytest.fixture
def _folder(_folders: Path) -> Path:
    """A folder for the files of a test's installation. `tmp_path` takes longer to make, and most tests need none."""
    return Path(tempfile.mkdtemp(dir=_folders))


@pytest.fixture(scope="session")
def e2b_for_all() -> Iterator[E2BStandIn]:
    with cloud_stand_in.running(E2BStandIn) as stand_in:
        yield stand_in


@pytest.fixture(scope="session")
def vercel_for_all() -> Iterator[VercelStandIn]:
    with cloud_stand_in.running(VercelStandIn) as stand_in:
        yield stand_in


@pytest.fixture(scope="session")
def modal_for_all() -> Iterator[ModalStandIn]:
    with cloud_stand_in.running(ModalStandIn) as stand_in:
        yield stand_in


@pytest.fixture(params=["e2b", "vercel", "modal"])
def stand_in(request: pytest.FixtureRequest) -> StandIn:
    """Each cloud that there is, as the settings name it."""
    found: StandIn = request.getfixturevalue(request.param)
    return found


@pytest.fixture
def e2b(e2b_for_all: E2BStandIn, settings: Any) -> Iterator[E2BStandIn]:
    settings.RENSEI_E2B_BASE_URL = e2b_for_all.url
    yield e2b_for_all
    e2b_for_all.reset()


@pytest.fixture
def vercel(vercel_for_all: VercelStandIn, settings: Any) -> Iterator[VercelStandIn]:
    settings.RENSEI_VERCEL_BASE_URL = vercel_for_all.url
    yield vercel_for_all
    vercel_for_all.reset()


@pytest.fixture
def modal(modal_for_all: ModalStandIn, settings: Any) -> Iterator[ModalStandIn]:
    settings.RENSEI_MODAL_BASE_URL = modal_for_all.url
    yield modal_for_all
    modal_for_all.reset()


@pytest.fixture(autouse=True)
def _vault(settings: Any, _folder: Path) -> None:
    settings.RENSEI_VAULT_KEYRING = _folder / "keyring.json"
    keyring.create(settings.RENSEI_VAULT_KEYRING)


@pytest.fixture
def keyring_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """The keyring counts as being on another machine, so that unwrapping a key inside a transaction fails."""
    monkeypatch.setattr(LocalKeyring, "is_remote", True)


@pytest.fixture(autouse=True)
def _nothing_counted() -> Iterator[None]:
    """A process counts in memory, and the tests share theirs."""
    rates.forget()
    unknown_tokens.forget()
    unknown_run_tokens.forget()
    readiness.forget()
    caches["process"].clear()
    openings.forget_all()
    yield
    later.wait()


@pytest.fixture(scope="session", autouse=True)
def _openings_wait() -> Iterator[None]:
    """No thread writes to the database of a test by itself: a test calls `openings.write` when it looks."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(openings, "start_writing", lambda pid: None)
        yield


@pytest.fixture(autouse=True)
def _anchors(settings: Any, _folder: Path) -> None:
    """What a worker that another test started has signed would be a difference in this one's audit."""
    settings.RENSEI_LEDGER_ANCHOR_KEY = _folder / "ledger_anchor.key"
    settings.RENSEI_LEDGER_ANCHORS = _folder / "ledger_anchors.jsonl"


@pytest.fixture
def make_key() -> Callable[..., str]:
    """Make a key of the right shape, at run time. A word in it asks the simulator for a fault."""

    def make(word: str = "") -> str:
        return "-".join(filter(None, ["sk-ant-api03", word, secrets.token_hex(24)]))

    return make


@pytest.fixture
def make_user(db: None) -> Callable[..., User]:
    def make(email: str, **fields: Any) -> User:
        return User.objects.create_user(email, "correct horse battery", **fields)

    return make


@pytest.fixture
def ada(make_user: Callable[..., User]) -> User:
    return make_user("ada@acme.test", name="Ada")


@pytest.fixture
def acme(ada: User) -> Org:
    return orgs.create_org(name="Acme", slug="acme", owner=ada)


@pytest.fixture
def project(acme: Org) -> Project:
    return Project.objects.create(org=acme, slug="my-project", name="My Project")


def _join(org: Org, user: User, role: Role) -> User:
    Membership.objects.create(org=org, user=user, role=role)
    return user


@pytest.fixture
def alan(acme: Org, make_user: Callable[..., User]) -> User:
    return _join(acme, make_user("alan@acme.test", name="Alan"), Role.ADMIN)


@pytest.fixture
def mia(acme: Org, make_user: Callable[..., User]) -> User:
    return _join(acme, make_user("mia@acme.test", name="Mia"), Role.MEMBER)


@pytest.fixture
def otto(acme: Org, make_user: Callable[..., User]) -> User:
    return _join(acme, make_user("otto@acme.test", name="Otto"), Role.AUDITOR)


@pytest.fixture
def grace(make_user: Callable[..., User]) -> User:
    return make_user("grace@platform.test", name="Grace", is_staff=True, is_superuser=True)


@pytest.fixture
def eve(make_user: Callable[..., User]) -> User:
    """Owner of another organization, who must find nothing of Acme's."""
    user = make_user("eve@evil.test", name="Eve")
    orgs.create_org(name="Evil", slug="evil", owner=user)
    return user


@pytest.fixture
def access_of(db: None) -> Callable[..., Access]:
    """Look up a person's access to an organization, as the doors do."""

    def look_up(user: User, slug: str = "acme") -> Access:
        access = for_member(user=user, slug=slug)
        assert access is not None
        return access

    return look_up


@pytest.fixture
def access(acme: Org, ada: User, access_of: Callable[..., Access]) -> Access:
    return access_of(ada)


@pytest.fixture
def ada_access(access: Access, catalog: None) -> Access:
    """Ada's access, where the catalog is loaded."""
    return access


@pytest.fixture
def key(make_key: Callable[..., str]) -> str:
    return make_key()


@pytest.fixture
def connect(ada_access: Access, make_key: Callable[..., str]) -> Callable[..., Integration]:
    """Connect a key of Acme's. A word in it asks the simulator for a fault."""

    def connect_key(word: str = "", **fields: Any) -> Integration:
        return factories.connect_key(ada_access, make_key(word), **{"name": word or "Main", **fields})

    return connect_key


@pytest.fixture
def connected(connect: Callable[..., Integration]) -> Integration:
    return connect()


@pytest.fixture
def make_profile(ada_access: Access) -> Callable[..., ModelProfile]:
    return functools.partial(factories.create_profile, ada_access)


@pytest.fixture
def api_as(access_of: Callable[..., Access]) -> Callable[..., APIClient]:
    """A REST client with a token of that person."""

    def sign_in(user: User, slug: str = "acme", **options: Any) -> APIClient:
        _, secret = create_token(access_of(user, slug), name="test", **options)
        client = APIClient()
        client.default_format = "json"
        client.credentials(HTTP_AUTHORIZATION=f"Bearer {secret.reveal()}")
        return client

    return sign_in


@pytest.fixture
def page_as() -> Callable[[User], Client]:
    """A browser without Chromium: the Django client, signed in."""

    def sign_in(user: User) -> Client:
        client = Client()
        client.force_login(user)
        return client

    return sign_in
