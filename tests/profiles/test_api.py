"""Profiles over REST."""

import pytest

from catalog.models import CatalogEntry
from integrations.models import Integration
from profiles.models import ModelProfile
from rensei.orgs.models import Project

pytestmark = pytest.mark.usefixtures("catalog", "acme")
URL = "/api/v1/profiles"
DEEP_URL = f"{URL}/prof_anthropic_deep_reasoning"
OPUS = "claude-opus-4-1-20250514"
DEEP = {
    "name": "anthropic-deep-reasoning",
    "provider": "claude",
    "modelId": OPUS,
    "authModes": ["byok", "metered"],
    "effort": "high",
    "scope": "project",
    "projectId": "my-project",
}
WIDE = {name: DEEP[name] for name in ("name", "provider", "modelId", "authModes")}


class TestCreate:
    def test_answers_201_with_the_documented_profile(self, api_as, ada, project):
        answer = api_as(ada).post(URL, DEEP)

        assert answer.status_code == 201, answer.json()
        assert answer.headers["Location"] == DEEP_URL
        body = answer.json()
        assert body.pop("createdAt")
        assert body.pop("updatedAt")
        assert body == {
            "id": "prof_anthropic_deep_reasoning",
            "name": "anthropic-deep-reasoning",
            "provider": "claude",
            "modelId": OPUS,
            "lifecycle": "retired",
            "servedModel": "claude-opus-5-5",
            "authModes": ["byok", "metered"],
            "effort": "high",
            "scope": "project",
            "projectId": "my-project",
            "integrationId": None,
            "system": "",
            "maxTokens": None,
            "promptCaching": "ephemeral",
            "providerConfig": {},
            "isDefault": False,
        }

    def test_takes_snake_case_too(self, api_as, ada):
        body = {
            "name": "snake",
            "provider": "claude",
            "model_id": OPUS,
            "auth_modes": ["byok"],
            "max_tokens": 100,
            "provider_config": {"anthropic": {"context_window": 100_000}},
            "prompt_caching": "static",
            "is_default": True,
        }

        answer = api_as(ada).post(URL, body).json()

        assert answer["providerConfig"] == {"anthropic": {"contextWindow": 100_000}}
        assert (answer["maxTokens"], answer["promptCaching"], answer["isDefault"]) == (100, "static", True)

    def test_takes_null_for_every_optional_value(self, api_as, ada):
        optional = ("effort", "projectId", "integrationId", "system", "maxTokens", "providerConfig")

        answer = api_as(ada).post(URL, WIDE | dict.fromkeys(optional))

        assert answer.status_code == 201, answer.json()
        assert (answer.json()["effort"], answer.json()["scope"]) == (None, "organization")

    def test_understands_a_project_without_a_scope(self, api_as, ada, project):
        assert api_as(ada).post(URL, WIDE | {"projectId": "my-project"}).json()["scope"] == "project"

    def test_keeps_the_space_of_a_system_prompt(self, api_as, ada):
        assert api_as(ada).post(URL, WIDE | {"system": "  Think.\n"}).json()["system"] == "  Think.\n"

    def test_refuses_a_taken_id(self, api_as, ada):
        api = api_as(ada)
        api.post(URL, WIDE)

        answer = api.post(URL, WIDE | {"name": "Anthropic Deep Reasoning"})

        assert (answer.status_code, answer.json()["code"]) == (409, "ALREADY_EXISTS")

    @pytest.mark.parametrize(
        ("change", "status", "code", "pointer"),
        [
            ({"name": ""}, 400, "VALIDATION_FAILED", "/name"),
            ({"name": "x" * 64}, 400, "VALIDATION_FAILED", "/name"),
            ({"name": None}, 400, "VALIDATION_FAILED", "/name"),
            ({"provider": "nobody"}, 400, "VALIDATION_FAILED", "/provider"),
            ({"modelId": "claude-opus-9"}, 422, "MODEL_NOT_IN_CATALOG", None),
            ({"authModes": []}, 400, "VALIDATION_FAILED", "/authModes"),
            ({"authModes": "byok"}, 400, "VALIDATION_FAILED", "/authModes"),
            ({"authModes": ["byok", "local"]}, 400, "VALIDATION_FAILED", "/authModes/1"),
            ({"authModes": ["byok", "byok"]}, 400, "VALIDATION_FAILED", "/authModes/1"),
            ({"authModes": [["byok"]]}, 400, "VALIDATION_FAILED", "/authModes/0"),
            ({"effort": "ultra"}, 422, "EFFORT_NOT_SUPPORTED", None),
            ({"scope": "team"}, 400, "VALIDATION_FAILED", "/scope"),
            ({"scope": "project"}, 400, "VALIDATION_FAILED", "/projectId"),
            ({"projectId": "absent"}, 404, "NOT_FOUND", "/projectId"),
            ({"integrationId": "int_absent"}, 404, "NOT_FOUND", "/integrationId"),
            ({"maxTokens": 0}, 400, "VALIDATION_FAILED", "/maxTokens"),
            ({"maxTokens": 10**9}, 400, "VALIDATION_FAILED", "/maxTokens"),
            ({"maxTokens": "many"}, 400, "VALIDATION_FAILED", "/maxTokens"),
            ({"promptCaching": "always"}, 400, "VALIDATION_FAILED", "/promptCaching"),
            ({"providerConfig": []}, 400, "VALIDATION_FAILED", "/providerConfig"),
            ({"providerConfig": {"claude": {}}}, 400, "VALIDATION_FAILED", "/providerConfig/claude"),
            (
                {"providerConfig": {"anthropic": {"contextWindow": "100000"}}},
                400,
                "VALIDATION_FAILED",
                "/providerConfig/anthropic/contextWindow",
            ),
            ({"isDefault": "perhaps"}, 400, "VALIDATION_FAILED", "/isDefault"),
            ({"temperature": 1}, 400, "VALIDATION_FAILED", "/temperature"),
            ({"auth_modes": ["byok"]}, 400, "VALIDATION_FAILED", "/auth_modes"),
            ({"id": "Mine"}, 400, "VALIDATION_FAILED", "/id"),
        ],
    )
    def test_refuses_a_bad_body_and_points_at_it(self, api_as, ada, change, status, code, pointer):
        answer = api_as(ada).post(URL, WIDE | change)

        body = answer.json()
        assert (answer.status_code, body["code"]) == (status, code), body
        assert [error["pointer"] for error in body["errors"]][:1] == ([pointer] if pointer else [])
        assert not ModelProfile.objects.exists()

    def test_answers_for_another_s_ids_as_for_absent_ones(self, api_as, ada, acme, eve, project):
        integration = Integration.objects.create(org=acme, provider="claude", name="key", sealed_key=b"x", key_hint="…")
        api = api_as(eve, "evil")

        for theirs, absent in [
            ({"projectId": "my-project"}, {"projectId": "absent"}),
            ({"integrationId": integration.pk}, {"integrationId": "int_absent"}),
        ]:
            found, missing = api.post(URL, WIDE | theirs), api.post(URL, WIDE | absent)
            assert found.status_code == missing.status_code == 404
            assert found.json() | {"requestId": 0} == missing.json() | {"requestId": 0}

    @pytest.mark.parametrize(("person", "status"), [("alan", 201), ("mia", 201), ("otto", 403)])
    def test_is_for_all_but_auditors(self, request, api_as, person, status):
        assert api_as(request.getfixturevalue(person)).post(URL, WIDE).status_code == status

    def test_by_a_project_s_token_stays_in_the_project(self, api_as, ada, acme, project):
        Project.objects.create(org=acme, slug="other", name="Other")
        api = api_as(ada, project=project)

        assert api.post(URL, WIDE).status_code == 403
        assert api.post(URL, WIDE | {"projectId": "other"}).status_code == 404
        assert api.post(URL, WIDE | {"projectId": "my-project"}).status_code == 201


