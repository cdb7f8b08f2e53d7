from typing import Any

import pytest
from django.db import transaction

from billing.limits.entitlement import MeteredNotEntitled, is_metered_enabled, metered_gate, set_metered
from billing.models import Entitlement
from rensei.audit.models import AuditEvent
from rensei.core.errors import AlreadyExists
from rensei.orgs.models import Org, User
from rensei.orgs.services import create_org


class TestCreateOrg:
    def test_makes_the_entitlement_with_metered_off(self, ada: User) -> None:
        org = create_org(name="Acme", slug="acme", owner=ada)

        assert Entitlement.objects.get(org=org).metered_enabled is False

    def test_leaves_no_entitlement_of_an_organization_that_was_not_made(self, acme: Org, ada: User) -> None:
        with pytest.raises(AlreadyExists):
            create_org(name="Acme again", slug="acme", owner=ada)

        assert Entitlement.objects.count() == 1


class TestMeteredGate:
    def test_passes_an_entitled_organization(self, acme: Org) -> None:
        metered_gate(Entitlement(org=acme, metered_enabled=True))

    @pytest.mark.parametrize("entitlement", [None, Entitlement(metered_enabled=False)], ids=["missing", "disabled"])
    def test_refuses_in_the_documented_words(self, settings: Any, entitlement: Entitlement | None) -> None:
        settings.RENSEI_SUPPORT_EMAIL = "help@platform.test"

        with pytest.raises(MeteredNotEntitled) as refused:
            metered_gate(entitlement)

        assert (refused.value.code, refused.value.status) == ("METERED_NOT_ENTITLED", 403)
        assert refused.value.detail.startswith("Organisation is not entitled to use metered auth mode")
        assert "help@platform.test" in refused.value.detail
        assert refused.value.extra == {"supportEmail": "help@platform.test"}

    def test_names_no_address_where_there_is_none(self, settings: Any) -> None:
        settings.RENSEI_SUPPORT_EMAIL = ""

        with pytest.raises(MeteredNotEntitled) as refused:
            metered_gate(None)

        assert refused.value.extra == {}
        assert "operator to enable it" in refused.value.detail


class TestSetMetered:
    def test_counts_from_the_next_look_on(self, acme: Org, grace: User) -> None:
        set_metered(org_ids=[acme.pk], enabled=True, actor_user=grace)
        assert is_metered_enabled(acme.pk)

        set_metered(org_ids=[acme.pk], enabled=False, actor_user=grace)
        assert not is_metered_enabled(acme.pk)

    def test_is_written_to_the_audit_log(self, acme: Org, grace: User) -> None:
        set_metered(org_ids=[acme.pk], enabled=True, actor_user=grace)

        event = AuditEvent.objects.get(action="entitlement.changed")
        assert (event.org_id, event.actor, event.object_id) == (acme.pk, "grace@platform.test", acme.pk)
        assert event.detail == {"metered_enabled": True}

    def test_changes_only_what_differs(self, acme: Org, eve: User, grace: User) -> None:
        evil = Org.objects.get(slug="evil")
        set_metered(org_ids=[acme.pk], enabled=True, actor_user=grace)

        changed = set_metered(org_ids=[acme.pk, evil.pk], enabled=True, actor_user=grace)

        assert changed == [evil.pk]
        assert AuditEvent.objects.filter(action="entitlement.changed").count() == 2

    @pytest.mark.django_db(transaction=True)
    def test_opens_the_outermost_transaction(self, acme: Org, grace: User) -> None:
        with pytest.raises(RuntimeError), transaction.atomic():
            set_metered(org_ids=[acme.pk], enabled=True, actor_user=grace)
