"""An auditor reads everything, and changes nothing."""

import re
from collections.abc import Callable

import pytest
from playwright.sync_api import expect

from integrations.models import Integration
from profiles.models import ModelProfile
from rensei.audit.models import AuditEvent
from rensei.dispatch.admission import admit
from rensei.dispatch.admission.requests import DispatchRequest, messages_from
from rensei.dispatch.models import Run
from rensei.orgs.access import Access
from rensei.orgs.models import Project, User
from tests.journeys.person import Person

pytestmark = [
    pytest.mark.browser,
    pytest.mark.outside,
    pytest.mark.timeout(300),
    pytest.mark.django_db(transaction=True),
]

# What an auditor may press: it changes nothing but what they look at. A token of theirs reads, as they do.
HARMLESS = {"Copy", "Filter", "Create token"}
# Where the rail leads.
PAGES = ["Runs", "Workflows", "Playground", "Usage", "Integrations", "Model Profiles", "Catalog", "Projects & Access"]
PAGES += ["Members", "API Tokens", "Machines", "Audit log"]
# A way to write: its address, and what would be sent.
WRITES = {
    "settings/profiles/new": "name=sly&model_id=claude:claude-sonnet-5-5&auth_modes=byok&action=save",
    "settings/projects": "name=Sly&slug=sly",
    "playground": "text=Hello&action=dispatch",
}


def written() -> list[int]:
    return [model.objects.count() for model in (ModelProfile, Project, Run, AuditEvent)]


class TestAnAuditor:
    def test_reads_everything_and_finds_nothing_to_press(
        self,
        anybody: Person,
        otto: User,
        ada_access: Access,
        project: Project,
        connected: Integration,
        make_profile: Callable[..., ModelProfile],
    ) -> None:
        person = anybody
        page, profile = person.page, make_profile(name="deep", auth_modes=["byok"])
        asked = messages_from(text="How many seas are there?", messages=None)
        admit.dispatch(ada_access, DispatchRequest(profile_id=profile.public_id, messages=asked))
        person.sign_in(otto)

        def expect_nothing_to_press(heading: str) -> None:
            main = page.get_by_role("main")
            expect(main.get_by_role("heading", level=1)).to_contain_text(heading)
            found = {button.inner_text() for button in main.get_by_role("button", disabled=False).all()}
            assert found <= HARMLESS, heading

        expect_nothing_to_press("Acme")
        for name in PAGES:
            person.follow(name, within=page.get_by_role("navigation", name="Acme"))
            expect_nothing_to_press(name)
        person.follow("Runs")
        person.follow("deep", within=page.get_by_role("main"))
        assert person.reads_the_answer()
        expect_nothing_to_press("deep")
        person.follow(profile.public_id)
        expect(page).to_have_url(re.compile(f"/settings/profiles/{profile.public_id}$"))
        expect_nothing_to_press("deep")

    @pytest.mark.parametrize("path", WRITES)
    def test_is_refused_who_posts_by_hand(
        self,
        person: Person,
        otto: User,
        connected: Integration,
        make_profile: Callable[..., ModelProfile],
        path: str,
    ) -> None:
        make_profile(name="deep", auth_modes=["byok"])
        person.sign_in(otto)
        person.sees_heading("Three steps to a first answer")
        before = written()

        status = person.page.evaluate(
            """async ([path, body]) => {
                const csrf = document.querySelector("[name=csrfmiddlewaretoken]").value;
                const headers = {"Content-Type": "application/x-www-form-urlencoded", "X-CSRFToken": csrf};
                return (await fetch(path, {method: "POST", headers, body})).status;
            }""",
            [f"/o/acme/{path}", WRITES[path]],
        )

        assert status >= 400
        assert written() == before