class TestList:
    def test_is_newest_first_by_pages(self, api_as, ada):
        api = api_as(ada)
        for name in ("a", "b", "c"):
            api.post(URL, WIDE | {"name": name})

        first = api.get(f"{URL}?pageSize=2").json()
        second = api.get(first["next"]).json()

        assert [profile["name"] for profile in first["results"] + second["results"]] == ["c", "b", "a"]
        assert second["next"] is None

    def test_takes_as_many_queries_for_many_as_for_one(self, api_as, ada, project, django_assert_max_num_queries):
        api = api_as(ada)
        models = CatalogEntry.objects.values_list("model_id", flat=True)
        for place, model_id in enumerate(models):
            scope = {"projectId": "my-project"} if place % 2 else {}
            assert api.post(URL, WIDE | {"name": f"n{place}", "modelId": model_id} | scope).status_code == 201

        for size in (1, len(models)):
            # The token, the clock, the page, its entries with their aliases, what serves the retired ones.
            with django_assert_max_num_queries(6):
                found = api.get(f"{URL}?pageSize={size}").json()["results"]
            assert len(found) == size

    def test_shows_auditors_all_and_others_nothing(self, api_as, ada, otto, eve):
        api_as(ada).post(URL, WIDE)

        assert len(api_as(otto).get(URL).json()["results"]) == 1
        assert api_as(eve, "evil").get(URL).json()["results"] == []


