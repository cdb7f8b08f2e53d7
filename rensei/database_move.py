"""
Moving an installation from SQLite to PostgreSQL: every row of every table unchanged, including its key, or nothing.

The source is locked against writers, and everything is written to the target, checked there and committed in one
transaction. Rows are streamed, so a database of any size takes little memory.
"""

import hashlib
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any

from django.apps import apps
from django.contrib.auth.models import Permission
from django.contrib.contenttypes.models import ContentType
from django.core.management.color import no_style
from django.db import DatabaseError, OperationalError, connections, transaction
from django.db.backends.base.base import BaseDatabaseWrapper
from django.db.migrations.loader import MigrationLoader
from django.db.models import Model
from environ import Env

from billing.integrity import verification
from billing.models import EventToSeal, LineToSeal
from integrations.keys import credentials, platform
from integrations.models import Integration, PlatformKey
from integrations.vault import vault
from integrations.vault.openings import Reason, Why
from rensei.core.errors import RenseiError
from rensei.core.models import WorkerHeartbeat
from rensei.dispatch.models import Run
from rensei.dispatch.settlement import audit
from rensei.layout import MANAGE

SOURCE, TARGET = "source", "default"
# A row may hold the images of a prompt, up to 32 MB, so few are in memory at a time.
CHUNK = 20
LOCK_SECONDS = 5
# Tables that already have rows: those of `migrate`, under ids of its own, and those of triggers, one for each line
# of the ledger and each audit event. The source's rows replace them.
WAITING = (LineToSeal, EventToSeal)
WRITTEN_UNASKED = (Permission, ContentType, *WAITING)
NAMED = 10


class MoveRefused(Exception):
    """The move is not possible now, and nothing was changed."""


@dataclass
class Content:
    """How many rows a table has, and a digest of them that does not depend on their order."""

    rows: int = 0
    digest: int = 0

    def add(self, values: list[Any]) -> None:
        text = json.dumps(_plain(values), sort_keys=True, separators=(",", ":"))
        self.rows += 1
        self.digest = (self.digest + int.from_bytes(hashlib.sha256(text.encode()).digest())) % 2**256


@dataclass(kw_only=True)
class Moved:
    """What was moved. `unusable` names the stored keys that cannot be used, and could not be before either."""

    tables: dict[str, Content] = field(default_factory=dict)
    keys: int = 0
    unusable: list[str] = field(default_factory=list)

    @property
    def rows(self) -> int:
        return sum(content.rows for content in self.tables.values())


class _Table:
    """A table as its model defines it."""

    def __init__(self, model: type[Model]) -> None:
        options = model._meta  # noqa: SLF001 - documented: https://docs.djangoproject.com/en/5.2/ref/models/meta/
        self.model = model
        self.name = options.db_table
        self.fields = options.concrete_fields
        self.manager = model._base_manager  # noqa: SLF001 - documented too; a default manager may leave rows out

    def rows(self, alias: str) -> Iterator[list[Any]]:
        """Read all rows, a few in memory at a time."""
        for row in self.manager.using(alias).order_by().iterator(chunk_size=CHUNK):
            yield [getattr(row, each.attname) for each in self.fields]


def move(url: str, *, tell: Callable[[str], None]) -> Moved:
    """
    Move everything from the SQLite database at `url` into the PostgreSQL database of the settings.

    :raises MoveRefused: if one of them is not in the required state, or the copy differs from the source
    """
    with _source(url) as source:
        target = connections[TARGET]
        if target.vendor != "postgresql":
            raise MoveRefused("DATABASE_URL is where everything goes, and must be a PostgreSQL database.")
        for connection in (source, target):
            _require_schema(connection)
        with _locked(source), transaction.atomic(using=TARGET, durable=True):
            _require_at_rest(source)
            _require_empty()
            moved = Moved(tables=_copy(target, tell))
            _check(moved, tell)
            return moved


