"""Every page in every state of docs/pages.md: on a phone, a tablet and a desk, in the light and in the dark."""

import gzip
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlsplit

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import expect

from integrations.keys import break_glass
from integrations.models import Integration
from profiles.models import ModelProfile
from rensei.dispatch import services as pools
from rensei.dispatch.admission import admit
from rensei.dispatch.admission.requests import DispatchRequest, messages_from
from rensei.orgs import services as orgs
from rensei.orgs.access import Access
from rensei.orgs.models import Org, Project, User
from rensei.tokens.machines import register_host
from rensei.tokens.services import create_token
from rensei.workflows import services as workflows
from tests.architecture import routes
from tests.console.agents import past_agent
from tests.journeys.person import Person

pytestmark = [
    pytest.mark.outside,
    pytest.mark.browser,
    pytest.mark.timeout(600),
    pytest.mark.django_db(transaction=True),
]

WIDTHS = (390, 820, 1440)
# Looked at without loading the page again, which would load axe again as well.
MORE_WIDTHS = (600, 1024, 1680)
# What does not fit: a table that is wider than its frame, what reaches beyond the screen, and text that is cut off.
# What lies in a region that scrolls by itself fits.
FIND_MISFITS = """() => {
    const scrolls = (element) => {
        for (let one = element.parentElement; one; one = one.parentElement) {
            const overflow = getComputedStyle(one).overflowX;
            if (["auto", "scroll"].includes(overflow) && !one.matches(".table-frame, .results")) return true;
        }
        return false;
    };
    const name = (element) => `${element.outerHTML.split(">")[0]} ${element.textContent.trim().slice(0, 40)}`;
    const found = [];
    for (const frame of document.querySelectorAll(".table-frame, .results")) {
        const table = frame.querySelector("table");
        const width = table.getBoundingClientRect().width;
        // Widths are rounded, and half of a border may be outside.
        if (frame.clientWidth && width > frame.clientWidth + 2) {
            found.push(`a table of ${Math.round(width)} px in ${frame.clientWidth} px: ${name(table)}`);
        }
    }
    for (const element of document.querySelectorAll("main *")) {
        const box = element.getBoundingClientRect();
        if (!box.width || !box.height || element.closest(".visually-hidden")) continue;
        if (element.matches(".button--small") && box.height > 44) found.push(`broken into lines: ${name(element)}`);
        if (box.right > window.innerWidth + 1 && !scrolls(element)) found.push(`beyond the screen: ${name(element)}`);
        const holds = element.matches(".badge, .tag, .button, th, dt, .figure dd, .notice__body, .table__sub");
        if (holds && element.scrollWidth > element.clientWidth + 1) found.push(`cut: ${name(element)}`);
    }
    return found.slice(0, 5);
}"""
# https://web.dev/articles/cls: more than this is felt.
SHIFT_MAX = 0.1
FIRST_VISIT_BYTES_MAX = 100_000
IMAGES = (".png", ".svg")
AXE = Axe().axe_script
# Targets of 24 px are a rule of WCAG 2.2 that axe leaves out unless it is asked. It knows the exceptions.
EVERY_RULE = {"rules": {"target-size": {"enabled": True}}}
TARGETS_ONLY = {"runOnly": ["target-size", "scrollable-region-focusable"]}
COLOURS_ONLY = {"runOnly": ["color-contrast", "link-in-text-block"]}
# Loads no style sheets by itself, which a page of Django's would not allow it.
IN_THE_ADMIN = {**EVERY_RULE, "preload": False}
# The element that has the focus, by its place in the document, and whether that can be seen.
FOCUS = """() => {
    const one = document.activeElement;
    const style = getComputedStyle(one);
    const shown = style.outlineStyle !== "none" || style.boxShadow !== "none";
    return [[...document.querySelectorAll("*")].indexOf(one), one === document.body, shown, one.outerHTML.slice(0, 80)];
}"""
TABS_MAX = 250
COUNT_SHIFTS = """
    window.layoutShift = 0;
    new PerformanceObserver((list) => {
        for (const entry of list.getEntries()) if (!entry.hadRecentInput) window.layoutShift += entry.value;
    }).observe({type: "layout-shift", buffered: true});
"""
DOCUMENT = """\
name: digest
nodes:
  - {nodeId: one, nodeType: action/llm.inference, config: {profileId: prof_mine, prompt: "Sum up {{ input.notes }}"}}
  - {nodeId: two, nodeType: action/llm.inference, needs: [one], config: {profileId: prof_deep, prompt: "Go on."}}
"""
PARTS = 6
# In bytes each second, at which a page comes in pieces.
SLOW_LINE = 20_000


