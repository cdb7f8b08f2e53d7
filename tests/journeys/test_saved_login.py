"""A browser that has saved a person's login offers it where they sign in, and puts it into no other form."""

import hashlib
import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from playwright.sync_api import Browser, BrowserContext, Page, expect

from integrations.keys import platform
from integrations.models import Integration, PlatformKey
from rensei.core.secret import Secret
from rensei.orgs.models import User
from tests.journeys.conftest import CHROMIUM, QUIET
from tests.journeys.person import PASSWORD
from tests.journeys.stack import Stack

pytestmark = [
    pytest.mark.browser,
    pytest.mark.outside,
    pytest.mark.timeout(300),
    pytest.mark.django_db(transaction=True),
]
# Chromium's own switches for automation turn its password manager off.
LEFT_OUT = ["--enable-automation", "--password-store=basic", "--use-mock-keychain", "--disable-extensions"]
FILLED = "[...document.querySelectorAll('input')].filter((one) => one.matches(':autofill')).map((one) => one.name)"


def sealed_for_chromium(password: str) -> bytes:
    """
    Seal a password as Chromium does on Linux where there is no system keyring (`--password-store=basic`).

    Source: components/os_crypt/sync/os_crypt_linux.cc of Chromium.
    """
    key = hashlib.pbkdf2_hmac("sha1", b"peanuts", b"saltysalt", 1, 16)
    padding = 16 - len(password) % 16
    cipher = Cipher(algorithms.AES(key), modes.CBC(b" " * 16)).encryptor()
    return b"v10" + cipher.update(password.encode() + bytes([padding]) * padding) + cipher.finalize()


def save_login(database: Path, *, url: str, email: str, password: str) -> None:
    with sqlite3.connect(database) as connection:
        columns = connection.execute("PRAGMA table_info(logins)").fetchall()
        row: dict[str, Any] = {
            name: 0 if kind == "INTEGER" else "" for _, name, kind, needed, _, _ in columns if needed
        }
        row |= {
            "origin_url": f"{url}/accounts/login/",
            "action_url": f"{url}/accounts/login/",
            "signon_realm": f"{url}/",
        }
        row |= {"username_element": "login", "username_value": email, "password_element": "password"}
        row |= {"password_value": sealed_for_chromium(password), "times_used": 3}
        connection.execute(
            f"INSERT INTO logins ({', '.join(row)}) VALUES ({', '.join('?' * len(row))})", list(row.values())
        )
    connection.close()


@pytest.fixture
def own_browser(transactional_db: None, chromium: Browser, stack: Stack, tmp_path: Path) -> Iterator[Page]:
    """A browser with a profile of its own, in which Ada's login is saved."""

    def start() -> BrowserContext:
        arguments = [*QUIET, "--password-store=basic", "--headless=new"]
        return chromium.browser_type.launch_persistent_context(
            tmp_path / "profile",
            executable_path=CHROMIUM,
            headless=False,
            args=arguments,
            ignore_default_args=LEFT_OUT,
        )

    logins = tmp_path / "profile/Default/Login Data"
    first = start()
    first.new_page().goto(f"{stack.url}/accounts/login/")
    first.close()
    save_login(logins, url=stack.url, email="ada@acme.test", password=PASSWORD)
    context = start()
    yield context.new_page()
    context.close()


def filled(page: Page) -> list[str]:
    """The fields that the browser has filled in. A page learns of it at the person's first click or key."""
    page.mouse.click(5, 5)
    page.keyboard.press("Tab")
    # What does not happen cannot be waited for. The sign-in page is filled within a tenth of this.
    page.wait_for_timeout(500)
    names: list[str] = page.evaluate(FILLED)
    return names


class TestASavedLogin:
    def test_goes_into_no_form_but_the_one_to_sign_in(
        self, own_browser: Page, stack: Stack, ada: User, connected: Integration, make_key: Callable[..., str]
    ) -> None:
        User.objects.filter(pk=ada.pk).update(is_staff=True, is_superuser=True)
        pool_key = platform.add_platform_key(
            actor=ada, provider="claude", pool=PlatformKey.Pool.METERED, name="Pool", api_key=Secret(make_key())
        )
        page = own_browser
        page.goto(f"{stack.url}/accounts/login/")
        # Shows that the browser has the login and fills it in: without it, the rest would prove nothing.
        page.wait_for_function(f"() => {FILLED}.length === 2")
        page.get_by_role("button", name="Sign in").click()
        expect(page).not_to_have_url(f"{stack.url}/accounts/login/")

        for path in [
            "/o/acme/settings/integrations/add/claude",
            f"/o/acme/settings/integrations/{connected.id}/edit",
            f"/o/acme/settings/integrations/{connected.id}/rotate",
            "/admin/integrations/platformkey/add/",
            f"/admin/integrations/platformkey/{pool_key.pk}/change/",
        ]:
            page.goto(f"{stack.url}{path}")
            expect(page.locator("input[type=password]")).to_have_count(1)

            assert filled(page) == [], path
            assert page.locator("input[type=password]").input_value() == ""
