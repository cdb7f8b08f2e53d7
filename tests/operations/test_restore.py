"""The drill of docs/operations.md: a backup is restored elsewhere, with its keyring, without it, with another one."""

import json
import sqlite3
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest

from integrations.vault import keyring
from tests import servers
from tests.operations.installation import Installation

pytestmark = pytest.mark.timeout(900)
KEYS = 9


def lived_in(folder: Path, database_url: str, provider: Any) -> Installation:
    found = Installation(folder=folder, database_url=database_url, provider_url=provider.url)
    found.live("make")
    return found


@pytest.fixture(scope="module")
def on_sqlite(simulator_process: Any, tmp_path_factory: pytest.TempPathFactory) -> Installation:
    folder = tmp_path_factory.mktemp("lost")
    return lived_in(folder, f"sqlite:///{folder}/rensei.sqlite3", simulator_process)


@pytest.fixture(scope="module")
def on_postgresql(simulator_process: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Installation]:
    with servers.start_postgres() as url:
        with psycopg.connect(f"{url.rsplit('/', 1)[0]}/postgres", autocommit=True) as connection:
            connection.execute("CREATE DATABASE rensei")
            connection.execute("CREATE DATABASE restored")
        yield lived_in(tmp_path_factory.mktemp("lost"), url, simulator_process)


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
