"""Asking for metered: where a page offers it, who may, once, and what answers it."""

from collections.abc import Callable
from typing import Any

import pytest
from django.core import mail
from django.test import Client

from billing.limits import metered_requests
from billing.limits.entitlement import set_metered
from billing.models import Entitlement
from profiles.models import ModelProfile
from rensei.audit.models import AuditEvent
from rensei.core.errors import NotPermitted
from rensei.core.later import later
from rensei.orgs.access import Access
from rensei.orgs.models import Org, User

URL = "/o/acme/settings/metered"


@pytest.fixture
def metered_profile(make_profile: Callable[..., ModelProfile]) -> ModelProfile:
    return make_profile(name="paid", auth_modes=["metered"])


@pytest.mark.django_db
class TestARefusal:
    @pytest.mark.parametrize("path", ["settings/profiles/prof_paid", "playground?profile=prof_paid"])
    def test_offers_the_request_to_those_who_may_make_it(
        self, page: Client, mia: User, page_as: Any, metered_profile: ModelProfile, path: str
    ) -> None:
        owner = page.get(f"/o/acme/{path}").content.decode()
        member = page_as(mia).get(f"/o/acme/{path}").content.decode()

        assert f'href="{URL}"' in owner
        assert f'href="{URL}"' not in member
        assert "An owner or admin can request it" in member

    def test_says_since_when_it_is_asked(self, page: Client, ada_access: Access, metered_profile: ModelProfile) -> None:
        metered_requests.request_metered(ada_access, purpose="")

        html = page.get("/o/acme/settings/profiles/prof_paid").content.decode()

        assert "Metered was requested" in html
        assert "by ada@acme.test" in html

    def test_of_another_kind_offers_nothing(self, page: Client, make_profile: Callable[..., ModelProfile]) -> None:
        make_profile(name="own")

        html = page.get("/o/acme/settings/profiles/prof_own").content.decode()

        assert "BYOK_NOT_CONFIGURED" in html
        assert URL not in html


@pytest.mark.django_db
class TestTheRequest:
    def test_waits_with_who_when_and_what_for(self, page: Client, acme: Org) -> None:
        answer = page.post(URL, {"purpose": " Our  CI "}, follow=True)

        waiting = metered_requests.waiting().get()
        assert (waiting.org, waiting.metered_requested_by, waiting.metered_requested_for) == (
            acme,
            "ada@acme.test",
            "Our CI",
        )
        assert "Requested, not answered yet" in answer.content.decode()
        assert AuditEvent.objects.for_org(acme).get(action="metered.requested").detail == {"purpose": "Our CI"}

    def test_made_twice_is_one(self, page: Client, alan: User, page_as: Any) -> None:
        page.post(URL, {"purpose": "First"})
        page_as(alan).post(URL, {"purpose": "Second"})

        assert metered_requests.waiting().get().metered_requested_for == "First"
        assert AuditEvent.objects.filter(action="metered.requested").count() == 1

    def test_of_somebody_who_may_not_is_refused(
        self, acme: Org, mia: User, otto: User, access_of: Callable[..., Access]
    ) -> None:
        for user in (mia, otto):
            with pytest.raises(NotPermitted):
                metered_requests.request_metered(access_of(user), purpose="")

        assert not metered_requests.waiting().exists()

    def test_where_metered_is_enabled_asks_nobody(self, page: Client, acme: Org, grace: User) -> None:
        set_metered(org_ids=[acme.pk], enabled=True, actor_user=grace)

        answer = page.post(URL, {}, follow=True)

        assert not metered_requests.waiting().exists()
        assert "Metered is enabled" in answer.content.decode()

    def test_is_answered_by_enabling_metered(self, acme: Org, ada_access: Access, grace: User) -> None:
        metered_requests.request_metered(ada_access, purpose="")

        set_metered(org_ids=[acme.pk], enabled=True, actor_user=grace)

        assert not metered_requests.waiting().exists()
        assert Entitlement.objects.get(org=acme).metered_requested_by == ""

    def test_may_be_declined_and_made_again(self, acme: Org, ada_access: Access, grace: User) -> None:
        metered_requests.request_metered(ada_access, purpose="First")

        declined = metered_requests.decline(org_ids=[acme.pk], operator=grace)
        metered_requests.request_metered(ada_access, purpose="Second")

        assert declined == 1
        assert metered_requests.waiting().get().metered_requested_for == "Second"
        assert AuditEvent.objects.for_org(acme).filter(action="metered.declined", user_id=grace.pk).count() == 1


@pytest.mark.django_db
class TestTheMails:
    def test_tell_the_operators_of_a_request_once(self, page: Client, grace: User) -> None:
        for _ in range(2):
            page.post(URL, {"purpose": "Our CI"})
        later.wait()

        [message] = mail.outbox
        assert message.to == [grace.email]
        assert "ada@acme.test requests metered for Acme (acme)." in message.body
        assert "Our CI" in message.body

    @pytest.mark.parametrize("enabled", [True, False])
    def test_tell_the_organization_what_was_decided(
        self,
        acme: Org,
        ada_access: Access,
        alan: User,
        mia: User,
        grace: User,
        enabled: bool,
        django_capture_on_commit_callbacks: Any,
    ) -> None:
        metered_requests.request_metered(ada_access, purpose="")
        later.wait()
        mail.outbox.clear()

        with django_capture_on_commit_callbacks(execute=True):
            if enabled:
                set_metered(org_ids=[acme.pk], enabled=True, actor_user=grace)
            else:
                metered_requests.decline(org_ids=[acme.pk], operator=grace)
        later.wait()

        [message] = mail.outbox
        assert message.to == ["ada@acme.test", "alan@acme.test"]
        assert ("/o/acme/playground" in message.body) is enabled

    def test_are_not_sent_where_nothing_was_requested(
        self, acme: Org, grace: User, django_capture_on_commit_callbacks: Any
    ) -> None:
        with django_capture_on_commit_callbacks(execute=True):
            set_metered(org_ids=[acme.pk], enabled=True, actor_user=grace)
        later.wait()

        assert mail.outbox == []
