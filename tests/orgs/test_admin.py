"""What operators see and change."""

import re
from datetime import timedelta

import pytest
from django.core import mail
from django.utils import timezone

from rensei.audit.models import AuditEvent
from rensei.core.later import later
from rensei.orgs.models import Host, Membership, Org, Project, User
from rensei.policies.models import AccessPolicy
from rensei.tokens.models import ApiToken
from rensei.tokens.services import create_token


@pytest.fixture
def admin(grace, page_as):
    return page_as(grace)


class TestAdmin:
    @pytest.mark.parametrize(
        "model",
        [
            "orgs/user",
            "orgs/org",
            "orgs/membership",
            "orgs/project",
            "policies/accesspolicy",
            "tokens/apitoken",
            "audit/auditevent",
        ],
    )
    def test_opens_every_list(self, admin, acme, model):
        assert admin.get(f"/admin/{model}/").status_code == 200

    def test_is_shut_to_owners(self, acme, ada, page_as):
        assert page_as(ada).get("/admin/orgs/user/").status_code in {302, 403}

    def test_keeps_its_security_headers(self, admin):
        policy = admin.get("/admin/").headers["Content-Security-Policy"]

        assert "script-src 'self'" in policy
        assert "unsafe" not in policy


class TestUsers:
    @pytest.mark.django_db(transaction=True)
    def test_are_made_without_a_password_which_they_set_by_mail(self, admin, client):
        answer = admin.post(
            "/admin/orgs/user/add/", {"email": "New@Acme.test", "name": "New", "password": "a-chosen-one"}
        )
        client.post("/accounts/password/reset/", {"email": "new@acme.test"})
        later.wait()

        assert answer.status_code == 302, answer.context["errors"]
        assert AuditEvent.objects.get(action="user.created").actor == "grace@platform.test"
        assert not User.objects.get(email="new@acme.test").has_usable_password()
        [message] = mail.outbox
        link = re.search(r"https?://[^/]+(/accounts/password/reset/key/\S+)", message.body)[1]
        form = client.get(link, follow=True)
        client.post(
            form.redirect_chain[-1][0], {"password1": "correct horse battery", "password2": "correct horse battery"}
        )
        assert User.objects.get(email="new@acme.test").check_password("correct horse battery")

    def test_are_one_however_the_address_is_written(self, admin, ada):
        answer = admin.post("/admin/orgs/user/add/", {"email": "ADA@acme.test"})

        assert answer.status_code == 200
        assert User.objects.filter(email__iexact="ada@acme.test").count() == 1

    def test_show_their_page(self, admin, ada):
        answer = admin.get(f"/admin/orgs/user/{ada.pk}/change/")

        assert answer.status_code == 200
        assert ada.password not in answer.content.decode()

    def test_keep_the_password_that_they_have(self, admin, ada):
        chosen = {"password1": "chosen by an operator", "password2": "chosen by an operator", "usable_password": "true"}

        answers = [
            admin.post(
                f"/admin/orgs/user/{ada.pk}/{path}", {"email": ada.email, "password": "!", **chosen}, follow=True
            )
            for path in ("password/", "change/")
        ]

        after = User.objects.get(pk=ada.pk)
        assert after.password == ada.password
        assert not [answer for answer in answers if b"chosen by an operator" in answer.content]

    def test_keep_the_address_that_they_have(self, admin, ada):
        admin.post(
            f"/admin/orgs/user/{ada.pk}/change/", {"email": "grace@platform.test.x", "name": "A", "is_active": "on"}
        )

        after = User.objects.get(pk=ada.pk)
        assert (after.email, after.name) == (ada.email, "A")

    def test_are_not_found_by_their_hashes(self, admin, ada):
        assert admin.get("/admin/orgs/user/?password__startswith=a").status_code == 400

    def test_are_not_deleted_while_they_are_the_last_owner(self, admin, acme, ada, mia):
        for path, given in [
            (f"{ada.pk}/delete/", {"post": "yes"}),
            ("", {"action": "delete_selected", "_selected_action": [ada.pk, mia.pk], "post": "yes"}),
        ]:
            answer = admin.post(f"/admin/orgs/user/{path}", given)

            assert "The last owner of Acme" in answer.content.decode()
        admin.post(f"/admin/orgs/user/{mia.pk}/delete/", {"post": "yes"})
        assert list(User.objects.filter(pk__in=[ada.pk, mia.pk])) == [ada]