class TestDetail:
    def test_is_what_was_created(self, api_as, ada, project):
        api = api_as(ada)
        created = api.post(URL, DEEP).json()

        assert api.get(DEEP_URL).json() == created

    def test_is_read_when_its_model_has_left_the_catalog(self, api_as, ada):
        api = api_as(ada)
        api.post(URL, WIDE)
        CatalogEntry.objects.all().delete()

        body = api.get(DEEP_URL).json()

        assert (body["modelId"], body["lifecycle"], body["servedModel"]) == (OPUS, None, None)

    @pytest.mark.parametrize("method", ["get", "patch", "delete"])
    def test_is_the_same_404_for_an_absent_and_for_another_s_profile(self, api_as, ada, eve, method):
        api_as(ada).post(URL, WIDE)
        api = api_as(eve, "evil")

        absent, others = getattr(api, method)(f"{URL}/prof_absent"), getattr(api, method)(DEEP_URL)

        assert absent.status_code == others.status_code == 404
        assert absent.json() | {"requestId": 0} == others.json() | {"requestId": 0}
        assert ModelProfile.objects.exists()


class TestChange:
    def test_changes_what_is_given(self, api_as, ada, project):
        api = api_as(ada)
        created = api.post(URL, DEEP).json()

        changed = api.patch(DEEP_URL, {"modelId": "claude-opus-5-5", "name": "Deep", "effort": None}).json()

        different = {name for name in created if created[name] != changed[name]}
        assert different == {"modelId", "lifecycle", "name", "effort", "updatedAt"}
        assert changed["id"] == created["id"]

    def test_moves_it_between_project_and_organization(self, api_as, ada, project):
        api = api_as(ada)
        api.post(URL, DEEP)

        assert api.patch(DEEP_URL, {"projectId": None}).json()["scope"] == "organization"
        assert api.patch(DEEP_URL, {"projectId": "my-project"}).json()["scope"] == "project"

    def test_moves_the_default(self, api_as, ada):
        api = api_as(ada)
        api.post(URL, WIDE | {"name": "a", "isDefault": True})
        api.post(URL, WIDE | {"name": "b"})

        api.patch(f"{URL}/prof_b", {"isDefault": True})

        assert {p["name"]: p["isDefault"] for p in api.get(URL).json()["results"]} == {"a": False, "b": True}

    @pytest.mark.parametrize(
        "change", [{"authModes": ["local"]}, {"effort": "ultra"}, {"name": "\u200b"}, {"id": "prof_x"}]
    )
    def test_refuses_what_creation_would_refuse(self, api_as, ada, change):
        api = api_as(ada)
        before = api.post(URL, WIDE).json()

        assert api.patch(DEEP_URL, change).status_code in (400, 422)

        assert api.get(DEEP_URL).json() == before

    def test_is_not_for_auditors(self, api_as, ada, otto):
        api_as(ada).post(URL, WIDE)

        assert api_as(otto).patch(DEEP_URL, {"effort": "low"}).status_code == 403


class TestDelete:
    def test_answers_204_and_then_404(self, api_as, mia):
        api = api_as(mia)
        api.post(URL, WIDE)

        assert api.delete(DEEP_URL).status_code == 204
        assert api.get(DEEP_URL).status_code == 404

    def test_is_not_for_auditors(self, api_as, ada, otto):
        api_as(ada).post(URL, WIDE)

        assert api_as(otto).delete(DEEP_URL).status_code == 403
        assert ModelProfile.objects.exists()


class TestAdmin:
    def test_reads_profiles_and_changes_none(self, api_as, page_as, ada, grace):
        api_as(ada).post(URL, WIDE)
        profile = ModelProfile.objects.get()
        page = page_as(grace)

        assert "prof_anthropic_deep_reasoning" in page.get("/admin/profiles/modelprofile/").content.decode()
        assert page.post(f"/admin/profiles/modelprofile/{profile.pk}/change/", {}).status_code == 403
        assert page.post(f"/admin/profiles/modelprofile/{profile.pk}/delete/", {"post": "yes"}).status_code == 403
