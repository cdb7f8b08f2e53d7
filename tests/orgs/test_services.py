"""Organizations, projects, members, tokens and machines: who may change what, and what stays true."""

from datetime import timedelta

import pytest
from django.utils import timezone

from rensei.audit.models import AuditEvent
from rensei.core.errors import AlreadyExists, FieldError, InUse, NotFound, NotPermitted
from rensei.core.secret import token_digest
from rensei.orgs import services
from rensei.orgs.access import OwnersOnly, for_member
from rensei.orgs.models import Host, Membership, Org, Project, Role
from rensei.orgs.signals import org_created
from rensei.tokens.look_up import for_token
from rensei.tokens.machines import register_host, revoke_host
from rensei.tokens.models import ApiToken
from rensei.tokens.services import create_token, revoke_token


def membership_of(user, org):
    return Membership.objects.get(org=org, user=user)


class TestCreateOrg:
    def test_makes_its_first_owner(self, ada):
        org = services.create_org(name="Acme", slug="acme", owner=ada)

        assert for_member(user=ada, slug="acme").role == Role.OWNER
        assert AuditEvent.objects.get(action="org.created").object_id == org.id

    def test_tells_the_rooms_above_within_the_transaction(self, ada):
        def refuse(sender, org, **_):
            raise RuntimeError("no entitlement could be made")

        org_created.connect(refuse)
        try:
            with pytest.raises(RuntimeError):
                services.create_org(name="Acme", slug="acme", owner=ada)
        finally:
            org_created.disconnect(refuse)

        assert not Org.objects.exists()

    def test_refuses_a_taken_slug(self, acme, ada):
        with pytest.raises(AlreadyExists, match="'acme'"):
            services.create_org(name="Another", slug="acme", owner=ada)

    @pytest.mark.parametrize("slug", ["", "Acme", "-acme", "acme-", "a b", "a" * 64, "acme\n", "ácme", "a/b", "a\0b"])
    def test_refuses_a_slug_that_cannot_stand_in_an_address(self, ada, slug):
        with pytest.raises(FieldError) as refusal:
            services.create_org(name="Acme", slug=slug, owner=ada)

        assert refusal.value.errors[0]["pointer"] == "/slug"

    @pytest.mark.parametrize("name", ["", "  ", "a" * 121, "two\nlines", "nul\0"])
    def test_refuses_a_name_that_cannot_be_shown(self, ada, name):
        with pytest.raises(FieldError) as refusal:
            services.create_org(name=name, slug="acme", owner=ada)

        assert refusal.value.errors[0]["pointer"] == "/name"


class TestCreateProject:
    def test_is_for_managers(self, acme, mia, otto, access_of):
        for person in (mia, otto):
            with pytest.raises(NotPermitted):
                services.create_project(access_of(person), slug="web", name="Web")

    def test_allows_the_same_slug_in_another_organization(self, project, eve, access_of):
        made = services.create_project(access_of(eve, "evil"), slug=project.slug, name="Mine")

        assert made.org.slug == "evil"

    def test_refuses_a_taken_slug(self, project, ada, access_of):
        with pytest.raises(AlreadyExists):
            services.create_project(access_of(ada), slug=project.slug, name="Again")

    def test_is_not_for_a_token_of_another_project(self, project, ada, access_of):
        _, secret = create_token(access_of(ada), name="ci", project=project)

        with pytest.raises(NotPermitted):
            services.create_project(for_token(token=secret.reveal()), slug="web", name="Web")


class TestDeleteProject:
    def test_takes_its_tokens_along(self, project, ada, access_of):
        _, secret = create_token(access_of(ada), name="ci", project=project)

        services.delete_project(access_of(ada), project)

        assert for_token(token=secret.reveal()) is None

    def test_finds_no_foreign_project(self, project, eve, access_of):
        with pytest.raises(NotFound):
            services.delete_project(access_of(eve, "evil"), project)

        assert Project.objects.filter(pk=project.pk).exists()


class TestChangeRole:
    def test_takes_effect_at_once(self, acme, ada, mia, access_of):
        services.change_role(access_of(ada), membership_of(mia, acme), role="auditor")

        assert access_of(mia).role == Role.AUDITOR

    def test_keeps_the_old_and_the_new_role_in_the_log(self, acme, ada, mia, access_of):
        services.change_role(access_of(ada), membership_of(mia, acme), role="admin")

        detail = AuditEvent.objects.get(action="member.role_changed").detail
        assert (detail["old"], detail["new"]) == ({"role": "member"}, {"role": "admin"})

    def test_keeps_the_last_owner(self, acme, ada, access_of):
        with pytest.raises(InUse):
            services.change_role(access_of(ada), membership_of(ada, acme), role="member")

        assert access_of(ada).role == Role.OWNER

    def test_lets_an_owner_step_down_beside_another(self, acme, ada, alan, access_of):
        services.change_role(access_of(ada), membership_of(alan, acme), role="owner")

        services.change_role(access_of(ada), membership_of(ada, acme), role="member")

        assert access_of(ada).role == Role.MEMBER

    def test_does_not_let_an_admin_rise_or_unmake_an_owner(self, acme, ada, alan, access_of):
        for person, role in ((alan, "owner"), (ada, "member")):
            with pytest.raises(OwnersOnly):
                services.change_role(access_of(alan), membership_of(person, acme), role=role)

    def test_finds_no_foreign_member(self, acme, mia, eve, access_of):
        with pytest.raises(NotFound):
            services.change_role(access_of(eve, "evil"), membership_of(mia, acme), role="auditor")


