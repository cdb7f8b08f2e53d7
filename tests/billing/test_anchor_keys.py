"""Replacing the key that signs the anchors: what the old key signed still verifies, and neither key can rewrite it."""

import json
import secrets
from collections.abc import Callable
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from django.core.management import CommandError, call_command
from django.db import connection

from billing.integrity import anchor_keys, anchors, receipts, sealed_file, seals, verification
from billing.integrity.anchor_keys import AnchorKeyUnavailable
from billing.models import CostEvent, LedgerAnchor
from rensei.audit.models import AuditEvent
from rensei.core import private_files
from rensei.dispatch import receipts as run_receipts
from tests.billing.ledger_triggers import triggers_lifted

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture(autouse=True)
def path(settings: Any, tmp_path: Path) -> Path:
    settings.RENSEI_LEDGER_ANCHOR_KEY = tmp_path / "keys" / "ledger_anchor.key"
    settings.RENSEI_LEDGER_ANCHORS = tmp_path / "anchors.jsonl"
    return tmp_path / "keys" / "ledger_anchor.key"


def manage(*arguments: str) -> str:
    said = StringIO()
    call_command("vault", *arguments, stdout=said, stderr=said)
    return said.getvalue()


def keep(line: CostEvent) -> None:
    seals.seal()
    anchors.anchor()


def found() -> list[str]:
    return [str(difference) for difference in verification.differences()]


def ids() -> list[str]:
    return list(anchor_keys.load().by_id)


