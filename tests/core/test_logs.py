"""Log lines: whole, in order, with the request id, and without a secret."""

import io
import json
import logging

import pytest
import structlog
from django.conf import settings
from django.db import OperationalError

from rensei.core import errors, logs
from rensei.tokens import authentication


@pytest.fixture(params=[True, False], ids=["json", "plain"])
def stream(request, monkeypatch):
    """The log as it is written, in each of its two forms."""
    out = io.StringIO()
    monkeypatch.setattr("sys.stderr", out)
    logs.configure({"json": request.param, "level": "DEBUG"})
    yield out
    logs.configure(settings.LOGGING)


class TestAnOutage:
    def test_is_one_line_a_minute_that_counts_the_others(self, stream, monkeypatch):
        now = [0.0]
        monkeypatch.setattr("sys.stderr", stream)
        monkeypatch.setattr(logs.Outages.__init__, "__kwdefaults__", {"timer": lambda: now[0]})
        logs.configure({"json": True, "level": "DEBUG"})
        events = structlog.get_logger("rensei.core.errors")

        for second in range(125):
            now[0] = float(second)
            for _ in range(10):
                errors.database_refusal(OperationalError("gone"), request_id=f"req_{second}")
            events.warning("settlement_not_written", tries=1)

        lines = [json.loads(line) for line in stream.getvalue().splitlines()]
        assert [(line["event"], line.get("more")) for line in lines] == [
            ("database_unavailable", None),
            ("database_unavailable", 659),
            ("database_unavailable", 659),
        ]

    def test_hides_nothing_else(self, stream):
        log = structlog.get_logger("rensei.worker")
        for _ in range(3):
            log.error("settlement_left_to_the_reaper")
            log.warning("chunk_refused")
            log.error("jobs_failed", exc_info=ValueError())

        said = stream.getvalue()
        assert [said.count(event) for event in ("to_the_reaper", "chunk_refused", "jobs_failed")] == [3, 3, 3]

    def test_is_one_line_for_refused_requests_too(self, stream, client, db, monkeypatch):
        def away(*_args, **_options):
            raise OperationalError

        monkeypatch.setattr(authentication, "for_token", away)
        for _ in range(5):
            answer = client.get("/api/v1/me", headers={"Authorization": f"Bearer rsk_live_{'a' * 64}"})
            assert (answer.status_code, answer.json()["code"]) == (503, "DATABASE_UNAVAILABLE")

        said = stream.getvalue()
        assert (said.count("database_unavailable"), said.count("Service Unavailable")) == (1, 1)


class TestConfigure:
    def test_blots_out_keys_wherever_they_stand(self, stream, make_key):
        key = make_key()

        structlog.get_logger("a").info(f"event {key}", field=key, nested={"deep": [key]})
        logging.getLogger("b").warning("positional %s and %r", key, key)
        logging.getLogger("b").warning("a dictionary %(key)s", {"key": key})
        logging.getLogger("b").warning("extra", extra={"key": key})

        assert key not in stream.getvalue()
        assert key[-12:] not in stream.getvalue()
        assert stream.getvalue().count("***") >= 4

    def test_blots_out_keys_in_the_text_of_exceptions(self, stream, make_key):
        key = make_key()

        try:
            int(f"the header {key}\n")
        except ValueError:
            logging.getLogger("b").exception("failed")
            structlog.get_logger("a").exception("failed")

        assert key not in stream.getvalue()
        assert stream.getvalue().count("ValueError") >= 2

    def test_shows_no_local_variables(self, stream):
        canary = "a-value-" + "of-a-local"

        try:
            canary.no_such_attribute  # noqa: B018
        except AttributeError:
            structlog.get_logger("a").exception("failed")
            logging.getLogger("django.request").exception("failed")

        assert canary not in stream.getvalue()

    def test_blots_out_tokens_of_ours(self, stream):
        token = "rsk_live_" + "0a" * 32

        logging.getLogger("b").warning("Bearer %s", token)

        assert token not in stream.getvalue()

    def test_says_nothing_of_a_server_that_is_not_ready_yet(self, stream, client, db):
        answer = client.get("/readyz")

        assert answer.status_code == 503
        assert "readyz" not in stream.getvalue()

    def test_says_that_the_server_failed(self, stream, client, db, monkeypatch):
        monkeypatch.setattr("rensei.operators.health.vault.health", lambda: 1 / 0)
        client.raise_request_exception = False

        client.get("/readyz")

        assert "ZeroDivisionError" in stream.getvalue()

    def test_carries_what_is_bound_to_the_request(self, stream):
        with structlog.contextvars.bound_contextvars(request_id="req_1"):
            logging.getLogger("django.request").warning("from Django")
            structlog.get_logger("a").info("from us")

        assert stream.getvalue().count("req_1") == 2

    def test_writes_one_line_for_an_event_that_holds_line_ends(self, monkeypatch):
        out = io.StringIO()
        monkeypatch.setattr("sys.stderr", out)
        logs.configure({"json": True, "level": "INFO"})

        logging.getLogger("b").warning("first\nlevel=CRITICAL forged")

        logs.configure(settings.LOGGING)
        [line] = out.getvalue().splitlines()
        assert json.loads(line)["event"] == "first\nlevel=CRITICAL forged"


class TestShortRefusals:
    def test_are_one_line_for_a_wrong_host_and_say_no_more_than_that(self, stream, client):
        answer = client.get("/", headers={"host": "evil.test"})

        assert answer.status_code == 400
        assert "This server has another address" in answer.content.decode()
        assert "Invalid HTTP_HOST header" in stream.getvalue()
        assert "Traceback" not in stream.getvalue()
        assert "warning" in stream.getvalue()

    @pytest.mark.django_db
    def test_are_one_line_for_somebody_who_is_no_operator(self, stream, mia, page_as):
        answer = page_as(mia).get("/admin/", follow=True)

        assert answer.status_code == 403
        assert "This is for operators" in answer.content.decode()
        assert "mia@acme.test" in answer.content.decode()
        assert "Traceback" not in stream.getvalue()

    def test_leave_the_traceback_of_a_bug(self, stream):
        try:
            int("not a number")
        except ValueError:
            logging.getLogger("django.request").exception("Internal Server Error", extra={"status_code": 500})

        assert "Traceback" in stream.getvalue()