@contextmanager
def _source(url: str) -> Iterator[BaseDatabaseWrapper]:
    """Connect to the source for the duration of the move."""
    config: dict[str, Any] = dict(Env.db_url_config(url))
    if config.get("ENGINE") != "django.db.backends.sqlite3":
        raise MoveRefused("--from is an SQLite database, such as sqlite:///var/rensei.sqlite3.")
    if not Path(config["NAME"]).is_file():
        # SQLite would make an empty one.
        raise MoveRefused(f"There is no file {config['NAME']}.")
    config["OPTIONS"] = {"transaction_mode": "IMMEDIATE", "timeout": LOCK_SECONDS}
    connections.settings[SOURCE] = connections.configure_settings({**connections.settings, SOURCE: config})[SOURCE]
    try:
        yield connections[SOURCE]
    finally:
        connections[SOURCE].close()
        del connections[SOURCE], connections.settings[SOURCE]


@contextmanager
def _locked(source: BaseDatabaseWrapper) -> Iterator[None]:
    """Block all other writers of the source."""
    atomic = transaction.atomic(using=source.alias, durable=True)
    try:
        atomic.__enter__()
    except OperationalError as fault:
        raise MoveRefused("Another process is writing to the source. Stop all of Rensei's processes first.") from fault
    try:
        yield
    finally:
        # The source was only read.
        transaction.set_rollback(True, using=source.alias)
        atomic.__exit__(None, None, None)


def _require_schema(connection: BaseDatabaseWrapper) -> None:
    """Require both databases at the migrations of this version: then their tables have the same columns."""
    name = f"The {'source' if connection.alias == SOURCE else 'target'}"
    loader = MigrationLoader(connection)
    applied, known = set(loader.applied_migrations), set(loader.disk_migrations)
    if missing := sorted(known - applied):
        raise MoveRefused(f"{name} lacks migrations: {_names(missing)}. Run `{MANAGE} migrate` on it.")
    if unknown := sorted(applied - known):
        raise MoveRefused(f"{name} is of another version, with migrations that this one lacks: {_names(unknown)}.")


def _names(migrations: list[tuple[str, str]]) -> str:
    return ", ".join(".".join(migration) for migration in migrations[:NAMED])


def _require_at_rest(source: BaseDatabaseWrapper) -> None:
    with source.cursor() as cursor:
        cursor.execute("SELECT STRFTIME('%Y-%m-%d %H:%M:%f', 'now')")
        now = datetime.fromisoformat(f"{cursor.fetchone()[0]}+00:00")
    workers = WorkerHeartbeat.objects.using(source.alias).filter(seen_at__gt=now - WorkerHeartbeat.SILENT_AFTER)
    if names := list(workers.values_list("worker", flat=True)):
        raise MoveRefused(f"Workers are running on the source, or were just now: {', '.join(names)}. Stop them first.")
    live = Run.objects.using(source.alias).filter(state=Run.State.RUNNING, lease_until__gt=now)
    if run_ids := list(live.values_list("id", flat=True)[:NAMED]):
        raise MoveRefused(f"Runs are under way on the source: {', '.join(run_ids)}. Wait until they have ended.")


def _require_empty() -> None:
    may_hold_rows = {each.name for each in map(_Table, WRITTEN_UNASKED)}
    full = [
        table.name for table in _tables() if table.name not in may_hold_rows and table.manager.using(TARGET).exists()
    ]
    if full:
        raise MoveRefused(
            f"The target is not empty: there are rows in {', '.join(full[:NAMED])}. "
            f"Make a new database and run nothing but `{MANAGE} migrate` on it."
        )


def _tables() -> list[_Table]:
    """List all tables. The lists of rows to seal come last, after the triggers have written their own."""
    tables = [_Table(model) for model in apps.get_models(include_auto_created=True)]
    return sorted(tables, key=lambda table: (table.model in WAITING, table.name))