class TestHandOver:
    def test_verifies_across_any_number_of_keys(self, charge: Callable[..., CostEvent], path: Path) -> None:
        keep(charge())
        for _ in range(3):
            manage("rotate-anchor-key")
            keep(charge())

        keys = anchor_keys.load()

        assert found() == []
        assert len(keys.by_id) == 4
        assert [key_id for _, key_id in keys.handovers] == ids()[1:]
        assert keys.active == list(keys.by_id.values())[-1]
        assert AuditEvent.objects.filter(action=anchors.KEY_ROTATED).count() == 3
        text = settings_text(path)
        assert not any(key.hex() in text for key in keys.by_id.values())

    def test_is_done_on_several_machines_in_two_steps(self, charge: Callable[..., CostEvent], path: Path) -> None:
        keep(charge())
        before = path.read_text()
        manage("rotate-anchor-key", "--staged")
        with_both = path.read_text()
        keep(charge())
        assert anchor_keys.active().hex() in before
        path.write_text(before)
        with pytest.raises(AnchorKeyUnavailable, match="no next key"):
            anchors.hand_over(actor="x")
        path.write_text(with_both)

        assert "Added" not in manage("rotate-anchor-key")

        # A machine that was left out signs nothing and says why.
        path.write_text(before)
        charge()
        seals.seal()
        with pytest.raises(AnchorKeyUnavailable, match="copy the file to every machine"):
            anchors.anchor()
        assert "copy the file" in found()[0]
        path.write_text(with_both)
        keep(charge())
        assert found() == []

    def test_leaves_the_old_key_without_power(self, charge: Callable[..., CostEvent]) -> None:
        """A person who knows the old key and can write to the database signs a further anchor."""
        keep(charge())
        old = anchor_keys.active()
        manage("rotate-anchor-key")
        keep(charge())

        with triggers_lifted():
            last = LedgerAnchor.objects.exclude(org=None).latest("counter")
            last.signature = anchor_keys.sign(last, old)
            last.save()

        assert any("a signature by our key" in line for line in found())

    def test_fixes_what_the_old_key_has_signed(self, charge: Callable[..., CostEvent]) -> None:
        """The same person signs an anchor from before the hand-over again."""
        keep(charge())
        old = anchor_keys.active()
        manage("rotate-anchor-key")

        with triggers_lifted():
            first = LedgerAnchor.objects.exclude(org=None).earliest("counter")
            first.digest = "0" * 64
            first.signature = anchor_keys.sign(first, old)
            first.save()

        assert any("of the anchor before" in line for line in found())

    def test_that_nobody_signed_counts_for_nothing(self, charge: Callable[..., CostEvent], path: Path) -> None:
        keep(charge())
        old = anchor_keys.active()
        manage("rotate-anchor-key", "--staged")
        with connection.cursor() as cursor, triggers_lifted():
            cursor.execute("UPDATE billing_ledgeranchor SET next_key = %s", [ids()[1]])

        assert anchor_keys.active() == old
        assert any("a signature by our key" in line for line in found())

    def test_reaches_witnesses_and_exports(self, charge: Callable[..., CostEvent], settings: Any) -> None:
        keep(charge())
        manage("rotate-anchor-key")
        keep(charge())
        export = StringIO()
        call_command("export_ledger", "--audit", stdout=export)

        witness = settings.RENSEI_LEDGER_ANCHORS.read_text().splitlines()
        result = sealed_file.verify(export.getvalue().splitlines(), {"witness": witness})

        assert [json.loads(line)["nextKey"] for line in witness if "nextKey" in line] == ids()[1:]
        assert result.wrong == []
        forged = [line.replace(ids()[1], secrets.token_hex(16)) for line in witness]
        assert "does not continue" in sealed_file.verify(export.getvalue().splitlines(), {"w": forged}).wrong[0]

    def test_keeps_receipts_unless_others_know_the_key(self, charge: Callable[..., CostEvent]) -> None:
        keep(charge())
        signature = receipts.sign({"what": "keys"})
        manage("rotate-anchor-key")
        later = receipts.sign({"what": "keys"})
        assert receipts.is_signed({"what": "keys"}, signature)

        manage("rotate-anchor-key", "--known-to-others")

        assert receipts.is_signed({"what": "keys"}, signature)
        assert not receipts.is_signed({"what": "keys"}, later)
        keep(charge())
        assert found() == []

    def test_is_not_followed_by_an_anchor_of_a_worker_that_read_the_keys_before(
        self, charge: Callable[..., CostEvent], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        keep(charge())
        charge()
        seals.seal()
        ensure = anchors._ensure_keys

        def ensure_and_lose_the_turn() -> Any:
            found = ensure()
            monkeypatch.setattr(anchors, "_ensure_keys", ensure)
            charge()
            manage("rotate-anchor-key")
            return found

        monkeypatch.setattr(anchors, "_ensure_keys", ensure_and_lose_the_turn)
        anchors.anchor()

        assert found() == []

    def test_of_two_at_once_is_one(
        self, charge: Callable[..., CostEvent], monkeypatch: pytest.MonkeyPatch, path: Path
    ) -> None:
        keep(charge())
        manage("rotate-anchor-key", "--staged")
        seal = seals.seal

        def seal_and_lose_the_turn() -> None:
            monkeypatch.setattr(seals, "seal", seal)
            manage("rotate-anchor-key")
            seal()

        monkeypatch.setattr(seals, "seal", seal_and_lose_the_turn)
        with pytest.raises(CommandError, match="another command"):
            manage("rotate-anchor-key")

        keep(charge())
        assert found() == []
        assert AuditEvent.objects.filter(action=anchors.KEY_ROTATED).count() == 1

    def test_leaves_keys_that_never_signed_without_a_say(self, charge: Callable[..., CostEvent]) -> None:
        keep(charge())
        manage("rotate-anchor-key", "--staged")
        manage("rotate-anchor-key", "--staged")
        skipped = list(anchor_keys.load().by_id.values())[1]
        manage("rotate-anchor-key")

        assert skipped not in anchor_keys.load().replaced.values()
        assert not receipts.is_signed({"what": "keys"}, receipts._sign({"what": "keys"}, skipped))

    def test_that_cannot_write_the_file_says_what_to_do(self, charge: Any, path: Path, monkeypatch: Any) -> None:
        keep(charge())

        def refuse(*arguments: object) -> None:
            raise PermissionError(13, "Permission denied")

        monkeypatch.setattr(anchor_keys.private_files, "replace", refuse)

        with pytest.raises(CommandError, match="change a copy of it"):
            manage("rotate-anchor-key")

    @pytest.mark.parametrize("text", ["", "\n", "00", "known", "known 00", "x" * 64, f"{'0' * 64} {'1' * 64}", "é"])
    def test_reads_no_damaged_file(self, path: Path, text: str) -> None:
        path.parent.mkdir()
        path.touch(0o600)
        path.write_text(text)

        with pytest.raises(AnchorKeyUnavailable, match="damaged"):
            anchor_keys.load()


class TestAKeyThatOthersKnow:
    @pytest.fixture
    def forged(self, charge: Callable[..., CostEvent]) -> str:
        """A receipt that is signed with the first key."""
        keep(charge())
        return receipts.sign({"what": "forged"})

    def test_is_distrusted_on_every_machine(self, forged: str, path: Path) -> None:
        manage("rotate-anchor-key", "--staged")
        copied = path.read_text()
        manage("rotate-anchor-key", "--known-to-others")

        assert "known" in path.read_text()
        path.write_text(copied)

        assert not receipts.is_signed({"what": "forged"}, forged)
        assert "known" not in [key["status"] for key in run_receipts.public_keys()]
        assert len(run_receipts.public_keys()) == 1
        anchors.anchor()
        assert path.read_text().startswith("known ")

    def test_is_distrusted_if_the_command_is_killed_after_the_hand_over(
        self, forged: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        change = anchor_keys._change
        calls = []

        def die(*arguments: Any) -> None:
            calls.append(arguments)
            if len(calls) > 1:
                raise KeyboardInterrupt
            change(*arguments)

        monkeypatch.setattr(anchor_keys, "_change", die)
        with pytest.raises(KeyboardInterrupt):
            manage("rotate-anchor-key", "--known-to-others")

        assert not receipts.is_signed({"what": "forged"}, forged)

    def test_is_distrusted_where_the_file_cannot_be_changed(
        self, forged: str, monkeypatch: pytest.MonkeyPatch, path: Path
    ) -> None:
        manage("rotate-anchor-key", "--staged")
        replace = private_files.replace

        def refuse(target: Path, text: str) -> None:
            if target == path:
                raise PermissionError(30, "Read-only file system")
            replace(target, text)

        monkeypatch.setattr(private_files, "replace", refuse)

        assert f"write `known ` before {ids()[0]}" in manage("rotate-anchor-key", "--known-to-others")
        assert not receipts.is_signed({"what": "forged"}, forged)

    @pytest.mark.parametrize("has_mark", [True, False])
    def test_does_not_sign_again_with_an_older_database(
        self, forged: str, charge: Callable[..., CostEvent], has_mark: bool, path: Path
    ) -> None:
        """As a restored backup is, or one from which the hand-over was removed."""
        arguments = [] if has_mark else ["--known-to-others"]
        manage("rotate-anchor-key", *arguments)
        keep(charge())
        remove_hand_over()
        if not has_mark:
            anchors.mark_path().unlink()

        for use in (receipts.sign, lambda content: receipts.is_signed(content, forged)):
            with pytest.raises(AnchorKeyUnavailable):
                use({"what": "forged"})
        assert run_receipts.public_keys() == []
        charge()
        seals.seal()
        with pytest.raises((AnchorKeyUnavailable, anchors.AnchorsCut)):
            anchors.anchor()
        assert found()

    def test_signs_no_mark_of_later_anchors(self, forged: str, charge: Callable[..., CostEvent]) -> None:
        old = anchor_keys.active()
        manage("rotate-anchor-key", "--known-to-others")
        keep(charge())
        newest = LedgerAnchor.objects.latest("counter")
        signature = anchors._sign_mark(newest.counter, anchors.digest_of(newest), old)
        content = {"counter": newest.counter, "digest": anchors.digest_of(newest), "signature": signature}
        anchors.mark_path().write_text(json.dumps(content))

        assert any("a mark by our key" in line for line in found())


def remove_hand_over() -> None:
    with triggers_lifted():
        counter = LedgerAnchor.objects.exclude(next_key="").earliest("counter").counter
        LedgerAnchor.objects.filter(counter__gte=counter).delete()


def settings_text(path: Path) -> str:
    """Everything that is written outside of the key's file."""
    rows = [json.dumps(event.detail) for event in AuditEvent.objects.all()]
    files = [other.read_text() for other in path.parents[1].rglob("*") if other.is_file() and other != path]
    return "\n".join([*rows, *files])