class Row(NamedTuple):
    """A line of the table."""

    page: str
    state: str
    who: str
    address: str
    heading: str


def rows() -> list[Row]:
    text = (Path(__file__).parents[2] / "docs" / "pages.md").read_text()
    lines = re.findall(r"^\| (.+?) \| (.+?) \| (\w+) \| `(/.*?)` \| (.+?) \|$", text, flags=re.MULTILINE)
    return [Row(*line) for line in lines]


ROWS = rows()


@pytest.fixture
def addresses(
    ada_access: Access,
    acme: Org,
    ada: User,
    project: Project,
    connected: Integration,
    mia: User,
    make_profile: Callable[..., ModelProfile],
) -> dict[str, str]:
    """A lived-in organization and an empty one, and the ids of what is in the first."""
    orgs.create_org(name="Empty", slug="empty", owner=ada)
    make_profile(name="deep", auth_modes=["byok", "metered"], model_id="claude-opus-4-1-20250514", effort="high")
    make_profile(name="a profile with a name of sixty-three characters and four words", auth_modes=["metered"])
    make_profile(name="paid", auth_modes=["metered"])
    make_profile(name="mine", auth_modes=["host-session"])
    token, _ = create_token(ada_access, name="ci", cap=25 * 10**12)
    host, _, _ = register_host(ada_access, name="a-machine-with-a-rather-long-name")

    def dispatch(profile_id: str, text: str, **fields: str) -> str:
        asked = DispatchRequest(profile_id=profile_id, messages=messages_from(text=text, messages=None), **fields)  # type: ignore[arg-type]
        return str(admit.dispatch(ada_access, asked).id)

    # What waits for a machine goes on waiting, so a page that loads can be looked at for as long as one likes.
    workflow, _ = workflows.apply_document(ada_access, DOCUMENT)
    return {
        "agent": past_agent(acme, ada).id,
        "run": dispatch("prof_deep", "[[reply 120 words]] Tell me of the sea."),
        "failed": dispatch("prof_deep", "[[fault:spendlimit]] Go on."),
        "waiting": dispatch("prof_mine", "Are you there?", host_id=host.id),
        "workflow": workflow.id,
        "workflow_run": workflows.start(ada_access, workflow, given={"notes": "None."}).id,
        "integration": connected.id,
        "token": token.id,
        "pool": pools.create_pool(ada_access, name="lab", provider_id="e2b", config={"template": "tools"}).id,
    }


def misfits(person: Person) -> list[str]:
    """Find the screens that the open page is too wide for."""
    found = []
    for width in WIDTHS:
        person.page.set_viewport_size({"width": width, "height": 900})
        needed = person.page.evaluate("document.documentElement.scrollWidth")
        if needed > width:
            found.append(f"{person.page.url} needs {needed} px of {width} px")
    return found


def scrolls_sideways(person: Person) -> bool:
    """Tell whether the open page is wider than its screen."""
    return bool(person.page.evaluate("document.documentElement.scrollWidth > window.innerWidth"))


def barriers(person: Person, options: Mapping[str, object] = EVERY_RULE) -> list[str]:
    """Find what keeps somebody from reading or using the open page, in axe's judgement."""
    if not person.page.evaluate("'axe' in window"):
        person.page.evaluate(AXE)
    # Only what is wrong is told in full: the list of all that is right takes longer to read than to make.
    asked = {**options, "resultTypes": ["violations"]}
    rules = person.page.evaluate("async (options) => (await axe.run(options)).violations", asked)
    grave = [rule for rule in rules if rule["impact"] in ("serious", "critical")]
    return [f"{person.page.url}: {rule['id']}: {node['html'][:200]}" for rule in grave for node in rule["nodes"]]


