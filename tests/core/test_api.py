"""The REST border: what every address answers when something is not right, and how lists go on."""

import json
from base64 import b64encode
from urllib.parse import urlencode

import pytest
from rest_framework import serializers
from rest_framework.test import APIClient

from rensei.core.api import CamelSerializer
from rensei.core.rates import rates
from rensei.core.throttling import WindowThrottle
from rensei.orgs.models import Project


@pytest.fixture
def api(acme, ada, api_as):
    return api_as(ada)


def assert_problem(answer, status, code):
    assert (answer.status_code, answer.json()["code"]) == (status, code)
    assert answer.headers["Content-Type"] == "application/problem+json"
    body = answer.json()
    assert set(body) >= {"type", "title", "status", "detail", "code", "requestId", "retryable", "resetsAt", "errors"}
    assert body["status"] == status
    assert body["type"].endswith(f"/docs/errors#{code.lower().replace('_', '-')}")
    assert body["requestId"] == answer.headers["X-Request-Id"]


class TestProblem:
    def test_is_what_an_unknown_address_answers(self, db):
        for path in ("/api/v1/nothing", "/api/v1/projects/", "/api/", "/api/v2/me"):
            assert_problem(APIClient().get(path), 404, "NOT_FOUND")

    def test_is_what_a_stranger_gets(self, db):
        answer = APIClient().get("/api/v1/projects")

        assert_problem(answer, 401, "NOT_AUTHENTICATED")
        assert answer.headers["WWW-Authenticate"] == "Bearer"

    def test_names_the_methods_that_an_address_takes(self, api):
        answer = api.put("/api/v1/projects", {})

        assert_problem(answer, 405, "METHOD_NOT_ALLOWED")
        assert answer.headers["Allow"] == "GET, POST, HEAD, OPTIONS"

    def test_is_none_where_somebody_asks_for_the_methods(self, api):
        answer = api.options("/api/v1/projects")

        assert answer.status_code == 200
        assert answer.headers["Allow"] == "GET, POST, HEAD, OPTIONS"

    @pytest.mark.parametrize(
        "content_type", ["application/x-www-form-urlencoded", "multipart/form-data; boundary=x", "text/plain", ""]
    )
    def test_refuses_a_body_that_is_not_called_json(self, api, content_type):
        answer = api.generic("POST", "/api/v1/projects", b'{"id": "web", "name": "Web"}', content_type=content_type)

        assert_problem(answer, 415, "UNSUPPORTED_MEDIA_TYPE")

    @pytest.mark.parametrize(
        "body",
        [b"{", b"[]", b'"text"', b"1", b"null", b'{"id": NaN}', b"[" * 100_000, b'{"id": "\\u0000", "name": "x"}'],
    )
    def test_refuses_a_body_that_is_no_object(self, api, body):
        answer = api.generic("POST", "/api/v1/projects", body, content_type="application/json")

        assert_problem(answer, 400, "VALIDATION_FAILED")

    def test_refuses_an_absent_body_by_its_fields(self, api):
        answer = api.generic("POST", "/api/v1/projects", b"", content_type="application/json")

        assert_problem(answer, 400, "VALIDATION_FAILED")
        assert {error["pointer"] for error in answer.json()["errors"]} == {"/id", "/name"}

    def test_refuses_a_body_above_the_limit(self, api):
        body = json.dumps({"id": "web", "name": "x" * 1024 * 1024}).encode()

        assert_problem(
            api.generic("POST", "/api/v1/projects", body, content_type="application/json"), 413, "REQUEST_TOO_LARGE"
        )

    def test_reaches_clients_that_accept_only_something_else(self, api):
        assert api.get("/api/v1/projects", headers={"Accept": "text/html"}).status_code == 200
        assert_problem(api.get("/api/v1/projects/none", headers={"Accept": "image/png"}), 404, "NOT_FOUND")

    def test_tells_a_missing_csrf_token_from_a_missing_right(self, acme, ada):
        browser = APIClient(enforce_csrf_checks=True)
        browser.force_login(ada)

        answer = browser.post("/api/v1/projects", {"id": "web", "name": "Web"}, format="json")

        assert_problem(answer, 403, "NOT_PERMITTED")
        assert "CSRF" in answer.json()["detail"]

    def test_says_that_the_host_name_is_not_the_server_s(self, db):
        answer = APIClient(SERVER_NAME="elsewhere.test").get("/api/v1/projects")

        assert_problem(answer, 400, "VALIDATION_FAILED")
        assert [error["pointer"] for error in answer.json()["errors"]] == ["/headers/Host"]
        assert "RENSEI_ALLOWED_HOSTS" in answer.json()["detail"]

    def test_is_what_a_bug_answers(self, api, monkeypatch):
        def fail(access):
            raise RuntimeError("the words of a bug")

        monkeypatch.setattr("rensei.orgs.api.Projects.rows", staticmethod(fail))
        api.raise_request_exception = False

        answer = api.get("/api/v1/projects")

        assert_problem(answer, 500, "INTERNAL")
        assert "the words of a bug" not in answer.content.decode()


