"""Rotations in the background: one at a time, batch by batch, resumed by whichever process comes next."""

from collections.abc import Callable
from datetime import timedelta
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from django.core.management import CommandError, call_command

from integrations.keys import rotations
from integrations.keys.rotations import RotationUnderWay
from integrations.models import DataKey, KeyCheck, Rotation
from integrations.vault import data_keys, keyring, rotation, vault
from integrations.vault.errors import KeyServiceSilent
from integrations.vault.kek import LocalKeyring
from rensei import worker
from rensei.audit.models import AuditEvent
from rensei.core.clock import database_now
from rensei.core.jobs import Schedule
from rensei.core.models import DueJob
from rensei.core.secret import Secret
from rensei.orgs.models import Org, User

pytestmark = pytest.mark.django_db


@pytest.fixture(autouse=True)
def _in_this_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    """The threads that call key services would not see the rows of a test's transaction."""
    monkeypatch.setattr(LocalKeyring, "is_remote", False)
    monkeypatch.setattr(rotation, "BATCH", 2)


@pytest.fixture
def path(settings: Any) -> Path:
    path: Path = settings.RENSEI_VAULT_KEYRING
    return path


@pytest.fixture
def outdated(acme: Org, path: Path) -> str:
    """Five data keys under a key that is not the current one any more."""
    orgs = [acme, *Org.objects.bulk_create([Org(name=f"Org {number}", slug=f"org-{number}") for number in range(4)])]
    for org in orgs:
        data_keys.current_key(org=org)
    old = keyring.load(path).current
    keyring.add_key(path, current=True)
    return old


def work(kind: str = "re-wrap") -> Rotation:
    return rotations.start(Rotation.Kind(kind), actor="test")


