"""Every main page: on a phone, a tablet and a desk, in the light and in the dark, for everyone."""

from collections.abc import Callable

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import expect

from integrations.models import Integration, PlatformKey
from profiles.models import ModelProfile
from rensei.dispatch import admission
from rensei.dispatch.models import Run
from rensei.dispatch.requests import DispatchRequest, messages_from
from rensei.orgs import services as orgs
from rensei.orgs.access import Access
from rensei.orgs.models import Org, Project, User
from tests.journeys.person import Person

pytestmark = [pytest.mark.browser, pytest.mark.timeout(300), pytest.mark.django_db(transaction=True)]

WIDTHS = (390, 820, 1024, 1440)
SETTINGS = ["integrations", "integrations/add", "integrations/add/claude", "profiles", "profiles/new", "catalog"]
SETTINGS += ["catalog/claude/claude-opus-5-5", "projects", "members", "tokens", "machines", "audit-log", "metered"]


@pytest.fixture
def run(
    ada_access: Access,
    project: Project,
    connected: Integration,
    mia: User,
    make_profile: Callable[..., ModelProfile],
    fill_pool: Callable[[str], PlatformKey],
) -> Run:
    """A lived-in organization, and a run of it."""
    make_profile(name="deep", auth_modes=["byok", "metered"], model_id="claude-opus-4-1-20250514", effort="high")
    make_profile(name="a profile with a name of sixty-three characters and four words", auth_modes=["metered"])
    fill_pool("shared")
    orgs.create_token(ada_access, name="ci")
    asked = messages_from(text="[[reply 120 words]] Tell me of the sea.", messages=None)
    return admission.dispatch(ada_access, DispatchRequest(profile_id="prof_deep", messages=asked))


def misfits(person: Person) -> list[str]:
    """Find the screens that the open page is too wide for."""
    found = []
    for width in WIDTHS:
        person.page.set_viewport_size({"width": width, "height": 900})
        needed = person.page.evaluate("document.documentElement.scrollWidth")
        if needed > width:
            found.append(f"{person.page.url} needs {needed} px of {width} px")
    return found


def barriers(person: Person) -> list[str]:
    """Find what keeps somebody from reading or using the open page, in axe's judgement."""
    rules = Axe().run(person.page).response["violations"]
    grave = [rule for rule in rules if rule["impact"] in ("serious", "critical")]
    return [f"{person.page.url}: {rule['id']}: {node['html'][:200]}" for rule in grave for node in rule["nodes"]]


@pytest.mark.parametrize("theme", ["light", "dark"])
class TestEveryPage:
    def test_fits_every_screen_and_can_be_read_by_everyone(
        self, open_browser: Callable[..., Person], ada: User, run: Run, theme: str
    ) -> None:
        person = open_browser(color_scheme=theme, reduced_motion="reduce")
        person.sign_in(ada)
        person.open(f"/o/acme/runs/{run.id}")
        person.reads_the_answer()
        paths = ["/o/acme/", "/o/acme/runs", f"/o/acme/runs/{run.id}", "/o/acme/playground", "/o/acme/usage", "/docs/"]
        paths += [*(f"/o/acme/settings/{name}" for name in SETTINGS), "/docs/errors"]
        problems: list[str] = []
        for path in paths:
            person.open(path)
            expect(person.page.get_by_role("heading", level=1).first).to_be_visible()
            problems += misfits(person) + barriers(person)

        assert problems == []

    def test_of_an_operator_fits_every_screen(
        self, open_browser: Callable[..., Person], grace: User, acme: Org, theme: str
    ) -> None:
        person = open_browser(color_scheme=theme)
        person.sign_in(grace)
        problems: list[str] = []
        for path in ("/admin/", "/admin/billing/entitlement/", "/admin/integrations/platformkey/"):
            person.open(path)
            expect(person.page.get_by_role("heading", level=1).first).to_be_visible()
            problems += misfits(person)

        assert problems == []


class TestAPhone:
    def test_connects_a_key(
        self, open_browser: Callable[..., Person], acme: Org, ada: User, catalog: None, make_key: Callable[..., str]
    ) -> None:
        person = open_browser(viewport={"width": 390, "height": 844}, has_touch=True, color_scheme="dark")
        person.open("/")
        assert barriers(person) == []
        person.sign_in(ada)
        person.click("Menu")
        person.follow("Integrations")
        person.follow("Add Provider")
        person.follow("Anthropic Claude")
        person.type("API key", make_key())
        person.click("Test Connection")
        expect(person.page.get_by_role("status").filter(has_text="models")).to_be_visible()
        person.click("Save")
        person.sees("is connected.")
        assert barriers(person) == []
