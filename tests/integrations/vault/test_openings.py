"""Every opening of a sealed record is recorded, with its cause, once, for as long as it is kept."""

import ast
import os
import sys
import threading
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from celery import signals
from django.db import DataError, IntegrityError, OperationalError, connection, transaction
from django.test import Client
from django.utils import timezone
from prometheus_client.parser import text_string_to_metric_families

from integrations.keys import credentials, platform, services
from integrations.models import Integration, IssuerKey, KeyOpening, KeyOpeningDay
from integrations.vault import issuer, openings, openings_kept, sealed, vault
from integrations.vault.openings import UNEXPLAINED, Opening, Reason, Why
from rensei import celery
from rensei.core.periods import month_of, start_of
from rensei.core.secret import Secret
from rensei.orgs.access import Access
from rensei.orgs.models import Org, User

ROOT = Path(__file__).parents[3]
LIST = "/admin/integrations/keyopening/"
OPENERS = {"open_sealed", "open_text", "open_key", "open_integration", "open_platform_key", "open_signer"}


def test_a_process_is_named_by_what_runs_in_it(monkeypatch: pytest.MonkeyPatch) -> None:
    def name(*argv: str) -> str:
        monkeypatch.setattr(sys, "argv", list(argv))
        return openings._process_name.__wrapped__(7).rpartition(" ")[0]

    assert name("manage.py", "worker") == "manage.py worker"
    assert name("/usr/lib/python3/site-packages/server/__main__.py", "--host") == "server"
    assert name("") == "python"


def recorded(**fields: Any) -> list[KeyOpening]:
    openings.write()
    return list(KeyOpening.objects.filter(**fields).order_by("id"))


def make_opening(record_id: str = "int_1", **fields: Any) -> KeyOpening:
    known = {"opened_at": timezone.now(), "version": 1, "reason": Reason.DISPATCH, "process": "test", **fields}
    return KeyOpening.objects.create(record_id=record_id, **known)


class TestOpening:
    def test_records_which_key_for_whom_and_why(self, connected: Integration, ada_access: Access) -> None:
        why = Why(reason=Reason.TEST, actor="ada@acme.test", token_id="tok_1")
        before = timezone.now()

        credentials.open_key(connected, why=why)

        (one,) = recorded()
        assert (one.record_id, one.version, one.org_id) == (connected.id, 1, ada_access.org.id)
        assert (one.reason, one.actor, one.token_id, one.run_id) == ("test", "ada@acme.test", "tok_1", "")
        assert before <= one.opened_at <= timezone.now()
        assert one.process.endswith(openings.process_name().rpartition(" ")[2])

    @pytest.mark.django_db
    def test_makes_no_query(self, django_assert_num_queries: Any) -> None:
        with django_assert_num_queries(0):
            openings.note(record_id="int_1", version=1, org_id="org_1", why=UNEXPLAINED)

    def test_that_fails_is_none(self, connected: Integration) -> None:
        connected.base_url = "https://elsewhere.example"
        with pytest.raises(vault.CredentialUnreadable):
            credentials.open_key(connected, why=UNEXPLAINED)

        assert recorded() == []

    def test_states_its_cause_wherever_this_code_opens(self) -> None:
        silent = []
        for package in ("rensei", "integrations", "billing", "profiles", "catalog"):
            for path in (ROOT / package).rglob("*.py"):
                for call in ast.walk(ast.parse(path.read_text())):
                    if not isinstance(call, ast.Call) or not isinstance(call.func, ast.Attribute | ast.Name):
                        continue
                    name = call.func.attr if isinstance(call.func, ast.Attribute) else call.func.id
                    of_envelope = isinstance(call.func, ast.Attribute) and ast.unparse(call.func.value) == "envelope"
                    if name in OPENERS and not of_envelope and "why" not in {each.arg for each in call.keywords}:
                        silent.append(f"{path.relative_to(ROOT)}:{call.lineno}")

        assert silent == []

    def test_of_a_platform_key_names_the_organization_that_it_is_for(self, ada_access: Access, key: str) -> None:
        pool = platform.add_platform_key(actor=None, provider="claude", pool="metered", name="one", api_key=Secret(key))

        platform.open_platform_key(pool, why=Why(reason=Reason.GATEWAY, run_id="run_1", org_id=ada_access.org.id))

        (one,) = recorded()
        assert (one.record_id, one.org_id, one.run_id) == (pool.id, ada_access.org.id, "run_1")

    def test_for_an_identity_names_its_subject(self, db: None) -> None:
        issuer.identity_token(subject="rensei:organization:org_1", audience="there", claims={})
        issuer.public_key(issuer.key_ids()[0])

        signing, publishing = recorded()
        assert (signing.reason, signing.actor) == ("identity", "rensei:organization:org_1")
        assert (publishing.reason, publishing.record_id) == ("publishing", IssuerKey.objects.get().id)

    @pytest.mark.django_db(transaction=True)
    def test_for_a_new_data_key_is_recorded(self, connected: Integration, acme: Org) -> None:
        sealed.rotate_data_key(acme)

        (one,) = recorded()
        assert (one.record_id, one.reason, one.org_id) == (connected.id, "rotation", acme.id)


