"""The first person of a new server, with the link that its start prints."""

import pytest

from rensei.accounts import setup
from rensei.orgs.models import User
from tests.journeys.person import PASSWORD, Person

pytestmark = [
    pytest.mark.browser,
    pytest.mark.outside,
    pytest.mark.timeout(300),
    pytest.mark.django_db(transaction=True),
]


class TestTheFirstPerson:
    def test_makes_the_first_account_with_the_link_once(self, person: Person, catalog: None) -> None:
        link = setup.link()
        assert link is not None

        person.page.goto(link)
        person.type("Your name", "Ada")
        person.type("Email", "ada@acme.test")
        person.type("Password", PASSWORD)
        person.type("Organization", "Acme")
        person.type("Its ID in addresses", "acme")
        person.click("Create")

        person.sees_heading("Three steps to a first answer")
        assert person.page.url.endswith("/o/acme/")
        person.sees("Operator admin")
        assert User.objects.get().is_staff
        person.page.goto(link)
        person.sees_heading("Page not found")