class TestCarryOn:
    def test_does_batches_until_nothing_is_left(self, outdated: str) -> None:
        row = work()
        seen: list[tuple[int, int]] = []

        rotations.carry_on(tell=lambda row: seen.append((row.done, row.left)))

        row.refresh_from_db()
        assert seen == [(2, 3), (4, 1), (5, 0), (5, 0)]
        assert (row.state, row.done, row.left, row.percent, row.failed) == ("done", 5, 0, 100, {})
        assert row.ended_at
        assert row.seconds > 0
        assert not DataKey.objects.filter(kek_id=outdated).exists()
        assert rotations.live() is None
        assert rotations.carry_on() is None

    def test_stops_when_its_time_is_over_and_goes_on_where_it_was(self, outdated: str) -> None:
        row = work()

        rotations.carry_on(seconds=0)
        row.refresh_from_db()
        assert (row.state, row.done, row.leased_until) == ("running", 0, None)
        rotations.carry_on()

        row.refresh_from_db()
        assert (row.state, row.done) == ("done", 5)

    def test_is_taken_up_after_a_kill_when_the_claim_has_ended(self, outdated: str, monkeypatch: Any) -> None:
        row = work()

        def die(row: Rotation) -> None:
            raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            rotations.carry_on(tell=die)
        assert rotations.carry_on() is None, "the claim of the process that was killed has not ended"
        Rotation.objects.update(leased_until=database_now() - timedelta(seconds=1))
        rotations.carry_on()

        row.refresh_from_db()
        assert (row.state, row.done) == ("done", 5)

    def test_waits_for_a_silent_key_service_and_says_so(self, outdated: str, monkeypatch: Any) -> None:
        row = work()

        def silent(*arguments: object) -> None:
            raise KeyServiceSilent("the key service does not answer (timeout)")

        with monkeypatch.context() as patched:
            patched.setattr(rotation, "rewrap_batch", silent)
            rotations.carry_on()
        row.refresh_from_db()
        assert (row.state, row.waiting) == ("running", "the key service does not answer (timeout)")
        rotations.carry_on()

        row.refresh_from_db()
        assert (row.state, row.waiting) == ("done", "")

    def test_names_what_fails_and_ends(self, outdated: str, acme: Org) -> None:
        DataKey.objects.filter(org=acme).update(wrapped=bytes(60))
        row = work()

        rotations.carry_on()

        row.refresh_from_db()
        assert (row.state, row.done, row.left) == ("failed", 4, 1)
        assert list(row.failed) == [str(DataKey.objects.get(org=acme).pk)]
        assert "does not open" in next(iter(row.failed.values()))

    def test_is_one_at_a_time(self, outdated: str) -> None:
        work()

        for kind in Rotation.Kind:
            with pytest.raises(RotationUnderWay, match="A rotation is under way"):
                work(kind)
        with pytest.raises(CommandError, match="A rotation is under way"):
            call_command("vault", "verify", stdout=StringIO())

    def test_that_is_stopped_is_done_by_the_next_one(self, outdated: str, ada: User) -> None:
        row = work()

        rotations.carry_on(tell=lambda row: rotations.stop(row, actor=ada))

        row.refresh_from_db()
        assert (row.state, row.done) == ("stopped", 2)
        assert not rotations.stop(row, actor=ada)
        assert rotations.follow(work()).done == 3

    def test_verifies_each_data_key_once(self, outdated: str, acme: Org) -> None:
        DataKey.objects.filter(org=acme).update(wrapped=bytes(60))

        row = rotations.follow(work("verify"))

        assert (row.state, row.done, row.left, len(row.failed)) == ("failed", 4, 0, 1)

    def test_makes_fingerprints_anew(self, simulator: Any, connect: Callable[..., Any]) -> None:
        integration = connect()
        before = integration.fingerprint

        row = rotations.follow(work("fingerprints"))

        integration.refresh_from_db()
        assert (row.state, row.done) == ("done", 1)
        assert integration.fingerprint != before

    def test_is_in_the_audit_log_and_never_with_a_key(self, outdated: str, ada: User, path: Path) -> None:
        rotations.follow(rotations.start(Rotation.Kind.REWRAP, actor=ada))

        events = AuditEvent.objects.filter(action__startswith="vault.rotation").order_by("id")
        assert list(events.values_list("action", "actor")) == [
            ("vault.rotation_started", ada.email),
            ("vault.rotation_ended", "job"),
        ]
        stored = f"{list(events.values_list('detail'))} {vars(Rotation.objects.get())}"
        assert not any(text in stored for text in path.read_text().split('"') if len(text) == 44)

    def test_that_fails_too_often_lets_the_next_one_come_to_the_others(self, outdated: str, monkeypatch: Any) -> None:
        monkeypatch.setattr(rotations, "FAILED_MAX", 2)
        first = list(DataKey.objects.order_by("pk").values_list("pk", flat=True)[:3])
        DataKey.objects.filter(pk__in=first).update(wrapped=bytes(60))

        assert [rotations.follow(work()).done for _ in range(2)] == [0, 2]
        assert set(DataKey.objects.filter(kek_id=outdated).values_list("pk", flat=True)) == set(first)

    def test_notes_nothing_when_another_process_has_taken_it_up(self, outdated: str, monkeypatch: Any) -> None:
        """Its batch took longer than its claim."""
        row = work()
        rewrap = rotation.rewrap_batch

        def rewrap_slowly(*arguments: Any) -> Any:
            monkeypatch.setattr(rotation, "rewrap_batch", rewrap)
            batch = rewrap(*arguments)
            Rotation.objects.update(leased_until=database_now() - timedelta(seconds=1))
            rotations.carry_on()
            return batch

        monkeypatch.setattr(rotation, "rewrap_batch", rewrap_slowly)
        rotations.carry_on()

        row.refresh_from_db()
        assert (row.state, row.done, row.failed) == ("done", 3, {})

    def test_that_is_refused_makes_no_key_for_fingerprints(self, outdated: str) -> None:
        vault.fingerprints(Secret("x"), org_id="org_1", provider="claude")
        work("fingerprints")
        before = DataKey.objects.filter(purpose="fingerprint").count()
        held = rotations.live

        try:
            rotations.live = lambda: None  # Two starts at once: neither sees the other.
            with pytest.raises(RotationUnderWay):
                work("fingerprints")
        finally:
            rotations.live = held

        assert DataKey.objects.filter(purpose="fingerprint").count() == before == 2

    def test_that_was_killed_at_its_start_begins_all_the_same(
        self, connect: Callable[..., Any], simulator: Any, monkeypatch: Any
    ) -> None:
        """Without its new key, nothing would be left to do, and the known one would stay in use."""
        connect()
        with monkeypatch.context() as patched:
            patched.setattr(rotations, "_begin", lambda row, **_: None)
            work("fingerprints")
        before = DataKey.objects.filter(purpose="fingerprint").count()

        rotations.carry_on()

        row = Rotation.objects.get()
        assert (row.state, row.done) == ("done", 1)
        assert DataKey.objects.filter(purpose="fingerprint").count() == before + 1
        assert AuditEvent.objects.get(action="vault.rotation_started").actor == "test"

    def test_claims_it_for_longer_where_batches_are_calls(self, outdated: str, monkeypatch: Any) -> None:
        monkeypatch.setattr(LocalKeyring, "is_remote", True)

        assert rotations._lease() == rotations.LEASE_WITH_CALLS