class TestWriting:
    def test_is_once_however_often_it_is_tried(self, connected: Integration) -> None:
        credentials.open_key(connected, why=UNEXPLAINED)
        waiting = dict(openings._waiting)
        openings.write()
        openings._waiting.update(waiting)

        assert len(recorded()) == 1

    @pytest.mark.django_db(transaction=True)
    def test_with_a_transaction_that_fails_is_done_later(self, connected: Integration) -> None:
        credentials.open_key(connected, why=Why(reason=Reason.DISPATCH, run_id="run_1"))
        credentials.open_key(connected, why=Why(reason=Reason.DISPATCH, run_id="run_2"))

        with transaction.atomic():
            openings.write_of("run_1")
            assert KeyOpening.objects.filter(run_id="run_1").exists()
            transaction.set_rollback(True)

        assert not KeyOpening.objects.exists()
        with transaction.atomic():
            openings.write_of("run_1")
        assert [one.why.run_id for one in openings._waiting.values()] == ["run_2"]
        assert [one.run_id for one in recorded()] == ["run_1", "run_2"]

    def test_waits_while_the_database_takes_nothing(
        self, connected: Integration, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        credentials.open_key(connected, why=UNEXPLAINED)
        with monkeypatch.context() as patch:
            patch.setattr(openings, "_insert", lambda found: (_ for _ in ()).throw(OperationalError("away")))
            patch.setattr(connection, "close", lambda: None)
            openings._write_or_wait()

        assert openings._is_wanted.is_set(), "it is tried again"
        assert len(recorded()) == 1

    def test_drops_a_row_that_the_database_refuses_and_not_the_others(
        self, connected: Integration, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        for run_id in ("run_1", "run_bad", "run_3"):
            credentials.open_key(connected, why=Why(reason=Reason.DISPATCH, run_id=run_id))
        insert = openings._insert

        def refuse(found: Any) -> None:
            if any(one.why.run_id == "run_bad" for one in found):
                raise DataError("refused")
            insert(found)

        monkeypatch.setattr(openings, "_insert", refuse)
        monkeypatch.setattr(connection, "close", lambda: None)
        openings._write_or_wait()

        assert [one.run_id for one in recorded()] == ["run_1", "run_3"]
        assert "key_opening_refused" in caplog.text
        assert not openings._waiting

    @pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
    def test_begins_anew_in_a_forked_process(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """The parent's thread does not exist there, and what waits is the parent's to write."""
        openings._waiting["open_1"] = Opening("open_1", timezone.now(), "int_1", 1, None, UNEXPLAINED)
        openings._is_wanted.set()
        openings._lock.acquire()
        reading, writing = os.pipe()
        if (child := os.fork()) == 0:
            free = openings._lock.acquire(timeout=1)
            os.write(writing, bytes([free and not openings._is_wanted.is_set() and not openings._waiting]))
            os._exit(0)
        openings._lock.release()
        os.waitpid(child, 0)

        assert os.read(reading, 1) == bytes([True])
        os.close(reading)
        os.close(writing)

    def test_is_done_when_a_forked_worker_ends(self, connected: Integration, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(connection, "close", lambda: None)
        credentials.open_key(connected, why=Why(reason=Reason.IDENTITY))

        assert celery.app.main == "rensei"
        signals.worker_process_shutdown.send(sender=None, pid=1, exitcode=0)

        assert KeyOpening.objects.get().reason == "identity"

    def test_keeps_the_newest_where_too_many_wait(
        self, connected: Integration, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        monkeypatch.setattr(openings, "WAITING_MAX", 2)
        for number in range(4):
            credentials.open_key(connected, why=Why(reason=Reason.DISPATCH, run_id=f"run_{number}"))

        assert [one.run_id for one in recorded()] == ["run_2", "run_3"]
        openings._tell_of_lost()
        openings._tell_of_lost()
        assert caplog.text.count("key_openings_lost") == 1
        assert "'count': 2" in caplog.text

    @pytest.mark.django_db(transaction=True)
    def test_by_many_threads_loses_none(self, connected: Integration) -> None:
        def open_ten() -> None:
            for _ in range(10):
                openings.note(record_id="int_1", version=1, org_id=None, why=Why(reason=Reason.TEST, actor="a"))

        threads = [threading.Thread(target=open_ten) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

        assert len(recorded()) == 80


class TestAppendOnly:
    def test_refuses_a_change_and_the_deletion_of_what_is_young(self, db: None) -> None:
        one = make_opening(opened_at=timezone.now() - timedelta(days=29))

        for change in (lambda: KeyOpening.objects.update(actor="other"), one.delete):
            with pytest.raises(IntegrityError, match="append-only"), transaction.atomic():
                change()

    def test_lets_old_ones_go(self, db: None) -> None:
        make_opening(opened_at=timezone.now() - timedelta(days=31))

        assert KeyOpening.objects.all().delete()[0] == 1

    @pytest.mark.postgres
    def test_refuses_to_be_emptied(self, db: None) -> None:
        with pytest.raises(IntegrityError, match="append-only"), transaction.atomic(), connection.cursor() as cursor:
            cursor.execute("TRUNCATE integrations_keyopening")


class TestKept:
    @pytest.fixture(autouse=True)
    def _days_are_counted_when_they_are_over(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """In the first hour of a day, the day before would not be counted yet."""
        monkeypatch.setattr(openings_kept, "COUNTED_AFTER", timedelta(0))

    def test_counts_a_month_across_days_that_are_counted_and_that_are_not(self, connected: Integration) -> None:
        now = timezone.now()
        month = start_of(month_of(now))
        for moment in (month - timedelta(minutes=1), month, now, now):
            make_opening(connected.id, opened_at=moment)
        make_opening("int_other", opened_at=now)

        for _ in range(2):
            openings_kept.add_to([connected], now=now)
            assert (connected.opened_this_month, connected.last_opened_at) == (3, now)
            openings_kept.count_and_forget()

        assert KeyOpeningDay.objects.filter(record_id=connected.id, day__lt=month.date()).get().count == 1

    def test_deletes_what_is_old_and_keeps_its_count(self, connected: Integration, settings: Any) -> None:
        settings.RENSEI_OPENINGS_KEPT_DAYS = 40
        now = timezone.now()
        old = now - timedelta(days=41)
        make_opening(connected.id, opened_at=old)
        make_opening(connected.id, opened_at=now - timedelta(days=39))

        openings_kept.count_and_forget()

        assert KeyOpening.objects.get().opened_at == now - timedelta(days=39)
        assert sorted(KeyOpeningDay.objects.values_list("count", flat=True)) == [1, 1]
        openings_kept.count_and_forget()
        assert KeyOpeningDay.objects.count() == 2

    def test_deletes_none_that_the_database_keeps(self, connected: Integration, settings: Any) -> None:
        settings.RENSEI_OPENINGS_KEPT_DAYS = 30
        make_opening(connected.id, opened_at=timezone.now() - timedelta(days=30, milliseconds=1))

        openings_kept.count_and_forget()

        assert KeyOpening.objects.count() == 1

    @pytest.mark.django_db(transaction=True)
    def test_is_counted_once_by_two_jobs_at_once(self) -> None:
        for day in range(1, 4):
            for number in range(5):
                make_opening(f"int_{number}", opened_at=timezone.now() - timedelta(days=day))

        def count() -> None:
            openings_kept.count_and_forget()
            connection.close()

        threads = [threading.Thread(target=count) for _ in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

        assert list(KeyOpeningDay.objects.values_list("count", flat=True)) == [1] * 15


class TestUnexplained:
    def test_is_an_alarm_in_the_log_the_metrics_and_on_the_front_page(
        self, connected: Integration, grace: User, page_as: Callable[[User], Client], settings: Any, caplog: Any
    ) -> None:
        settings.RENSEI_METRICS_TOKEN = "right"
        admin = page_as(grace)
        assert "Keys opened without a run" not in admin.get("/admin/").content.decode()

        credentials.open_key(connected)
        openings.write()

        assert "key_opened_without_a_run" in caplog.text
        html = admin.get("/admin/").content.decode()
        assert "Keys opened without a run" in html
        assert f"{LIST}?reason__exact=unknown" in html
        answer = admin.get("/metrics", headers={"Authorization": "Bearer right"})
        families = {family.name: family for family in text_string_to_metric_families(answer.content.decode())}
        assert families["rensei_key_openings_unexplained"].samples[0].value == 1
        later = timezone.now() + openings_kept.RECENT
        assert openings_kept.unexplained(now=later) == 0

    def test_is_no_opening_by_a_person_or_a_run(self, connected: Integration, ada: User) -> None:
        credentials.open_key(connected, why=Why(reason=Reason.TEST, actor=ada.email))
        credentials.open_key(connected, why=Why(reason=Reason.DISPATCH, run_id="run_1"))
        openings.write()

        assert openings_kept.unexplained(now=timezone.now()) == 0


class TestShown:
    @pytest.mark.usefixtures("simulator")
    def test_a_test_of_a_key_names_the_person(
        self, connected: Integration, ada_access: Access, page_as: Callable[[User], Client], ada: User
    ) -> None:
        services.check_integration(ada_access, connected)

        (one,) = recorded()
        assert (one.reason, one.actor) == ("test", ada.email)
        html = page_as(ada).get("/o/acme/settings/integrations").content.decode()
        assert "1 time this month" in html

    def test_operators_find_an_opening_by_key_run_person_reason_and_organization(
        self, connected: Integration, acme: Org, grace: User, page_as: Callable[[User], Client]
    ) -> None:
        make_opening(connected.id, run_id="run_found", org_id=acme.id)
        make_opening("int_other", run_id="run_other", actor="eve@evil.test", reason=Reason.TEST)
        admin = page_as(grace)

        queries = ("q=run_found", f"q={connected.id}", f"org={acme.id}", "reason__exact=dispatch", "run_id=run_found")
        for query in (*queries, f"record_id={connected.id}"):
            html = admin.get(f"{LIST}?{query}").content.decode()
            assert "run_found" in html, query
            assert "run_other" not in html, query
        assert "run_found" not in admin.get(f"{LIST}?q=eve@evil.test").content.decode()

    def test_nothing_of_it_is_changed_in_the_admin(self, grace: User, page_as: Callable[[User], Client]) -> None:
        one, admin = make_opening(), page_as(grace)

        assert admin.get(f"{LIST}{one.pk}/change/").status_code == 200
        assert admin.post(f"{LIST}{one.pk}/change/", {"actor": "other"}).status_code == 403
        assert admin.post(f"{LIST}{one.pk}/delete/", {"post": "yes"}).status_code == 403
        assert admin.get(f"{LIST}add/").status_code == 403

    def test_the_page_of_a_key_links_to_its_openings(
        self, connected: Integration, grace: User, page_as: Callable[[User], Client]
    ) -> None:
        make_opening(connected.id)

        html = page_as(grace).get(f"/admin/integrations/integration/{connected.id}/change/").content.decode()

        assert "1 this month" in html
        assert f"{LIST}?record_id={connected.id}" in html
