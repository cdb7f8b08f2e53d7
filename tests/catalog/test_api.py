"""The catalog over REST."""

import pytest

from catalog.models import CatalogEntry, CatalogSetting

pytestmark = pytest.mark.usefixtures("catalog", "acme")
OPUS = "claude-opus-4-1-20250514"


class TestList:
    def test_holds_every_model_once_in_the_order_of_their_ids(self, api_as, ada):
        api = api_as(ada)

        first = api.get("/api/v1/catalog?pageSize=20").json()
        second = api.get(first["next"]).json()

        ids = [entry["modelId"] for page in (first, second) for entry in page["results"]]
        assert ids == sorted(CatalogEntry.objects.values_list("model_id", flat=True))
        assert second["next"] is None

    def test_marks_retired_models_and_what_serves_them(self, api_as, ada):
        entries = {entry["modelId"]: entry for entry in api_as(ada).get("/api/v1/catalog").json()["results"]}

        assert (entries[OPUS]["lifecycle"], entries[OPUS]["servedBy"]) == ("retired", "claude-opus-5-5")
        assert (entries["claude-opus-5-5"]["lifecycle"], entries["claude-opus-5-5"]["servedBy"]) == (
            "active",
            "claude-opus-5-5",
        )

    def test_says_that_nothing_serves_them_when_redirects_are_off(self, api_as, ada):
        CatalogSetting.objects.update(redirect_retired=False)

        entries = api_as(ada).get("/api/v1/catalog?lifecycle=retired").json()["results"]

        assert {entry["servedBy"] for entry in entries} == {None}

    @pytest.mark.parametrize("lifecycle", ["active", "deprecated", "retired"])
    def test_filters_by_lifecycle(self, api_as, ada, lifecycle):
        everything = api_as(ada).get("/api/v1/catalog").json()["results"]

        found = api_as(ada).get(f"/api/v1/catalog?lifecycle={lifecycle}").json()["results"]

        assert found == [entry for entry in everything if entry["lifecycle"] == lifecycle]
        assert found

    @pytest.mark.parametrize(
        ("query", "pointer"), [("provider=x", "/query/provider"), ("lifecycle=x", "/query/lifecycle")]
    )
    def test_refuses_an_unknown_filter(self, api_as, ada, query, pointer):
        answer = api_as(ada).get(f"/api/v1/catalog?{query}")

        assert answer.status_code == 400
        assert answer.json()["errors"][0]["pointer"] == pointer

    def test_takes_as_many_queries_for_all_as_for_one(self, api_as, ada, django_assert_num_queries):
        api = api_as(ada)
        api.get("/api/v1/catalog")  # The token's time of use is written once a minute.

        for size in (1, 32):
            # The token, the clock, the page, its aliases, what serves it, its prices.
            with django_assert_num_queries(6):
                api.get(f"/api/v1/catalog?pageSize={size}&lifecycle=retired")

    def test_shows_no_other_organization_s_models(self, api_as, ada, eve):
        api_as(ada).post("/api/v1/catalog", {"provider": "claude", "modelId": "secret", "displayName": "S"})

        answer = api_as(eve, "evil").get("/api/v1/catalog")

        assert "secret" not in answer.content.decode()


