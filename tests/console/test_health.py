"""What machines ask of the server."""

from datetime import timedelta

import pytest
from django.core.management import call_command
from django.db import OperationalError, connection
from django.test.utils import CaptureQueriesContext
from prometheus_client.parser import text_string_to_metric_families

from rensei.core.clock import database_now
from rensei.core.models import WorkerHeartbeat
from rensei.dispatch.models import LedgerAudit
from rensei.dispatch.queue import wake_up
from rensei.operators import health
from tests import servers
from tests.broker import ringing_through
from tests.waiting import wait_until

KNOWN = {"Authorization": "Bearer right"}


def figures_of(client):
    """The figures without labels."""
    answer = client.get("/metrics", headers=KNOWN)
    assert answer.status_code == 200
    families = text_string_to_metric_families(answer.content.decode())
    return {sample.name: sample.value for family in families for sample in family.samples if not sample.labels}


@pytest.fixture
def healthy(db):
    call_command("load_catalog", verbosity=0)
    WorkerHeartbeat.objects.create(worker="w1", seen_at=database_now())


class TestAlive:
    def test_asks_nothing_of_the_database(self, client, db, django_assert_num_queries):
        with django_assert_num_queries(0):
            assert client.get("/healthz").status_code == 200


class TestReady:
    @pytest.fixture(autouse=True)
    def token(self, settings):
        settings.RENSEI_METRICS_TOKEN = "right"

    def test_is_ready_when_everything_is_there(self, client, healthy):
        answer = client.get("/readyz", headers=KNOWN)

        assert (answer.status_code, answer.json()) == (200, {"ready": True, "missing": [], "degraded": []})

    @pytest.mark.parametrize("authorization", ["", "Bearer wrong", "Basic right", "Bearer ", "right"])
    @pytest.mark.parametrize("token", ["right", ""])
    def test_tells_no_reason_without_the_token(self, client, healthy, settings, token, authorization):
        settings.RENSEI_METRICS_TOKEN = token
        known = {"Authorization": authorization}

        ready = client.get("/readyz", headers=known)
        WorkerHeartbeat.objects.all().delete()
        health.readiness.forget()
        missing = client.get("/readyz", headers=known)

        assert (ready.status_code, ready.json()) == (200, {"ready": True})
        assert (missing.status_code, missing.json()) == (503, {"ready": False})

    def test_costs_as_much_for_twenty_requests_as_for_one_without_the_token(self, client, healthy, monkeypatch):
        monkeypatch.setattr(health, "READY_SECONDS", 60)
        client.get("/readyz")

        with CaptureQueriesContext(connection) as queries:
            answers = [client.get("/readyz").status_code for _ in range(20)]

        assert set(answers) == {200}
        assert len(queries) == 0

    def test_builds_no_graph_of_migrations_once_all_are_applied(self, client, healthy, monkeypatch):
        client.get("/readyz", headers=KNOWN)

        monkeypatch.setattr(health, "MigrationExecutor", None)

        assert client.get("/readyz", headers=KNOWN).status_code == 200

    def test_is_ready_and_degraded_without_the_broker(self, client, healthy, settings):
        with ringing_through(f"redis://127.0.0.1:{servers.free_port()}/0", settings):
            wake_up.notify_workers("run_x")
            wait_until(wake_up.is_broker_away)
            answer = client.get("/readyz", headers=KNOWN)
            figures = client.get("/metrics", headers=KNOWN).content.decode()

        assert answer.status_code == 200
        assert "The broker does not answer" in answer.json()["degraded"][0]
        assert "rensei_broker_ok 0.0" in figures

    def test_is_ready_and_degraded_where_the_database_is_slow(
        self, client, healthy, django_assert_max_num_queries, monkeypatch
    ):
        monkeypatch.setattr(health, "SLOW_SECONDS", 0.0)
        with django_assert_max_num_queries(1):
            answer = client.get("/readyz", headers=KNOWN)
        with django_assert_max_num_queries(1):
            figures = figures_of(client)

        assert (answer.status_code, answer.json()["ready"], answer.json()["missing"]) == (200, True, [])
        assert answer.json()["degraded"][0].startswith("The database takes ")
        assert figures["rensei_database_ok"] == 1
        assert "rensei_queue_age_seconds" not in figures

    def test_misses_a_database_that_does_not_answer_and_metrics_say_so(self, client, healthy, monkeypatch):
        def away():
            raise OperationalError

        monkeypatch.setattr(health, "database_now", away)
        answer, figures = client.get("/readyz", headers=KNOWN), figures_of(client)

        assert (answer.status_code, answer.json()["missing"]) == (503, ["The database does not answer."])
        assert figures["rensei_database_ok"] == 0

    def test_misses_a_worker_that_never_came(self, client, healthy):
        WorkerHeartbeat.objects.all().delete()

        answer = client.get("/readyz", headers=KNOWN)

        assert answer.status_code == 503
        assert "No worker has started" in answer.json()["missing"][0]

    def test_misses_a_worker_that_fell_silent(self, client, healthy):
        WorkerHeartbeat.objects.update(seen_at=database_now() - timedelta(minutes=5))

        assert "No worker has been seen for 30" in client.get("/readyz", headers=KNOWN).json()["missing"][0]

    def test_misses_the_catalog(self, client, db):
        WorkerHeartbeat.objects.create(worker="w1", seen_at=database_now())

        assert "load_catalog" in client.get("/readyz", headers=KNOWN).json()["missing"][0]

    def test_misses_the_key_of_what_is_sealed(self, client, healthy, settings, tmp_path):
        settings.RENSEI_VAULT_KEYRING = tmp_path / "nowhere.json"

        answer = client.get("/readyz", headers=KNOWN)

        assert answer.status_code == 503
        assert "The vault is shut" in answer.json()["missing"][0]


