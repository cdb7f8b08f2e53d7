import io
import json
import os
import stat
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from django.core.management import call_command
from django.core.management.base import CommandError
from django.db import IntegrityError, connection, transaction

from billing.integrity import anchor_keys, anchors, seals, verification
from billing.integrity.chains import LEDGER, RECORDS, Record
from billing.integrity.digests import START
from billing.models import CostEvent, LedgerAnchor, LedgerSeal, LineToSeal
from rensei.core.clock import database_now
from rensei.core.usage import Usage
from rensei.orgs.models import Org, User
from tests.billing.ledger_triggers import leave_out_audit_events, triggers_lifted
from tests.billing.record import record_adjustment

pytestmark = pytest.mark.django_db(transaction=True)

Lines = list[CostEvent]


@pytest.fixture(autouse=True)
def files(settings: Any, tmp_path: Path) -> Path:
    settings.RENSEI_LEDGER_ANCHOR_KEY = tmp_path / "keys" / "ledger_anchor.key"
    settings.RENSEI_LEDGER_ANCHORS = tmp_path / "anchors" / "ledger_anchors.jsonl"
    return tmp_path


@pytest.fixture
def other_org(eve: User) -> Org:
    return Org.objects.get(slug="evil")


@pytest.fixture
def lines(charge: Callable[..., CostEvent]) -> Lines:
    """Five lines of Acme's, sealed and signed twice: after the third and after the fifth."""
    written = [charge(usage=Usage(input_tokens=1000 * number)) for number in range(1, 4)]
    keep()
    written += [charge(usage=Usage(input_tokens=1000 * number)) for number in range(4, 6)]
    keep()
    return written


def keep() -> None:
    leave_out_audit_events()
    seals.seal()
    anchors.anchor()


def found() -> list[str]:
    return [str(difference) for difference in verification.differences()]


def sql(statement: str, *values: object) -> None:
    """Write past the application and past the triggers, as the owner of the database can."""
    with triggers_lifted(), connection.cursor() as cursor:
        cursor.execute(statement, values)


def change_amount(line: CostEvent) -> None:
    sql(
        "UPDATE billing_costevent SET input_tokens = 1, amount_picodollars = 5000000, billed_picodollars = 5000000 "
        "WHERE id = %s",
        line.id,
    )


def delete(*gone: CostEvent, with_seals: bool = False) -> None:
    for line in gone:
        sql("DELETE FROM billing_costevent WHERE id = %s", line.id)
        if with_seals:
            sql("DELETE FROM billing_ledgerseal WHERE event_id = %s", line.id)


def compute_anew(org: Org) -> None:
    """Make the chain fit again, with the very code that made it."""
    ordered = [CostEvent.objects.get(id=seal.event_id) for seal in LedgerSeal.objects.order_by("seq")]
    sql("DELETE FROM billing_ledgerseal WHERE org_id = %s", org.pk)
    LedgerSeal.objects.bulk_create(seals._continue_chain(LEDGER, org.pk, ordered, now=database_now()))


