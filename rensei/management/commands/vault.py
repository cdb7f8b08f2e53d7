"""`manage.py vault`: which outer keys there are, and changing them and the data keys while the server runs."""

import json
from argparse import ArgumentParser
from itertools import chain
from pathlib import Path
from typing import Any

from django.conf import settings
from django.core.management.base import BaseCommand, CommandError

from billing.integrity import anchor_keys, anchors, receipts
from billing.integrity.anchor_keys import AnchorKeyUnavailable
from billing.integrity.anchors import AnchorsCut
from integrations.keys import break_glass, fingerprints, rotations
from integrations.models import DataKey, KeyCheck, Rotation
from integrations.vault import data_keys, destruction, issuer, kek_providers, keyring, rotation, sealed
from integrations.vault.errors import VaultFault
from integrations.vault.rotation import KekInUse
from rensei import launcher, sealing
from rensei.audit.record import record_system
from rensei.core.errors import RenseiError
from rensei.core.querysets import pages
from rensei.core.transactions import durable
from rensei.layout import MANAGE
from rensei.orgs.models import Org


class Command(BaseCommand):
    help = "Show the vault's outer keys, and rotate them and the data keys while the server runs."

    def add_arguments(self, parser: ArgumentParser) -> None:
        actions = parser.add_subparsers(dest="action", required=True)
        actions.add_parser("status", help="what wraps the data keys")
        new = actions.add_parser("new-key", help="add a key to the keyring, and use it from now on")
        new.add_argument("--staged", action="store_true", help="only unwrap by it, until `rotate --to`")
        rotate = actions.add_parser(
            "rotate", help="re-wrap all data keys by the current outer key; start it again freely"
        )
        rotate.add_argument("--to", metavar="KEK", help="first make this key of the keyring the current one")
        rotate.add_argument("--dry-run", action="store_true", help="only say what would be done")
        again = actions.add_parser("rotate-data-keys", help="seal all records again, by new data keys")
        again.add_argument("--org", metavar="SLUG", help="only this organization's")
        again.add_argument("--resume", action="store_true", help="make no new data keys, finish earlier calls")
        issuing = actions.add_parser("rotate-issuer-key", help="make another key that signs this server's identity")
        issuing.add_argument(
            "--at-once", action="store_true", help="sign by it now, and remove the others: for a key that others know"
        )
        printing = actions.add_parser("rotate-fingerprint-key", help="make the fingerprints of all keys anew")
        printing.add_argument("--resume", action="store_true", help="make no new key, finish earlier calls")
        secret = actions.add_parser("rotate-secret-key", help="sign sessions and links by another SECRET_KEY")
        secret.add_argument(
            "--at-once", action="store_true", help="refuse what the old one has signed: for a key that others know"
        )
        secret.add_argument("--finish", action="store_true", help="make no new key, and forget the old ones")
        anchoring = actions.add_parser("rotate-anchor-key", help="sign the ledger's anchors by another key")
        anchoring.add_argument("--staged", action="store_true", help="only add the key to its file, to be copied")
        anchoring.add_argument(
            "--known-to-others", action="store_true", help="accept no receipt of the old key any more"
        )
        actions.add_parser("verify", help="unwrap every data key")
        retire = actions.add_parser("retire", help="say whether an outer key is still needed, and remove it")
        retire.add_argument("kek", metavar="KEK")
        retire.add_argument(
            "--no-backup-needs-it", action="store_true", help="remove the key from the keyring, for good"
        )

        export = actions.add_parser("export-key", help="print a key whose export two operators have agreed on, once")
        export.add_argument("request", metavar="REQUEST", help="the id of the break-glass request")
        destroy = actions.add_parser("destroy-keys", help="destroy an organization's data keys, for good")
        destroy.add_argument("--org", metavar="SLUG", required=True)
        destroy.add_argument("--confirm", metavar="SLUG", help="the same name again; asked for if left out")
        destroy.add_argument("--by", metavar="WHO", required=True, help="who orders it, for the receipt")
        check = actions.add_parser("check-receipt", help="say whether a receipt is one of this installation")
        check.add_argument("file", type=Path)

    def handle(self, *, action: str, **options: Any) -> None:
        try:
            getattr(self, f"_{action.replace('-', '_')}")(**options)
        except AnchorKeyUnavailable as fault:
            raise CommandError(f"The anchors' key cannot be used: {fault}.") from None
        except (VaultFault, RenseiError, KekInUse, AnchorsCut) as fault:
            raise CommandError(str(fault)) from None

    def _status(self, **options: Any) -> None:
        provider = kek_providers.current()
        current = (provider.current_id(), provider.current_version())
        for each in kek_providers.configured():
            self.stdout.write(f"{'current ' if each is provider else '        '}{each.describe()}")
        for held in rotation.holdings():
            marked = "current" if (held.kek_id, held.version) == current else ""
            self.stdout.write(f"{held.count:>10} data keys  {held.kek_id} {held.version} {marked}".rstrip())
        self.stdout.write(f"{rotation.outdated().count():>10} to re-wrap")
        if row := rotations.live():
            self.stdout.write(f"Under way: {row.get_kind_display()}, since {row.started_at:%Y-%m-%d %H:%M} UTC")
            self._tell(row)
        self._other_keys()

    def _other_keys(self) -> None:
        self.stdout.write(f"SECRET_KEY: {len(settings.SECRET_KEY_FALLBACKS)} before it are accepted")
        self.stdout.write(f"fingerprints: key {fingerprints.version()}, {fingerprints.outdated().count()} to make anew")
        self.stdout.write(f"identity: {len(issuer.key_ids())} key(s) published")
        try:
            keys = anchor_keys.load()
        except AnchorKeyUnavailable as fault:
            self.stdout.write(f"anchors: the key cannot be used: {fault}")
        else:
            self.stdout.write(f"anchors: {keys.active_id}, after {len(keys.handovers)} hand-over(s)")

    def _new_key(self, *, staged: bool, **options: Any) -> None:
        kek_id = keyring.add_key(_keyring(), current=not staged)
        _record("vault.outer_key_added", kek_id, current=not staged)
        self.stdout.write(f"Added {kek_id}. Copy the keyring to every machine and to its backup.")
        then = f"vault rotate --to {kek_id}" if staged else "vault rotate"
        self.stdout.write(f"Then: {MANAGE} {then}")

    def _rotate(self, *, to: str | None, dry_run: bool, **options: Any) -> None:
        if dry_run:
            provider = kek_providers.current()
            target = f"{to or provider.current_id()} {provider.current_version()}".strip()
            left = DataKey.objects.exclude(kek_id=to).count() if to else rotation.outdated().count()
            self.stdout.write(f"{left} data key(s) would be re-wrapped by {target}. Nothing was changed.")
            return
        if to:
            keyring.make_current(_keyring(), to)
            _record("vault.outer_key_chosen", to)
        row = self._carry_out(Rotation.Kind.REWRAP)
        if row.failed:
            raise CommandError(f"{len(row.failed)} data key(s) were not re-wrapped. They are as they were.")
        self.stdout.write(f"Re-wrapped {row.done} data key(s), {row.rate:.0f} in a second. None is left.")

    def _carry_out(self, kind: Rotation.Kind, *, resume: bool = False) -> Rotation:
        """Do what a worker does in the background, or show what it does. One that is under way is taken up."""
        row = rotations.live()
        if row is None or row.kind != kind:
            row = rotations.start(kind, actor="command", resume=resume)
        row = rotations.follow(row, tell=self._tell)
        for name, reason in row.failed.items():
            self.stderr.write(f"{name}: {reason}")
        if row.state == Rotation.State.STOPPED:
            raise CommandError("An operator has stopped it. Start it again: it goes on where it was.")
        return row

    def _tell(self, row: Rotation) -> None:
        waiting = f" Waiting: {row.waiting}." if row.waiting else ""
        self.stdout.write(f"{row.done} done, {row.left} left, {row.rate:.0f}/s.{waiting}")
        self.stdout.flush()

    def _rotate_data_keys(self, *, org: str | None, resume: bool, **options: Any) -> None:
        owners = Org.objects.filter(data_keys__purpose=DataKey.Purpose.SEAL).distinct()
        if org:
            owners = owners.filter(slug=org)
            if not owners.exists():
                raise CommandError(f"No organization '{org}' has a data key.")
        _record("vault.data_keys_rotated", org or "all", resumed=resume)
        work = sealing.reseal if resume else sealing.rotate_data_key
        records = deleted = 0
        failed: dict[str, str] = {}
        for owner in [*chain.from_iterable(pages(owners, size=sealed.BATCH)), *([] if org else [None])]:
            done = work(owner)
            records, deleted, failed = records + done.records, deleted + done.keys_deleted, {**failed, **done.failed}
        for name, reason in failed.items():
            self.stderr.write(f"{name}: {reason}")
        self.stdout.write(f"Sealed {records} record(s) again, and deleted {deleted} old data key(s).")
        if failed:
            raise CommandError(f"{len(failed)} record(s) do not open. They are as they were.")
        self.stdout.write(f"Old data keys are deleted by `{MANAGE} vault rotate-data-keys --resume` an hour from now.")

    def _rotate_issuer_key(self, *, at_once: bool, **options: Any) -> None:
        key = issuer.rotate(actor="command", at_once=at_once)
        self.stdout.write(
            f"{key.id} is published at {issuer.issuer_url()}{issuer.KEYS_PATH} and signs from "
            f"{key.signs_from:%Y-%m-%d %H:%M} UTC on. Where the Console has the keys inline, paste them there before."
        )

    def _rotate_fingerprint_key(self, *, resume: bool, **options: Any) -> None:
        row = self._carry_out(Rotation.Kind.FINGERPRINTS, resume=resume)
        self.stdout.write(f"Made {row.done} fingerprint(s) anew.")
        if row.failed:
            raise CommandError(f"{len(row.failed)} fingerprint(s) are as they were.")
        self.stdout.write(f"Old keys are deleted by `{MANAGE} vault rotate-fingerprint-key --resume` an hour from now.")

    def _rotate_secret_key(self, *, at_once: bool, finish: bool, **options: Any) -> None:
        path = settings.SECRET_KEY_PATH
        if path is None:
            raise CommandError(
                "SECRET_KEY comes from the environment. Move its value to SECRET_KEY_FALLBACKS, give it another one "
                "everywhere, and restart. Empty SECRET_KEY_FALLBACKS after 14 days; at once if others know the old key."
            )
        _record("vault.secret_key_rotated", "SECRET_KEY", finished=finish, at_once=at_once)
        try:
            if finish:
                launcher.forget_old_secret_keys(path)
            else:
                launcher.rotate_secret_key(path, keep_old=not at_once)
        except OSError as fault:
            raise CommandError(f"{path} cannot be changed ({fault.strerror}).") from None
        if finish or at_once:
            self.stdout.write("Restart the server. What the old key has signed is refused then: people sign in again.")
        else:
            self.stdout.write(
                "Restart the server: it signs by the new key, and still accepts the old one. After 14 days, when the "
                f"last session has ended or was signed again: {MANAGE} vault rotate-secret-key --finish"
            )

    def _rotate_anchor_key(self, *, staged: bool, known_to_others: bool, **options: Any) -> None:
        path = settings.RENSEI_LEDGER_ANCHOR_KEY
        if staged or not anchor_keys.load().staged:
            added = anchor_keys.add(path)
            self.stdout.write(f"Added {added} to {path}. Copy the file to every machine and to its backup.")
        if staged:
            self.stdout.write(f"Then: {MANAGE} vault rotate-anchor-key")
            return
        key_id = anchors.hand_over(actor="command", known=known_to_others)
        self.stdout.write(
            f"{key_id} signs from now on. The file keeps the keys before it, which verify older anchors and receipts."
        )
        keys = anchor_keys.load()
        if unnoted := keys.known - keys.noted:
            self.stdout.write(f"{path} cannot be changed. In every copy, write `known ` before {', '.join(unnoted)}.")

    def _verify(self, **options: Any) -> None:
        row = self._carry_out(Rotation.Kind.VERIFY)
        if row.failed:
            raise CommandError(f"{len(row.failed)} data key(s) do not unwrap.")
        self.stdout.write("Every data key unwraps.")

    def _retire(self, *, kek: str, no_backup_needs_it: bool, **options: Any) -> None:
        rotation.require_unused(kek)
        check = KeyCheck.objects.filter(pk=kek).first()
        if check is None:
            raise CommandError(f"{kek} has never wrapped a data key.")
        if not no_backup_needs_it:
            self.stdout.write(
                f"No data key needs {kek}. {rotation.backups_needing(check)} When no such backup is left, run this "
                "again with --no-backup-needs-it."
            )
            return
        rotation.retire(check, actor="command")
        self.stdout.write(
            f"{kek} is retired. If it was in a key service, or the current key of a keyring that no longer wraps, take "
            "that out of RENSEI_KEK_URL, and then destroy the key or the keyring's file."
        )

    def _export_key(self, *, request: str, **options: Any) -> None:
        self.stdout.write(break_glass.export(request).reveal())

    def _destroy_keys(self, *, org: str, confirm: str | None, by: str, **options: Any) -> None:
        owner = Org.objects.filter(slug=org).first()
        if owner is None:
            raise CommandError(f"There is no organization '{org}'.")
        if confirm is None:
            confirm = input(f"Every stored key of {owner.name} becomes unreadable, for good. Type {org} to destroy: ")
        if confirm != org:
            raise CommandError("Nothing was destroyed: the names differ.")
        receipt = destruction.destroy_keys(
            owner, actor=by, backups_kept_days=settings.RENSEI_BACKUPS_KEPT_DAYS, sign=receipts.sign
        )
        self.stdout.write(json.dumps(receipt, indent=2))

    def _check_receipt(self, *, file: Path, **options: Any) -> None:
        try:
            receipt = json.loads(file.read_text())
            signature = str(receipt.pop("signature"))
        except (OSError, ValueError, KeyError, AttributeError, TypeError):
            raise CommandError("This is no receipt.") from None
        if not receipts.is_signed(receipt, signature):
            raise CommandError("This receipt was not signed with this installation's key, or was changed.")
        remaining = DataKey.objects.filter(pk__in=[key["id"] for key in receipt["dataKeys"]]).count()
        if remaining:
            raise CommandError(f"The receipt is genuine, but {remaining} of its data keys are in this database.")
        self.stdout.write("The receipt is genuine, and this database has none of its data keys.")


def _record(action: str, name: str, **what: bool) -> None:
    """Record what the command does. What cannot be undone is recorded before."""
    with durable():
        record_system("command", action, object_id=data_keys.audited_name(name), what=what)


def _keyring() -> Path:
    path = next(kek_providers.keyring_paths(), None)
    if path is None:
        raise CommandError("RENSEI_KEK_URL names no keyring. A key service makes its keys and versions itself.")
    return path
