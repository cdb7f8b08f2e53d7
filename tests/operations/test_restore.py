"""The drill of docs/operations.md: a backup is restored elsewhere, with its keyring, without it, with another one."""

import json
import shutil
import sqlite3
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest

from integrations.vault import keyring
from tests import servers
from tests.operations.installation import Installation

pytestmark = pytest.mark.timeout(900)
KEYS = 9


@pytest.fixture(scope="module")
def lived_in(
    simulator_process: Any, collected_files: Path, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], Installation]:
    """Live a while in an installation on a migrated database."""

    def make(database_url: str) -> Installation:
        found = Installation(
            folder=tmp_path_factory.mktemp("lost"),
            database_url=database_url,
            provider_url=simulator_process.url,
            static_files=collected_files,
        )
        found.live("make")
        return found

    return make


@pytest.fixture(scope="module")
def on_sqlite(
    migrated: str, lived_in: Callable[[str], Installation], tmp_path_factory: pytest.TempPathFactory
) -> Installation:
    database = shutil.copy(migrated, tmp_path_factory.mktemp("lost") / "rensei.sqlite3")
    return lived_in(f"sqlite:///{database}")


@pytest.fixture(scope="module")
def on_postgresql(migrated_postgres: Path, lived_in: Callable[[str], Installation]) -> Iterator[Installation]:
    with servers.run_postgres(copy_of=migrated_postgres) as running:
        with psycopg.connect(running.url, autocommit=True) as connection:
            connection.execute("CREATE DATABASE restored")
        yield lived_in(running.url)


def restore_sqlite(lost: Installation, folder: Path) -> Installation:
    """Back up as the document says, and put the file where another installation looks for it."""
    with sqlite3.connect(lost.database_url.removeprefix("sqlite:///")) as connection:
        connection.execute("VACUUM INTO ?", [str(folder.parent / "backup.sqlite3")])
    connection.close()
    elsewhere = lost.at(folder)
    (folder.parent / "backup.sqlite3").rename(folder / "rensei.sqlite3")
    return elsewhere.with_database(f"sqlite:///{folder}/rensei.sqlite3")


def restore_postgresql(lost: Installation, folder: Path) -> Installation:
    programs = servers.find_postgres()
    assert programs is not None
    backup, restored = folder.parent / "backup.dump", f"{lost.database_url.rsplit('/', 1)[0]}/restored"
    for command in (
        [programs / "pg_dump", "--format=custom", f"--file={backup}", lost.database_url],
        [programs / "pg_restore", "--exit-on-error", "--no-owner", f"--dbname={restored}", backup],
    ):
        subprocess.run(command, check=True, capture_output=True)
    return lost.at(folder).with_database(restored)


def look(installation: Installation) -> dict[str, Any]:
    said: dict[str, Any] = json.loads(installation.live("look"))
    return said


def assert_opens(installation: Installation) -> None:
    prepared = installation.manage("prepare")
    assert prepared.returncode == 0, prepared.stderr
    found = look(installation)
    assert (found["keys"], found["count"]) == (["opens"], KEYS)
    assert (found["run"], found["code"]) == ("SUCCEEDED", None)
    # Nobody works there yet, and that is all.
    assert [missing for missing in found["missing"] if "worker" not in missing] == []


def assert_shut(installation: Installation, *, because: str) -> None:
    found = look(installation)
    assert found["status"] == 503
    assert any("The vault is shut" in missing and because in missing for missing in found["missing"]), found["missing"]
    assert (found["keys"], found["count"]) == (["CREDENTIAL_UNREADABLE"], KEYS)
    assert (found["run"], found["code"]) == ("FAILED", "CREDENTIAL_UNREADABLE")


def drill(elsewhere: Installation) -> None:
    """Without the keyring and with another one nothing opens and nothing is overwritten; with it everything does."""
    kept = elsewhere.keyring.read_bytes()
    assert_opens(elsewhere)

    elsewhere.keyring.unlink()
    prepared = elsewhere.manage("prepare")
    assert prepared.returncode == 0, prepared.stderr
    assert not elsewhere.keyring.exists()
    assert_shut(elsewhere, because="the keyring cannot be read")

    keyring.create(elsewhere.keyring)
    another = elsewhere.keyring.read_bytes()
    assert_shut(elsewhere, because="9 stored credential(s) need it")
    assert elsewhere.keyring.read_bytes() == another

    elsewhere.keyring.write_bytes(kept)
    assert_opens(elsewhere)


class TestRestore:
    @pytest.mark.sqlite
    def test_of_sqlite_needs_the_keyring_and_says_so(self, on_sqlite: Installation, tmp_path: Path) -> None:
        drill(restore_sqlite(on_sqlite, tmp_path / "elsewhere"))

    @pytest.mark.postgres
    def test_of_postgresql_needs_the_keyring_and_says_so(self, on_postgresql: Installation, tmp_path: Path) -> None:
        drill(restore_postgresql(on_postgresql, tmp_path / "elsewhere"))
