"""Invitations: a link that works once, for the right person, while whoever sent it could still invite."""

import re
from datetime import timedelta
from urllib.parse import urlsplit

import pytest
from django.core import mail
from django.test import Client

from rensei.accounts import invitations
from rensei.accounts.invitations import AlreadyInvited, AlreadyMember, InvitationInvalid
from rensei.accounts.models import Invitation
from rensei.accounts.throttling import SignInThrottle
from rensei.audit.models import AuditEvent
from rensei.core.clock import database_now
from rensei.core.errors import FieldError, NotFound, NotPermitted, RateLimited
from rensei.core.later import later
from rensei.core.secret import Secret, token_digest
from rensei.orgs import kill_switches, services
from rensei.orgs.access import OwnersOnly
from rensei.orgs.kill_switches import OrgSuspended
from rensei.orgs.models import Host, Membership, Role, User
from rensei.tokens.look_up import for_token
from rensei.tokens.machines import register_host
from rensei.tokens.services import create_token, revoke_token
from tests.pages import html_of

ZOE = "zoe@acme.test"
NEWCOMER = {"name": "Zoe", "password": "another horse battery"}


@pytest.fixture
def by_hand(settings):
    """No mail server, as on a laptop."""
    settings.EMAIL_BACKEND = "django.core.mail.backends.dummy.EmailBackend"


@pytest.fixture
def link(access):
    """The address in the mail that Zoe got."""
    invitations.invite(access, email=ZOE, role=Role.MEMBER)
    return link_in(mail.outbox[-1])


def link_in(message):
    return urlsplit(re.search(r"http\S+/invitations/\S+", message.body)[0]).path


def follow(link, client=None, form=None):
    """Open the link, and answer the page that it leads to."""
    client = client or Client()
    page = client.get(link, follow=True)
    return page if form is None else client.post("/invitation", form)


class TestInvite:
    def test_mails_a_link_of_which_only_a_hash_is_kept(self, access):
        sent = invitations.invite(access, email=" Zoe@Acme.test", role=Role.AUDITOR)

        [message] = mail.outbox
        secret = link_in(message).rpartition("/")[2]
        stored = Invitation.objects.get()
        assert message.to == [ZOE]
        assert "Ada (ada@acme.test) invites you to join Acme on Rensei as Auditor." in " ".join(message.body.split())
        assert (stored.email, stored.role, stored.mailed) == (ZOE, "auditor", True)
        assert stored.digest == token_digest(secret)
        assert secret not in repr(Invitation.objects.values().get())
        assert timedelta(days=6, hours=23) < stored.expires_at - database_now() <= timedelta(days=7)
        assert sent.link is None

    def test_gives_the_link_to_the_inviter_where_no_mail_goes_out(self, access, by_hand):
        sent = invitations.invite(access, email=ZOE, role=Role.MEMBER)

        assert token_digest(sent.link.reveal().rpartition("/")[2]) == Invitation.objects.get().digest
        assert not Invitation.objects.get().mailed

    def test_gives_the_link_to_nobody_when_the_mail_server_is_down(self, access, settings, caplog, capsys, monkeypatch):
        settings.EMAIL_BACKEND = "django.core.mail.backends.smtp.EmailBackend"
        settings.EMAIL_HOST, settings.EMAIL_PORT = "127.0.0.1", 9
        made = []
        monkeypatch.setattr(invitations, "_new_secret", lambda: made.append(Secret("x" * 43)) or made[-1])

        sent = invitations.invite(access, email=ZOE, role=Role.MEMBER)

        told = caplog.text + "".join(capsys.readouterr())
        assert sent.link is None
        assert "invitation_not_mailed" in told
        assert made[0].reveal() not in told
        assert not Invitation.objects.get().mailed
        # Nor does it open, should the inviter have got hold of it.
        assert follow(f"/invitations/{made[0].reveal()}", form=NEWCOMER).status_code == 410
        assert not User.objects.filter(email=ZOE).exists()

    def test_says_on_the_page_that_no_mail_went_out(self, acme, ada, page_as, settings):
        settings.EMAIL_BACKEND = "django.core.mail.backends.smtp.EmailBackend"
        settings.EMAIL_HOST, settings.EMAIL_PORT = "127.0.0.1", 9

        page = page_as(ada).post("/o/acme/settings/members", {"email": ZOE, "role": "member"}, follow=True)

        assert f"The mail to {ZOE} could not be sent." in page.content.decode()

    def test_writes_it_down_without_the_link(self, access, by_hand):
        sent = invitations.invite(access, email=ZOE, role=Role.MEMBER)

        event = AuditEvent.objects.get(action="invitation.created")
        assert event.detail == {"email": ZOE, "role": "member"}
        assert sent.link.reveal().rpartition("/")[2] not in str(event.__dict__)

    def test_refuses_a_member(self, access, mia):
        with pytest.raises(AlreadyMember, match=r"mia@acme\.test is a member already"):
            invitations.invite(access, email="MIA@acme.test", role=Role.MEMBER)

        assert mail.outbox == []

    def test_refuses_a_second_open_one(self, access, link):
        with pytest.raises(AlreadyInvited, match="Send it again"):
            invitations.invite(access, email=ZOE, role=Role.ADMIN)

        assert len(mail.outbox) == 1

    def test_takes_the_place_of_one_that_has_expired(self, access, link):
        Invitation.objects.update(expires_at=database_now())

        invitations.invite(access, email=ZOE, role=Role.ADMIN)

        assert [one.role for one in invitations.open_invitations(access)] == ["admin"]

    @pytest.mark.parametrize(("email", "role"), [("zoe", "member"), (ZOE, "king")])
    def test_refuses_what_is_no_address_or_role(self, access, email, role):
        with pytest.raises(FieldError):
            invitations.invite(access, email=email, role=role)

    @pytest.mark.parametrize("who", ["mia", "otto"])
    def test_is_for_owners_and_admins(self, acme, mia, otto, access_of, who):
        with pytest.raises(NotPermitted):
            invitations.invite(access_of({"mia": mia, "otto": otto}[who]), email=ZOE, role=Role.MEMBER)

    def test_lets_only_owners_make_owners(self, acme, alan, access_of):
        with pytest.raises(OwnersOnly):
            invitations.invite(access_of(alan), email=ZOE, role=Role.OWNER)


