"""No page of an organization has a link that leads to nothing, also after objects were deleted."""

import html
import re
from collections import Counter, deque
from collections.abc import Callable
from urllib.parse import urljoin

import pytest
from django.db.models import F
from django.test import Client

from profiles import services as profiles
from profiles.models import ModelProfile
from rensei.dispatch.models import Run
from rensei.orgs import services as orgs
from rensei.orgs.access import Access
from rensei.orgs.models import Org, Project, User
from rensei.workflows import services as workflows
from rensei.workflows.models import WorkflowRun

LINK = re.compile(r'(?:href|hx-get)="([^"#]+)')
# Links that differ only in their query lead to the same page in another order, or with fewer rows.
QUERIES_MAX = 3


@pytest.fixture
def lived_in(
    acme: Org,
    ada_access: Access,
    make_profile: Callable[..., ModelProfile],
    make_run: Callable[..., Run],
    workflow_run: WorkflowRun,
) -> None:
    """An organization with one object of each kind, and another one of each that was deleted."""
    make_run()
    old = profiles.create_profile(
        ada_access, name="Old", provider="claude", model_id="claude-sonnet-5-5", auth_modes=["byok"]
    )
    make_run(profile_id=old.public_id)
    profiles.delete_profile(ada_access, old)
    orgs.create_project(ada_access, slug="kept", name="Kept")
    orgs.create_project(ada_access, slug="gone", name="Gone")
    orgs.delete_project(ada_access, Project.objects.get(org=acme, slug="gone"))
    document = {"nodeId": "brief", "nodeType": "action/llm.inference", "config": {"prompt": "Hi"}}
    workflow, _ = workflows.apply_document(ada_access, document)
    workflows.delete_workflow(ada_access, workflow)
    Run.objects.update(state=Run.State.SUCCEEDED, finished_at=F("created_at"))


@pytest.mark.outside
def test_every_link_leads_to_a_page(lived_in: None, page: Client) -> None:
    dead, opened = follow(page, "/o/acme/")

    assert dead == []
    assert len(opened) > 60


@pytest.mark.outside
def test_every_link_of_a_member_leads_to_a_page(lived_in: None, page_as: Callable[[User], Client], mia: User) -> None:
    dead, opened = follow(page_as(mia), "/o/acme/")

    assert dead == []
    assert len(opened) > 40


def follow(browser: Client, start: str) -> tuple[list[str], Counter[str]]:
    """Open every page of the organization that is linked from another, and return the links without a page."""
    dead: list[str] = []
    opened: Counter[str] = Counter()
    known, waiting = {start}, deque([(start, "")])
    while waiting:
        address, found_on = waiting.popleft()
        path = address.partition("?")[0]
        opened[path] += 1
        if opened[path] > QUERIES_MAX:
            continue
        answer = browser.get(address)
        if answer.status_code not in (200, 302):
            dead.append(f"{answer.status_code} {address} on {found_on}")
        if answer.streaming or not answer.headers["Content-Type"].startswith("text/html"):
            continue
        for link in LINK.findall(answer.content.decode()):
            target = urljoin(address, html.unescape(link))
            if target.startswith("/o/acme/") and target not in known:
                known.add(target)
                waiting.append((target, address))
    return dead, opened