class TestOrgs:
    def test_are_made_with_an_owner(self, admin, ada):
        answer = admin.post("/admin/orgs/org/add/", {"name": "Beta", "slug": "beta", "owner": ada.email})

        assert answer.status_code == 302
        assert Membership.objects.get(org__slug="beta").user == ada
        assert AuditEvent.objects.for_org(Org.objects.get(slug="beta")).filter(action="org.created").exists()

    def test_are_refused_with_a_wrong_slug(self, admin, ada):
        assert admin.post("/admin/orgs/org/add/", {"name": "B", "slug": "B_b", "owner": ada.email}).status_code == 200
        assert not Org.objects.exists()

    def test_are_never_deleted(self, admin, acme):
        assert admin.post(f"/admin/orgs/org/{acme.pk}/delete/", {"post": "yes"}).status_code == 403
        assert Org.objects.exists()


class TestProjects:
    def test_stay_in_their_organization(self, admin, acme, eve, project):
        """Tokens of Acme would follow a policy that another organization writes."""
        evil = Org.objects.get(slug="evil")

        answer = admin.post(
            f"/admin/orgs/project/{project.pk}/change/", {"org": evil.slug, "slug": project.slug, "name": "Renamed"}
        )

        assert answer.status_code == 302
        project.refresh_from_db()
        assert (project.org, project.name) == (acme, "Renamed")

    def test_are_not_made_in_an_organization_that_is_deleted(self, admin, acme):
        Org.objects.filter(pk=acme.pk).update(deleting_at=timezone.now())

        answer = admin.post("/admin/orgs/project/add/", {"org": acme.slug, "slug": "late", "name": "Late"})

        assert "Acme was deleted." in str(answer.context["adminform"].form.errors["org"])
        assert not Project.objects.exists()


class TestSystemPolicy:
    def test_is_made_checked_and_logged(self, admin):
        admin.post("/admin/policies/accesspolicy/add/", {"denied": ["shared:*"]})
        policy = AccessPolicy.objects.get()
        wrong = admin.post(f"/admin/policies/accesspolicy/{policy.pk}/change/", {"denied": ["oauth:*"]})
        admin.post(f"/admin/policies/accesspolicy/{policy.pk}/change/", {})

        assert "is not one of the available choices" in wrong.content.decode()
        assert AccessPolicy.objects.get().matrix == {}
        changes = [event.detail for event in AuditEvent.objects.filter(action="policy.set").order_by("id")]
        assert [change["new"] for change in changes] == [{"*": {"shared": {"allowed": False}}}, {}]

    def test_is_the_only_one_that_operators_change(self, admin, acme):
        policy = AccessPolicy.objects.create(scope="organization", org=acme, matrix={})

        assert admin.post(f"/admin/policies/accesspolicy/{policy.pk}/change/", {"matrix": "{}"}).status_code == 403


class TestTokens:
    def test_are_revoked_and_never_shown(self, admin, acme, ada, access_of):
        token, _ = create_token(access_of(ada), name="ci")

        shown = admin.get(f"/admin/tokens/apitoken/{token.pk}/change/").content.decode()
        admin.post("/admin/tokens/apitoken/", {"action": "revoke", "_selected_action": [token.pk]})

        token.refresh_from_db()
        assert token.digest not in shown
        assert token.revoked_at is not None
        assert AuditEvent.objects.get(action="token.revoked").actor == "grace@platform.test"


class TestAuditLog:
    def test_is_only_read(self, admin, acme):
        event = AuditEvent.objects.first()

        assert admin.get(f"/admin/audit/auditevent/{event.pk}/change/").status_code == 200
        assert admin.get("/admin/audit/auditevent/add/").status_code == 403
        assert admin.post(f"/admin/audit/auditevent/{event.pk}/change/", {"action": "x"}).status_code == 403
        assert admin.post(f"/admin/audit/auditevent/{event.pk}/delete/", {"post": "yes"}).status_code == 403
        admin.post("/admin/audit/auditevent/", {"action": "delete_selected", "_selected_action": [event.pk]})
        assert AuditEvent.objects.filter(pk=event.pk).exists()
        assert not ApiToken.objects.exists()