class TestASuspendedOrganization:
    @pytest.fixture
    def suspended(self, acme, grace):
        def suspend():
            return kill_switches.stop(
                operator=grace, kind="organization", target=acme.pk, reason="Fraud by Mallory.", org=acme
            )

        return suspend

    def test_invites_nobody(self, access, suspended):
        sent = invitations.invite(access, email=ZOE, role=Role.MEMBER)
        suspended()
        mails = len(mail.outbox)

        with pytest.raises(OrgSuspended):
            invitations.invite(access, email="yan@acme.test", role=Role.MEMBER)
        with pytest.raises(OrgSuspended):
            invitations.resend(access, sent.invitation)

        assert len(mail.outbox) == mails
        invitations.revoke(access, sent.invitation)

    def test_takes_nobody_in_until_it_is_resumed_and_does_not_say_why(self, link, suspended, grace):
        switch = suspended()

        page = follow(link, form=NEWCOMER)
        assert page.status_code == 410
        assert "Mallory" not in page.content.decode()
        assert "when its operator has resumed it" in page.content.decode()
        assert not User.objects.filter(email=ZOE).exists()

        kill_switches.resume(switch, operator=grace)
        assert follow(link, form=NEWCOMER).status_code == 302

    def test_takes_nobody_in_whose_page_was_open(self, access, link, suspended):
        found = invitations.find(digest=Invitation.objects.get().digest)
        suspended()

        with pytest.raises(InvitationInvalid):
            invitations.accept_with_new_account(
                found, name="Zoe", password=Secret("another horse battery"), address=None
            )


