import secrets
from collections.abc import Callable
from typing import Any

import pytest
from drf_spectacular.generators import SchemaGenerator
from rest_framework.test import APIClient

from integrations.models import Integration
from profiles.models import ModelProfile
from rensei.orgs.models import Org, Project, User

INTEGRATIONS = "/api/v1/integrations"
FIELDS = {
    *("id", "provider", "name", "keyHint", "status", "testedAt", "lastError", "models", "baseUrl", "workspaceId"),
    *("isDefault", "lastUsedAt", "createdAt", "federation"),
    *("lastOpenedAt", "openedThisMonth", "keyCreatedAt", "keyAgeDays", "remindAfterDays"),
}


@pytest.fixture
def api(acme: Org, ada: User, api_as: Callable[..., APIClient]) -> APIClient:
    return api_as(ada)


@pytest.fixture
def connect(api: APIClient, make_key: Callable[..., str]) -> Callable[..., dict[str, Any]]:
    def add(word: str = "", **fields: Any) -> dict[str, Any]:
        answer = api.post(INTEGRATIONS, {"provider": "claude", "apiKey": make_key(word), **fields})
        assert answer.status_code == 201, answer.json()
        return dict(answer.json())

    return add


class TestProviders:
    def test_lists_what_can_be_connected(self, api: APIClient) -> None:
        answer = api.get("/api/v1/providers")

        assert answer.status_code == 200
        page = answer.json()
        assert (page["next"], page["previous"]) == (None, None)
        (claude,) = [provider for provider in page["results"] if provider["id"] == "claude"]
        assert claude == {
            "id": "claude",
            "displayName": "Anthropic Claude",
            "configNamespace": "anthropic",
            "authModes": ["byok", "metered", "shared", "host-session"],
            "requiresEndpoint": False,
            "category": "Cloud",
            "keyPageUrl": claude["keyPageUrl"],
        }


class TestPost:
    def test_connects_a_key_and_never_shows_it_again(self, api: APIClient, make_key: Callable[..., str]) -> None:
        key = make_key()

        answer = api.post(INTEGRATIONS, {"provider": "claude", "apiKey": key, "name": "Production"})

        assert answer.status_code == 201
        body = answer.json()
        assert set(body) == FIELDS
        assert body["keyHint"] == f"sk-ant-api{3:02d}-…{key[-4:]}"
        assert (body["status"], body["isDefault"], body["models"]) == ("untested", True, [])
        assert answer["Location"] == f"{INTEGRATIONS}/{body['id']}"
        for path in (INTEGRATIONS, answer["Location"]):
            assert key not in api.get(path).content.decode()

    def test_takes_snake_case_too(self, api: APIClient, make_key: Callable[..., str]) -> None:
        answer = api.post(INTEGRATIONS, {"provider": "claude", "api_key": make_key(), "workspace_id": "wrkspc_1"})

        assert answer.json()["workspaceId"] == "wrkspc_1"

    @pytest.mark.parametrize(
        "fields",
        [
            {"apiKey": None},
            {"apiKey": 5},
            {"apiKey": ["x"]},
            {"apiKey": ""},
            {"provider": "nobody"},
            {"provider": None},
            {"baseUrl": "http://127.0.0.1:1"},
            {"baseUrl": "https://169.254.169.254"},
            {"name": "x" * 121},
            {"isDefault": "perhaps"},
            {"keyHint": "…abcd"},
            {"status": "ok"},
            {"surprise": 1},
        ],
        ids=str,
    )
    def test_refuses_bad_values_without_repeating_the_key(
        self, api: APIClient, make_key: Callable[..., str], fields: dict[str, Any]
    ) -> None:
        key = make_key()

        answer = api.post(INTEGRATIONS, {"provider": "claude", "apiKey": key, **fields})

        assert answer.status_code in {400, 422}
        assert answer.json()["code"] in {"VALIDATION_FAILED", "BASE_URL_REFUSED"}
        assert key not in answer.content.decode()
        assert not Integration.objects.exists()

    def test_refuses_a_key_with_a_line_break_inside(self, api: APIClient, make_key: Callable[..., str]) -> None:
        key = make_key()

        answer = api.post(INTEGRATIONS, {"provider": "claude", "apiKey": f"{key[:40]}\n{key[40:]}"})

        assert (answer.status_code, answer.json()["code"]) == (400, "VALIDATION_FAILED")
        assert answer.json()["errors"][0]["pointer"] == "/apiKey"
        assert key[40:] not in answer.content.decode()

    @pytest.mark.parametrize("kind", ["admin01", "oat01"])
    def test_refuses_keys_of_another_kind_by_name(self, api: APIClient, kind: str) -> None:
        text = secrets.token_hex(40)

        answer = api.post(INTEGRATIONS, {"provider": "claude", "apiKey": f"sk-ant-{kind}-{text}"})

        assert (answer.status_code, answer.json()["code"]) == (422, "KEY_KIND_REFUSED")
        assert text not in answer.content.decode()

    def test_refuses_a_key_twice(self, api: APIClient, make_key: Callable[..., str]) -> None:
        key = make_key()
        first = api.post(INTEGRATIONS, {"provider": "claude", "apiKey": key}).json()

        answer = api.post(INTEGRATIONS, {"provider": "claude", "apiKey": key})

        assert (answer.status_code, answer.json()["code"]) == (409, "ALREADY_EXISTS")
        assert first["id"] in answer.json()["detail"]

    def test_answers_503_while_the_vault_is_without_its_key(
        self, api: APIClient, make_key: Callable[..., str], settings: Any
    ) -> None:
        settings.RENSEI_VAULT_KEYRING.unlink()

        answer = api.post(INTEGRATIONS, {"provider": "claude", "apiKey": make_key()})

        assert (answer.status_code, answer.json()["code"]) == (503, "CREDENTIAL_UNREADABLE")

    @pytest.mark.parametrize(("person", "status"), [("alan", 201), ("mia", 403), ("otto", 403)])
    def test_is_for_owners_and_admins(
        self,
        person: str,
        status: int,
        acme: Org,
        request: Any,
        api_as: Callable[..., APIClient],
        make_key: Callable[..., str],
    ) -> None:
        client = api_as(request.getfixturevalue(person))

        assert client.post(INTEGRATIONS, {"provider": "claude", "apiKey": make_key()}).status_code == status

    def test_is_not_for_a_token_of_one_project(
        self, ada: User, project: Project, api_as: Callable[..., APIClient], make_key: Callable[..., str]
    ) -> None:
        client = api_as(ada, project=project)

        assert client.post(INTEGRATIONS, {"provider": "claude", "apiKey": make_key()}).status_code == 403


