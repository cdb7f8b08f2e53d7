"""
Django's backend for PostgreSQL, with a share of the pool for each organization, and without indexes for LIKE.

Django gives each indexed column of text a second index, for conditions with LIKE. No query has one on such a column,
and each call would write to more than a dozen of them.
"""

from typing import Any

from django.db.backends.postgresql import base
from django.db.backends.postgresql.schema import DatabaseSchemaEditor

from rensei.core import database_pool
from rensei.core.computing import outside_of_turn
from rensei.core.database_pool import ConnectionPlace


class _SchemaEditor(DatabaseSchemaEditor):
    def _create_like_index_sql(self, model: Any, field: Any) -> None:
        return None


class DatabaseWrapper(base.DatabaseWrapper):
    """The connection of one thread. While it is open, it holds a place of the organization that uses it."""

    SchemaEditorClass = _SchemaEditor
    _place: ConnectionPlace | None = None

    @property
    def pool(self) -> Any:
        pool = super().pool
        return pool and database_pool.with_patience(pool)

    def get_new_connection(self, conn_params: Any) -> Any:
        self._leave_place()
        with outside_of_turn():
            self._place = database_pool.take_place()
            try:
                return super().get_new_connection(conn_params)
            except BaseException:
                self._leave_place()
                raise

    def count_for(self, place: ConnectionPlace) -> None:
        """
        Have the open connection hold a place from now on.

        Where none is free, it is returned to the pool, and the next query waits for a place, and for a connection.
        """
        if self.connection is None or self._place is not None:
            return
        if place.acquire(blocking=False):
            self._place = place
        elif not self.in_atomic_block:
            self.close()

    def _close(self) -> None:
        try:
            super()._close()  # type: ignore[misc]
        finally:
            self._leave_place()

    def _leave_place(self) -> None:
        place, self._place = self._place, None
        if place is not None:
            place.release()
