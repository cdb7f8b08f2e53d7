"""The page of the organization, and creating another one."""

from datetime import timedelta

import pytest

from rensei.audit.models import AuditEvent
from rensei.core.clock import database_now
from rensei.orgs.models import Membership, Org

PAGE = "/o/acme/settings/organization"


class TestOrganization:
    def test_changes_name_and_letter(self, page, acme):
        answer = page.post(PAGE, {"name": "客户支持", "mark": "客"}, follow=True)

        acme.refresh_from_db()
        assert (acme.name, acme.mark, acme.slug) == ("客户支持", "客", "acme")
        assert '<span class="org-mark" aria-hidden="true">客</span>' in answer.content.decode()
        assert AuditEvent.objects.get(action="org.updated").detail == {"name": "客户支持", "mark": "客"}

    def test_shows_the_first_letter_without_a_letter_of_its_own(self, page, acme):
        page.post(PAGE, {"name": "acme", "mark": " "})

        acme.refresh_from_db()
        assert (acme.mark, acme.logo) == ("", "A")

    @pytest.mark.parametrize("values", [{"name": ""}, {"name": "a\u202eb"}, {"name": "A", "mark": "abc"}])
    def test_shows_a_wrong_value_beside_its_field(self, page, acme, values):
        answer = page.post(PAGE, values)

        acme.refresh_from_db()
        assert (answer.status_code, acme.name) == (422, "Acme")
        assert "field__error" in answer.content.decode()

    @pytest.mark.parametrize("person", ["mia", "otto"])
    def test_is_read_only_to_others(self, request, page_as, acme, person):
        browser = page_as(request.getfixturevalue(person))

        assert "Save changes" not in browser.get(PAGE).content.decode()
        assert browser.post(PAGE, {"name": "Theirs"}).status_code == 403
        assert Org.objects.get().name == "Acme"


class TestCreate:
    def test_is_for_operators_only_unless_it_is_set(self, page, acme):
        shown = page.get("/orgs/new")

        assert "Only operators of this server create organizations" in shown.content.decode()
        assert page.post("/orgs/new", {"name": "Second"}).status_code == 403
        assert Org.objects.count() == 1

    def test_makes_the_person_its_owner(self, page, acme, ada, settings):
        settings.RENSEI_ORGS_PER_PERSON = 2

        answer = page.post("/orgs/new", {"name": "Déjà vu", "slug": ""})

        assert answer.headers["Location"] == "/o/deja-vu/"
        assert Membership.objects.get(org__slug="deja-vu").role == "owner"
        assert AuditEvent.objects.filter(action="org.created", object_id=Org.objects.get(slug="deja-vu").pk).exists()

    def test_stops_at_the_number_that_is_set(self, page, acme, settings):
        settings.RENSEI_ORGS_PER_PERSON = 1

        assert page.post("/orgs/new", {"name": "Second"}).status_code == 403
        assert "Create an organization" not in page.get("/orgs", headers={"HX-Request": "true"}).content.decode()

    @pytest.mark.django_db(transaction=True)
    def test_counts_those_that_were_deleted_in_this_month(self, page, acme, ada, settings):
        settings.RENSEI_ORGS_PER_PERSON = 1
        page.post(f"{PAGE}/delete", {"typed": "acme"})
        assert not Membership.objects.exists()

        assert page.post("/orgs/new", {"name": "Second"}).status_code == 403
        assert "Create an organization" not in page.get("/orgs", headers={"HX-Request": "true"}).content.decode()
        Org.objects.update(deleting_at=database_now().replace(day=1) - timedelta(days=1))

        assert page.post("/orgs/new", {"name": "Second", "slug": "second"}).status_code == 302
        assert Membership.objects.get().user == ada

    def test_does_not_count_those_that_others_made(self, page, acme, eve, ada, settings):
        settings.RENSEI_ORGS_PER_PERSON = 2
        Org.objects.filter(slug="evil").update(deleting_at=database_now())

        assert page.post("/orgs/new", {"name": "Second", "slug": "second"}).status_code == 302

    def test_is_always_open_to_operators(self, grace, page_as, acme):
        browser = page_as(grace)
        assert browser.post("/orgs/new", {"name": "客户", "slug": "support"}).status_code == 302

        assert Org.objects.get(slug="support").name == "客户"

    def test_says_that_an_id_is_taken_beside_the_field(self, grace, page_as, acme):
        answer = page_as(grace).post("/orgs/new", {"name": "Acme", "slug": ""})

        assert answer.status_code == 422
        assert "acme" in answer.content.decode()