class TestTheRateOfAnOrganization:
    def test_holds_for_all_who_may_invite_and_for_resending(self, acme, access, alan, access_of, eve, monkeypatch):
        monkeypatch.setattr(invitations, "MAILS_MAX", 3)
        first = invitations.invite(access, email="one@acme.test", role=Role.MEMBER)
        invitations.invite(access_of(alan), email="two@acme.test", role=Role.MEMBER)
        invitations.resend(access, first.invitation)
        mails = len(mail.outbox)

        with pytest.raises(RateLimited) as refused:
            invitations.invite(access_of(alan), email="three@acme.test", role=Role.MEMBER)
        with pytest.raises(RateLimited):
            invitations.resend(access, first.invitation)

        assert 0 < refused.value.extra["retryAfter"] <= 3600
        assert len(mail.outbox) == mails
        assert Invitation.objects.count() == 2
        invitations.invite(access_of(eve, "evil"), email="four@acme.test", role=Role.MEMBER)

    def test_is_not_spent_by_what_is_refused(self, access, mia, monkeypatch):
        monkeypatch.setattr(invitations, "MAILS_MAX", 2)
        invitations.invite(access, email=ZOE, role=Role.MEMBER)
        for email in (ZOE, mia.email, "no address"):
            with pytest.raises((AlreadyInvited, AlreadyMember, FieldError)):
                invitations.invite(access, email=email, role=Role.MEMBER)

        invitations.invite(access, email="yan@acme.test", role=Role.MEMBER)


class TestAnOperatorWhoEnteredForATime:
    def test_lets_nobody_in(self, acme, grace, access_of):
        """Otherwise who came for an hour could leave another person behind for ever."""
        Membership.objects.create(org=acme, user=grace, role=Role.OWNER, ends_at=database_now() + timedelta(hours=1))

        with pytest.raises(NotPermitted):
            invitations.invite(access_of(grace), email=ZOE, role=Role.MEMBER)


class TestPlacesOfAProvenAddress:
    def test_are_taken_but_for_those_that_cannot_be(self, access, acme, eve, access_of, make_user):
        invitations.invite(access, email=ZOE, role=Role.MEMBER)
        invitations.invite(access_of(eve, "evil"), email=ZOE, role=Role.MEMBER)
        zoe = make_user(ZOE)
        Membership.objects.create(org=acme, user=zoe, role=Role.AUDITOR)

        invitations.accept_all(zoe, address=None)

        roles = dict(Membership.objects.filter(user=zoe).values_list("org__slug", "role"))
        assert roles == {"acme": Role.AUDITOR, "evil": Role.MEMBER}


class TestResend:
    def test_mails_a_new_link_and_ends_the_earlier_one(self, access, link):
        Invitation.objects.update(expires_at=database_now() - timedelta(days=1))

        invitations.resend(access, Invitation.objects.get())

        assert follow(link).status_code == 410
        assert follow(link_in(mail.outbox[-1])).status_code == 200
        assert AuditEvent.objects.filter(action="invitation.resent").exists()

    def test_knows_none_of_another_organization(self, link, eve, access_of):
        with pytest.raises(NotFound):
            invitations.resend(access_of(eve, "evil"), Invitation.objects.get())

    def test_lets_no_admin_send_an_owners(self, access, alan, access_of):
        sent = invitations.invite(access, email=ZOE, role=Role.OWNER)

        with pytest.raises(OwnersOnly):
            invitations.resend(access_of(alan), sent.invitation)


class TestRevoke:
    def test_ends_the_link_at_once(self, access, link):
        invitations.revoke(access, Invitation.objects.get())

        page = follow(link)
        assert page.status_code == 410
        assert "revoked" in page.content.decode()
        assert not invitations.open_invitations(access).exists()

    def test_comes_too_late_for_one_that_was_accepted(self, access, link):
        invitation = Invitation.objects.get()
        follow(link, form=NEWCOMER)

        with pytest.raises(NotFound):
            invitations.revoke(access, invitation)


