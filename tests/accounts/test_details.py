"""A person's own name, and which mails they get."""

import pytest

from billing.limits import metered_mails
from rensei.audit.models import AuditEvent
from rensei.core.later import later


@pytest.fixture
def browser(client, acme, ada):
    client.force_login(ada)
    return client


class TestDetails:
    def test_are_saved(self, browser, ada):
        answer = browser.post("/account/details", {"name": "Ada 洛芙莱斯"}, follow=True)

        ada.refresh_from_db()
        assert (ada.name, ada.is_mailed_decisions) == ("Ada 洛芙莱斯", False)
        assert "Your account was saved." in answer.content.decode()
        assert AuditEvent.objects.get(action="person.updated").user_id == ada.pk

    def test_keep_the_name_where_it_cannot_be_seen(self, browser, ada):
        answer = browser.post("/account/details", {"name": "a\u202eb"}, follow=True)

        ada.refresh_from_db()
        assert ada.name == "Ada"
        assert "printable characters" in answer.content.decode()

    def test_are_a_persons_own(self, client):
        answer = client.post("/account/details", {"name": "Eve"})

        assert answer.headers["Location"] == "/accounts/login/?next=/account/details"


class TestMailsOfDecisions:
    @pytest.mark.parametrize("wanted", [True, False])
    def test_are_sent_to_those_who_want_them(self, browser, acme, ada, alan, mailoutbox, wanted):
        browser.post("/account/details", {"name": "Ada"} | ({"is_mailed_decisions": "on"} if wanted else {}))

        metered_mails.tell_members(org=acme, asked_by=ada.email, enabled=True)
        later.wait()

        to = [address for mail in mailoutbox for address in mail.to]
        assert alan.email in to
        assert (ada.email in to) is wanted