class TestSeal:
    def test_chains_each_line_once(self, acme: Org, lines: Lines) -> None:
        chain = LedgerSeal.objects.for_org(acme).order_by("seq")

        assert [seal.seq for seal in chain] == [1, 2, 3, 4, 5]
        assert {seal.event_id for seal in chain} == {line.id for line in lines}
        assert len({seal.digest for seal in chain}) == 5
        assert not LineToSeal.objects.exists()
        assert found() == []

    def test_seals_adjustments_too(self, charge: Callable[..., CostEvent]) -> None:
        line = charge(billed=False, estimated=True)
        keep()
        with transaction.atomic():
            record_adjustment(
                charge=line, usage=Usage(input_tokens=7), estimated=False, billed=True, occurred_at=line.occurred_at
            )

        keep()

        assert LedgerSeal.objects.count() == 2
        assert found() == []

    def test_takes_a_line_that_is_committed_late_under_an_early_id(self, lines: Lines) -> None:
        late = CostEvent.objects.get(id=lines[0].id)
        late.pk, late.attempt_id = "cost_00000000000000000000000000", "att_late"
        late.save(force_insert=True)

        keep()

        assert LedgerSeal.objects.get(seq=6).event_id == late.pk
        assert found() == []

    def test_knows_nothing_of_a_line_that_is_not_committed(self, charge: Callable[..., CostEvent]) -> None:
        with transaction.atomic():
            charge()
            transaction.set_rollback(True)

        seals.seal()

        assert not LineToSeal.objects.exists()
        assert not LedgerSeal.objects.exists()

    def test_goes_on_after_more_than_a_batch(
        self, charge: Callable[..., CostEvent], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(seals, "BATCH", 2)
        for _ in range(5):
            charge()

        seals.seal()

        assert LedgerSeal.objects.count() == 5

    def test_keeps_a_chain_for_each_organization(
        self, charge: Callable[..., CostEvent], acme: Org, other_org: Org
    ) -> None:
        for org in (acme, other_org, acme):
            charge(org_id=org.pk)

        keep()

        assert list(LedgerSeal.objects.for_org(acme).order_by("seq").values_list("seq", flat=True)) == [1, 2]
        assert LedgerSeal.objects.for_org(other_org).get().seq == 1
        assert found() == []

    def test_never_seals_twice_when_several_do_it(self, charge: Callable[..., CostEvent]) -> None:
        leave_out_audit_events()
        written = {charge().id for _ in range(40)}

        def work(_: int) -> None:
            try:
                seals.seal()
            except IntegrityError:
                pass  # The other one was first, and this transaction is undone whole.
            finally:
                connection.close()

        with ThreadPoolExecutor(4) as pool:
            list(pool.map(work, range(8)))
        keep()

        assert sorted(LedgerSeal.objects.values_list("event_id", flat=True)) == sorted(written)
        assert found() == []


class TestDigest:
    @pytest.mark.parametrize("record", RECORDS, ids=lambda record: record.kind)
    def test_covers_every_column(self, record: Record) -> None:
        assert set(record.columns) == {field.attname for field in record.rows._meta.concrete_fields}

    def test_is_the_same_on_every_database_and_in_every_version(self, acme: Org) -> None:
        Org.objects.create(pk="org_vector", slug="vector", name="Vector")
        line = CostEvent(
            id="cost_vector",
            org_id="org_vector",
            kind="charge",
            run_id="run_vector",
            attempt_id="att_vector",
            auth_mode="byok",
            payer="organization",
            billing_class="byok.anthropic",
            provider="claude",
            model_id="claude-opus-4-1-20250514",
            served_model_id="claude-opus-5-5",
            input_tokens=1000,
            billed=False,
            occurred_at=datetime(2026, 3, 14, 12, 0, 0, 250, tzinfo=UTC),
        )
        line.save(force_insert=True)
        stored = CostEvent.objects.get(id="cost_vector")

        made = LEDGER.digest(stored, seq=1, previous=START)

        assert made == "70ef54bf783c2dfbb5dd9b20bdc55693f0fcac96e9260f3dd8d18c13cf3b8546"


class TestAnchor:
    def test_signs_a_chain_only_when_it_has_grown(self, lines: Lines) -> None:
        anchors.anchor()

        assert list(LedgerAnchor.objects.order_by("pk").values_list("seq", flat=True)) == [3, 5]

    def test_writes_the_same_to_the_file(self, lines: Lines, settings: Any) -> None:
        written = [json.loads(line) for line in settings.RENSEI_LEDGER_ANCHORS.read_text().splitlines()]

        assert [(line["lines"], line["signature"]) for line in written] == list(
            LedgerAnchor.objects.order_by("pk").values_list("seq", "signature")
        )

    def test_makes_up_for_what_a_crash_kept_from_the_file(self, lines: Lines, settings: Any) -> None:
        path = settings.RENSEI_LEDGER_ANCHORS
        whole = path.read_text()
        path.write_text(whole.splitlines(keepends=True)[0])

        anchors.anchor()

        assert path.read_text() == whole

    def test_makes_a_key_that_only_its_owner_reads(self, lines: Lines, settings: Any) -> None:
        mode = settings.RENSEI_LEDGER_ANCHOR_KEY.stat().st_mode

        assert stat.S_IMODE(mode) == 0o600
        # Nothing else is left behind but the mark.
        key = settings.RENSEI_LEDGER_ANCHOR_KEY
        assert sorted(key.parent.iterdir()) == [key, anchors.mark_path()]

    def test_makes_no_second_key_where_something_was_signed(
        self, lines: Lines, charge: Callable[..., CostEvent], settings: Any
    ) -> None:
        settings.RENSEI_LEDGER_ANCHOR_KEY.unlink()
        charge()
        seals.seal()

        with pytest.raises(anchor_keys.AnchorKeyUnavailable):
            anchors.anchor()

        assert not settings.RENSEI_LEDGER_ANCHOR_KEY.exists()

    def test_refuses_a_key_that_others_read(
        self, lines: Lines, charge: Callable[..., CostEvent], settings: Any
    ) -> None:
        settings.RENSEI_LEDGER_ANCHOR_KEY.chmod(0o644)
        charge()
        seals.seal()

        with pytest.raises(anchor_keys.AnchorKeyUnavailable, match="chmod 600"):
            anchors.anchor()


class TestTampering:
    """Each by somebody who owns the database, and who may know how seals are made, but has neither key nor file."""

    def test_with_an_amount_is_found(self, lines: Lines) -> None:
        change_amount(lines[1])

        (difference,) = found()
        assert lines[1].id in difference

    @pytest.mark.parametrize(
        ("column", "value"), [("provider_request_id", "x"), ("thinking_tokens", 1), ("payer", "organization")]
    )
    def test_with_any_column_is_found(self, lines: Lines, column: str, value: object) -> None:
        sql(f"UPDATE billing_costevent SET {column} = %s WHERE id = %s", value, lines[2].id)

        (difference,) = found()
        assert lines[2].id in difference

    @pytest.mark.parametrize("with_seals", [False, True])
    def test_by_deleting_a_line_in_the_middle_is_found(self, lines: Lines, with_seals: bool) -> None:
        delete(lines[2], with_seals=with_seals)

        (difference,) = found()
        assert ("seal 3" if with_seals else lines[2].id) in difference

    def test_by_swapping_two_lines_is_found(self, lines: Lines) -> None:
        first, second = lines[1].id, lines[3].id
        for old, new in ((first, "cost_between"), (second, first), ("cost_between", second)):
            sql("UPDATE billing_costevent SET id = %s WHERE id = %s", new, old)

        (difference,) = found()
        assert first in difference

    def test_by_swapping_two_seals_is_found(self, lines: Lines) -> None:
        first, second = lines[1].id, lines[3].id
        for old, new in ((first, "cost_between"), (second, first), ("cost_between", second)):
            sql("UPDATE billing_ledgerseal SET event_id = %s WHERE event_id = %s", new, old)

        (difference,) = found()
        assert second in difference

    def test_by_moving_a_line_to_another_organization_is_found(self, lines: Lines, other_org: Org) -> None:
        sql("UPDATE billing_costevent SET org_id = %s WHERE id = %s", other_org.pk, lines[1].id)

        (difference,) = found()
        assert lines[1].id in difference

    @pytest.mark.parametrize("with_seals", [False, True])
    def test_by_deleting_the_newest_lines_is_found(self, lines: Lines, with_seals: bool) -> None:
        delete(*lines[3:], with_seals=with_seals)

        (difference,) = found()
        assert ("seal 4" if with_seals else lines[3].id) in difference

    @pytest.mark.parametrize("with_anchors", [False, True])
    def test_by_deleting_all_of_an_organization_is_found(
        self, lines: Lines, acme: Org, settings: Any, with_anchors: bool
    ) -> None:
        delete(*lines, with_seals=True)
        if with_anchors:
            sql("DELETE FROM billing_ledgeranchor WHERE org_id = %s", acme.pk)

        differences = found()
        # Without the anchors in the database, the file and the mark still know of them.
        assert len(differences) == (3 if with_anchors else 1)
        assert all(acme.pk in difference or "the mark" in difference for difference in differences)

    def test_by_computing_everything_anew_is_found(self, lines: Lines, acme: Org) -> None:
        change_amount(lines[3])
        compute_anew(acme)

        (difference,) = found()
        assert "seals 4 to 5" in difference

    def test_by_computing_everything_anew_without_its_anchors_is_found(self, lines: Lines, acme: Org) -> None:
        change_amount(lines[1])
        compute_anew(acme)
        sql("DELETE FROM billing_ledgeranchor WHERE org_id = %s", acme.pk)

        by_mark, *by_file = found()
        assert "the mark" in by_mark
        assert len(by_file) == 2
        assert all("anchors' file" in difference for difference in by_file)

    def test_by_signing_with_another_key_is_found(self, lines: Lines, acme: Org) -> None:
        change_amount(lines[1])
        compute_anew(acme)
        for anchor in LedgerAnchor.objects.all():
            anchor.digest = LedgerSeal.objects.get(seq=anchor.seq).digest
            signature = anchor_keys.sign(anchor, os.urandom(32))
            sql(
                "UPDATE billing_ledgeranchor SET digest = %s, signature = %s WHERE id = %s",
                anchor.digest,
                signature,
                anchor.pk,
            )

        assert any("another signature" in difference for difference in found())

    def test_with_the_file_is_found(self, lines: Lines, settings: Any) -> None:
        path = settings.RENSEI_LEDGER_ANCHORS
        path.write_text(path.read_text().replace('"lines": 3', '"lines": 2') + "nonsense\n")

        assert [difference for difference in found() if "line 1 of" in difference]
        assert [difference for difference in found() if "line 3 of" in difference]

    def test_by_hiding_a_line_from_the_sealer_is_found(self, lines: Lines, charge: Callable[..., CostEvent]) -> None:
        hidden = charge(occurred_at=database_now())
        sql("DELETE FROM billing_linetoseal WHERE event_id = %s", hidden.id)

        (difference,) = found()
        assert hidden.id in difference

    def test_by_deleting_a_line_before_its_seal_is_found(self, lines: Lines, charge: Callable[..., CostEvent]) -> None:
        unsealed = charge()
        delete(unsealed)
        seals.seal()

        (difference,) = found()
        assert unsealed.id in difference

    def test_by_writing_a_line_anew_is_found_and_stops_no_sealer(
        self, lines: Lines, charge: Callable[..., CostEvent]
    ) -> None:
        changed = CostEvent.objects.get(id=lines[1].id)
        delete(changed)
        changed.provider_request_id = "another"
        changed.save(force_insert=True)
        charge()
        keep()

        (difference,) = found()
        assert changed.id in difference
        assert LedgerSeal.objects.count() == 6


class TestWaiting:
    def test_is_no_difference_at_first(self, charge: Callable[..., CostEvent]) -> None:
        charge(occurred_at=database_now())

        assert found() == []

    def test_is_one_when_nobody_seals(self, charge: Callable[..., CostEvent]) -> None:
        line = charge(occurred_at=database_now() - verification.SEALED_WITHIN - timedelta(seconds=1))

        (difference,) = found()
        assert line.id in difference


class TestSealedTables:
    @pytest.mark.parametrize("table", ["billing_ledgerseal", "billing_ledgeranchor"])
    @pytest.mark.parametrize("change", ["UPDATE {table} SET digest = 'x'", "DELETE FROM {table}"])
    def test_are_never_changed(self, lines: Lines, table: str, change: str) -> None:
        with pytest.raises(IntegrityError, match="append-only"), connection.cursor() as cursor:
            cursor.execute(change.format(table=table))

        assert found() == []

    @pytest.mark.postgres
    @pytest.mark.parametrize("table", ["billing_ledgerseal", "billing_ledgeranchor"])
    def test_are_never_emptied(self, lines: Lines, table: str) -> None:
        with pytest.raises(IntegrityError, match="append-only"), connection.cursor() as cursor:
            cursor.execute(f"TRUNCATE {table}")


class TestVerifyLedger:
    def test_says_that_nothing_was_changed(self, lines: Lines) -> None:
        out = io.StringIO()

        call_command("verify_ledger", stdout=out)

        first, newest, mark, file = out.getvalue().splitlines()
        assert first == "5 sealed line(s), 0 sealed audit event(s) and 2 anchor(s): nothing was changed."
        assert newest.startswith("The newest anchor is 2 of ")
        assert mark == "The mark beside the key vouches up to anchor 2: 5 line(s) and 0 audit event(s)."
        assert "ledger_anchors.jsonl vouches up to anchor 2 of " in file

    def test_fails_and_names_the_first_bad_line_of_each_chain(self, lines: Lines) -> None:
        change_amount(lines[1])
        change_amount(lines[2])
        out = io.StringIO()

        with pytest.raises(CommandError, match="1 difference"):
            call_command("verify_ledger", "--json", stdout=out)

        difference = json.loads(out.getvalue())
        assert (difference["kind"], difference["object"]) == ("seal", lines[1].id)

    def test_says_that_the_key_is_missing(self, lines: Lines, settings: Any) -> None:
        settings.RENSEI_LEDGER_ANCHOR_KEY.unlink()
        out = io.StringIO()

        with pytest.raises(CommandError):
            call_command("verify_ledger", stdout=out)

        assert out.getvalue().startswith("anchor-key")
