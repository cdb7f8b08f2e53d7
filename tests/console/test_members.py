"""Settings, Members: inviting, sending again, taking back, and what each role sees of it."""

import re
from datetime import timedelta

import pytest
from django.core import mail

from rensei.accounts import invitations
from rensei.accounts.models import Invitation
from rensei.core.clock import database_now
from rensei.orgs.models import Membership, Role
from rensei.tokens.throttling import SensitiveThrottle

PATH = "/o/acme/settings/members"
ZOE = {"email": "zoe@acme.test", "role": "member"}


@pytest.fixture
def pending(ada_access):
    return invitations.invite(ada_access, email=ZOE["email"], role=Role.MEMBER).invitation


def text(answer):
    return answer.content.decode()


class TestInvite:
    def test_mails_the_link_and_lists_the_invitation(self, page):
        answer = page.post(PATH, ZOE, follow=True)

        assert answer.redirect_chain == [(PATH, 302)]
        assert mail.outbox[-1].to == [ZOE["email"]]
        assert "zoe@acme.test was sent a link by mail. It expires in 7 days." in text(answer)
        assert re.search(r"zoe@acme\.test.*Pending", text(answer), flags=re.DOTALL)
        assert ":8000/invitations/" not in text(answer)

    def test_shows_the_link_once_where_no_mail_goes_out(self, page, settings):
        settings.EMAIL_BACKEND = "django.core.mail.backends.dummy.EmailBackend"

        answer = page.post(PATH, ZOE)

        assert answer.status_code == 200
        assert "This server sends no mail. Give this link to zoe@acme.test yourself" in text(answer)
        assert re.search(r"http://127\.0\.0\.1:8000/invitations/[\w-]{43}", text(answer))
        assert "no-store" in answer["Cache-Control"]
        assert ":8000/invitations/" not in text(page.get(PATH))

    @pytest.mark.parametrize(
        ("form", "sentence"),
        [
            ({**ZOE, "email": "mia@acme.test"}, "mia@acme.test is a member already"),
            (ZOE, "An invitation to zoe@acme.test is open already"),
            ({**ZOE, "email": "zoe"}, "valid email"),
        ],
        ids=["member", "invited", "no-address"],
    )
    def test_says_why_not(self, page, mia, pending, form, sentence):
        answer = page.post(PATH, form)

        assert answer.status_code in {409, 422}
        assert sentence in text(answer)
        assert Invitation.objects.count() == 1

    def test_offers_admins_no_owners_place(self, acme, alan, page_as):
        browser = page_as(alan)

        options = re.findall(r'<option value="(\w+)"', text(browser.get(PATH)).split("Send invitation")[0])
        answer = browser.post(PATH, {**ZOE, "role": "owner"})

        assert options == ["admin", "member", "auditor"]
        assert answer.status_code == 422
        assert not Invitation.objects.exists()

    @pytest.mark.parametrize("who", ["mia", "otto"])
    def test_is_not_for_members_and_auditors(self, mia, otto, pending, page_as, who):
        browser = page_as({"mia": mia, "otto": otto}[who])

        page = text(browser.get(PATH))
        browser.post(PATH, {**ZOE, "email": "yan@acme.test"})

        assert "Send invitation" not in page
        assert "Send again" not in page
        assert "Inviting people and changing roles is up to an owner or admin" in page
        assert Invitation.objects.count() == 1

    def test_is_limited(self, page, monkeypatch):
        monkeypatch.setattr(SensitiveThrottle, "rate", "2/min", raising=False)

        statuses = [page.post(PATH, {**ZOE, "email": f"{place}@acme.test"}).status_code for place in range(3)]

        assert statuses == [302, 302, 429]


class TestSendAgain:
    def test_mails_a_new_link(self, page, pending):
        answer = page.post(f"/o/acme/settings/invitations/{pending.id}/resend", follow=True)

        assert "was sent a link by mail" in text(answer)
        assert len(mail.outbox) == 2

    def test_is_offered_for_one_that_has_expired(self, page, pending):
        Invitation.objects.update(expires_at=database_now() - timedelta(days=1))

        page_before = text(page.get(PATH))
        page.post(f"/o/acme/settings/invitations/{pending.id}/resend")

        assert "Expired" in page_before
        assert "Pending" in text(page.get(PATH))

    def test_is_offered_when_the_inviter_has_left(self, page, alan, access_of):
        invitations.invite(access_of(alan), email=ZOE["email"], role=Role.MEMBER)
        Membership.objects.get(user=alan).delete()

        assert "Inviter has left" in text(page.get(PATH))


class TestTakeBack:
    def test_asks_first_and_then_ends_it(self, page, pending):
        path = f"/o/acme/settings/invitations/{pending.id}/revoke"

        asked = page.get(path)
        answer = page.post(path, follow=True)

        assert "Revoke the invitation to zoe@acme.test?" in text(asked)
        assert "was revoked" in text(answer)
        assert "Pending" not in text(page.get(PATH))