class TestWorker:
    def test_deletes_keys_that_a_rotation_has_left(self, acme: Org, path: Path) -> None:
        vault.fingerprints(Secret("x"), org_id=acme.pk, provider="claude")
        for org in (acme, None):
            data_keys.current_key(org=org)
            data_keys.add_version(org=org, purpose=DataKey.Purpose.SEAL)
        rotations.follow(work("fingerprints"))
        assert DataKey.objects.count() == 6

        worker.finish_key_rotations()
        assert DataKey.objects.count() == 6, "a record may be on its way into the database"
        DataKey.objects.update(created_at=database_now() - timedelta(hours=2))
        worker.finish_key_rotations()

        assert set(DataKey.objects.values_list("version", flat=True)) == {2}
        assert DataKey.objects.count() == 3

    def test_takes_up_a_rotation_and_makes_no_query_of_its_own_without_one(self, outdated: str) -> None:
        (job,) = [job for job in worker.SLOW_JOBS if job.name == "rotate-keys"]
        schedule = Schedule([job])
        worker.run_due_jobs(schedule)  # The first look makes its row.
        DueJob.objects.update(due_at=database_now())
        assert Schedule([job]).due() == []
        row = work()

        worker.run_due_jobs(Schedule([job]))

        row.refresh_from_db()
        assert row.state == "done"


class TestCommand:
    def test_shows_and_carries_out_what_an_operator_has_started(self, outdated: str, ada: User) -> None:
        row = rotations.start(Rotation.Kind.REWRAP, actor=ada)
        status, said = StringIO(), StringIO()

        call_command("vault", "status", stdout=status)
        call_command("vault", "rotate", stdout=said)

        assert "Under way: Re-wrap the data keys" in status.getvalue()
        assert "Re-wrapped 5 data key(s)" in said.getvalue()
        row.refresh_from_db()
        assert (row.state, Rotation.objects.count()) == ("done", 1)

    def test_fails_where_the_outer_key_is_missing_and_leaves_it_to_workers(
        self, outdated: str, ada: User, path: Path
    ) -> None:
        rotations.start(Rotation.Kind.REWRAP, actor=ada)
        ring = path.read_text()
        path.unlink()

        with pytest.raises(CommandError, match="cannot be read"):
            call_command("vault", "rotate", stdout=StringIO())

        row = rotations.live()
        assert row is not None
        assert "cannot be read" in row.waiting
        path.write_text(ring)
        path.chmod(0o600)
        rotations.carry_on()
        assert rotations.live() is None

    def test_says_until_when_backups_need_a_key(self, outdated: str, settings: Any) -> None:
        settings.RENSEI_BACKUPS_KEPT_DAYS = 35
        call_command("vault", "rotate", stdout=StringIO())
        said = StringIO()
        KeyCheck.objects.update(emptied_at=database_now() - timedelta(hours=1))

        call_command("vault", "retire", outdated, stdout=said)

        until = database_now() + timedelta(days=35, hours=-1)
        assert f"The last of them is kept until {until:%Y-%m-%d}" in said.getvalue()


def test_a_sealed_record_opens_all_the_time(outdated: str, acme: Org) -> None:
    context = vault.SealContext(
        org=acme, record_id="int_1", field="api_key", version=1, provider="claude", destination="default"
    )
    sealed = vault.seal(Secret("text"), context=context)
    work()

    def check(row: Rotation) -> None:
        data_keys.unwrapped.clear()
        assert vault.open_sealed(sealed, context=context).reveal() == "text"

    rotations.carry_on(tell=check)