class Weights:
    """What the pages load, compressed, without images. Each file is fetched once and weighed."""

    def __init__(self, person: Person) -> None:
        self.person = person
        self.asked: list[str] = []
        self.bytes_of: dict[str, int] = {}
        person.page.on("request", lambda request: self.asked.append(request.url))

    def of_page(self) -> int:
        files = {url for url in self.asked if not urlsplit(url).path.endswith(IMAGES) and not url.startswith("data:")}
        return sum(self._weigh(url) for url in files)

    def _weigh(self, url: str) -> int:
        if url not in self.bytes_of:
            self.bytes_of[url] = len(gzip.compress(self.person.page.request.get(url).body()))
        return self.bytes_of[url]


@pytest.mark.parametrize("part", range(PARTS))
class TestEveryPage:
    def test_can_be_used_by_everyone_on_every_screen(
        self,
        open_browser: Callable[..., Person],
        part: int,
        addresses: dict[str, str],
        ada: User,
        mia: User,
        otto: User,
        grace: User,
    ) -> None:
        people: dict[str, Person] = {}
        weights: dict[str, Weights] = {}
        problems: list[str] = []
        for row in ROWS[part::PARTS]:
            if row.who not in people:
                people[row.who] = person = open_browser(reduced_motion="reduce")
                person.page.add_init_script(COUNT_SHIFTS)
                if row.who != "anonymous":
                    person.sign_in({"ada": ada, "mia": mia, "otto": otto, "grace": grace}[row.who])
                weights[row.who] = Weights(person)
            problems += self.look_at(people[row.who], weights[row.who], row, addresses)

        assert problems == [], "\n".join(problems)

    def look_at(self, person: Person, weights: Weights, row: Row, addresses: dict[str, str]) -> list[str]:
        """Open the page at every width, and collect what is wrong with it."""
        page, problems = person.page, list[str]()
        address = re.sub(r"<(\w+)>", lambda name: addresses[name[1]], row.address)
        page.emulate_media(color_scheme="light")
        for width in reversed(WIDTHS):
            weights.asked.clear()
            page.set_viewport_size({"width": width, "height": 900})
            person.open(address)
            expect(page.get_by_role("heading", level=1)).to_contain_text(row.heading)
            shift = page.evaluate("window.layoutShift")
            if shift > SHIFT_MAX:
                problems.append(f"{address} shifts by {shift:.2f} at {width} px")
            problems += self.misfits_at(person, address, width)
        problems += barriers(person, TARGETS_ONLY)
        for width in MORE_WIDTHS:
            page.set_viewport_size({"width": width, "height": 900})
            problems += self.misfits_at(person, address, width)
        problems += barriers(person)
        bytes_loaded = weights.of_page()
        if bytes_loaded > FIRST_VISIT_BYTES_MAX:
            problems.append(f"{address} loads {bytes_loaded} bytes")
        # Opened anew: a theme that changes under an open page may be looked at half-way.
        page.emulate_media(color_scheme="dark")
        person.open(address)
        return problems + barriers(person, COLOURS_ONLY)

    def misfits_at(self, person: Person, address: str, width: int) -> list[str]:
        needed = person.page.evaluate("document.documentElement.scrollWidth")
        wide = [f"{address} needs {needed} px of {width} px"] if needed > width else []
        return wide + [f"{address} at {width} px: {misfit}" for misfit in person.page.evaluate(FIND_MISFITS)]


class TestTheTable:
    def test_has_a_row_for_every_page_of_an_organization(self) -> None:
        """Pages that only answer a form, or ask again before something goes, are drawn as one of these."""
        written = {
            re.sub(
                r"<\w+>|prof_\w+|my-project|claude[\w.-]*",
                "*",
                row.address.split("?")[0].replace("/o/empty/", "/o/acme/"),
            )
            for row in ROWS
        }
        shown = {re.sub(r"<[^>]+>", "*", f"/{route}").replace("/o/*/", "/o/acme/") for route in routes.pages()}
        verbs = (
            "delete|remove|revoke|rename|switch|default|cancel|again|start|test|message|role|resend|retry/\\*"
            "|newer|selected|palette|views|destroy-keys|files/\\*"
        )
        asking = re.compile(rf".*/({verbs})|.*csv")

        missing = {route for route in shown - written if not asking.fullmatch(route)}

        # The last one stands for every address that no page has.
        assert missing == {"/o/acme/usage/statements/*", "/o/acme/*"}


