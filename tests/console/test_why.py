"""Settings → Why was I refused?: the page shows the gates that REST explains."""

import re
from html import unescape
from typing import Any

import pytest
from django.utils.html import escape

from tests.pages import html_of

ADDRESS = "/o/acme/settings/why"


@pytest.mark.django_db
class TestWhy:
    def test_shows_the_gates_that_rest_explains(
        self, page_as: Any, api_as: Any, ada: Any, mia: Any, profile: Any
    ) -> None:
        asked = {"profileId": profile.public_id, "asMember": mia.email, "pool": "e2b"}

        said = api_as(ada).post("/api/v1/why", asked).json()
        question = {"profile_id": profile.public_id, "as_member": mia.email, "pool": "e2b"}
        shown = html_of(page_as(ada).get(ADDRESS, question))

        gates = re.findall(r'class="step gate gate--([a-z-]+)".*?<h3>(.*?) <span', shown, re.DOTALL)
        assert gates == [(gate["verdict"], escape(gate["title"])) for gate in said["gates"]]
        assert all(escape(seen["value"]) in shown for gate in said["gates"] for seen in gate["lookedAt"])
        assert escape(said["detail"]) in shown

    def test_says_when_one_change_is_enough(self, page_as: Any, ada: Any, profile: Any, integration: Any) -> None:
        shown = page_as(ada).get(ADDRESS, {"profile_id": profile.public_id, "pool": "e2b"}).content.decode()

        assert "Change this one thing and it works." in shown

    def test_shows_a_member_only_their_own(self, page_as: Any, ada: Any, mia: Any, profile: Any) -> None:
        client = page_as(mia)

        shown = client.get(ADDRESS, {"profile_id": profile.public_id, "as_member": ada.email}).content.decode()

        assert 'name="as_member"' not in shown
        assert ada.email not in shown
        assert '<h2 id="verdict">Mia, member</h2>' in shown

    def test_names_an_unknown_member_beside_the_field(self, page_as: Any, ada: Any, eve: Any, acme: Any) -> None:
        answer = page_as(ada).get(ADDRESS, {"as_member": eve.email, "pool": "local"})

        assert answer.status_code == 422
        assert "Nothing is here under the id in asMember." in answer.content.decode()


@pytest.mark.django_db
class TestTheWayHere:
    """Refusals lead here with what was asked."""

    def follow(self, browser: Any, html: str) -> Any:
        address = re.search(r'href="([^"]*/settings/why\?[^"]*)"', html)
        assert address
        return browser.get(unescape(address[1]))

    def test_leads_from_the_playground(self, page: Any, profile: Any) -> None:
        shown = page.get("/o/acme/playground", {"profile": profile.public_id}).content.decode()

        answer = self.follow(page, shown)

        assert answer.status_code == 200
        assert f'<option value="{profile.public_id}" selected>' in answer.content.decode()
        assert "Gates" in answer.content.decode()

    def test_leads_from_a_run_as_the_person_who_dispatched_it(self, page: Any, run: Any, ada: Any) -> None:
        answer = self.follow(page, page.get(f"/o/acme/runs/{run.id}").content.decode())

        assert answer.status_code == 200
        assert answer.context["form"].data["as_member"] == ada.email
        assert answer.context["explained"] is not None

    def test_leads_a_member_to_what_they_may_ask(self, page_as: Any, mia: Any, run: Any) -> None:
        browser = page_as(mia)

        answer = self.follow(browser, browser.get(f"/o/acme/runs/{run.id}").content.decode())

        assert answer.status_code == 200
        assert "as_member" not in answer.context["form"].data