class TestDetail:
    def test_shows_the_documented_model_as_documented(self, api_as, ada):
        entry = api_as(ada).get(f"/api/v1/catalog/{OPUS}").json()

        assert entry == {
            "provider": "claude",
            "modelId": OPUS,
            "aliases": [],
            "answeredBy": [],
            "displayName": "Claude Opus 4.1",
            "description": "Latest flagship; best for complex reasoning and agentic tasks. 200K context window.",
            "lifecycle": "retired",
            "retiresOn": "2026-08-05",
            "replacedBy": "claude-opus-5-5",
            "servedBy": "claude-opus-5-5",
            "contextWindow": 200_000,
            "maxOutputTokens": 32_000,
            "capabilities": {
                "vision": True,
                "highResVision": False,
                "promptCaching": True,
                "minCacheTokens": 1024,
                "forcedToolChoice": True,
                "prefill": True,
                "nativeEffort": False,
                "thinking": {"types": ["enabled", "disabled"], "onByDefault": False},
            },
            "efforts": [
                {
                    "value": "low",
                    "label": "low (fast)",
                    "description": "Quick answers, minimal reasoning overhead.",
                },
                {
                    "value": "medium",
                    "label": "medium (balanced)",
                    "description": "Default; good balance of reasoning and speed.",
                },
                {
                    "value": "high",
                    "label": "high (deep)",
                    "description": "Extended thinking; best for complex problems.",
                },
            ],
            "authModes": ["byok", "metered", "shared", "host-session"],
            "pricing": {
                "currency": "USD",
                "inputPerMTokenCents": 1500,
                "outputPerMTokenCents": 7500,
                "cacheWrite5mPerMTokenCents": 1875,
                "cacheWrite1hPerMTokenCents": 3000,
                "cacheReadPerMTokenCents": 150,
                "bands": [],
                "effectiveFrom": "2025-08-05T00:00:00Z",
            },
            "source": entry["source"],
            "scope": "platform",
        }
        assert "never served" in entry["source"]

    def test_has_no_pricing_where_there_is_no_price(self, api_as, ada):
        assert api_as(ada).get("/api/v1/catalog/claude-2.1").json()["pricing"] is None

    def test_is_the_same_404_for_an_absent_and_for_another_s_model(self, api_as, ada, eve):
        api_as(ada).post("/api/v1/catalog", {"provider": "claude", "modelId": "secret", "displayName": "S"})
        api = api_as(eve, "evil")

        absent, others = api.get("/api/v1/catalog/nothing"), api.get("/api/v1/catalog/secret")

        assert absent.status_code == others.status_code == 404
        assert absent.json() | {"requestId": 0} == others.json() | {"requestId": 0}

    def test_finds_an_id_with_a_slash(self, api_as, ada):
        api = api_as(ada)
        api.post("/api/v1/catalog", {"provider": "claude", "modelId": "vendor/model:1", "displayName": "V"})

        assert api.get("/api/v1/catalog/vendor/model:1").json()["modelId"] == "vendor/model:1"


class TestCreate:
    def test_answers_201_with_a_model_of_the_organization(self, api_as, ada):
        answer = api_as(ada).post(
            "/api/v1/catalog",
            {"provider": "claude", "model_id": "claude-opus-9", "displayName": "Opus 9", "contextWindow": 5000},
        )

        assert answer.status_code == 201
        assert answer.headers["Location"] == "/api/v1/catalog/claude-opus-9"
        entry = answer.json()
        assert (entry["scope"], entry["contextWindow"], entry["pricing"]) == ("organization", 5000, None)
        assert api_as(ada).get(answer.headers["Location"]).json() == entry

    def test_answers_200_with_what_is_in_the_catalog_already(self, api_as, ada):
        body = {"provider": "claude", "modelId": OPUS, "displayName": "Claude Opus 4.1"}

        answer = api_as(ada).post("/api/v1/catalog", body)

        assert answer.status_code == 200
        assert answer.json()["scope"] == "platform"
        assert not CatalogEntry.objects.exclude(org=None).exists()

    @pytest.mark.parametrize(("person", "status"), [("alan", 201), ("mia", 403), ("otto", 403)])
    def test_is_for_owners_and_admins(self, request, api_as, person, status):
        api = api_as(request.getfixturevalue(person))

        answer = api.post("/api/v1/catalog", {"provider": "claude", "modelId": "claude-x", "displayName": "X"})

        assert answer.status_code == status

    def test_is_not_for_a_token_of_one_project(self, api_as, ada, project):
        api = api_as(ada, project=project)

        answer = api.post("/api/v1/catalog", {"provider": "claude", "modelId": "claude-x", "displayName": "X"})

        assert answer.status_code == 403

    @pytest.mark.parametrize(
        ("change", "pointer"),
        [
            ({"provider": "nobody"}, "/provider"),
            ({"provider": None}, "/provider"),
            ({"modelId": "a b"}, "/modelId"),
            ({"modelId": {"a": 1}}, "/modelId"),
            ({"displayName": ""}, "/displayName"),
            ({"contextWindow": 0}, "/contextWindow"),
            ({"contextWindow": 2**31}, "/contextWindow"),
            ({"maxOutputTokens": -1}, "/maxOutputTokens"),
            ({"capabilities": []}, "/capabilities"),
            ({"capabilities": ["vision"]}, "/capabilities"),
            ({"efforts": "low"}, "/efforts"),
            ({"pricing": {}}, "/pricing"),
        ],
    )
    def test_refuses_a_bad_body_and_points_at_it(self, api_as, ada, change, pointer):
        body = {"provider": "claude", "modelId": "claude-x", "displayName": "X"} | change

        answer = api_as(ada).post("/api/v1/catalog", body)

        assert answer.status_code == 400, answer.json()
        assert answer.json()["code"] == "VALIDATION_FAILED"
        assert answer.json()["errors"][0]["pointer"] == pointer
        assert not CatalogEntry.objects.exclude(org=None).exists()


