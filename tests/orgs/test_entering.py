"""The access of an operator who entered an organization ends by itself."""

from collections.abc import Callable
from datetime import timedelta

import pytest
from django.test import Client
from django.utils import timezone
from rest_framework.test import APIClient

from integrations.models import DataKey
from rensei.audit.models import AuditEvent
from rensei.core.errors import InUse
from rensei.orgs import entering
from rensei.orgs import services as orgs
from rensei.orgs.access import Access, for_member
from rensei.orgs.models import Host, Membership, Org, Role, User
from rensei.tokens import device_codes
from rensei.tokens.models import ApiToken
from rensei.tokens.services import create_token
from tests import factories

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture
def entered(acme: Org, grace: User) -> Membership:
    """Grace is in Acme for an hour."""
    return Membership.objects.create(org=acme, user=grace, role=Role.OWNER, ends_at=timezone.now() + timedelta(hours=1))


def let_pass(membership: Membership) -> None:
    membership.ends_at = timezone.now() - timedelta(seconds=1)
    membership.save(update_fields=["ends_at"])


class TestAnOwnerForAnHour:
    def test_destroys_nothing_for_good(
        self,
        entered: Membership,
        acme: Org,
        grace: User,
        ada: User,
        key: str,
        access_of: Callable[..., Access],
        page_as: Callable[[User], Client],
        api_as: Callable[..., APIClient],
    ) -> None:
        """One operator alone would end an organization before an owner has read the mail."""
        factories.connect_key(access_of(ada), key, name="Main")
        page, api, settings = page_as(grace), api_as(grace), "/o/acme/settings/organization"

        shown = page.get(settings).content.decode()
        answers = [
            page.post(f"{settings}/delete", {"typed": "acme"}),
            page.post(f"{settings}/destroy-keys", {"typed": "acme"}),
            api.delete(f"/api/v1/orgs/{acme.pk}?confirm=acme"),
            api.post("/api/v1/data-keys/destroy", {"confirm": "acme"}),
        ]

        assert [answer.status_code for answer in answers] == [403] * 4
        assert shown.count("Only an owner without an end can.") == 2
        # Those who can are named: the owners without an end.
        asked = answers[0].content.decode()
        assert "This is up to an owner: " in asked
        assert f"mailto:{ada.email}" in asked
        assert f"mailto:{grace.email}" not in asked
        assert "whose membership has no end" in answers[2].json()["detail"]
        assert Org.objects.get(pk=acme.pk).deleting_at is None
        assert DataKey.objects.filter(org=acme).exists()


class TestTheEnd:
    def test_shuts_every_way_in_at_that_moment(
        self, entered: Membership, grace: User, page_as: Callable[[User], Client], api_as: Callable[..., APIClient]
    ) -> None:
        page, api = page_as(grace), api_as(grace)
        assert page.get("/o/acme/runs").status_code == 200
        assert api.get("/api/v1/me").status_code == 200
        assert page.get("/api/v1/me").status_code == 200
        assert list(device_codes.memberships_to_choose(grace)) == [entered]

        let_pass(entered)

        assert page.get("/o/acme/runs").status_code == 404
        assert page.get("/api/v1/me").status_code == 400
        assert page.get("/").headers["location"] == "/admin/"
        assert api.get("/api/v1/me").status_code == 401
        assert for_member(user=grace, slug="acme") is None
        assert not device_codes.memberships_to_choose(grace).exists()

    def test_removes_the_member_with_tokens_and_machines(
        self, entered: Membership, access_of: Callable[..., Access], grace: User, acme: Org
    ) -> None:
        create_token(access_of(grace), name="during the hour")
        host = Host.objects.create(org=acme, owner=grace, name="laptop")
        let_pass(entered)

        entering.end_due()

        assert not Membership.objects.filter(user=grace).exists()
        assert not ApiToken.objects.filter(name="during the hour").exists()
        host.refresh_from_db()
        assert host.revoked_at is not None
        event = AuditEvent.objects.get(org_id=acme.pk, action="membership.ended")
        assert (event.object_id, event.detail["email"]) == (entered.pk, grace.email)

    def test_comes_no_sooner_and_for_no_others(self, entered: Membership, ada: User) -> None:
        entering.end_due()

        assert Membership.objects.filter(pk=entered.pk).exists()
        assert Membership.objects.filter(user=ada).exists()

    def test_is_seen_by_the_members(
        self, entered: Membership, ada: User, page_as: Callable[[User], Client], api_as: Callable[..., APIClient]
    ) -> None:
        listed = {row["email"]: row["endsAt"] for row in api_as(ada).get("/api/v1/members").json()["results"]}

        assert listed[ada.email] is None
        assert listed["grace@platform.test"] is not None
        assert "ends " in page_as(ada).get("/o/acme/settings/members").content.decode()

    def test_can_come_earlier(self, entered: Membership, access_of: Callable[..., Access], ada: User) -> None:
        orgs.remove_member(access_of(ada), entered)

        assert not Membership.objects.filter(pk=entered.pk).exists()

    def test_counts_no_owner_who_stays_for_a_time(
        self, entered: Membership, access_of: Callable[..., Access], ada: User
    ) -> None:
        with pytest.raises(InUse):
            orgs.remove_member(access_of(ada), Membership.objects.get(user=ada))
