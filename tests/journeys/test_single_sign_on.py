"""Single sign-on in a real browser: the content security policy lets the way to the provider and back pass."""

from collections.abc import Iterator
from typing import Any

import pytest
from playwright.sync_api import Browser

from rensei.orgs.models import Org, User
from tests.accounts.openid_provider import CLIENT_ID, OpenIdProvider
from tests.journeys.person import Person
from tests.journeys.stack import Stack, start

pytestmark = [
    pytest.mark.browser,
    pytest.mark.outside,
    pytest.mark.timeout(300),
    pytest.mark.django_db(transaction=True),
]


@pytest.fixture(scope="module")
def provider() -> Iterator[OpenIdProvider]:
    running = OpenIdProvider()
    yield running
    running.stop()


@pytest.fixture(scope="module")
def joined(
    provider: OpenIdProvider, simulator_process: Any, tmp_path_factory: pytest.TempPathFactory, chromium: Browser
) -> Iterator[Stack]:
    """A server whose settings name the provider."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RENSEI_OIDC_ISSUER", provider.issuer)
        patch.setenv("RENSEI_OIDC_CLIENT_ID", CLIENT_ID)
        patch.setenv("RENSEI_OIDC_CLIENT_SECRET", provider.client_secret)
        patch.setenv("RENSEI_OIDC_NAME", "Acme Login")
        with start(folder=tmp_path_factory.mktemp("joined"), simulator_url=simulator_process.url) as running:
            yield running


class TestSomebodyOfTheProvider:
    def test_comes_in_by_one_click_and_lands_where_they_wanted_to_go(
        self, chromium: Browser, joined: Stack, provider: OpenIdProvider, acme: Org, ada: User, catalog: None
    ) -> None:
        provider.person = {"sub": "42", "email": ada.email, "email_verified": True}
        context = chromium.new_context()
        person = Person(context.new_page(), base_url=joined.url)

        person.open("/o/acme/settings/tokens")
        person.follow("Continue with Acme Login")
        person.sees_heading("API Tokens")

        assert person.page.url == f"{joined.url}/o/acme/settings/tokens"
        assert person.strangers
        assert all(address.startswith(f"{provider.issuer}/authorize?") for address in person.strangers)
        assert person.complaints == []
        assert provider.client_secret not in joined.logs()
        context.close()