class TestThrottle:
    @pytest.fixture
    def three_a_minute(self, monkeypatch):
        monkeypatch.setattr(WindowThrottle, "THROTTLE_RATES", {"api": "3/min", "org": "5/min", "sensitive": "2/min"})

    def test_refuses_the_request_after_the_last_one(self, api, three_a_minute):
        allowed = [api.get("/api/v1/me").status_code for _ in range(3)]

        answer = api.get("/api/v1/me")

        assert allowed == [200, 200, 200]
        assert_problem(answer, 429, "RATE_LIMITED")
        assert answer.json()["retryable"] is True

    def test_says_truly_when_to_come_back(self, api, three_a_minute, monkeypatch):
        now = 1_000_000.25
        monkeypatch.setattr(rates, "timer", lambda: now)
        for _ in range(3):
            api.get("/api/v1/me")
        now += 10

        seconds = int(api.get("/api/v1/me").headers["Retry-After"])

        assert seconds == 50
        now += seconds - 0.1
        assert api.get("/api/v1/me").status_code == 429
        now += 0.2
        assert api.get("/api/v1/me").status_code == 200

    def test_counts_each_token_for_itself(self, acme, ada, mia, api_as, three_a_minute):
        first, second = api_as(ada), api_as(mia)
        for _ in range(4):
            refused = first.get("/api/v1/me").status_code

        assert (refused, second.get("/api/v1/me").status_code) == (429, 200)

    def test_counts_an_organization_as_a_whole(self, acme, ada, api_as, three_a_minute):
        first, second, third = (api_as(ada) for _ in range(3))

        codes = [api.get("/api/v1/me").status_code for api in [first] * 6 + [second, second, second, third]]

        assert codes == [200] * 3 + [429] * 3 + [200] * 2 + [429] * 2

    def test_is_narrower_where_guessing_would_pay(self, api, three_a_minute):
        codes = [api.post("/api/v1/tokens", {"name": "x"}).status_code for _ in range(3)]

        assert codes == [201, 201, 429]


class TestPages:
    @pytest.fixture
    def many(self, acme):
        return [Project.objects.create(org=acme, slug=f"p{place}", name="P") for place in range(7)]

    def test_go_through_all_rows_once_while_rows_are_added(self, api, acme, many):
        seen, url = [], "/api/v1/projects?pageSize=3"
        while url:
            page = api.get(url).json()
            seen += [row["id"] for row in page["results"]]
            url = page["next"]
            Project.objects.create(org=acme, slug=f"new-{len(seen)}", name="P")

        assert seen == [project.slug for project in reversed(many)]

    def test_are_never_longer_than_their_maximum(self, api, acme):
        Project.objects.bulk_create(Project(org=acme, slug=f"p{place}", name="P") for place in range(203))

        assert len(api.get("/api/v1/projects").json()["results"]) == 50
        assert len(api.get("/api/v1/projects?pageSize=201").json()["results"]) == 200
        assert len(api.get("/api/v1/projects?pageSize=" + "9" * 50).json()["results"]) == 200

    @pytest.mark.parametrize("size", ["0", "00", "-1", "abc", "1.5", "", "²", "1e3", "%00"])
    def test_refuse_a_size_that_is_none(self, api, size):
        assert_problem(api.get(f"/api/v1/projects?pageSize={size}"), 400, "VALIDATION_FAILED")

    @pytest.mark.parametrize(
        "cursor",
        [
            "x",
            "%00",
            b64encode(b"\xff\xfe").decode(),
            b64encode(urlencode({"p": "abc"}).encode()).decode(),
            b64encode(urlencode({"p": "1\0"}).encode()).decode(),
            b64encode(urlencode({"p": "1" * 30}).encode()).decode(),
            b64encode(urlencode({"o": "-5"}).encode()).decode(),
        ],
    )
    def test_refuse_a_cursor_that_no_page_gave(self, api, many, cursor):
        answer = api.get("/api/v1/projects", {"cursor": cursor})

        assert answer.status_code in {200, 400}, answer.content
        if answer.status_code == 400:
            assert_problem(answer, 400, "VALIDATION_FAILED")

    def test_refuse_a_cursor_that_a_database_could_not_read(self, api):
        cursor = b64encode(urlencode({"p": "a\0b"}).encode()).decode()

        answer = api.get("/api/v1/tokens", {"cursor": cursor})

        assert_problem(answer, 400, "VALIDATION_FAILED")


class TestCamelSerializer:
    class Body(CamelSerializer):
        auth_modes = serializers.ListField(child=serializers.CharField(), required=False)
        provider_config = serializers.JSONField(required=False)

    def test_takes_both_spellings(self):
        for name in ("authModes", "auth_modes"):
            body = self.Body(data={name: ["byok"]})

            assert body.is_valid()
            assert body.validated_data == {"auth_modes": ["byok"]}

    def test_refuses_both_spellings_together(self):
        assert not self.Body(data={"authModes": [], "auth_modes": []}).is_valid()

    def test_leaves_a_callers_own_keys_alone(self):
        body = self.Body(data={"providerConfig": {"snake_key": {"inner_key": 1}}})

        assert body.is_valid()
        assert body.validated_data["provider_config"] == {"snake_key": {"inner_key": 1}}
