"""How many rows of each kind there may be, by every way in."""

import threading
from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from django.db import connections
from django.utils import timezone

from catalog.models import CatalogEntry
from integrations.models import Integration
from profiles.models import ModelProfile
from rensei.audit.models import AuditEvent
from rensei.dispatch.models import CapacityPool
from rensei.orgs import row_limits
from rensei.orgs.models import Host, Project
from rensei.orgs.services import create_project
from rensei.tokens import device_codes
from rensei.tokens.models import ApiToken

KINDS: dict[str, Any] = {
    "PROJECTS": (Project, "/api/v1/projects", lambda n, key: {"id": f"p-{n}", "name": f"P {n}"}),
    "INTEGRATIONS": (
        Integration,
        "/api/v1/integrations",
        lambda n, key: {"provider": "claude", "name": f"K {n}", "apiKey": key()},
    ),
    "PROFILES": (
        ModelProfile,
        "/api/v1/profiles",
        lambda n, key: {
            "name": f"Profile {n}",
            "provider": "claude",
            "modelId": "claude-opus-5-5",
            "authModes": ["byok"],
        },
    ),
    "OWN_MODELS": (
        CatalogEntry,
        "/api/v1/catalog",
        lambda n, key: {"provider": "claude", "modelId": f"own-model-{n}", "displayName": f"Own {n}"},
    ),
    "POOLS": (CapacityPool, "/api/v1/pools", lambda n, key: {"name": f"pool-{n}", "providerId": "e2b"}),
    "MACHINES": (Host, "/api/v1/hosts", lambda n, key: {"name": f"box-{n}"}),
    "TOKENS": (ApiToken, "/api/v1/tokens", lambda n, key: {"name": f"token {n}"}),
}


@pytest.fixture
def at_most(monkeypatch: pytest.MonkeyPatch) -> Callable[[str, int], None]:
    def set_limit(kind: str, most: int) -> None:
        monkeypatch.setattr(row_limits, kind, replace(getattr(row_limits, kind), most=most))

    return set_limit


class TestALimit:
    @pytest.mark.parametrize("kind", list(KINDS))
    def test_refuses_one_row_more_and_writes_nothing(self, page_as, ada, ada_access, make_key, at_most, kind):
        model, path, body = KINDS[kind]
        browser = page_as(ada)
        at_most(kind, 2)

        answers = [browser.post(path, body(number, make_key), "application/json") for number in range(2)]
        events = AuditEvent.objects.count()
        refused = browser.post(path, body(2, make_key), "application/json")

        problem = refused.json()
        assert [answer.status_code for answer in answers] == [201, 201], answers[0].content
        assert (refused.status_code, problem["code"], problem["used"], problem["limit"]) == (403, "LIMIT_REACHED", 2, 2)
        assert f"has 2 {getattr(row_limits, kind).rows}" in problem["detail"]
        assert (model.objects.filter(org=ada_access.org).count(), AuditEvent.objects.count()) == (2, events)

    def test_counts_no_rows_of_another_organization_or_member(self, page_as, ada, mia, eve, ada_access, at_most):
        for kind in KINDS:
            at_most(kind, 1)

        for user in (ada, eve):
            answer = page_as(user).post("/api/v1/projects", {"id": "p", "name": "P"}, "application/json")
            assert answer.status_code == 201
        for user in (ada, mia):
            assert page_as(user).post("/api/v1/tokens", {"name": "t"}, "application/json").status_code == 201

    def test_counts_neither_revoked_nor_expired_ones(self, page_as, ada, ada_access, at_most):
        browser = page_as(ada)
        at_most("MACHINES", 1)
        at_most("TOKENS", 1)
        token = browser.post("/api/v1/tokens", {"name": "first"}, "application/json").json()
        ApiToken.objects.filter(pk=token["id"]).update(expires_at=timezone.now() - timedelta(seconds=1))
        host = browser.post("/api/v1/hosts", {"name": "box"}, "application/json").json()

        full = browser.post("/api/v1/hosts", {"name": "box"}, "application/json")
        browser.delete(f"/api/v1/hosts/{host['id']}")
        free = browser.post("/api/v1/hosts", {"name": "box"}, "application/json")

        assert (full.status_code, free.status_code) == (403, 201)

    def test_is_shown_on_the_page_with_what_to_do(self, page_as, ada, project, at_most):
        at_most("PROJECTS", 1)

        answer = page_as(ada).post("/o/acme/settings/projects", {"name": "Second", "slug": "second"})

        assert answer.status_code == 422
        assert "has 1 projects, of the 1 that it may have. Delete a project" in answer.content.decode()

    def test_holds_for_operators_too(self, page_as, grace, acme, project, at_most):
        at_most("PROJECTS", 1)

        answer = page_as(grace).post("/admin/orgs/project/add/", {"org": acme.slug, "slug": "second", "name": "Second"})

        assert "of the 1 that it may have" in str(answer.context["adminform"].form.errors["org"])
        assert Project.objects.get() == project

    def test_holds_when_a_machine_is_approved_and_when_it_fetches_its_token(self, ada, ada_access, access_of, at_most):
        at_most("MACHINES", 1)
        first, second = (device_codes.ask(host_name=name, address=None) for name in ("one", "two"))
        for pair in (first, second):
            device_codes.approve(access_of(ada), device_codes.find_waiting(ada, user_code=pair.user_code))
        host = device_codes.fetch_token(device_code=first.device_code, address=None).host
        third = device_codes.ask(host_name="three", address=None)

        with pytest.raises(row_limits.LimitReached):
            device_codes.fetch_token(device_code=second.device_code, address=None)
        with pytest.raises(row_limits.LimitReached):
            device_codes.approve(access_of(ada), device_codes.find_waiting(ada, user_code=third.user_code))
        Host.objects.filter(pk=host.pk).update(revoked_at=timezone.now())
        assert device_codes.fetch_token(device_code=second.device_code, address=None).host.name == "two"

    @pytest.mark.django_db(transaction=True)
    def test_lets_one_of_two_pass_that_come_at_once(self, ada_access, at_most):
        at_most("PROJECTS", 1)
        together, refused = threading.Barrier(2), []

        def create(number: int) -> None:
            together.wait()
            try:
                create_project(ada_access, slug=f"p-{number}", name="P")
            except row_limits.LimitReached as refusal:
                refused.append(refusal)
            finally:
                connections.close_all()

        threads = [threading.Thread(target=create, args=(number,)) for number in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

        assert (Project.objects.count(), len(refused)) == (1, 1)