class TestGet:
    def test_lists_newest_first_by_pages(self, api: APIClient, connect: Callable[..., dict[str, Any]]) -> None:
        ids = [connect()["id"] for _ in range(3)]

        page = api.get(f"{INTEGRATIONS}?pageSize=2").json()
        rest = api.get(page["next"]).json()

        assert [row["id"] for row in page["results"] + rest["results"]] == ids[::-1]

    def test_costs_the_same_queries_for_many(
        self, api: APIClient, connect: Callable[..., dict[str, Any]], django_assert_num_queries: Any
    ) -> None:
        for _ in range(5):
            connect()
        api.get(INTEGRATIONS)

        with django_assert_num_queries(3):  # The token, the page, and the openings of its keys.
            api.get(INTEGRATIONS)

    @pytest.mark.usefixtures("simulator")
    @pytest.mark.parametrize(("person", "told"), [("alan", True), ("mia", False), ("otto", False)])
    def test_tells_only_managers_what_a_test_said(
        self,
        person: str,
        told: bool,
        request: Any,
        api: APIClient,
        connect: Callable[..., dict[str, Any]],
        api_as: Callable[..., APIClient],
    ) -> None:
        made = connect("revoked-")
        verdict = api.post(f"{INTEGRATIONS}/{made['id']}/test").json()
        client = api_as(request.getfixturevalue(person))

        for body in (client.get(f"{INTEGRATIONS}/{made['id']}").json(), client.get(INTEGRATIONS).json()["results"][0]):
            assert set(body) == FIELDS
            assert body["status"] == "failing"
            assert body["lastError"] == ({part: verdict[part] for part in ("code", "message", "fix")} if told else None)

    def test_hides_another_organizations(
        self, connect: Callable[..., dict[str, Any]], eve: User, api_as: Callable[..., APIClient]
    ) -> None:
        made = connect()
        theirs = api_as(eve, "evil")

        assert theirs.get(INTEGRATIONS).json()["results"] == []
        for method, path, body in (
            ("get", "", None),
            ("patch", "", {"name": "Mine"}),
            ("delete", "", None),
            ("post", "/test", None),
            ("post", "/rotate", {"apiKey": "x" * 40}),
        ):
            foreign = getattr(theirs, method)(f"{INTEGRATIONS}/{made['id']}{path}", body)
            absent = getattr(theirs, method)(f"{INTEGRATIONS}/int_absent{path}", body)
            assert foreign.status_code == absent.status_code == 404
            assert {**foreign.json(), "requestId": ""} == {**absent.json(), "requestId": ""}

    def test_needs_a_token(self, acme: Org) -> None:
        assert APIClient().get(INTEGRATIONS).status_code == 401


