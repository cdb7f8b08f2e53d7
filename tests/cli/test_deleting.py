"""What is deleted is asked about first, and only then."""

from collections.abc import Callable
from typing import NamedTuple

import pytest
from django.db.models import QuerySet

from catalog.models import CatalogEntry
from catalog.services import create_entry
from profiles.models import ModelProfile
from rensei.orgs.models import Membership, Project
from rensei.orgs.services import create_project
from rensei.workflows.models import Workflow
from rensei.workflows.services import apply_document
from tests.cli.test_dispatching import NODE

pytestmark = pytest.mark.outside


class Case(NamedTuple):
    line: str
    # What there is of it.
    rows: Callable[[], QuerySet]


CASES = {
    "project": Case("rensei project delete old-project", lambda: Project.objects.filter(slug="old-project")),
    "workflow": Case("rensei workflow delete greet", lambda: Workflow.objects.filter(name="greet")),
    "catalog": Case("rensei catalog delete nova", lambda: CatalogEntry.objects.filter(model_id="nova")),
    "member": Case(
        "rensei member remove mia@acme.test", lambda: Membership.objects.filter(user__email="mia@acme.test")
    ),
    "profile": Case("rensei profile delete prof_quick", lambda: ModelProfile.objects.filter(public_id="prof_quick")),
}


@pytest.fixture
def case(request, ada_access, make_profile, mia):
    """The line and the rows of the parameter's kind, of which there is one."""
    make_profile()
    if request.param == "project":
        create_project(ada_access, slug="old-project", name="Old")
    elif request.param == "workflow":
        apply_document(ada_access, NODE)
    elif request.param == "catalog":
        create_entry(ada_access, provider="claude", model_id="nova", display_name="Nova")
    found = CASES[request.param]
    assert found.rows().count() == 1
    return found


@pytest.mark.parametrize("case", CASES, indirect=True)
class TestDeletion:
    def test_needs_an_answer(self, terminal, case):
        unasked = terminal.run(f"echo y | {case.line}")
        assert (unasked.returncode, unasked.stderr.partition(":")[0]) == (1, "CONFIRMATION_NEEDED")
        assert case.rows().exists()

        refused = terminal.run(f"script -qec '{case.line}' /dev/null <<< n")
        assert refused.returncode == 1
        assert case.rows().exists()

        agreed = terminal.run(f"script -qec '{case.line}' /dev/null <<< y")
        assert agreed.returncode == 0
        assert not case.rows().exists()

    def test_is_done_unasked_with_yes(self, terminal, case):
        terminal.succeed(f"{case.line} --yes")

        assert not case.rows().exists()