class TestRemoveMember:
    def test_ends_tokens_and_machines(self, acme, ada, mia, access_of):
        host, _, secret = register_host(access_of(mia), name="laptop")

        services.remove_member(access_of(ada), membership_of(mia, acme))

        assert for_token(token=secret.reveal()) is None
        assert for_member(user=mia, slug="acme") is None
        assert Host.objects.get(pk=host.pk).revoked_at is not None

    def test_lets_everyone_leave(self, acme, mia, access_of):
        services.remove_member(access_of(mia), membership_of(mia, acme))

        assert for_member(user=mia, slug="acme") is None

    def test_keeps_the_last_owner(self, acme, ada, alan, access_of):
        with pytest.raises(InUse):
            services.remove_member(access_of(ada), membership_of(ada, acme))

    def test_is_for_managers(self, acme, alan, mia, access_of):
        with pytest.raises(NotPermitted):
            services.remove_member(access_of(mia), membership_of(alan, acme))


class TestCreateToken:
    def test_keeps_only_a_hash(self, acme, ada, access_of):
        token, secret = create_token(access_of(ada), name="ci")

        plain = secret.reveal()
        assert plain.startswith("rsk_live_")
        assert len(plain) == len("rsk_live_") + 64
        row = ApiToken.objects.values().get(pk=token.pk)
        assert row["digest"] == token_digest(plain)
        assert plain not in str(row)
        assert plain not in str(list(AuditEvent.objects.values()))

    def test_opens_what_its_maker_may(self, acme, mia, access_of):
        _, secret = create_token(access_of(mia), name="ci")

        access = for_token(token=secret.reveal())

        assert (access.user, access.org, access.role) == (mia, acme, Role.MEMBER)

    def test_refuses_an_expiry_in_the_past(self, acme, ada, access_of):
        with pytest.raises(FieldError) as refusal:
            create_token(access_of(ada), name="ci", expires_at=timezone.now() - timedelta(seconds=1))

        assert refusal.value.errors[0]["pointer"] == "/expiresAt"

    def test_finds_no_foreign_project(self, project, eve, access_of):
        with pytest.raises(NotFound):
            create_token(access_of(eve, "evil"), name="ci", project=project)

    def test_binds_a_token_made_by_a_token_to_its_project_and_expiry(self, project, ada, access_of):
        soon = timezone.now() + timedelta(days=1)
        _, secret = create_token(access_of(ada), name="ci", project=project, expires_at=soon)

        token, _ = create_token(for_token(token=secret.reveal()), name="child")

        assert (token.project, token.expires_at) == (project, soon)

    def test_gives_a_token_no_more_than_its_maker(self, project, ada, access_of):
        soon = timezone.now() + timedelta(days=1)
        other = Project.objects.create(org=project.org, slug="other", name="Other")
        _, secret = create_token(access_of(ada), name="ci", project=project, expires_at=soon)
        maker = for_token(token=secret.reveal())

        with pytest.raises(NotPermitted):
            create_token(maker, name="wider", project=other)
        with pytest.raises(NotPermitted):
            create_token(maker, name="longer", expires_at=soon + timedelta(days=1))


class TestForToken:
    def test_knows_no_expired_token(self, acme, ada, access_of):
        token, secret = create_token(access_of(ada), name="ci", expires_at=timezone.now() + timedelta(minutes=1))
        ApiToken.objects.filter(pk=token.pk).update(expires_at=timezone.now())

        assert for_token(token=secret.reveal()) is None

    def test_knows_no_revoked_token(self, acme, ada, access_of):
        token, secret = create_token(access_of(ada), name="ci")

        revoke_token(access_of(ada), token)

        assert for_token(token=secret.reveal()) is None

    def test_knows_no_token_of_an_inactive_person(self, acme, mia, access_of):
        _, secret = create_token(access_of(mia), name="ci")
        mia.is_active = False
        mia.save()

        assert for_token(token=secret.reveal()) is None


class TestRevokeToken:
    def test_lets_managers_revoke_anyones(self, acme, alan, mia, access_of):
        token, _ = create_token(access_of(mia), name="ci")

        revoke_token(access_of(alan), token)

        assert AuditEvent.objects.get(action="token.revoked").user_id == alan.pk

    def test_does_not_let_members_revoke_anothers(self, acme, ada, mia, access_of):
        token, _ = create_token(access_of(ada), name="ci")

        with pytest.raises(NotPermitted):
            revoke_token(access_of(mia), token)

    def test_finds_no_foreign_token(self, acme, ada, eve, access_of):
        token, _ = create_token(access_of(ada), name="ci")

        with pytest.raises(NotFound):
            revoke_token(access_of(eve, "evil"), token)

    def test_writes_one_event_for_two_calls(self, acme, ada, access_of):
        token, _ = create_token(access_of(ada), name="ci")

        revoke_token(access_of(ada), token)
        revoke_token(access_of(ada), token)

        assert AuditEvent.objects.filter(action="token.revoked").count() == 1


class TestRegisterHost:
    def test_binds_the_token_to_the_machine(self, acme, mia, access_of):
        host, _, secret = register_host(access_of(mia), name="laptop", login="console")

        access = for_token(token=secret.reveal())

        assert (access.host, access.user) == (host, mia)

    def test_is_not_for_auditors(self, acme, otto, access_of):
        with pytest.raises(NotPermitted):
            register_host(access_of(otto), name="laptop")


class TestRevokeHost:
    def test_shuts_its_tokens_too(self, acme, mia, access_of):
        host, _, secret = register_host(access_of(mia), name="laptop")

        revoke_host(access_of(mia), host)

        assert for_token(token=secret.reveal()) is None

    def test_does_not_let_members_revoke_anothers(self, acme, ada, mia, access_of):
        host, _, _ = register_host(access_of(ada), name="laptop")

        with pytest.raises(NotPermitted):
            revoke_host(access_of(mia), host)
