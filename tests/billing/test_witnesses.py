"""Cutting the end of the ledger, by somebody who has the database and the anchors' file but not the key."""

import io
import json
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
from django.core import mail
from django.core.management import call_command
from django.core.management.base import CommandError
from django.db import IntegrityError, connection
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from billing.integrity import anchor_keys, anchors, seals, verification, witnesses
from billing.integrity.anchor_files import content_of
from billing.models import CostEvent, LedgerAnchor, LedgerSeal, LedgerWitness
from rensei.orgs.models import Org, User
from tests.billing.ledger_triggers import leave_out_audit_events, triggers_lifted
from tests.drawn import examples

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture(autouse=True)
def files(settings: Any, tmp_path: Path) -> Path:
    settings.RENSEI_LEDGER_ANCHOR_KEY = tmp_path / "keys" / "ledger_anchor.key"
    settings.RENSEI_LEDGER_ANCHORS = tmp_path / "anchors.jsonl"
    return tmp_path


@pytest.fixture
def history(charge: Callable[..., CostEvent]) -> list[CostEvent]:
    """Five lines of Acme's, each sealed and signed by itself."""
    return [_keep(charge()) for _ in range(5)]


class Receiver:
    """A witness behind an address, which keeps what it is sent."""

    def __init__(self) -> None:
        self.status = 204
        self.lines: list[dict[str, Any]] = []
        witness = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["content-length"]))
                if witness.status == 204:
                    witness.lines += [json.loads(line) for line in body.splitlines()]
                self.send_response(witness.status)
                self.send_header("location", "http://127.0.0.1:9/")
                self.end_headers()

            def log_message(self, *args: object) -> None:
                pass

        self.server = HTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}/anchors"


@pytest.fixture
def receiver(settings: Any) -> Iterator[Receiver]:
    made = Receiver()
    settings.RENSEI_LEDGER_WITNESS_URL = made.url
    thread = threading.Thread(target=made.server.serve_forever)
    thread.start()
    yield made
    made.server.shutdown()
    thread.join()
    made.server.server_close()


def _keep(line: CostEvent) -> CostEvent:
    leave_out_audit_events()
    seals.seal()
    anchors.anchor()
    return line


def cut(path: Path, *, after: int) -> None:
    """Delete the newest lines with their seals and anchors, and trim the file, so that all of it fits together."""
    with triggers_lifted(), connection.cursor() as cursor:
        gone = list(LedgerSeal.objects.filter(seq__gt=after).values_list("event_id", flat=True))
        for event_id in gone:
            cursor.execute("DELETE FROM billing_costevent WHERE id = %s", [event_id])
        cursor.execute("DELETE FROM billing_ledgerseal WHERE seq > %s", [after])
        cursor.execute("DELETE FROM billing_ledgeranchor WHERE seq > %s", [after])
    trim(path, after=after)


def trim(path: Path, *, after: int) -> None:
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join(line for line in lines if json.loads(line)["lines"] <= after))


def found(*kept_elsewhere: Path) -> list[str]:
    return [str(difference) for difference in verification.differences(kept_elsewhere)]


class TestTheChainOfAnchors:
    def test_is_one_for_all_organizations(
        self, charge: Callable[..., CostEvent], history: list[CostEvent], eve: User
    ) -> None:
        evil = Org.objects.get(slug="evil")
        charge(org_id=evil.pk)
        _keep(charge())

        chain = list(LedgerAnchor.objects.order_by("counter"))

        assert [each.counter for each in chain] == [1, 2, 3, 4, 5, 6, 7]
        assert [each.previous for each in chain] == ["", *(anchors.digest_of(each) for each in chain[:-1])]
        assert {each.org_id for each in chain[5:]} == {history[0].org_id, evil.pk}
        assert found() == []

    @pytest.mark.parametrize("column", ["counter", "previous"])
    def test_is_signed(self, history: list[CostEvent], column: str) -> None:
        (last,) = LedgerAnchor.objects.filter(counter=5)
        before = anchor_keys.sign(last, anchor_keys.active())
        setattr(last, column, 9 if column == "counter" else "x")

        assert anchor_keys.sign(last, anchor_keys.active()) != before

    def test_lacks_no_anchor_in_the_middle(self, history: list[CostEvent], settings: Any) -> None:
        with triggers_lifted(), connection.cursor() as cursor:
            cursor.execute("DELETE FROM billing_ledgeranchor WHERE counter = 3")
        path = settings.RENSEI_LEDGER_ANCHORS
        path.write_text("".join(path.read_text().splitlines(keepends=True)[i] for i in (0, 1, 3, 4)))

        (difference,) = found()
        assert "anchor 3" in difference

    def test_goes_on_after_anchors_of_before_it(self, charge: Callable[..., CostEvent], settings: Any) -> None:
        _keep(charge())
        key = anchor_keys.active()
        with triggers_lifted():
            old = LedgerAnchor.objects.get()
            old.counter, old.previous = None, ""
            old.signature = anchor_keys.sign(old, key)
            old.save()
        anchors.mark_path().unlink()
        settings.RENSEI_LEDGER_ANCHORS.unlink()

        _keep(charge())

        assert LedgerAnchor.objects.get(counter=1).previous == anchors.digest_of(old)
        assert found() == []

    def test_is_not_forked_by_two_workers(self, history: list[CostEvent], charge: Callable[..., CostEvent]) -> None:
        charge()
        seals.seal()
        heads = anchors._grown_chains()
        anchors._sign_heads(heads)

        with pytest.raises(IntegrityError):
            anchors._sign_heads(heads)