class TestPatch:
    def test_changes_what_is_given(self, api: APIClient, connect: Callable[..., dict[str, Any]]) -> None:
        made = connect()

        answer = api.patch(f"{INTEGRATIONS}/{made['id']}", {"name": "Renamed"})

        assert answer.json() == {**made, "name": "Renamed"}

    def test_needs_the_key_again_for_another_address(
        self, api: APIClient, connect: Callable[..., dict[str, Any]], make_key: Callable[..., str]
    ) -> None:
        path = f"{INTEGRATIONS}/{connect()['id']}"
        url = "https://93.184.215.14"

        refused = api.patch(path, {"baseUrl": url})
        moved = api.patch(path, {"baseUrl": url, "apiKey": make_key()})

        assert (refused.status_code, refused.json()["errors"][0]["pointer"]) == (400, "/apiKey")
        assert (moved.status_code, moved.json()["baseUrl"]) == (200, url)

    def test_refuses_unknown_fields(self, api: APIClient, connect: Callable[..., dict[str, Any]]) -> None:
        answer = api.patch(f"{INTEGRATIONS}/{connect()['id']}", {"nmae": "x"})

        assert (answer.status_code, answer.json()["code"]) == (400, "VALIDATION_FAILED")


class TestDelete:
    def test_forgets_the_key(self, api: APIClient, connect: Callable[..., dict[str, Any]]) -> None:
        path = f"{INTEGRATIONS}/{connect()['id']}"

        assert api.delete(path).status_code == 204
        assert api.get(path).status_code == 404

    def test_refuses_while_a_profile_names_it(
        self, api: APIClient, acme: Org, connect: Callable[..., dict[str, Any]]
    ) -> None:
        made = connect()
        ModelProfile.objects.create(
            org=acme,
            public_id="prof_writer",
            name="writer",
            provider="claude",
            model_id="x",
            auth_modes=["byok"],
            integration_id=made["id"],
        )

        answer = api.delete(f"{INTEGRATIONS}/{made['id']}")

        assert (answer.status_code, answer.json()["code"]) == (409, "IN_USE")
        assert "prof_writer" in answer.json()["detail"]


