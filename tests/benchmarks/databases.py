"""A database of its own for a benchmark that needs no server of Rensei's, on SQLite and on PostgreSQL."""

import os
import secrets
import tempfile
from collections.abc import Iterator

from tests import servers


def here() -> Iterator[tuple[str, str]]:
    """Make one after the other: what it is called, and its address. PostgreSQL only where it is installed."""
    with tempfile.TemporaryDirectory(prefix="rensei-bench-") as folder:
        yield "SQLite", f"sqlite:///{folder}/rensei.sqlite3"
    if servers.find_postgres() is not None:
        with servers.run_postgres() as server:
            yield "PostgreSQL", server.url


def set_up(url: str) -> None:
    """Make this process one of an installation on that database. It must not have been one of another before."""
    os.environ |= {
        "DATABASE_URL": url,
        "DJANGO_SETTINGS_MODULE": "rensei.settings",
        "RENSEI_DATA_DIR": tempfile.gettempdir(),
        "SECRET_KEY": secrets.token_urlsafe(50),
    }
    import django

    django.setup()
