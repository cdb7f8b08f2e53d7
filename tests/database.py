"""
The database of the tests: how each process gets its own, where other processes find it, and how it is empty again after
a test that committed.

Migrating takes seconds, so one process of a run does it, and every process takes a copy, as do most of the other
installations that tests make. Django truncates every table after a test that committed and then makes all permissions
anew, which takes longer than most tests. A test writes into a few tables, so a few are emptied, and what `migrate`
itself has written stays.
"""

import fcntl
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any, TextIO
from urllib.parse import quote

import psycopg
import pytest
from django.conf import settings
from django.db import connection, transaction
from django.test import TransactionTestCase

from catalog.models import CatalogEntry, CatalogSetting, ModelAlias, Price
from catalog.services import load_catalog
from rensei.audit.models import AuditEvent
from tests import servers
from tests.billing.ledger_triggers import TABLES as LEDGER_TABLES
from tests.billing.ledger_triggers import triggers_lifted

ROOT = Path(__file__).parents[1]
WRITTEN_BY_MIGRATE = {"auth_permission", "django_content_type"}
CATALOG = (CatalogSetting, CatalogEntry, ModelAlias, Price)
# Statements with their rows, and the fields of the event in the audit log.
CatalogRows = tuple[list[tuple[str, list[Any]]], dict[str, Any]]


def lock_waits() -> int:
    """Count the connections to PostgreSQL that wait for a lock, from one that sees each moment anew."""
    waiting = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
    with psycopg.connect(database_url(), autocommit=True) as other:
        (count,) = other.execute(waiting).fetchone() or (0,)
    return int(count)


def database_url() -> str:
    """Write where this process's database is, for a process that it starts."""
    stored = connection.settings_dict
    if connection.vendor == "sqlite":
        return f"sqlite:///{stored['NAME']}"
    host = stored["HOST"]
    where = quote(host, safe="") if host.startswith("/") else host
    password = f":{quote(stored['PASSWORD'])}" if stored["PASSWORD"] else ""
    return f"postgres://{stored['USER']}{password}@{where}:{stored['PORT'] or 5432}/{stored['NAME']}"


@pytest.fixture(scope="session")
def shared_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of all processes of this run."""
    own = tmp_path_factory.getbasetemp()
    return own.parent if "PYTEST_XDIST_WORKER" in os.environ else own


@pytest.fixture(scope="session")
def migrated(django_test_environment: None, django_db_blocker: Any, shared_folder: Path) -> str:
    """The name of a migrated database which stays empty, to be copied: SQLite's is a file."""
    with _note("migrated", shared_folder) as note:
        if not (name := note.read()):
            with django_db_blocker.unblock():
                name = connection.creation.create_test_db(verbosity=0, autoclobber=True, serialize=False)
                # PostgreSQL copies no database that is in use.
                connection.close()
            note.write(name)
        return name


@pytest.fixture(scope="session")
def migrated_postgres(shared_folder: Path) -> Path:
    """The files of a PostgreSQL that is stopped. Its database `rensei` is migrated as an operator does it."""
    files = shared_folder / "postgres"
    with _note("migrated-postgres", shared_folder):
        if not files.exists():
            with servers.run_postgres() as server:
                environment = {**os.environ, "DATABASE_URL": server.url, "DJANGO_SETTINGS_MODULE": "rensei.settings"}
                command = [sys.executable, "manage.py", "migrate", "--verbosity", "0"]
                subprocess.run(command, cwd=ROOT, env=environment, check=True)
                server.stop()
                servers.copy_files(server.files, files)
    return files


@pytest.fixture(scope="session")
def collected_files(shared_folder: Path) -> Path:
    """The static files as `prepare` collects them. Compressing them takes longer than migrating."""
    folder = shared_folder / "static"
    with _note("static-files", shared_folder):
        if not folder.exists():
            environment = {**os.environ, "RENSEI_STATIC_DIR": str(folder), "DJANGO_SETTINGS_MODULE": "rensei.settings"}
            command = [sys.executable, "manage.py", "prepare", "--static-only"]
            subprocess.run(command, cwd=ROOT, env=environment, check=True)
    return folder


@contextmanager
def _note(name: str, folder: Path) -> Iterator[TextIO]:
    """Open a file that one process at a time has, to read what an earlier one has written."""
    with (folder / name).open("a+") as note:
        fcntl.flock(note, fcntl.LOCK_EX)
        note.seek(0)
        yield note


@pytest.fixture(scope="session")
def django_db_setup(migrated: str, django_db_blocker: Any) -> Iterator[None]:
    """Replace pytest-django's, which migrates in every process."""
    creation: Any = connection.creation
    worker = os.environ.get("PYTEST_XDIST_WORKER")
    with django_db_blocker.unblock():
        _use(_copy(migrated, worker or "copy"))
        if connection.vendor == "postgresql":
            _create_function()
    yield
    with django_db_blocker.unblock():
        _end_other_sessions()
        connection.close()
        for name in [connection.settings_dict["NAME"], *([] if worker else [migrated])]:
            creation._destroy_test_db(name, verbosity=0)


