"""A browser, a running Rensei, and the people who use it."""

import functools
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from playwright.sync_api import Browser, BrowserContext, Page, expect, sync_playwright

from billing.limits.entitlement import set_metered
from integrations.keys import platform
from integrations.models import PlatformKey
from profiles.models import ModelProfile
from rensei.core.secret import Secret
from rensei.orgs.access import Access
from rensei.orgs.models import Org, User
from tests.journeys.person import KeyboardPerson, Person
from tests.journeys.stack import Stack, start

CHROMIUM = "/usr/bin/chromium"
QUIET = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"]
QUIET += ["--disable-component-update", "--disable-sync"]
PATIENCE_MILLISECONDS = 30_000
MODEL = "claude-sonnet-5-5"


@pytest.fixture(scope="package")
def chromium() -> Iterator[Browser]:
    """
    Chromium, for the journeys alone.

    Playwright keeps an event loop running in this thread. Django would refuse its database there, and other
    tests could start no loop of their own, so both end with the last journey.
    """
    with pytest.MonkeyPatch.context() as patch, sync_playwright() as playwright:
        patch.setenv("DJANGO_ALLOW_ASYNC_UNSAFE", "true")
        expect.set_options(timeout=PATIENCE_MILLISECONDS)
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=QUIET)
        yield browser
        browser.close()


@pytest.fixture(scope="package")
def stack(
    django_db_setup: None, simulator_process: Any, tmp_path_factory: pytest.TempPathFactory, chromium: Browser
) -> Iterator[Stack]:
    """The processes, for the journeys alone: a worker would take the runs of other tests."""
    with start(folder=tmp_path_factory.mktemp("stack"), simulator_url=simulator_process.url) as running:
        yield running


@pytest.fixture(autouse=True)
def _vault(settings: Any, stack: Stack, simulator: Any) -> None:
    """What a test arranges by itself is sealed with the keys of the running server, and checked by its provider."""
    settings.RENSEI_VAULT_KEYRING = stack.keyring
    settings.DATA_DIR = stack.folder
    settings.PUBLIC_URL = stack.url


@pytest.fixture
def open_browser(transactional_db: None, chromium: Browser, stack: Stack) -> Iterator[Callable[..., Person]]:
    """Give somebody a browser of their own. At the end nobody's may have complained, or asked another machine."""
    contexts: list[BrowserContext] = []
    people: list[Person] = []

    def give(*, kind: type[Person] = Person, **options: Any) -> Person:
        context = chromium.new_context(**options)
        context.set_default_timeout(PATIENCE_MILLISECONDS)
        contexts.append(context)
        page: Page = context.new_page()
        people.append(kind(page, base_url=stack.url))
        return people[-1]

    yield give
    for context in contexts:
        context.close()
    assert [stranger for person in people for stranger in person.strangers] == []
    assert [complaint for person in people for complaint in person.complaints] == []


@pytest.fixture
def person(open_browser: Callable[..., Person]) -> Person:
    return open_browser()


@pytest.fixture(
    params=[
        pytest.param(Person, id="mouse"),
        pytest.param(KeyboardPerson, id="keyboard", marks=pytest.mark.outside),
    ]
)
def open_either(request: pytest.FixtureRequest, open_browser: Callable[..., Person]) -> Callable[..., Person]:
    """Give people browsers: once everybody has a mouse, and once nobody has."""
    return functools.partial(open_browser, kind=request.param)


@pytest.fixture
def anybody(open_either: Callable[..., Person]) -> Person:
    """A person with a mouse, and then one without."""
    return open_either()


@pytest.fixture
def make_profile(make_profile: Callable[..., ModelProfile]) -> Callable[..., ModelProfile]:
    return functools.partial(make_profile, model_id=MODEL)


@pytest.fixture
def fill_pool(ada_access: Access, make_key: Callable[..., str]) -> Callable[[str], PlatformKey]:
    """Put a key of the platform's into a pool."""

    def fill(pool: str) -> PlatformKey:
        key = Secret(make_key())
        return platform.add_platform_key(
            actor=None, provider="claude", pool=pool, name="one", api_key=key, model_ids=[MODEL], max_tokens_cap=1024
        )

    return fill


@pytest.fixture
def enable_metered(acme: Org, grace: User) -> Callable[[], None]:
    """Let Acme use metered, as its operator would."""
    return functools.partial(set_metered, org_ids=[acme.id], enabled=True, actor_user=grace)
