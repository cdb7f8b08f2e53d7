"""
`python -m tests.chaos.rotation`: kill a re-wrapping of data keys at random moments, while keys are opened all the time.

The suite carries out a small one on each database; `make chaos` has 100,000 organizations and 50 kills.
"""

import argparse
import os
import random
import secrets
import subprocess
import sys
import tempfile
import threading
import time
import uuid
from dataclasses import dataclass, field
from pathlib import Path

from tests import servers

ROOT = Path(__file__).parents[2]
PROGRAM = """
import django; django.setup()
from datetime import timedelta
from integrations.keys import rotations
from integrations.models import Rotation
from integrations.vault import rotation
rotation.BATCH = int({batch})
# The claim of a process that was killed ends at once.
rotations.LEASE = timedelta(0)
print("ready", flush=True)
row = rotations.live() or rotations.start(Rotation.Kind.REWRAP, actor="chaos")
assert not rotations.follow(row).failed
"""


@dataclass(kw_only=True)
class Verdict:
    kills: int = 0
    opened: int = 0
    left: int = 0
    # Data keys re-wrapped in a second of work.
    rate: int = 0
    failed: list[str] = field(default_factory=list)


def make_owners(count: int) -> None:
    """Make organizations, each with a data key wrapped by the current key."""
    from integrations.models import DataKey
    from integrations.vault import data_keys, kek_providers
    from rensei.orgs.models import Org

    data_keys.note_first_use(kek_providers.current().current_id())
    for first in range(0, count, 2_000):
        numbers = range(first, min(first + 2_000, count))
        orgs = Org.objects.bulk_create([Org(name=f"Org {number}", slug=f"org-{number}") for number in numbers])
        rows = [DataKey(id=uuid.uuid4(), org=org, version=1) for org in orgs]
        for row in rows:
            data_keys.wrap(row, secrets.token_bytes(32))
        DataKey.objects.bulk_create(rows)


def carry_out(*, kills: int, batch: int, seconds: float, environment: dict[str, str]) -> Verdict:
    """
    Re-wrap everything by the current key in processes that are killed, and open data keys meanwhile.

    :param seconds: a process is killed within this time after it is ready
    """
    from integrations.keys import rotations
    from integrations.models import Rotation
    from integrations.vault import rotation

    verdict, stop = Verdict(), threading.Event()
    opener = threading.Thread(target=_open_all_the_time, args=(verdict, stop))
    opener.start()
    try:
        while verdict.kills < kills and rotation.outdated().exists():
            process = _start(batch, environment)
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
            time.sleep(random.uniform(0, seconds))
            process.kill()
            process.communicate()
            verdict.kills += 1
        _start(batch, environment).communicate()
        rows = list(Rotation.objects.all())
        verdict.rate = round(sum(row.done for row in rows) / sum(row.seconds for row in rows))
        verdict.left = rotation.outdated().count()
        checked = rotations.follow(rotations.start(Rotation.Kind.VERIFY, actor="chaos"))
        verdict.failed += [f"{key}: {reason}" for key, reason in checked.failed.items()]
    finally:
        stop.set()
        opener.join()
    return verdict


def _start(batch: int, environment: dict[str, str]) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, "-c", PROGRAM.format(batch=batch)],
        cwd=ROOT,
        env={**os.environ, **environment},
        stdout=subprocess.PIPE,
        text=True,
    )


def _open_all_the_time(verdict: Verdict, stop: threading.Event) -> None:
    from django.db import connection

    from integrations.models import DataKey
    from integrations.vault import data_keys
    from integrations.vault.errors import VaultFault

    ids = list(DataKey.objects.values_list("pk", flat=True))
    try:
        while not stop.is_set():
            row = DataKey.objects.get(pk=random.choice(ids))
            try:
                data_keys.unwrap(row)
            except VaultFault as fault:
                verdict.failed.append(str(fault))
            verdict.opened += 1
    finally:
        connection.close()


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--orgs", type=int, default=100_000)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--database", choices=["sqlite", "postgres"], default="sqlite")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="rensei-rotation-") as folder:
        if options.database == "sqlite":
            return _run(options, Path(folder), f"sqlite:///{folder}/rensei.sqlite3")
        with servers.run_postgres() as server:
            return _run(options, Path(folder), server.url)


def _run(options: argparse.Namespace, folder: Path, url: str) -> int:
    environment = {
        "DATABASE_URL": url,
        "RENSEI_DATA_DIR": str(folder),
        "SECRET_KEY": secrets.token_urlsafe(40),
        "DJANGO_SETTINGS_MODULE": "rensei.settings",
    }
    os.environ.update(environment)
    import django

    django.setup()
    from django.core.management import call_command

    from integrations.vault import keyring

    call_command("migrate", verbosity=0, interactive=False, skip_checks=True)
    path = folder / "keyring.json"
    keyring.ensure(path)
    make_owners(options.orgs)
    keyring.add_key(path, current=True)
    verdict = carry_out(kills=options.kills, batch=200, seconds=1.0, environment=environment)
    print(f"{options.database}, {options.orgs} organizations: {verdict}")
    return int(bool(verdict.failed or verdict.left))


if __name__ == "__main__":
    sys.exit(main())
