"""Django's checks at the start: that the pool has connections for what all calls depend on, and for requests."""

from typing import Any

from django.core.checks import Error, register
from django.db import connection

from rensei.core.database_pool import POOL_MIN


@register
def database_pool(app_configs: Any, **options: Any) -> list[Error]:
    """Reject a pool that is too small. SQLite has none."""
    pool = connection.settings_dict["OPTIONS"].get("pool")
    if not pool or pool["max_size"] >= POOL_MIN:
        return []
    return [
        Error(
            f"DB_POOL_SIZE is {pool['max_size']}, and a process needs at least {POOL_MIN} connections.",
            hint=f"Set DB_POOL_SIZE to {POOL_MIN} or more, or remove it.",
            id="rensei.E005",
        )
    ]