class TestCuttingTheEnd:
    """Of everything that the database and the anchors' file hold."""

    @pytest.mark.parametrize("after", [0, 1, 4])
    def test_is_told_by_the_mark_beside_the_key(self, history: list[CostEvent], settings: Any, after: int) -> None:
        cut(settings.RENSEI_LEDGER_ANCHORS, after=after)

        (difference,) = found()

        assert "the mark beside the key" in difference
        assert "anchor 5" in difference
        with pytest.raises(CommandError, match="1 difference"):
            call_command("verify_ledger", stdout=io.StringIO())

    def test_stops_the_signing_so_that_nothing_covers_it_up(
        self, history: list[CostEvent], settings: Any, charge: Callable[..., CostEvent]
    ) -> None:
        cut(settings.RENSEI_LEDGER_ANCHORS, after=3)
        charge()
        seals.seal()

        for _ in range(2):
            with pytest.raises(anchors.AnchorsCut, match="anchor 5"):
                anchors.anchor()

        assert LedgerAnchor.objects.count() == 3
        assert "anchor 5" in found()[0]

    @pytest.mark.parametrize("text", ["", "{}", "nonsense", '{"counter": 3, "digest": "x", "signature": "y"}'])
    def test_with_another_mark_is_told(self, history: list[CostEvent], settings: Any, text: str) -> None:
        cut(settings.RENSEI_LEDGER_ANCHORS, after=3)
        anchors.mark_path().write_text(text)

        (difference,) = found()

        assert "a mark by our key" in difference

    @pytest.mark.parametrize("mark", ["removed", "put back"])
    @pytest.mark.parametrize("witness", ["file", "kept elsewhere", "address", "mail"])
    def test_with_the_mark_is_told_by_each_witness(
        self,
        charge: Callable[..., CostEvent],
        settings: Any,
        tmp_path: Path,
        receiver: Receiver,
        witness: str,
        mark: str,
    ) -> None:
        settings.RENSEI_LEDGER_WITNESS_EMAIL = "witness@example.test"
        if witness == "file":
            settings.RENSEI_LEDGER_WITNESS_FILE = str(tmp_path / "elsewhere" / "anchors.jsonl")
        for _ in range(3):
            _keep(charge())
        old_mark = anchors.mark_path().read_text()
        for _ in range(2):
            _keep(charge())
        witnesses.tell()
        copies = {
            "file": "",
            "kept elsewhere": settings.RENSEI_LEDGER_ANCHORS.read_text(),
            "address": "".join(json.dumps(line) + "\n" for line in receiver.lines),
            "mail": next(line for line in str(mail.outbox[0].body).splitlines() if line.startswith("{")),
        }
        cut(settings.RENSEI_LEDGER_ANCHORS, after=3)
        anchors.mark_path().unlink()
        if mark == "put back":
            anchors.mark_path().write_text(old_mark)
        # Nothing that is left here knows of it.
        kept = tmp_path / "kept.jsonl"
        kept.write_text(copies[witness])
        if witness != "file":
            assert found() == []

        differences = found(kept)

        assert differences
        assert all(("elsewhere" if witness == "file" else "kept.jsonl") in each for each in differences)

    @hypothesis_settings(max_examples=examples(15), suppress_health_check=[HealthCheck.function_scoped_fixture])
    @given(written=st.integers(2, 6), data=st.data())
    def test_at_any_place_of_any_history_is_told(
        self, charge: Callable[..., CostEvent], settings: Any, written: int, data: st.DataObject
    ) -> None:
        with triggers_lifted(), connection.cursor() as cursor:
            for table in ("costevent", "ledgerseal", "ledgeranchor"):
                cursor.execute(f"DELETE FROM billing_{table}")
        for path in (anchors.mark_path(), settings.RENSEI_LEDGER_ANCHORS):
            path.unlink(missing_ok=True)
        for _ in range(written):
            _keep(charge())
        assert found() == []

        cut(settings.RENSEI_LEDGER_ANCHORS, after=data.draw(st.integers(0, written - 1)))

        assert f"anchor {written}" in found()[0]