class TestMemberships:
    REASON = "Ticket 4711: the owner asks for help with a policy."

    def test_need_a_reason(self, admin, acme, grace):
        answer = admin.post("/admin/orgs/membership/add/", {"user": grace.email, "org": acme.slug, "role": "auditor"})

        assert answer.status_code == 200
        assert "reason" in answer.context["adminform"].form.errors
        assert not Membership.objects.filter(user=grace).exists()
        assert mail.outbox == []

    def test_are_told_to_the_owners_with_their_reason(
        self, admin, acme, ada, alan, grace, django_capture_on_commit_callbacks
    ):
        made = {"user": grace.email, "org": acme.slug, "role": "auditor", "reason": self.REASON, "hours": "2"}

        with django_capture_on_commit_callbacks(execute=True):
            answer = admin.post("/admin/orgs/membership/add/", made)

        assert answer.status_code == 302, answer.context["errors"]
        [message] = mail.outbox
        assert message.to == [ada.email]
        assert self.REASON in message.body
        assert grace.email in message.subject
        event = AuditEvent.objects.get(org_id=acme.pk, action="membership.created")
        assert event.actor == grace.email
        assert {"reason": self.REASON} in event.detail["changes"]
        ends_at = Membership.objects.get(user=grace).ends_at
        assert timedelta(minutes=110) < ends_at - timezone.now() <= timedelta(hours=2)
        assert f"ends by itself at {ends_at:%Y-%m-%d %H:%M} UTC" in message.body
        assert {"endsAt": ends_at.isoformat()} in event.detail["changes"]

    @pytest.mark.parametrize("hours", ["", "0", "25", "-1", "x"])
    def test_of_operators_need_an_end_within_a_day(self, admin, acme, grace, hours):
        made = {"user": grace.email, "org": acme.slug, "role": "auditor", "reason": self.REASON, "hours": hours}

        answer = admin.post("/admin/orgs/membership/add/", made)

        assert "hours" in answer.context["adminform"].form.errors
        assert not Membership.objects.filter(user=grace).exists()

    def test_of_people_who_are_no_members_need_an_end(self, admin, acme, make_user):
        """An operator's second account, which has just been made, is such a person."""
        second = make_user("second@platform.test")
        made = {"user": second.email, "org": acme.slug, "role": "owner", "reason": self.REASON}

        refused = admin.post("/admin/orgs/membership/add/", made)
        admin.post("/admin/orgs/membership/add/", {**made, "hours": "1"})
        limited = Membership.objects.get(user=second)
        extended = admin.post(f"/admin/orgs/membership/{limited.pk}/change/", {"role": "owner", "reason": self.REASON})

        for answer in (refused, extended):
            assert "An owner or admin of Acme invites" in str(answer.context["adminform"].form.errors["hours"])
        limited.refresh_from_db()
        assert limited.ends_at is not None

    def test_are_not_given_to_another_person_or_organization(self, admin, acme, mia, eve, make_user):
        membership = Membership.objects.get(user=mia, org=acme)
        second = make_user("second@platform.test")
        evil = Org.objects.get(slug="evil")
        changed = {"user": second.email, "org": evil.slug, "role": "member", "reason": self.REASON}

        admin.post(f"/admin/orgs/membership/{membership.pk}/change/", changed)

        membership.refresh_from_db()
        assert (membership.user, membership.org) == (mia, acme)

    def test_without_an_end_are_given_to_the_owner_of_an_organization_that_has_none(self, admin, acme, ada, make_user):
        Membership.objects.filter(org=acme).delete()
        heir = make_user("heir@acme.test")
        made = {"user": heir.email, "org": acme.slug, "reason": self.REASON}

        refused = admin.post("/admin/orgs/membership/add/", {**made, "role": "admin"})
        admin.post("/admin/orgs/membership/add/", {**made, "role": "owner"})

        assert "hours" in refused.context["adminform"].form.errors
        assert Membership.objects.get(org=acme).user == heir

    def test_of_the_last_owner_are_neither_deleted_nor_lowered(self, admin, acme, ada, alan):
        membership = Membership.objects.get(user=ada, org=acme)
        both = list(Membership.objects.filter(org=acme).values_list("pk", flat=True))

        answers = [
            admin.post(f"/admin/orgs/membership/{membership.pk}/delete/", {"post": "yes"}),
            admin.post(
                "/admin/orgs/membership/", {"action": "delete_selected", "_selected_action": both, "post": "yes"}
            ),
            admin.post(f"/admin/orgs/membership/{membership.pk}/change/", {"role": "member", "reason": self.REASON}),
        ]

        assert ["last owner" in answer.content.decode() for answer in answers] == [True] * 3
        membership.refresh_from_db()
        assert membership.role == "owner"
        assert Membership.objects.filter(pk__in=both).count() == 2

    def test_never_end_that_of_the_last_owner(self, admin, acme, ada):
        membership = Membership.objects.get(user=ada, org=acme)
        changed = {"user": ada.pk, "org": acme.pk, "role": "owner", "reason": self.REASON, "hours": "1"}

        answer = admin.post(f"/admin/orgs/membership/{membership.pk}/change/", changed)

        assert "hours" in answer.context["adminform"].form.errors
        membership.refresh_from_db()
        assert membership.ends_at is None

    def test_need_a_reason_for_another_role_too(self, admin, acme, ada, mia, django_capture_on_commit_callbacks):
        membership = Membership.objects.get(user=mia, org=acme)
        changed = {"user": mia.pk, "org": acme.pk, "role": "owner"}

        refused = admin.post(f"/admin/orgs/membership/{membership.pk}/change/", changed)
        with django_capture_on_commit_callbacks(execute=True):
            admin.post(f"/admin/orgs/membership/{membership.pk}/change/", {**changed, "reason": self.REASON})

        membership.refresh_from_db()
        assert refused.status_code == 200
        assert membership.role == "owner"
        assert ada.email in [to for message in mail.outbox for to in message.to]

    def test_are_not_changed_on_the_organizations_page(self, admin, acme, mia, grace):
        membership = Membership.objects.get(user=mia, org=acme)
        prefix = "memberships"
        forged = {
            "name": acme.name,
            f"{prefix}-TOTAL_FORMS": "2",
            f"{prefix}-INITIAL_FORMS": "1",
            f"{prefix}-0-id": membership.pk,
            f"{prefix}-0-org": acme.pk,
            f"{prefix}-0-user": mia.pk,
            f"{prefix}-0-role": "owner",
            f"{prefix}-1-org": acme.pk,
            f"{prefix}-1-user": grace.pk,
            f"{prefix}-1-role": "owner",
        }

        admin.post(f"/admin/orgs/org/{acme.pk}/change/", forged)

        membership.refresh_from_db()
        assert membership.role == "member"
        assert not Membership.objects.filter(user=grace).exists()