class TestMetrics:
    def test_are_absent_without_a_token(self, client, healthy):
        assert client.get("/metrics").status_code == 404

    @pytest.mark.parametrize("header", ["", "Bearer wrong", "Basic right", "Bearer "])
    def test_are_shut_to_others(self, client, healthy, settings, header):
        settings.RENSEI_METRICS_TOKEN = "right"

        assert client.get("/metrics", headers={"Authorization": header}).status_code == 401

    def test_tell_how_busy_it_is(self, client, healthy, settings, django_assert_max_num_queries):
        settings.RENSEI_METRICS_TOKEN = "right"

        with django_assert_max_num_queries(12):
            answer = client.get("/metrics", headers={"Authorization": "Bearer right"})

        families = {family.name: family for family in text_string_to_metric_families(answer.content.decode())}
        assert {sample.labels["state"]: sample.value for sample in families["rensei_runs"].samples}["QUEUED"] == 0
        assert families["rensei_vault_ok"].samples[0].value == 1
        assert families["rensei_worker_silence_seconds"].samples[0].labels == {"worker": "w1"}
        assert "rensei_shared_runs_used" in families
        assert "rensei_queue_age_seconds" in families
        assert "rensei_ledger_differences" not in families

    def test_tell_what_the_last_audit_found(self, client, healthy, settings):
        settings.RENSEI_METRICS_TOKEN = "right"
        now = database_now()
        LedgerAudit.objects.create(ran_at=now - timedelta(days=1), seconds=1, difference_count=7)
        LedgerAudit.objects.create(ran_at=now, seconds=1, difference_count=3)

        answer = client.get("/metrics", headers={"Authorization": "Bearer right"})

        families = {family.name: family for family in text_string_to_metric_families(answer.content.decode())}
        assert families["rensei_ledger_differences"].samples[0].value == 3
        assert families["rensei_ledger_audit_age_seconds"].samples[0].value < 60