def _copy(target: BaseDatabaseWrapper, tell: Callable[[str], None]) -> dict[str, Content]:
    """Copy all rows. References are checked at the end, so the order of the tables does not matter."""
    copied = {}
    for table in _tables():
        try:
            copied[table.name] = content = _copy_table(table, target)
        except DatabaseError as fault:
            raise MoveRefused(f"PostgreSQL does not take a row of {table.name}: {fault}") from fault
        if content.rows:
            tell(f"{table.name}: {content.rows} row(s)")
    with target.cursor() as cursor:
        for statement in target.ops.sequence_reset_sql(no_style(), [table.model for table in _tables()]):
            cursor.execute(statement)
        try:
            cursor.execute("SET CONSTRAINTS ALL IMMEDIATE")
        except DatabaseError as fault:
            raise MoveRefused(f"A row refers to one that is not there: {fault}") from fault
    return copied


def _copy_table(table: _Table, target: BaseDatabaseWrapper) -> Content:
    """Copy one table by PostgreSQL's COPY, which reads rows one by one and fires the triggers of inserts."""
    content = Content()
    name = target.ops.quote_name(table.name)
    columns = ", ".join(target.ops.quote_name(str(each.column)) for each in table.fields)
    with target.cursor() as cursor:
        if table.model in WRITTEN_UNASKED:
            cursor.execute(f"DELETE FROM {name}")  # noqa: S608 - the name comes from a model of Rensei
        with target.wrap_database_errors, cursor.copy(f"COPY {name} ({columns}) FROM STDIN") as copy:
            for row in table.rows(SOURCE):
                copy.write_row(
                    [each.get_db_prep_save(value, target) for each, value in zip(table.fields, row, strict=True)]
                )
                content.add(row)
    return content


def _plain(value: Any) -> Any:
    """Write a value in a form that is the same for both databases."""
    if isinstance(value, bytes | memoryview):
        return bytes(value).hex()
    if isinstance(value, dict):
        return {key: _plain(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_plain(inner) for inner in value]
    if isinstance(value, float) and value.is_integer():
        # PostgreSQL's JSON returns 1e16 as a whole number.
        return int(value)
    return value if value is None or isinstance(value, str | int | float) else str(value)


def _check(moved: Moved, tell: Callable[[str], None]) -> None:
    """Read everything back before it is committed."""
    for table in _tables():
        content = Content()
        for row in table.rows(TARGET):
            content.add(row)
        before = moved.tables[table.name]
        if content != before:
            raise MoveRefused(f"{table.name} is not the same there: {before.rows} row(s) became {content.rows}.")
    tell("Every table has the same rows.")
    found = [str(difference) for examine in (audit.differences, verification.differences) for difference in examine()]
    if found:
        raise MoveRefused(
            f"The ledger does not agree, nor did it before: see `{MANAGE} audit_ledger` and `verify_ledger` on the "
            "source.\n" + "\n".join(found[:NAMED])
        )
    tell("audit_ledger and verify_ledger found nothing.")
    _open_keys(moved)
    tell(f"{moved.keys} sealed key(s) open.")


def _open_keys(moved: Moved) -> None:
    """:raises MoveRefused: if the vault cannot be opened: then this is not the keyring of the database"""
    health = vault.health()
    if not health.ok:
        raise MoveRefused(f"The vault is shut: {health.detail}")
    why = Why(reason=Reason.MOVE, actor="move_database")
    for integration in Integration.objects.select_related("org").order_by("pk"):
        _try(moved, f"{integration.org.slug}: {integration.name}", partial(credentials.open_key, integration, why=why))
    for key in PlatformKey.objects.order_by("pk"):
        _try(moved, str(key), partial(platform.open_platform_key, key, why=why))


def _try(moved: Moved, name: str, open_it: Callable[[], object]) -> None:
    try:
        open_it()
    except RenseiError as refusal:
        moved.unusable.append(f"{name}: {refusal.detail}")
    else:
        moved.keys += 1