class TestAnOperator:
    @pytest.mark.parametrize("theme", ["light", "dark"])
    def test_fits_every_screen(
        self,
        open_browser: Callable[..., Person],
        make_user: Callable[..., User],
        grace: User,
        connected: Integration,
        theme: str,
    ) -> None:
        hugo = make_user("hugo@platform.test", is_staff=True, is_superuser=True)
        break_glass.ask("export", target=connected.pk, reason="The provider asks for it " * 5, operator=hugo)
        break_glass.ask("address", target="https://a-proxy-with-a-name.example/v1", reason="It moves", operator=grace)
        keys = "/admin/integrations"
        person = open_browser(color_scheme=theme)
        person.sign_in(grace)
        problems: list[str] = []
        for path in (
            "/admin/", "/admin/billing/entitlement/", "/admin/orgs/org/", f"{keys}/platformkey/", f"{keys}/breakglass/",
            f"{keys}/breakglass/ask/export/", f"{keys}/rotation/", "/admin/billing/costevent/", "/admin/catalog/price/",
            "/admin/catalog/price/add/", "/admin/orgs/membership/add/", f"/admin/orgs/org/{connected.org_id}/change/",
            "/admin/policies/accesspolicy/add/",
        ):  # fmt: skip
            person.open(path)
            expect(person.page.get_by_role("heading", level=1).first).to_be_visible()
            problems += misfits(person) + person.page.evaluate(FIND_MISFITS) + barriers(person, IN_THE_ADMIN)

        assert problems == []

    def test_reaches_everything_by_the_keyboard(
        self, open_browser: Callable[..., Person], grace: User, connected: Integration
    ) -> None:
        person = open_browser(viewport={"width": 1440, "height": 900})
        person.sign_in(grace)
        problems: list[str] = []
        for path in ("/admin/", "/admin/billing/entitlement/", "/admin/orgs/membership/add/"):
            person.open(path)
            # A form begins in its first field.
            person.page.evaluate("document.activeElement.blur(); document.body.tabIndex = -1; document.body.focus()")
            places, at_end = [0], False
            while not at_end and len(places) < TABS_MAX:
                person.page.keyboard.press("Tab")
                place, at_end, shown, what = person.page.evaluate(FOCUS)
                if not at_end:
                    places.append(place)
                    problems += [] if shown else [f"{path}: focus is not visible: {what}"]
            wanted = person.page.evaluate(
                "[...document.querySelectorAll('a[href], button, input:not([type=hidden]), select, textarea, summary')]"
                ".filter((one) => one.checkVisibility()).length"
            )
            problems += [] if places == sorted(set(places)) else [f"{path}: the order of focus is not that of the page"]
            problems += [] if len(places) > wanted else [f"{path}: {len(places) - 1} of {wanted} are reached"]

        assert problems == []


class TestAPhone:
    def test_reads_a_document_that_comes_slowly_and_does_not_move(self, open_browser: Callable[..., Person]) -> None:
        person = open_browser(viewport={"width": 390, "height": 844})
        person.page.add_init_script(COUNT_SHIFTS)
        # Its style and script are there already, and what has come of the page is painted.
        person.open("/docs/")
        line = person.page.context.new_cdp_session(person.page)
        slow = {"offline": False, "latency": 20, "downloadThroughput": SLOW_LINE, "uploadThroughput": SLOW_LINE}
        line.send("Network.emulateNetworkConditions", slow)
        person.open("/docs/errors")
        assert person.page.evaluate("window.layoutShift") <= SHIFT_MAX

        person.click("Menu")
        person.follow("Faults")
        person.sees_heading("Faults")

    def test_connects_a_key_and_reads_a_first_answer(
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

        person.click("Menu")
        person.follow("Model Profiles")
        person.follow("Create profile")
        person.type("Name", "first")
        person.sees("Runs as byok")
        person.click("Create profile")
        person.sees("first was saved.")
        assert barriers(person) == []
        assert not scrolls_sideways(person)
        person.follow("Try it")
        person.type("Message", "Is anybody there?")
        person.sees("Runs as byok")
        assert barriers(person) == []
        assert not scrolls_sideways(person)
        person.click("Dispatch")

        assert "Anthropic simulator" in person.reads_the_answer()
        assert person.cost() > 0
        assert barriers(person) == []
        assert not scrolls_sideways(person)
