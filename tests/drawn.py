"""How many cases a property test draws."""

from django.db import connection

# The property is drawn in full on SQLite. PostgreSQL takes several times as long for each case.
ON_POSTGRESQL = 5


def examples(most: int) -> int:
    """Return the number of cases for a test that uses the database."""
    return most if connection.vendor == "sqlite" else max(5, most // ON_POSTGRESQL)