class TestDelete:
    NEW = {"provider": "claude", "modelId": "nova", "displayName": "Nova"}

    def test_removes_the_organization_s_own(self, api_as, ada):
        api = api_as(ada)
        api.post("/api/v1/catalog", self.NEW)

        assert api.delete("/api/v1/catalog/nova").status_code == 204
        assert api.get("/api/v1/catalog/nova").status_code == 404
        assert api.delete("/api/v1/catalog/nova").status_code == 404

    def test_removes_one_that_stands_behind_a_platform_s_name(self, api_as, ada, acme):
        own = CatalogEntry.objects.create(org=acme, provider="claude", model_id="claude-haiku-4-5", display_name="H")

        assert api_as(ada).delete("/api/v1/catalog/claude-haiku-4-5?provider=claude").status_code == 204
        assert not CatalogEntry.objects.filter(pk=own.pk).exists()
        assert api_as(ada).get("/api/v1/catalog/claude-haiku-4-5").json()["scope"] == "platform"

    def test_removes_by_another_name(self, api_as, ada):
        api = api_as(ada)
        api.post("/api/v1/catalog", self.NEW)

        assert api.delete("/api/v1/catalog/anthropic/nova").status_code == 204
        assert api.get("/api/v1/catalog/nova").status_code == 404

    @pytest.mark.parametrize("model_id", ["absent", "a%00b"])
    def test_does_not_find_what_is_not_there(self, api_as, ada, model_id):
        assert api_as(ada).delete(f"/api/v1/catalog/{model_id}").status_code == 404

    @pytest.mark.parametrize("model_id", [OPUS, "claude-haiku-4-5", f"anthropic/{OPUS}"])
    def test_says_that_a_model_is_the_platform_s(self, api_as, ada, model_id):
        before = CatalogEntry.objects.count()

        refused = api_as(ada).delete(f"/api/v1/catalog/{model_id}")

        assert (refused.status_code, refused.json()["code"]) == (403, "NOT_PERMITTED")
        assert f"'{model_id}' is a model of the platform" in refused.json()["detail"]
        assert CatalogEntry.objects.count() == before

    def test_is_refused_while_a_profile_names_it_under_any_name(self, api_as, ada):
        api = api_as(ada)
        api.post("/api/v1/catalog", self.NEW)
        profile = {"name": "deep", "provider": "claude", "modelId": "anthropic/nova", "authModes": ["byok"]}
        assert api.post("/api/v1/profiles", profile).status_code == 201

        refused = api.delete("/api/v1/catalog/nova")

        assert (refused.status_code, refused.json()["code"]) == (409, "IN_USE")
        assert "'nova' is used by prof_deep" in refused.json()["detail"]

    def test_is_for_managers_and_for_tokens_of_the_whole_organization(self, api_as, ada, mia, project):
        api_as(ada).post("/api/v1/catalog", self.NEW)

        assert api_as(mia).delete("/api/v1/catalog/nova").status_code == 403
        assert api_as(ada, project=project).delete("/api/v1/catalog/nova").status_code == 403