class TestTheLink:
    def test_leaves_the_secret_out_of_the_address(self, link):
        answer = Client().get(link)

        assert (answer.status_code, answer.headers["Location"]) == (302, "/invitation")
        assert "no-store" in answer.headers["Cache-Control"]

    @pytest.mark.parametrize("secret", ["x", "ü", "0" * 43])
    def test_says_nothing_to_whoever_guesses(self, link, secret):
        page = follow(f"/invitations/{secret}")

        assert page.status_code == 410
        assert "unknown" in page.content.decode()
        assert "Acme" not in page.content.decode()

    def test_is_shut_after_seven_days(self, link):
        Invitation.objects.update(expires_at=database_now())

        page = follow(link)

        assert page.status_code == 410
        assert "expired" in page.content.decode()

    @pytest.mark.parametrize("fate", ["left", "demoted", "off"])
    def test_is_shut_once_its_inviter_may_no_longer_invite(self, acme, ada, alan, access_of, fate):
        """Otherwise somebody who was thrown out could come back by a link that they kept."""
        invitations.invite(access_of(alan), email=ZOE, role=Role.OWNER if fate == "never" else Role.MEMBER)
        membership = Membership.objects.get(user=alan)
        if fate == "left":
            services.remove_member(access_of(ada), membership)
        elif fate == "demoted":
            services.change_role(access_of(ada), membership, role=Role.MEMBER)
        else:
            User.objects.filter(pk=alan.pk).update(is_active=False)

        assert follow(link_in(mail.outbox[-1])).status_code == 410

    def test_to_an_owners_place_is_shut_once_its_inviter_is_no_owner(self, access, alan, access_of):
        services.change_role(access, Membership.objects.get(user=alan), role=Role.OWNER)
        invitations.invite(access_of(alan), email=ZOE, role=Role.OWNER)
        services.change_role(access, Membership.objects.get(user=alan), role=Role.ADMIN)

        assert follow(link_in(mail.outbox[-1])).status_code == 410

    @pytest.mark.parametrize("fate", ["left", "demoted", "off", "over", "token", "revoked", "expired"])
    def test_that_was_open_when_its_inviter_lost_the_right_lets_nobody_in(self, acme, ada, alan, access_of, fate):
        """Between the page and its button, the inviter may lose the right to invite."""
        by = access_of(alan)
        if fate == "token":
            token, secret = create_token(by, name="inviter", scopes=["manage", "read"])
            by = for_token(token=secret.reveal())
        invitations.invite(by, email=ZOE, role=Role.MEMBER)
        found = invitations.find(digest=Invitation.objects.get().digest)
        membership = Membership.objects.get(user=alan)
        match fate:
            case "left":
                services.remove_member(access_of(ada), membership)
            case "demoted":
                services.change_role(access_of(ada), membership, role=Role.AUDITOR)
            case "off":
                User.objects.filter(pk=alan.pk).update(is_active=False)
            case "over":
                Membership.objects.filter(pk=membership.pk).update(ends_at=database_now())
            case "token":
                revoke_token(access_of(ada), token)
            case "revoked":
                invitations.revoke(access_of(ada), found)
            case "expired":
                Invitation.objects.update(expires_at=database_now())

        with pytest.raises(InvitationInvalid):
            invitations.accept_with_new_account(
                found, name="Zoe", password=Secret("another horse battery"), address=None
            )

        assert not User.objects.filter(email=ZOE).exists()
        assert not Membership.objects.filter(org=acme, user__email=ZOE).exists()
        assert Invitation.objects.get().accepted_at is None

    def test_to_an_owners_place_ends_with_its_inviter_as_owner(self, access, alan, access_of):
        services.change_role(access, Membership.objects.get(user=alan), role=Role.OWNER)
        invitations.invite(access_of(alan), email=ZOE, role=Role.OWNER)
        found = invitations.find(digest=Invitation.objects.get().digest)
        services.change_role(access, Membership.objects.get(user=alan), role=Role.ADMIN)

        with pytest.raises(InvitationInvalid):
            invitations.accept_with_new_account(
                found, name="Zoe", password=Secret("another horse battery"), address=None
            )

    def test_is_not_tried_without_end(self, link, monkeypatch):
        monkeypatch.setattr(SignInThrottle, "rate", "4/min", raising=False)
        client = Client()
        client.get(link)

        answers = [client.post("/invitation", {"name": "", "password": "x"}).status_code for _ in range(4)]

        assert answers == [400, 400, 400, 429]


