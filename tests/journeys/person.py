"""Somebody in front of a browser: they see roles and labels, click and type, and it is counted how often they must."""

import re
from decimal import Decimal
from typing import Any

from playwright.sync_api import ConsoleMessage, Locator, Page, Request, expect

from rensei.orgs.models import User

PASSWORD = "correct horse battery"
# More than any page has controls, twice around.
TABS_MAX = 250
# The browser notes a refusal by its status, and htmx a preview that a newer one has replaced. Neither is a mistake.
EXPECTED = re.compile(
    r"Failed to load resource: the server responded with a status of 4\d\d |htmx:(afterRequest|sendAbort)\b"
    r"|Response Status Error Code 4\d\d from"
)


class Person:
    """A person with a page. What the browser complains of, and every address that it asks, is kept."""

    def __init__(self, page: Page, *, base_url: str) -> None:
        self.page = page
        self.base_url = base_url
        self.clicks = self.fields = 0
        self.complaints: list[str] = []
        self.strangers: list[str] = []
        page.on("console", self._hear)
        page.on("pageerror", lambda fault: self.complaints.append(str(fault)))
        page.on("request", self._notice)

    def open(self, path: str) -> None:
        self.page.goto(f"{self.base_url}{path}")

    def sign_in(self, user: User) -> None:
        self.open("/")
        self.type("Email", user.email)
        self.type("Password", PASSWORD)
        self.click("Sign in")
        # Whoever goes elsewhere before the answer is there is not signed in.
        expect(self.page).not_to_have_url(re.compile("/accounts/login/"))

    def click(self, name: str, *, role: Any = "button", within: Locator | None = None) -> None:
        (within or self.page).get_by_role(role, name=name, exact=True).click()
        self.clicks += 1

    def follow(self, name: str, *, within: Locator | None = None) -> None:
        self.click(name, role="link", within=within)

    def unfold(self, name: str) -> None:
        """Open what is folded away under a line of text."""
        self.page.locator("summary", has_text=name).click()
        self.clicks += 1

    def open_menu(self, label: str) -> None:
        self.page.get_by_label(label, exact=True).click()
        self.clicks += 1

    def type(self, label: str, text: str) -> None:
        self.page.get_by_label(label, exact=True).fill(text)
        self.fields += 1

    def choose(self, label: str, option: str) -> None:
        """Choose an option by its value, or by what it says."""
        self._list(label).select_option(option)
        self.fields += 1

    def tick(self, label: str) -> None:
        self.page.get_by_label(label, exact=True).check()
        self.clicks += 1

    def sees(self, text: str | re.Pattern[str]) -> None:
        expect(self.page.get_by_text(text).filter(visible=True).first).to_be_visible()

    def sees_heading(self, name: str) -> None:
        expect(self.page.get_by_role("heading", name=name).first).to_be_visible()

    def reads_the_answer(self) -> str:
        """Wait for the end of the run that the page shows, and read what the model wrote."""
        expect(self.page.get_by_text("Succeeded", exact=True)).to_be_visible()
        return self.section("Answer").locator(".prose-text").inner_text()

    def opens_the_run(self) -> None:
        """Go from the last answer of a conversation to the page of its run."""
        self.follow("Run details")
        expect(self.section("Usage and cost")).to_be_visible()

    def cost(self) -> Decimal:
        """Read what the run that the page shows has cost, in dollars."""
        if "/playground" in self.page.url:
            return Decimal(self.section("Answer").locator(".turn__cost").inner_text().removeprefix("$"))
        total = self.section("Usage and cost").get_by_role("row", name="Total")
        return Decimal(total.inner_text().split("$")[1])

    def section(self, name: str) -> Locator:
        return self.page.get_by_role("region", name=name, exact=True)

    def _list(self, label: str) -> Locator:
        """Find a list by its name. By its label's text it would not be found where the label holds the list itself."""
        return self.page.get_by_role("combobox", name=label, exact=True)

    def _hear(self, message: ConsoleMessage) -> None:
        if message.type in ("error", "warning") and not EXPECTED.match(message.text):
            self.complaints.append(f"{self.page.url}: {message.text}")

    def _notice(self, request: Request) -> None:
        if not request.url.startswith((self.base_url, "data:", "blob:")):
            self.strangers.append(request.url)


class KeyboardPerson(Person):
    """Somebody who has no mouse: they go from control to control by Tab, and see where they are."""

    def click(self, name: str, *, role: Any = "button", within: Locator | None = None) -> None:
        self._go_to((within or self.page).get_by_role(role, name=name, exact=True))
        self.page.keyboard.press("Enter")
        self.clicks += 1

    def unfold(self, name: str) -> None:
        self._go_to(self.page.locator("summary", has_text=name))
        self.page.keyboard.press("Enter")
        self.clicks += 1

    def open_menu(self, label: str) -> None:
        self._go_to(self.page.get_by_label(label, exact=True))
        self.page.keyboard.press("Enter")
        self.clicks += 1

    def type(self, label: str, text: str) -> None:
        self._go_to(self.page.get_by_label(label, exact=True))
        self.page.keyboard.press("ControlOrMeta+a")
        self.page.keyboard.insert_text(text)
        self.page.keyboard.press("Shift")  # A key that changes nothing: pages listen for keys too.
        self.fields += 1

    def choose(self, label: str, option: str) -> None:
        field = self._list(label)
        self._go_to(field)
        place, value = field.evaluate(
            """(field, option) => {
                const place = [...field.options].findIndex((one) => [one.value, one.label].includes(option));
                return [place, field.options[place].value];
            }""",
            option,
        )
        here = field.evaluate("(field) => field.selectedIndex")
        for _ in range(abs(place - here)):
            self.page.keyboard.press("ArrowDown" if place > here else "ArrowUp")
        expect(field).to_have_value(value)
        self.page.keyboard.press("Tab")  # They go on. A page may have waited for that.
        self.fields += 1

    def tick(self, label: str) -> None:
        box = self.page.get_by_label(label, exact=True)
        self._go_to(box)
        if not box.is_checked():
            self.page.keyboard.press("Space")
        self.clicks += 1

    def _go_to(self, target: Locator) -> None:
        """Press Tab until the target has the focus. It has to be reachable, and the focus has to show."""
        expect(target).to_be_visible()
        for _ in range(TABS_MAX):
            if target.evaluate("(element) => element === document.activeElement"):
                break
            self.page.keyboard.press("Tab")
        else:
            raise AssertionError(f"{target} is not reached by {TABS_MAX} presses of Tab")
        assert target.evaluate("(element) => getComputedStyle(element).outlineStyle !== 'none'"), (
            f"{target} shows no focus"
        )