@pytest.mark.usefixtures("simulator")
class TestTestConnection:
    @pytest.mark.parametrize(
        "word", ["", "revoked-", "expired-", "disabledorg-", "forbidden-", "ratelimited-", "down-"]
    )
    def test_answers_200_for_every_verdict_stored_or_not(
        self, api: APIClient, make_key: Callable[..., str], connect: Callable[..., dict[str, Any]], word: str
    ) -> None:
        key = make_key(word)

        unsaved = api.post(f"{INTEGRATIONS}/test", {"provider": "claude", "apiKey": key})
        made = api.post(INTEGRATIONS, {"provider": "claude", "apiKey": key}).json()
        stored = api.post(f"{INTEGRATIONS}/{made['id']}/test")

        assert (unsaved.status_code, stored.status_code) == (200, 200)
        for answer in (unsaved.json(), stored.json()):
            assert set(answer) == {"ok", "code", "message", "fix", "models", "testedAt"}
            assert answer["ok"] is (word == "")
            assert bool(answer["models"]) is (word == "")
            assert answer["message"]
            assert answer["testedAt"].endswith("Z")
        assert unsaved.json()["code"] == stored.json()["code"]
        assert key not in unsaved.content.decode() + stored.content.decode()

    def test_gives_each_fault_its_own_code_and_sentence(self, api: APIClient, make_key: Callable[..., str]) -> None:
        words = ["revoked-", "disabledorg-", "onhold-", "forbidden-", "ipblocked-", "ratelimited-", "down-"]

        verdicts = [
            api.post(f"{INTEGRATIONS}/test", {"provider": "claude", "apiKey": make_key(word)}).json() for word in words
        ]

        assert len({verdict["code"] for verdict in verdicts}) == len(words)
        assert len({verdict["message"] for verdict in verdicts}) == len(words)

    def test_fills_the_list_of_models(self, api: APIClient, connect: Callable[..., dict[str, Any]]) -> None:
        path = f"{INTEGRATIONS}/{connect()['id']}"

        verdict = api.post(f"{path}/test").json()

        body = api.get(path).json()
        assert body["models"] == verdict["models"] != []
        assert (body["status"], body["lastError"], body["testedAt"]) == ("ok", None, verdict["testedAt"])

    @pytest.mark.parametrize("person", ["mia", "otto"])
    def test_is_for_owners_and_admins(
        self,
        person: str,
        request: Any,
        connect: Callable[..., dict[str, Any]],
        api_as: Callable[..., APIClient],
        make_key: Callable[..., str],
        simulator: Any,
    ) -> None:
        made = connect()
        client = api_as(request.getfixturevalue(person))

        assert client.post(f"{INTEGRATIONS}/{made['id']}/test").status_code == 403
        body = {"provider": "claude", "apiKey": make_key()}
        assert client.post(f"{INTEGRATIONS}/test", body).status_code == 403
        assert simulator.requests() == []

    def test_is_throttled(self, api: APIClient, connect: Callable[..., dict[str, Any]], monkeypatch: Any) -> None:
        from rest_framework.settings import api_settings

        path = f"{INTEGRATIONS}/{connect()['id']}/test"
        monkeypatch.setitem(api_settings.DEFAULT_THROTTLE_RATES, "sensitive", "2/min")

        statuses = [api.post(path).status_code for _ in range(3)]

        assert statuses == [200, 200, 429]
        assert int(api.post(path)["Retry-After"]) >= 1

    def test_counts_no_key_that_is_refused_for_its_form(
        self, api: APIClient, connect: Callable[..., dict[str, Any]], make_key: Callable[..., str], monkeypatch: Any
    ) -> None:
        from rest_framework.settings import api_settings

        rotate = f"{INTEGRATIONS}/{connect()['id']}/rotate"
        monkeypatch.setitem(api_settings.DEFAULT_THROTTLE_RATES, "sensitive", "2/min")
        malformed = ["", "no key", "sk-ant-oat01-" + "x" * 40, "sk-ant-api03-", "k" * 5000]
        refused = [
            api.post(path, {"provider": "claude", "apiKey": key}).status_code
            for key in malformed
            for path in (f"{INTEGRATIONS}/test", rotate)
        ]

        tested = [
            api.post(f"{INTEGRATIONS}/test", {"provider": "claude", "apiKey": make_key()}).status_code,
            api.post(rotate, {"apiKey": make_key()}).status_code,
            api.post(f"{INTEGRATIONS}/test", {"provider": "claude", "apiKey": make_key()}).status_code,
        ]

        assert 429 not in refused
        assert 200 not in refused
        assert tested == [200, 200, 429]


@pytest.mark.usefixtures("simulator")
class TestRotate:
    def test_tests_the_new_key_first(
        self, api: APIClient, connect: Callable[..., dict[str, Any]], make_key: Callable[..., str]
    ) -> None:
        made = connect()
        path, good, bad = f"{INTEGRATIONS}/{made['id']}/rotate", make_key(), make_key("revoked-")

        refused = api.post(path, {"apiKey": bad})
        rotated = api.post(path, {"apiKey": good})

        assert (refused.status_code, refused.json()["code"]) == (400, "VALIDATION_FAILED")
        assert refused.json()["errors"][0]["pointer"] == "/apiKey"
        assert bad not in refused.content.decode()
        assert (rotated.status_code, rotated.json()["keyHint"][-4:]) == (200, good[-4:])
        assert rotated.json()["status"] == "ok"

    def test_skips_the_test_by_force(
        self, api: APIClient, connect: Callable[..., dict[str, Any]], make_key: Callable[..., str]
    ) -> None:
        bad = make_key("revoked-")

        answer = api.post(f"{INTEGRATIONS}/{connect()['id']}/rotate", {"apiKey": bad, "force": True})

        assert (answer.status_code, answer.json()["status"]) == (200, "untested")
        assert answer.json()["keyHint"][-4:] == bad[-4:]


class TestSchema:
    def test_describes_these_addresses_without_a_warning(self, capsys: Any) -> None:
        schema = SchemaGenerator().get_schema(public=True)

        told = capsys.readouterr().err.splitlines()
        warnings = [line for line in told if "/integrations/" in line]
        assert warnings == []
        answer = schema["components"]["schemas"]["Integration"]["properties"]
        assert set(answer) == FIELDS
        page = schema["paths"]["/api/v1/integrations"]["get"]["responses"]["200"]["content"]["application/json"]
        assert "results" in str(page) or "Paginated" in str(page)
        assert schema["components"]["schemas"]["NewIntegration"]["properties"]["apiKey"]["writeOnly"] is True
