"""The system's access policy in the admin: what it would change is said before it is saved."""

import json
import re
from typing import Any

import pytest
from django.test import Client

from rensei.orgs.access import Access
from rensei.policies.models import AccessPolicy

ADD = "/admin/policies/accesspolicy/add/"
DENY_BYOK = {"*": {"byok": {"allowed": False}}}


@pytest.fixture
def admin(grace: Any, page_as: Any) -> Client:
    browser: Client = page_as(grace)
    return browser


def confirmation(html: str) -> str:
    found = re.search(r'name="confirmed" value="(\w+)"', html)
    assert found is not None
    return found[1]


@pytest.mark.django_db
class TestSystemPolicy:
    def test_is_saved_when_what_it_changes_has_been_shown(
        self, admin: Client, ada_access: Access, make_profile: Any
    ) -> None:
        make_profile()

        shown = admin.post(ADD, {"matrix": json.dumps(DENY_BYOK)}).content.decode()
        assert not AccessPolicy.objects.exists()
        admin.post(ADD, {"matrix": json.dumps(DENY_BYOK), "confirmed": confirmation(shown)})

        assert "Profiles that would change: 1." in shown
        assert "prof_deep: BYOK_NOT_CONFIGURED → AUTHMODES_UNSATISFIABLE" in shown
        assert AccessPolicy.objects.get().matrix == DENY_BYOK

    def test_is_shown_again_when_it_has_been_changed_since(
        self, admin: Client, ada_access: Access, make_profile: Any
    ) -> None:
        make_profile()
        shown = admin.post(ADD, {"matrix": json.dumps(DENY_BYOK)}).content.decode()

        other = {"claude": {"byok": {"allowed": False}}}
        admin.post(ADD, {"matrix": json.dumps(other), "confirmed": confirmation(shown)})

        assert not AccessPolicy.objects.exists()

    def test_is_saved_at_once_where_no_profile_changes(self, admin: Client, ada_access: Access) -> None:
        admin.post(ADD, {"matrix": json.dumps(DENY_BYOK)})

        assert AccessPolicy.objects.get().matrix == DENY_BYOK

    def test_names_a_row_that_is_no_model(self, admin: Client, ada_access: Access) -> None:
        answer = admin.post(ADD, {"matrix": '{"claude-opus-9": {}}'}).content.decode()

        assert "&#x27;claude-opus-9&#x27; is no model of the catalog" in answer
        assert not AccessPolicy.objects.exists()