class TestANewcomer:
    def test_gets_an_account_and_is_signed_in(self, link):
        client = Client()

        answer = follow(link, client, NEWCOMER)

        zoe = User.objects.get(email=ZOE)
        assert answer.headers["Location"] == "/o/acme/"
        assert (zoe.name, zoe.is_staff, zoe.check_password(NEWCOMER["password"])) == ("Zoe", False, True)
        assert client.get("/api/v1/me").json()["role"] == "member"
        assert AuditEvent.objects.get(action="invitation.accepted").actor == ZOE

    def test_has_a_verified_address_only_if_the_link_was_mailed(self, access, link, by_hand):
        follow(link, form=NEWCOMER)
        sent = invitations.invite(access, email="yan@acme.test", role=Role.MEMBER)
        follow(urlsplit(sent.link.reveal()).path, form=NEWCOMER)

        verified = {user.email: user.emailaddress_set.get().verified for user in User.objects.exclude(name="Ada")}
        assert verified == {ZOE: True, "yan@acme.test": False}

    def test_who_was_handed_a_link_loses_it_once_the_server_sends_mail(self, access, by_hand, settings):
        sent = invitations.invite(access, email=ZOE, role=Role.MEMBER)
        settings.EMAIL_BACKEND = "django.core.mail.backends.locmem.EmailBackend"

        answer = follow(urlsplit(sent.link.reveal()).path, form=NEWCOMER)

        assert answer.status_code == 410
        assert not User.objects.filter(email=ZOE).exists()

    @pytest.mark.django_db(transaction=True)
    def test_who_took_an_address_by_a_handed_link_loses_all_to_its_owner(self, access, access_of, by_hand, settings):
        """The owner comes by the first link that reaches them: a new password."""
        squatter, owner = Client(), Client()
        sent = invitations.invite(access, email=ZOE, role=Role.MEMBER)
        follow(urlsplit(sent.link.reveal()).path, squatter, NEWCOMER)
        zoe = User.objects.get(email=ZOE)
        _, secret = create_token(access_of(zoe), name="kept")
        register_host(access_of(zoe), name="box")
        settings.EMAIL_BACKEND = "django.core.mail.backends.locmem.EmailBackend"

        owner.post("/accounts/password/reset/", {"email": ZOE})
        later.wait()
        link = re.search(r"https?://[^/]+(/\S+)", mail.outbox[-1].body)[1]
        form = owner.get(link, follow=True)
        new = {"password1": "yet another battery", "password2": "yet another battery"}
        owner.post(form.request["PATH_INFO"], new)

        assert zoe.emailaddress_set.get().verified
        assert for_token(token=secret.reveal()) is None
        assert not Host.objects.filter(revoked_at=None).exists()
        assert squatter.get("/api/v1/me").status_code == 401
        assert AuditEvent.objects.filter(user_id=zoe.pk, action="address.verified").exists()

    @pytest.mark.django_db(transaction=True)
    def test_keeps_their_tokens_through_a_new_password_once_the_address_is_verified(self, access, access_of, link):
        follow(link, form=NEWCOMER)
        zoe = User.objects.get(email=ZOE)
        _, secret = create_token(access_of(zoe), name="kept")

        client = Client()
        client.post("/accounts/password/reset/", {"email": ZOE})
        later.wait()
        reset = re.search(r"https?://[^/]+(/accounts/\S+)", mail.outbox[-1].body)[1]
        form = client.get(reset, follow=True)
        new = {"password1": "yet another battery", "password2": "yet another battery"}
        client.post(form.request["PATH_INFO"], new)

        assert for_token(token=secret.reveal()) is not None

    @pytest.mark.parametrize(("field", "value"), [("password", "short"), ("password", "password12"), ("name", "")])
    def test_is_told_what_is_wrong_and_can_try_again(self, link, field, value):
        client = Client()

        refused = follow(link, client, {**NEWCOMER, field: value})
        accepted = client.post("/invitation", NEWCOMER)

        assert refused.status_code == 400
        assert refused.context["form"].errors[field]
        assert NEWCOMER["password"] not in refused.content.decode()
        assert accepted.status_code == 302

    def test_uses_the_link_once(self, link):
        first, second = Client(), Client()
        for client in (first, second):
            client.get(link)

        first.post("/invitation", NEWCOMER)
        answer = second.post("/invitation", {**NEWCOMER, "name": "Eve"})

        assert answer.status_code == 410
        assert "used already" in answer.content.decode()
        assert User.objects.filter(email=ZOE).count() == 1

    def test_who_opens_the_link_again_is_led_to_the_organization(self, link):
        client = Client()
        follow(link, client, NEWCOMER)

        assert client.get(link, follow=True).redirect_chain[-1][0] == "/o/acme/"

    def test_needs_a_link(self, db):
        assert Client().get("/invitation").status_code == 410
        assert Client().post("/invitation", NEWCOMER).status_code == 410


