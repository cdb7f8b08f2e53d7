"""A profile names its model as it likes: the dispatch, the policy and the run go by the entry."""

from collections.abc import Callable
from typing import Any

import pytest
from rest_framework.test import APIClient

from catalog.models import CatalogEntry, ModelAlias
from profiles import services as profiles
from rensei.dispatch.models import Run
from rensei.orgs.access import Access
from rensei.orgs.models import User
from rensei.policies import services as policies
from rensei.policies.models import AccessPolicy

pytestmark = pytest.mark.django_db(transaction=True)

ALIAS, HAIKU = "claude-haiku-4-5", "claude-haiku-4-5-20251001"
DENY = {"byok": {"allowed": False}}


@pytest.fixture
def api(api_as: Callable[..., APIClient], ada: User, ada_access: Access) -> APIClient:
    return api_as(ada)


class TestAProfile:
    @pytest.mark.parametrize("name", [ALIAS, f"anthropic/{ALIAS}", f"anthropic/{HAIKU}"])
    def test_may_name_a_model_by_any_name_and_its_run_shows_both(
        self, simulator: Any, api: APIClient, connect: Any, work: Any, name: str
    ) -> None:
        connect()
        body = {"name": "deep", "provider": "claude", "modelId": name, "authModes": ["byok"]}
        created = api.post("/api/v1/profiles", body).json()

        dispatched = api.post("/api/v1/runs", {"profileId": "prof_deep", "input": "Hi."}).json()
        work()

        run = api.get(f"/api/v1/runs/{dispatched['id']}").json()
        assert (created["modelId"], created["servedModel"]) == (name, HAIKU)
        assert (run["askedModel"], run["model"], run["servedModel"]) == (name, HAIKU, HAIKU)
        assert run["state"] == "SUCCEEDED"
        assert run["cost"]["amountUsd"]
        assert simulator.requests()[-1]["model"] == HAIKU

    def test_is_denied_by_the_row_of_the_entry(
        self, api: APIClient, connect: Any, make_profile: Any, ada_access: Access
    ) -> None:
        connect()
        make_profile(model_id=ALIAS)
        policies.set_policy(ada_access, matrix={HAIKU: DENY})

        refused = api.post("/api/v1/runs", {"profileId": "prof_deep", "input": "Hi."})
        preview = api.post("/api/v1/profiles/prof_deep/resolve", {}).json()

        assert refused.json()["code"] == preview["code"] == "AUTHMODES_UNSATISFIABLE"
        assert (preview["askedModel"], preview["model"]) == (ALIAS, HAIKU)
        assert not Run.objects.exists()

    @pytest.mark.parametrize("row", [ALIAS, f"anthropic/{ALIAS}", f"anthropic/{HAIKU}"])
    @pytest.mark.parametrize("named", [ALIAS, HAIKU])
    def test_is_denied_by_a_row_that_was_written_under_another_name(
        self, api: APIClient, connect: Any, make_profile: Any, row: str, named: str
    ) -> None:
        connect()
        make_profile(model_id=named)
        AccessPolicy.objects.create(scope="system", matrix={HAIKU: {"byok": {"allowed": True}}, row: DENY})

        assert api.post("/api/v1/runs", {"profileId": "prof_deep", "input": "Hi."}).status_code == 403

    def test_is_not_denied_by_all_models_where_the_model_s_own_row_allows_it(
        self, api: APIClient, connect: Any, make_profile: Any, ada_access: Access
    ) -> None:
        connect()
        make_profile(model_id=ALIAS)
        policies.set_policy(ada_access, matrix={"*": DENY, HAIKU: {"byok": {"allowed": True}}})

        assert api.post("/api/v1/runs", {"profileId": "prof_deep", "input": "Hi."}).status_code == 202

    def test_of_an_own_entry_goes_by_the_platform_s_once_that_has_the_name(
        self, api: APIClient, connect: Any, ada_access: Access
    ) -> None:
        """What an upgrade meets: an entry and a profile that were made while the catalog did not know the alias."""
        connect()
        ModelAlias.objects.filter(name=ALIAS).delete()
        created = api.post("/api/v1/catalog", {"provider": "claude", "modelId": ALIAS, "displayName": "Haiku"})
        body = {"name": "deep", "provider": "claude", "modelId": ALIAS, "authModes": ["byok"]}
        assert (created.status_code, api.post("/api/v1/profiles", body).status_code) == (201, 201)
        policies.set_policy(ada_access, matrix={HAIKU: DENY})
        assert api.post("/api/v1/runs", {"profileId": "prof_deep", "input": "Hi."}).status_code == 202

        entry = CatalogEntry.objects.get(org=None, model_id=HAIKU)
        ModelAlias.objects.create(entry=entry, provider="claude", name=ALIAS)

        assert api.post("/api/v1/runs", {"profileId": "prof_deep", "input": "Hi."}).status_code == 403
        assert api.get(f"/api/v1/catalog/{ALIAS}").json()["scope"] == "platform"

    def test_whose_model_leaves_the_catalog_while_a_run_waits_fails_with_a_sentence(
        self, simulator: Any, api: APIClient, connect: Any, make_profile: Any, work: Any, ada_access: Access
    ) -> None:
        connect()
        api.post("/api/v1/catalog", {"provider": "claude", "modelId": "nova", "displayName": "Nova"})
        stored = make_profile(model_id="nova")
        run = api.post("/api/v1/runs", {"profileId": "prof_deep", "input": "Hi."}).json()
        profiles.delete_profile(ada_access, stored)

        assert api.delete("/api/v1/catalog/nova").status_code == 204
        work()

        ended = api.get(f"/api/v1/runs/{run['id']}").json()
        assert (ended["state"], ended["error"]["code"]) == ("FAILED", "MODEL_NOT_IN_CATALOG")
        assert simulator.requests() == []


class TestCreatingAnEntry:
    @pytest.mark.parametrize("name", [ALIAS, HAIKU, f"anthropic/{ALIAS}", "claude-3-5-haiku-latest"])
    def test_of_a_name_that_the_catalog_knows_answers_with_that_entry(self, api: APIClient, name: str) -> None:
        body = {"provider": "claude", "modelId": name, "displayName": "Mine"}

        answer = api.post("/api/v1/catalog", body)

        assert (answer.status_code, answer.json()["scope"]) == (200, "platform")
        assert answer.json() == api.get(f"/api/v1/catalog/{name}").json()
        assert not CatalogEntry.objects.exclude(org=None).exists()
