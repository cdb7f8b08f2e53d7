"""`manage.py vault`: which outer keys there are, and changing them and the data keys while the server runs."""

import json
from argparse import ArgumentParser
from itertools import chain
from pathlib import Path
from typing import Any

from django.conf import settings
from django.core.management.base import BaseCommand, CommandError

from billing.integrity import receipts
from billing.integrity.anchors import AnchorKeyUnavailable

# Four of these register what they seal.
from integrations.keys import credentials, platform  # noqa: F401
from integrations.models import DataKey, KeyCheck
from integrations.vault import destruction, issuer, kek_providers, keyring, rotation, sealed
from integrations.vault.errors import VaultFault
from integrations.vault.rotation import KekInUse, Progress
from rensei import mfa_adapter  # noqa: F401
from rensei.core.errors import RenseiError
from rensei.core.querysets import pages
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
        actions.add_parser("verify", help="unwrap every data key")
        retire = actions.add_parser("retire", help="say whether an outer key is still needed, and remove it")
        retire.add_argument("kek", metavar="KEK")
        retire.add_argument(
            "--no-backup-needs-it", action="store_true", help="remove the key from the keyring, for good"
        )

        destroy = actions.add_parser("destroy-keys", help="destroy an organization's data keys, for good")
        destroy.add_argument("--org", metavar="SLUG", required=True)
        destroy.add_argument("--confirm", metavar="SLUG", help="the same name again; asked for if left out")
        destroy.add_argument("--by", metavar="WHO", required=True, help="who orders it, for the receipt")
        check = actions.add_parser("check-receipt", help="say whether a receipt is one of this installation")
        check.add_argument("file", type=Path)

    def handle(self, *, action: str, **options: Any) -> None:
        try:
            getattr(self, f"_{action.replace('-', '_')}")(**options)
        except (VaultFault, RenseiError, KekInUse, AnchorKeyUnavailable) as fault:
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

    def _new_key(self, *, staged: bool, **options: Any) -> None:
        kek_id = keyring.add_key(_keyring(), current=not staged)
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
        progress = rotation.rewrap(tell=self._tell)
        for key_id, reason in progress.failed.items():
            self.stderr.write(f"{key_id}: {reason}")
        if progress.failed:
            raise CommandError(f"{len(progress.failed)} data key(s) were not re-wrapped. They are as they were.")
        self.stdout.write(
            f"Re-wrapped {progress.rewrapped} data key(s), {progress.rate:.0f} in a second. None is left."
        )

    def _tell(self, progress: Progress) -> None:
        waiting = " The key service does not answer; waiting." if progress.is_waiting else ""
        self.stdout.write(f"{progress.rewrapped} re-wrapped, {progress.left} left, {progress.rate:.0f}/s.{waiting}")
        self.stdout.flush()

    def _rotate_data_keys(self, *, org: str | None, resume: bool, **options: Any) -> None:
        owners = Org.objects.filter(data_keys__purpose=DataKey.Purpose.SEAL).distinct()
        if org:
            owners = owners.filter(slug=org)
            if not owners.exists():
                raise CommandError(f"No organization '{org}' has a data key.")
        work = sealed.reseal if resume else sealed.rotate_data_key
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

    def _verify(self, **options: Any) -> None:
        failed = rotation.verify(tell=lambda count: self.stdout.write(f"{count} unwrapped"))
        for key_id, reason in failed.items():
            self.stderr.write(f"{key_id}: {reason}")
        if failed:
            raise CommandError(f"{len(failed)} data key(s) do not unwrap.")
        self.stdout.write("Every data key unwraps.")

    def _retire(self, *, kek: str, no_backup_needs_it: bool, **options: Any) -> None:
        rotation.require_unused(kek)
        check = KeyCheck.objects.filter(pk=kek).first()
        if check is None:
            raise CommandError(f"{kek} has never wrapped a data key.")
        when = f"{check.emptied_at:%Y-%m-%d %H:%M} UTC" if check.emptied_at else "the last rotation"
        if not no_backup_needs_it:
            self.stdout.write(
                f"No data key needs {kek}. A backup of the database from before {when} does. When no such backup is "
                "left, run this again with --no-backup-needs-it."
            )
            return
        path = next(kek_providers.keyring_paths(), None)
        if kek.startswith(keyring.ID_PREFIX) and path is not None and kek != keyring.load(path).current:
            keyring.remove_key(path, kek)
        check.delete()
        self.stdout.write(
            f"{kek} is retired. If it was in a key service, or the current key of a keyring that no longer wraps, take "
            "that out of RENSEI_KEK_URL, and then destroy the key or the keyring's file."
        )

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


def _keyring() -> Path:
    path = next(kek_providers.keyring_paths(), None)
    if path is None:
        raise CommandError("RENSEI_KEK_URL names no keyring. A key service makes its keys and versions itself.")
    return path
