"""What a token may make and be used for, and that it ends with the token that made it."""

import threading
from datetime import timedelta

import pytest
from django.db import connection
from django.utils import timezone
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rensei.accounts import invitations
from rensei.accounts.models import Invitation
from rensei.audit.models import AuditEvent
from rensei.core import networks
from rensei.core.errors import FieldError, NotPermitted
from rensei.core.networks import NetworkNotAllowed
from rensei.dispatch.models import Run
from rensei.orgs.models import Host
from rensei.orgs.scopes import DEFAULT, Scope
from rensei.tokens import tree
from rensei.tokens.look_up import for_token
from rensei.tokens.machines import register_host, revoke_host
from rensei.tokens.models import ApiToken
from rensei.tokens.services import create_token, revoke_token, revoke_tokens
from rensei.tokens.tree import GENERATIONS_MAX
from tests.drawn import examples

SCOPES = [scope.value for scope in DEFAULT]


def made_with(maker, **fields):
    """Make a token as a caller, and give the access that it opens."""
    _, secret = create_token(maker, name="made", **fields)
    return for_token(token=secret.reveal())


def alive():
    return set(ApiToken.objects.filter(revoked_at=None).values_list("pk", flat=True))


class TestScopesOfANewToken:
    def test_are_the_usual_ones_where_none_are_named(self, access):
        assert made_with(access).token.scopes == SCOPES

    def test_are_those_of_its_maker_where_none_are_named(self, access):
        maker = made_with(access, scopes=["manage", "read"])

        assert made_with(maker).token.scopes == ["read", "manage"]

    @given(asked=st.sets(st.sampled_from(SCOPES), min_size=1), has=st.sets(st.sampled_from(SCOPES), min_size=1))
    @settings(max_examples=examples(40), deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
    def test_are_never_more_than_those_of_its_maker(self, access, asked, has):
        maker = made_with(access, scopes=sorted(has))

        try:
            scopes = made_with(maker, scopes=sorted(asked)).token.scopes
        except FieldError:
            assert not asked <= has
        else:
            assert set(scopes) == asked
            assert asked <= has

    @pytest.mark.parametrize("scopes", [["admin"], [], ["leases"], ["read", "leases"]])
    def test_are_ones_that_there_are(self, access, scopes):
        with pytest.raises(FieldError):
            made_with(access, scopes=scopes)

    def test_of_a_machine_are_its_leases_and_its_own_runs(self, access):
        _, token, _ = register_host(access, name="box")

        assert token.scopes == ["runs", "leases"]

    def test_of_a_machine_are_never_more_than_those_of_the_token_that_registers_it(self, access):
        maker = made_with(access, scopes=["manage", "runs"])

        with pytest.raises(FieldError):
            register_host(maker, name="box", scopes=["leases", "read"])
        assert not Host.objects.exists()


class TestWhatAMachinesTokenMakes:
    @pytest.mark.parametrize(
        ("method", "path", "body"),
        [
            ("post", "tokens", {"name": "x"}),
            ("post", "hosts", {"name": "x"}),
            ("post", "invitations", {"email": "zoe@acme.test", "role": "owner"}),
            ("post", "members", {"email": "zoe@acme.test", "role": "owner"}),
            ("put", "access-policy", {"matrix": {}}),
        ],
    )
    @pytest.mark.parametrize("scopes", [None, list(Scope)])
    def test_is_nothing_that_gives_access(self, access, client, scopes, method, path, body):
        _, _, secret = register_host(access, name="box", scopes=scopes)
        headers = {"Authorization": f"Bearer {secret.reveal()}"}

        answer = getattr(client, method)(f"/api/v1/{path}", body, content_type="application/json", headers=headers)

        assert answer.status_code == 403
        assert answer.json()["code"] == "SCOPE_MISSING"
        assert not Invitation.objects.exists()
        assert ApiToken.objects.count() == 1

    def test_sees_its_own_runs_only(self, access, alan, access_of, client):
        host, _, secret = register_host(access, name="box")
        headers = {"Authorization": f"Bearer {secret.reveal()}"}

        runs = {
            "own": _run(access.org, created_by=access.user),
            "sent": _run(access.org, created_by=alan, host=host),
            "other": _run(access.org, created_by=alan),
        }

        listed = {run["id"] for run in client.get("/api/v1/runs", headers=headers).json()["results"]}
        assert listed == {runs["own"].pk, runs["sent"].pk}
        assert client.get(f"/api/v1/runs/{runs['other'].pk}", headers=headers).status_code == 404

    def test_notes_its_own_login_and_no_other_machines(self, access, client):
        host, _, secret = register_host(access, name="box")
        other, _, _ = register_host(access, name="other")
        headers = {"Authorization": f"Bearer {secret.reveal()}"}

        def note(machine):
            body = {"login": "console"}
            path = f"/api/v1/hosts/{machine.pk}"
            return client.patch(path, body, content_type="application/json", headers=headers).status_code

        assert (note(host), note(other)) == (200, 403)


class TestRevoking:
    @given(
        parents=st.lists(st.integers(0, 30), min_size=1, max_size=12),
        victim=st.integers(0, 30),
        by_operator=st.booleans(),
    )
    @settings(max_examples=examples(40), deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
    def test_ends_all_that_was_made_with_it_and_nothing_else(self, access, grace, parents, victim, by_operator):
        # A member has so many tokens at most, and those of the examples before are not rolled back.
        ApiToken.objects.all().delete()
        made = [made_with(access)]
        parent_of = {0: None}
        for parent in parents:
            maker = parent % len(made)
            if made[maker].token.generation < GENERATIONS_MAX:
                parent_of[len(made)] = maker
                made.append(made_with(made[maker]))
        chosen = victim % len(made)

        def descends(number):
            return number == chosen or (parent_of[number] is not None and descends(parent_of[number]))

        before = alive()
        token = ApiToken.objects.get(pk=made[chosen].token.pk)
        if by_operator:
            revoke_tokens([token], operator=grace)
        else:
            revoke_token(access, token)

        assert before - alive() == {one.token.pk for number, one in enumerate(made) if descends(number)}

    def test_ends_the_machines_and_open_invitations_that_it_made(self, access):
        maker = made_with(access)
        host, _, secret = register_host(maker, name="box")
        kept, _, _ = register_host(access, name="kept")
        invitation = invitations.invite(maker, email="zoe@acme.test", role="member").invitation
        ours = invitations.invite(access, email="yan@acme.test", role="member").invitation

        revoke_token(access, maker.token)

        assert for_token(token=secret.reveal()) is None
        assert [Host.objects.get(pk=one.pk).revoked_at is None for one in (host, kept)] == [False, True]
        assert [Invitation.objects.get(pk=one.pk).revoked_at is None for one in (invitation, ours)] == [False, True]

    def test_of_a_machine_ends_what_its_token_made_before(self, access):
        host, token, _ = register_host(access, name="box", scopes=list(Scope))
        child = ApiToken.objects.create(
            org=access.org, membership=access.membership, name="x", digest="0" * 64, hint="0000", made_by=token
        )

        revoke_host(access, host)

        assert child.pk not in alive()

    def test_is_written_down_with_what_went_along(self, access):
        maker = made_with(access)
        child = made_with(maker)

        revoke_token(access, maker.token)

        event = AuditEvent.objects.get(action="token.revoked")
        assert (event.object_id, event.detail["made"]) == (maker.token.pk, [child.token.pk])

    def test_asks_the_database_once_for_each_generation(self, access, django_assert_max_num_queries):
        maker = made_with(access)
        for _ in range(30):
            made_with(maker)

        with django_assert_max_num_queries(20):
            revoke_token(access, maker.token)

        assert alive() == set()

    def test_leaves_nothing_that_a_revoked_token_could_still_make(self, access):
        maker = made_with(access)
        revoke_token(access, maker.token)

        for act in (
            lambda: create_token(maker, name="late"),
            lambda: register_host(maker, name="late"),
            lambda: invitations.invite(maker, email="zoe@acme.test", role="member"),
        ):
            with pytest.raises(NotPermitted):
                act()

    @pytest.mark.django_db(transaction=True)
    def test_misses_none_that_is_made_at_the_same_moment(self, acme, ada, access_of):
        maker = made_with(access_of(ada))
        barrier = threading.Barrier(4)

        def make():
            try:
                barrier.wait(timeout=30)
                create_token(maker, name="late")
            except NotPermitted:
                pass
            finally:
                connection.close()

        makers = [threading.Thread(target=make) for _ in range(3)]
        for thread in makers:
            thread.start()
        barrier.wait(timeout=30)
        revoke_token(access_of(ada), maker.token)
        for thread in makers:
            thread.join()

        assert alive() == set()


class TestGenerations:
    def test_are_bounded(self, access):
        maker = access
        for _ in range(GENERATIONS_MAX + 1):
            maker = made_with(maker)

        with pytest.raises(tree.TokenChainTooLong):
            made_with(maker)


class TestNetworks:
    @pytest.mark.parametrize(
        ("allowed", "address", "opens"),
        [
            ([], "203.0.113.9", True),
            (["192.0.2.0/24"], "192.0.2.9", True),
            (["192.0.2.0/24"], "::ffff:192.0.2.9", True),
            (["192.0.2.0/24"], "203.0.113.9", False),
            (["192.0.2.0/24", "2001:db8::/32"], "2001:db8::1", True),
            (["192.0.2.0/24"], None, False),
        ],
    )
    def test_are_where_a_token_opens(self, allowed, address, opens):
        if opens:
            networks.require(allowed, address)
        else:
            with pytest.raises(NetworkNotAllowed):
                networks.require(allowed, address)

    def test_are_held_to_by_rest(self, access, client):
        _, secret = create_token(access, name="ci", allowed_networks=["192.0.2.0/24"])
        headers = {"Authorization": f"Bearer {secret.reveal()}"}

        inside = client.get("/api/v1/me", headers=headers, REMOTE_ADDR="192.0.2.7")
        outside = client.get("/api/v1/me", headers=headers, REMOTE_ADDR="203.0.113.7")

        assert inside.status_code == 200
        assert (outside.status_code, outside.json()["code"]) == (403, "NETWORK_NOT_ALLOWED")

    @pytest.mark.parametrize("given", [["192.0.2.1/24"], ["x"], ["192.0.2.0/24"] * 21, ["300.0.0.0/8"]])
    def test_are_ones_that_there_are(self, access, given):
        with pytest.raises(FieldError):
            made_with(access, allowed_networks=given)

    @pytest.mark.parametrize(
        ("asked", "given"), [([], ["192.0.2.0/24"]), (["192.0.2.128/25"], ["192.0.2.128/25"]), (["0.0.0.0/0"], None)]
    )
    def test_of_a_token_that_a_token_makes_lie_within_its_makers(self, access, asked, given):
        maker = made_with(access, allowed_networks=["192.0.2.0/24"])

        if given is None:
            with pytest.raises(FieldError):
                made_with(maker, allowed_networks=asked)
        else:
            assert made_with(maker, allowed_networks=asked).token.allowed_networks == given


class TestLastUsed:
    def test_is_noted_with_the_address_and_not_on_every_call(self, access, django_assert_num_queries):
        _, secret = create_token(access, name="ci")

        for_token(token=secret.reveal(), address="192.0.2.1")
        with django_assert_num_queries(1):
            for_token(token=secret.reveal(), address="192.0.2.2")

        token = ApiToken.objects.get()
        assert token.last_used_address == "192.0.2.1"
        assert timezone.now() - token.last_used_at < timedelta(minutes=1)


class TestMe:
    def test_says_what_the_token_may_be_used_for(self, access, client, page_as, ada):
        _, secret = create_token(access, name="ci", scopes=["billing", "read"])

        by_token = client.get("/api/v1/me", headers={"Authorization": f"Bearer {secret.reveal()}"}).json()

        assert by_token["scopes"] == ["read", "billing"]
        assert page_as(ada).get("/api/v1/me").json()["scopes"] == list(Scope.values)


def _run(org, **fields):
    now = timezone.now()
    return Run.objects.create(
        org=org, provider="claude", model_id="m", served_model_id="m", auth_mode="byok", payer="organization",
        max_tokens=10, deadline_at=now, created_at=now, **fields,
    )  # fmt: skip
