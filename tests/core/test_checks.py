"""The checks at the start."""

import pytest
from django.db import connection

from rensei.core import checks


class TestThePool:
    @pytest.mark.parametrize(("size", "found"), [(1, ["rensei.E005"]), (11, ["rensei.E005"]), (12, []), (20, [])])
    def test_has_at_least_twelve_connections(
        self, monkeypatch: pytest.MonkeyPatch, size: int, found: list[str]
    ) -> None:
        monkeypatch.setitem(connection.settings_dict["OPTIONS"], "pool", {"min_size": 1, "max_size": size})

        assert [error.id for error in checks.database_pool(None)] == found