class TestSomebodyWithAnAccount:
    @pytest.fixture
    def link(self, access, eve):
        invitations.invite(access, email=eve.email, role=Role.AUDITOR)
        return link_in(mail.outbox[-1])

    def test_signs_in_first_and_comes_back(self, link, eve):
        client = Client()
        page = follow(link, client)

        signed_in = client.post(
            "/accounts/login/?next=/invitation", {"login": eve.email, "password": "correct horse battery"}
        )
        joined = client.post("/invitation")

        assert 'href="/accounts/login/?next=/invitation"' in page.content.decode()
        assert 'name="password"' not in page.content.decode()
        assert signed_in.headers["Location"] == "/invitation"
        assert joined.headers["Location"] == "/o/acme/"
        assert Membership.objects.get(user=eve, org__slug="acme").role == Role.AUDITOR

    def test_makes_no_second_account_of_the_address(self, link, eve):
        client = Client()
        client.get(link)

        client.post("/invitation", NEWCOMER)

        eve.refresh_from_db()
        assert eve.check_password("correct horse battery")
        assert not Membership.objects.filter(user=eve, org__slug="acme").exists()

    def test_stays_in_their_other_organization(self, link, eve, page_as):
        browser = page_as(eve)

        page = follow(link, browser)
        browser.post("/invitation")

        assert "You stay a member of Evil;" in html_of(page)
        assert Membership.objects.get(user=eve, org__slug="evil").role == Role.OWNER

    def test_cannot_take_the_place_of_somebody_else(self, link, make_user, page_as):
        browser = page_as(make_user("mallory@evil.test"))

        page = follow(link, browser)
        answer = browser.post("/invitation")

        assert "You are signed in as mallory@evil.test" in page.content.decode()
        assert answer.status_code == 403
        assert not Membership.objects.filter(user__email="mallory@evil.test").exists()

    def test_who_became_a_member_meanwhile_is_told(self, link, eve, acme, page_as):
        Membership.objects.create(org=acme, user=eve, role=Role.MEMBER)

        page = follow(link, page_as(eve))

        assert "You are a member already." in page.content.decode()
        assert Membership.objects.get(user=eve, org=acme).role == Role.MEMBER


class TestAccept:
    def test_counts_one_of_two_answers_at_the_same_moment(self, access, link, make_user):
        zoe = make_user(ZOE)
        seen_by_both = invitations.find(digest=Invitation.objects.get().digest)
        invitations.accept(seen_by_both, user=zoe, address=None)
        Membership.objects.filter(user=zoe).delete()

        with pytest.raises(InvitationInvalid):
            invitations.accept(seen_by_both, user=zoe, address=None)

        assert not Membership.objects.filter(user=zoe).exists()


class TestRest:
    def test_invites_lists_resends_and_takes_back(self, acme, ada, api_as):
        api = api_as(ada)

        made = api.post("/api/v1/invitations", {"email": ZOE, "role": "member"})
        path = made.headers["Location"]
        listed = api.get("/api/v1/invitations").json()["results"]
        resent = api.post(f"{path}/resend")
        gone = api.delete(path)

        assert made.status_code == 201
        assert made.json()["link"] is None
        assert listed == [{name: value for name, value in made.json().items() if name != "link"}]
        assert (listed[0]["email"], listed[0]["invitedBy"], listed[0]["mailed"]) == (ZOE, ada.email, True)
        assert resent.status_code == 200
        assert gone.status_code == 204
        assert api.get(path).status_code == 404
        assert len(mail.outbox) == 2

    def test_gives_the_link_once_where_no_mail_goes_out(self, acme, ada, api_as, by_hand):
        api = api_as(ada)

        made = api.post("/api/v1/invitations", {"email": ZOE, "role": "member"}).json()

        assert made["link"].startswith("http://127.0.0.1:8000/invitations/")
        assert "link" not in api.get("/api/v1/invitations").json()["results"][0]

    def test_answers_the_refusals_as_problems(self, acme, ada, mia, api_as):
        api = api_as(ada)
        api.post("/api/v1/invitations", {"email": ZOE, "role": "member"})

        answers = [api.post("/api/v1/invitations", {"email": email, "role": "member"}) for email in (mia.email, ZOE)]

        assert [answer.status_code for answer in answers] == [409, 409]
        assert [answer.json()["code"] for answer in answers] == ["ALREADY_EXISTS", "ALREADY_EXISTS"]
