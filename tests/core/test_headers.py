"""What every answer carries, whoever gives it."""

import pytest

EVERYWHERE = {
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
}


@pytest.mark.parametrize(
    "path",
    ["/accounts/login/", "/api/v1/me", "/api/v1/nothing", "/nothing", "/admin/", "/api/docs", "/healthz", "/setup"],
)
class TestEveryAnswer:
    def test_is_guarded(self, client, db, path):
        answer = client.get(path)

        assert {name: answer.headers.get(name) for name in EVERYWHERE} == EVERYWHERE
        assert "default-src 'none'" in answer.headers["Content-Security-Policy"]
        assert "unsafe" not in answer.headers["Content-Security-Policy"]
        assert answer.headers["X-Request-Id"].startswith("req_")

    def test_stays_out_of_caches(self, client, db, path):
        assert "no-store" in client.get(path).headers["Cache-Control"]


class TestRequestId:
    def test_is_ours_whatever_the_caller_sends(self, client, db):
        answer = client.get("/healthz", headers={"X-Request-Id": "forged"})

        assert "forged" not in answer.headers["X-Request-Id"]

    def test_differs_from_request_to_request(self, client, db):
        assert client.get("/healthz").headers["X-Request-Id"] != client.get("/healthz").headers["X-Request-Id"]
