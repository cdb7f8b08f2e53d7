"""`manage.py move_database`, as an operator runs it: a lived-in SQLite database, and a real PostgreSQL server."""

import json
import secrets
import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest

from integrations.vault import keyring
from tests import servers
from tests.operations.installation import Installation

pytestmark = [pytest.mark.postgres, pytest.mark.timeout(900)]

# Without rows in these, the move was not tried.
FILLED = {
    "auth_group_permissions",
    "billing_auditseal",
    "billing_budgethold",
    "billing_costevent",
    "billing_eventtoseal",
    "billing_hold",
    "billing_ledgeranchor",
    "billing_ledgerseal",
    "billing_linetoseal",
    "billing_usagedaily",
    "catalog_price",
    "dispatch_attempt",
    "dispatch_idempotencykey",
    "dispatch_run",
    "dispatch_runchunk",
    "dispatch_runinput",
    "django_admin_log",
    "django_session",
    "integrations_datakey",
    "integrations_integration",
    "integrations_keycheck",
    "integrations_platformkey",
    "audit_auditevent",
    "orgs_user_groups",
}
# A moment that is not over yet, as SQLite keeps it.
SOON = "strftime('%Y-%m-%d %H:%M:%f', 'now', '20 seconds')"


@pytest.fixture(scope="module")
def server(migrated_postgres: Path) -> Iterator[str]:
    with servers.run_postgres(copy_of=migrated_postgres) as running:
        yield running.url


@pytest.fixture(scope="module")
def old(simulator_process: Any, tmp_path_factory: pytest.TempPathFactory) -> Installation:
    """A lived-in installation on SQLite."""
    folder = tmp_path_factory.mktemp("old")
    found = Installation(
        folder=folder, database_url=f"sqlite:///{folder}/rensei.sqlite3", provider_url=simulator_process.url
    )
    found.live("make")
    return found


@pytest.fixture
def make_target(server: str) -> Callable[[], str]:
    """Make a migrated and otherwise empty database."""

    def make() -> str:
        name = f"target_{secrets.token_hex(8)}"
        execute(at(server, "postgres"), f"CREATE DATABASE {name} TEMPLATE rensei")
        return at(server, name)

    return make


@pytest.fixture
def copied(old: Installation, tmp_path: Path) -> Installation:
    """The lived-in installation once more, to be spoilt. The keyring is the same."""
    path = tmp_path / "rensei.sqlite3"
    with sqlite3.connect(file_of(old)) as connection:
        connection.execute("VACUUM INTO ?", [str(path)])
    return old.with_database(f"sqlite:///{path}")


def at(server: str, name: str) -> str:
    return f"{server.rsplit('/', 1)[0]}/{name}"


def execute(url: str, *statements: str) -> list[Any]:
    """Run statements in a database of PostgreSQL, and give the rows of the last."""
    with psycopg.connect(url, autocommit=True) as connection:
        for statement in statements:
            cursor = connection.execute(statement)
        return cursor.fetchall() if cursor.description else []


def file_of(installation: Installation) -> str:
    return installation.database_url.removeprefix("sqlite:///")


def spoil(installation: Installation, statement: str) -> None:
    with sqlite3.connect(file_of(installation)) as connection:
        connection.execute(statement)
    connection.close()


def move(installation: Installation, target: str) -> Any:
    return installation.with_database(target).manage("move_database", "--from", installation.database_url)


def everything(installation: Installation) -> dict[tuple[str, str], Any]:
    """All rows, as Django's own serializer writes them."""
    done = installation.manage("dumpdata", "--all")
    assert done.returncode == 0, done.stderr
    return {(row["model"], str(row["pk"])): row["fields"] for row in json.loads(done.stdout)}


def row_counts(url: str) -> dict[str, int]:
    names = execute(url, "SELECT tablename FROM pg_tables WHERE schemaname = 'public' ORDER BY 1")
    return {name: execute(url, f'SELECT count(*) FROM "{name}"')[0][0] for (name,) in names}