class TestViewAsOrganization:
    REASON = "Ticket 4712: the owner cannot find a run."

    def address(self, org):
        return f"/admin/orgs/org/{org.pk}/view-as/"

    def test_reads_the_pages_under_a_banner_and_changes_nothing(
        self, admin, acme, ada, grace, django_capture_on_commit_callbacks
    ):
        with django_capture_on_commit_callbacks(execute=True):
            answer = admin.post(self.address(acme), {"reason": self.REASON, "hours": "2"})
        shown = admin.get(answer.headers["Location"]).content.decode()

        membership = Membership.objects.get(user=grace)
        assert answer.headers["Location"] == "/o/acme/"
        assert (membership.role, membership.ends_at > timezone.now()) == ("auditor", True)
        assert "as an operator, read-only" in shown
        assert admin.post("/o/acme/settings/organization", {"name": "Theirs"}).status_code == 403
        assert admin.post("/api/v1/projects", {"id": "x", "name": "X"}).status_code == 403
        token = {"name": "kept", "scopes": ["read"], "expires": ""}
        assert "Your role does not allow this" in admin.post("/o/acme/settings/tokens", token).content.decode()
        assert admin.post("/api/v1/tokens", {"name": "kept"}, "application/json").status_code == 403
        assert not ApiToken.objects.exists()
        [message] = mail.outbox
        assert message.to == [ada.email]
        assert self.REASON in message.body
        assert "what is read is not recorded" in message.body

    def test_is_in_the_audit_log_of_the_organization_with_reason_and_end(self, admin, acme, ada, page_as):
        admin.post(self.address(acme), {"reason": self.REASON, "hours": "1"})

        log = page_as(ada).get("/o/acme/settings/audit-log").content.decode()
        assert self.REASON in log
        assert Membership.objects.get(ends_at__isnull=False).ends_at.isoformat() in log

    @pytest.mark.parametrize(
        "given", [{}, {"reason": "short", "hours": "1"}, {"reason": REASON}, {"reason": REASON, "hours": "25"}]
    )
    def test_needs_a_reason_and_an_end(self, admin, acme, grace, given):
        assert admin.post(self.address(acme), given).status_code == (400 if given else 200)
        assert not Membership.objects.filter(user=grace).exists()

    def test_ends_from_the_banner(self, admin, acme, grace):
        admin.post(self.address(acme), {"reason": self.REASON, "hours": "1"})
        membership = Membership.objects.get(user=grace)

        admin.post(f"/o/acme/settings/members/{membership.pk}/remove")

        assert admin.get("/o/acme/").status_code == 404

    @pytest.mark.parametrize(
        ("role", "hours", "until"),
        [("admin", None, "without an end"), ("owner", 2, "until 20"), ("auditor", None, "without an end")],
    )
    def test_is_refused_to_a_member_with_other_rights_or_without_an_end(self, admin, acme, grace, role, hours, until):
        ends_at = timezone.now() + timedelta(hours=hours) if hours else None
        membership = Membership.objects.create(org=acme, user=grace, role=role, ends_at=ends_at)

        answer = admin.post(self.address(acme), {"reason": self.REASON, "hours": "1"})

        assert answer.status_code == 400
        assert f"You are a member of Acme, as {role}, {until}" in answer.content.decode()
        membership.refresh_from_db()
        assert (membership.role, membership.ends_at, mail.outbox) == (role, ends_at, [])

    def test_is_extended_with_a_line_in_the_audit_log_and_a_mail(
        self, admin, acme, grace, django_capture_on_commit_callbacks
    ):
        admin.post(self.address(acme), {"reason": self.REASON, "hours": "1"})
        before = Membership.objects.get(user=grace)

        with django_capture_on_commit_callbacks(execute=True):
            admin.post(self.address(acme), {"reason": "Ticket 4713: a second run.", "hours": "3"})

        after = Membership.objects.get(user=grace)
        event = AuditEvent.objects.get(org_id=acme.pk, action="membership.extended")
        assert (after.pk, after.ends_at > before.ends_at + timedelta(minutes=110)) == (before.pk, True)
        assert (event.detail["reason"], event.detail["ends_at"]) == (
            "Ticket 4713: a second run.",
            after.ends_at.isoformat(),
        )
        assert "Ticket 4713" in mail.outbox[-1].body

    def test_has_its_banner_for_operators_only(self, acme, mia, page_as):
        Membership.objects.filter(user=mia).update(ends_at=timezone.now() + timedelta(hours=1))

        assert "as an operator" not in page_as(mia).get("/o/acme/").content.decode()

    def test_first_ends_what_is_over(self, admin, acme, grace):
        ended = timezone.now() - timedelta(seconds=1)
        old = Membership.objects.create(org=acme, user=grace, role="owner", ends_at=ended)
        host = Host.objects.create(org=acme, owner=grace, name="laptop")

        admin.post(self.address(acme), {"reason": self.REASON, "hours": "1"})

        host.refresh_from_db()
        assert Membership.objects.get(user=grace).role == "auditor"
        assert AuditEvent.objects.get(org_id=acme.pk, action="membership.ended").object_id == old.pk
        assert host.revoked_at is not None

    def test_is_shut_to_owners_and_leads_from_the_organizations_page(self, admin, acme, ada, page_as):
        assert page_as(ada).get(self.address(acme)).status_code in {302, 403}
        assert self.address(acme) in admin.get(f"/admin/orgs/org/{acme.pk}/change/").content.decode()
        assert self.address(acme) in admin.get("/admin/orgs/org/").content.decode()