class TestTell:
    def test_tells_an_address_each_anchor_once(
        self, history: list[CostEvent], receiver: Receiver, charge: Callable[..., CostEvent]
    ) -> None:
        witnesses.tell()
        _keep(charge())
        witnesses.tell()
        witnesses.tell()

        assert [line["counter"] for line in receiver.lines] == [1, 2, 3, 4, 5, 6]
        assert receiver.lines[5] == content_of(LedgerAnchor.objects.get(counter=6))

    @pytest.mark.parametrize("status", [302, 404, 500])
    def test_tells_again_what_was_not_taken(self, history: list[CostEvent], receiver: Receiver, status: int) -> None:
        receiver.status = status
        witnesses.tell()
        assert LedgerWitness.objects.get().last_error == f"the address answered {status}"
        receiver.status = 204

        witnesses.tell()

        witness = LedgerWitness.objects.get()
        assert len(receiver.lines) == 5
        assert (witness.counter, witness.last_error) == (5, "")

    def test_holds_no_connection_while_it_waits(
        self, history: list[CostEvent], receiver: Receiver, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        held: list[bool] = []
        post = witnesses.httpx2.post

        def look_then_post(*args: Any, **rest: Any) -> Any:
            held.append(connection.connection is not None)
            return post(*args, **rest)

        monkeypatch.setattr(witnesses.httpx2, "post", look_then_post)

        witnesses.tell()

        assert held == [False]

    @pytest.mark.parametrize("address", ["http://witness.example.test/", "ftp://127.0.0.1/", "nonsense", "https://"])
    def test_sends_nothing_to_an_address_that_is_none(
        self, history: list[CostEvent], settings: Any, address: str
    ) -> None:
        settings.RENSEI_LEDGER_WITNESS_URL = address

        witnesses.tell()

        assert LedgerWitness.objects.get().counter == 0
        assert LedgerWitness.objects.get().last_error

    def test_mails_the_newest_once_an_hour(
        self, history: list[CostEvent], settings: Any, charge: Callable[..., CostEvent]
    ) -> None:
        settings.RENSEI_LEDGER_WITNESS_EMAIL = "witness@example.test"
        witnesses.tell()
        _keep(charge())
        witnesses.tell()
        assert [each.subject for each in mail.outbox] == ["Rensei ledger: anchor 5"]
        LedgerWitness.objects.update(told_at=history[0].occurred_at)

        witnesses.tell()

        assert [each.subject for each in mail.outbox][1:] == ["Rensei ledger: anchor 6"]


class TestVerifyLedger:
    def test_says_which_witness_vouches_up_to_where(
        self, history: list[CostEvent], receiver: Receiver, settings: Any, tmp_path: Path
    ) -> None:
        settings.RENSEI_LEDGER_WITNESS_FILE = str(tmp_path / "second.jsonl")
        witnesses.tell()
        out = io.StringIO()

        call_command("verify_ledger", stdout=out)

        assert "The mark beside the key vouches up to anchor 5: 5 line(s) and 0 audit event(s)." in out.getvalue()
        assert "second.jsonl holds no anchor." in out.getvalue()
        assert f"{receiver.url} was told up to anchor 5; compare with --witness." in out.getvalue()

    def test_compares_with_what_a_witness_holds(self, history: list[CostEvent], tmp_path: Path) -> None:
        kept = tmp_path / "kept.jsonl"
        kept.write_text("".join(json.dumps(content_of(each)) + "\n" for each in LedgerAnchor.objects.all()))
        call_command("verify_ledger", "--witness", str(kept), stdout=io.StringIO())
        kept.write_text(kept.read_text().replace('"lines": 5', '"lines": 4'))

        with pytest.raises(CommandError):
            call_command("verify_ledger", "--witness", str(kept), stdout=io.StringIO())

    def test_misses_a_file_that_is_not_there(self) -> None:
        with pytest.raises(CommandError, match="no file"):
            call_command("verify_ledger", "--witness", "/nowhere")