class TestMoveDatabase:
    def test_takes_every_row_along_and_the_installation_goes_on(
        self, old: Installation, make_target: Callable[[], str], tmp_path: Path
    ) -> None:
        target = make_target()
        before = everything(old)
        new = old.at(tmp_path / "new").with_database(target)

        moved = new.manage("move_database", "--from", old.database_url)

        assert moved.returncode == 0, moved.stderr
        after = everything(new)
        # It has tried whether the keys can be opened here, and each opening is recorded.
        added = after.keys() - before.keys()
        assert all(
            model == "integrations.keyopening" and after[model, key]["actor"] == "move_database" for model, key in added
        )
        assert {place: after[place] for place in after.keys() - added} == before
        counts = row_counts(target)
        assert {name for name, count in counts.items() if count} >= FILLED
        assert (counts["billing_linetoseal"], counts["billing_eventtoseal"]) == (1, 1)
        assert "9 sealed key(s) open." in moved.stdout
        # What was queued is executed, every sequence goes on, the sealed keys sign calls, and the audit agrees.
        new.live("go-on")

    def test_leaves_the_ledger_append_only(self, old: Installation, make_target: Callable[[], str]) -> None:
        target = make_target()
        assert move(old, target).returncode == 0

        for table in ("billing_costevent", "billing_ledgerseal", "billing_ledgeranchor"):
            with pytest.raises(psycopg.errors.IntegrityConstraintViolation, match="append-only"):
                execute(target, f"DELETE FROM {table}")

    def test_refuses_a_target_that_is_not_empty(self, old: Installation, make_target: Callable[[], str]) -> None:
        target = make_target()
        assert old.with_database(target).manage("load_catalog").returncode == 0
        before = row_counts(target)

        moved = move(old, target)

        assert moved.returncode == 1
        assert "not empty: there are rows in " in moved.stderr
        assert "catalog_catalogentry, " in moved.stderr
        assert "Nothing was moved." in moved.stderr
        assert row_counts(target) == before

    @pytest.mark.parametrize(
        ("damage", "refusal"),
        [
            (
                f"INSERT INTO core_workerheartbeat (worker, seen_at) VALUES ('w1', {SOON})",
                "Workers are running on the source, or were just now: w1",
            ),
            (
                f"UPDATE dispatch_run SET state = 'RUNNING', lease_until = {SOON} WHERE state = 'QUEUED'",
                "Runs are under way on the source: run_",
            ),
            (
                "DELETE FROM django_migrations WHERE app = 'billing' AND name LIKE '0002%'",
                "The source lacks migrations",
            ),
            (
                "INSERT INTO django_migrations (app, name, applied) VALUES ('billing', '0999_later', '2026-01-01')",
                "The source is of another version, with migrations that this one lacks: billing.0999_later",
            ),
            ("UPDATE orgs_project SET org_id = 'org_gone'", "A row refers to one that is not there"),
            ("UPDATE billing_usagedaily SET calls = calls + 1", "The ledger does not agree, nor did it before"),
            ("UPDATE orgs_org SET name = hex(zeroblob(500))", "PostgreSQL does not take a row of orgs_org"),
        ],
        ids=["worker", "live-run", "older", "newer", "reference", "ledger", "too-long"],
    )
    def test_refuses_a_source_that_is_not_as_it_has_to_be(
        self, copied: Installation, make_target: Callable[[], str], damage: str, refusal: str
    ) -> None:
        target = make_target()
        before = row_counts(target)
        spoil(copied, damage)

        moved = move(copied, target)

        assert moved.returncode == 1
        assert refusal in moved.stderr
        assert row_counts(target) == before

    def test_refuses_a_source_that_somebody_writes_to(
        self, copied: Installation, make_target: Callable[[], str]
    ) -> None:
        target = make_target()
        writer = sqlite3.connect(file_of(copied), isolation_level=None)
        writer.execute("BEGIN IMMEDIATE")

        moved = move(copied, target)

        writer.close()
        assert moved.returncode == 1
        assert "Another process is writing to the source" in moved.stderr

    def test_undoes_everything_where_something_else_arrived(
        self, old: Installation, make_target: Callable[[], str]
    ) -> None:
        target = make_target()
        before = row_counts(target)
        execute(
            target,
            "CREATE FUNCTION meddle() RETURNS trigger LANGUAGE plpgsql AS "
            "$$ BEGIN NEW.name = NEW.name || ' '; RETURN NEW; END $$",
            "CREATE TRIGGER meddle BEFORE INSERT ON orgs_org FOR EACH ROW EXECUTE FUNCTION meddle()",
        )

        moved = move(old, target)

        assert moved.returncode == 1
        assert "orgs_org is not the same there: 3 row(s) became 3." in moved.stderr
        assert row_counts(target) == before

    def test_refuses_another_keyring_and_leaves_it_alone(
        self, old: Installation, make_target: Callable[[], str], tmp_path: Path
    ) -> None:
        target = make_target()
        before = row_counts(target)
        elsewhere = old.at(tmp_path / "elsewhere").with_database(target)
        elsewhere.keyring.unlink()
        keyring.create(elsewhere.keyring)
        another = elsewhere.keyring.read_bytes()

        moved = elsewhere.manage("move_database", "--from", old.database_url)

        assert moved.returncode == 1
        assert "The vault is shut" in moved.stderr
        assert row_counts(target) == before
        assert elsewhere.keyring.read_bytes() == another

    def test_makes_no_source_where_there_is_none(
        self, old: Installation, make_target: Callable[[], str], tmp_path: Path
    ) -> None:
        missing = tmp_path / "missing.sqlite3"

        moved = old.with_database(make_target()).manage("move_database", "--from", f"sqlite:///{missing}")

        assert moved.returncode == 1
        assert f"There is no file {missing}" in moved.stderr
        assert not missing.exists()

    def test_goes_to_postgresql_only(self, old: Installation) -> None:
        moved = old.manage("move_database", "--from", old.database_url)

        assert moved.returncode == 1
        assert "must be a PostgreSQL database" in moved.stderr
