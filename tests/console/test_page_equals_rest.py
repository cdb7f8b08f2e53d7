"""A list page shows a person the objects that REST lists for them, and no others."""

from collections.abc import Callable
from typing import Any

import pytest
from django.test import Client
from rest_framework.test import APIClient

from integrations.models import Integration
from profiles.models import ModelProfile
from rensei.dispatch.models import Run
from rensei.orgs.access import Access
from rensei.orgs.models import Org, Project, User
from rensei.tokens.machines import register_host
from rensei.tokens.services import create_token
from rensei.workflows import services as workflows

ROLES = ["ada", "alan", "mia", "otto"]
# A page's address, its list in REST, and the field that the page shows.
LISTS = [
    ("settings/tokens", "tokens", "name"),
    ("settings/machines", "hosts", "name"),
    ("settings/profiles", "profiles", "name"),
    ("settings/projects", "projects", "id"),
    ("settings/integrations", "integrations", "name"),
    ("settings/members", "members", "email"),
    ("workflows", "workflows", "name"),
    ("runs", "runs", "id"),
]


@pytest.fixture
def stage(
    acme: Org,
    integration: Integration,
    profile: ModelProfile,
    project: Project,
    make_run: Callable[..., Run],
    access_of: Callable[..., Access],
    people: dict[str, User],
) -> None:
    """Every person has a token and a machine, and the organization has two of everything else."""
    for person in people.values():
        access = access_of(person)
        if access.writes:
            register_host(access, name=f"machine-of-{person.name.lower()}")
            create_token(access, name=f"token-of-{person.name.lower()}")
    make_run("First")
    make_run("Second")
    config = {"profileId": profile.public_id, "prompt": "Hello"}
    for name in ("first-workflow", "second-workflow"):
        document = {"name": name, "nodes": [{"nodeId": "only", "nodeType": "action/llm.inference", "config": config}]}
        workflows.apply_document(access_of(people["ada"]), document)


@pytest.fixture
def people(ada: User, alan: User, mia: User, otto: User) -> dict[str, User]:
    return {"ada": ada, "alan": alan, "mia": mia, "otto": otto}


@pytest.mark.django_db
class TestListPage:
    @pytest.mark.parametrize("role", ROLES)
    def test_shows_what_rest_lists(
        self,
        subtests: Any,
        stage: None,
        people: dict[str, User],
        page_as: Callable[[User], Client],
        api_as: Callable[[User], APIClient],
        role: str,
    ) -> None:
        owner, client = api_as(people["ada"]), api_as(people[role])
        browser = page_as(people[role])
        for page, path, field in LISTS:
            with subtests.test(page):
                every = {row[field] for row in owner.get(f"/api/v1/{path}").json()["results"]}
                listed = {row[field] for row in client.get(f"/api/v1/{path}").json()["results"]}

                html = browser.get(f"/o/acme/{page}").content.decode()

                assert listed
                assert {shown for shown in every if shown in html} == listed

    def test_hides_the_machines_of_colleagues_from_a_member(
        self, stage: None, mia: User, page_as: Callable[[User], Client]
    ) -> None:
        html = page_as(mia).get("/o/acme/settings/machines").content.decode()

        assert "machine-of-mia" in html
        assert "machine-of-ada" not in html

    @pytest.mark.parametrize(
        ("section", "path", "name"),
        [("machines", "hosts", "machine-of-ada"), ("tokens", "tokens", "token-of-ada")],
    )
    def test_leaves_those_of_colleagues_absent_for_a_member(
        self,
        stage: None,
        ada: User,
        mia: User,
        page_as: Callable[[User], Client],
        api_as: Callable[[User], APIClient],
        section: str,
        path: str,
        name: str,
    ) -> None:
        rows = api_as(ada).get(f"/api/v1/{path}").json()["results"]
        (hers,) = [row["id"] for row in rows if row["name"] == name]

        assert page_as(mia).get(f"/o/acme/settings/{section}/{hers}/revoke").status_code == 404
        assert page_as(ada).get(f"/o/acme/settings/{section}/{hers}/revoke").status_code == 200