def _end_other_sessions() -> None:
    """End the sessions of programs that a test has killed. PostgreSQL drops no database that is in use."""
    if connection.vendor == "postgresql":
        with connection.cursor() as cursor:
            cursor.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
                "WHERE datname = current_database() AND pid <> pg_backend_pid()"
            )


def _copy(migrated: str, suffix: str) -> str:
    if connection.vendor == "sqlite":
        return str(shutil.copy(migrated, Path(migrated).with_name(f"{suffix}.sqlite3")))
    name = f"{migrated}_{suffix}"
    with connection.creation._nodb_cursor() as cursor:
        cursor.execute(f"DROP DATABASE IF EXISTS {name}")
        cursor.execute(f"CREATE DATABASE {name} TEMPLATE {migrated}")
    return name


def _use(name: str) -> None:
    connection.close()
    settings.DATABASES["default"]["NAME"] = name
    connection.settings_dict["NAME"] = name


@pytest.fixture(scope="session", autouse=True)
def _empty_after_each_test_that_committed() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(TransactionTestCase, "_fixture_teardown", lambda _test: _empty_database())
        yield


def _create_function() -> None:
    """PostgreSQL plans the statements of a function once. To plan one on all tables took longer than to run it."""
    looks = (f"IF EXISTS (SELECT 1 FROM {name}) THEN RETURN NEXT '{name}'; END IF;" for name in _tables())
    with connection.cursor() as cursor:
        # Where nothing looks that lists the tables.
        cursor.execute("CREATE SCHEMA kept")
        cursor.execute(
            "CREATE FUNCTION kept.written_tables() RETURNS SETOF text LANGUAGE plpgsql "
            f"AS $$ BEGIN {' '.join(looks)} END $$"
        )


def _empty_database() -> None:
    with transaction.atomic(), connection.cursor() as cursor:
        if connection.vendor == "postgresql":
            # What still writes, such as a server, ends first. SQLite has one writer at a time anyway.
            cursor.execute(f"LOCK TABLE {', '.join(_tables())} IN ACCESS EXCLUSIVE MODE")
            cursor.execute("SELECT * FROM kept.written_tables()")
        else:
            looks = (f"SELECT '{name}' WHERE EXISTS (SELECT 1 FROM {name})" for name in _tables())
            cursor.execute(" UNION ALL ".join(looks))
        written = {name for (name,) in cursor.fetchall()}
        # The ledger, the audit log and their seals refuse to be emptied, but for this.
        with triggers_lifted(sorted(written & set(LEDGER_TABLES))):
            for name in written:
                # References are checked at the end, by when nothing refers to anything.
                cursor.execute(f"DELETE FROM {name}")
            if connection.vendor == "postgresql":
                # A trigger is not put back on a table while references to it are still to be checked.
                cursor.execute("SET CONSTRAINTS ALL IMMEDIATE")


@cache
def _tables() -> list[str]:
    names = connection.introspection.django_table_names(only_existing=True, include_views=False)
    return sorted(set(names) - WRITTEN_BY_MIGRATE)


@pytest.fixture(scope="session")
def _catalog_rows(django_db_setup: None, django_db_blocker: Any) -> CatalogRows:
    """Load the catalog once, and keep what it wrote: to load it takes longer than most tests that need it."""
    with django_db_blocker.unblock(), connection.cursor() as cursor:
        load_catalog()
        inserts: list[tuple[str, list[Any]]] = []
        for model in CATALOG:
            table = model._meta.db_table
            if connection.vendor == "postgresql":
                # It copies rows from a table in a seventh of the time that it takes to receive them.
                cursor.execute(f"CREATE TABLE kept.{table} AS SELECT * FROM {table} ORDER BY id")
                inserts.append((f"INSERT INTO {table} SELECT * FROM kept.{table}", [()]))
                continue
            cursor.execute(f"SELECT * FROM {table} ORDER BY id")
            names, places = [column[0] for column in cursor.description], ["%s"] * len(cursor.description)
            statement = f"INSERT INTO {table} ({', '.join(names)}) VALUES ({', '.join(places)})"
            inserts.append((statement, cursor.fetchall()))
        event = AuditEvent.objects.values("actor", "action", "object_id", "detail").get()
        _empty_database()
    return inserts, event


@pytest.fixture
def catalog(db: None, _catalog_rows: CatalogRows) -> None:
    """The platform's entries and prices, as the data files give them."""
    inserts, event = _catalog_rows
    with transaction.atomic(), connection.cursor() as cursor:
        for statement, rows in inserts:
            cursor.executemany(statement, rows)
        AuditEvent.objects.create(**event)
