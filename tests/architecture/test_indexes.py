"""The indexes that each call writes to: none that no query needs."""

from collections.abc import Sequence
from itertools import permutations

import pytest
from django.db import connection
from django.db.models import Index, Model, UniqueConstraint

from billing.models import CostEvent, Hold, LineToSeal
from rensei.dispatch.models import Attempt, Run

WRITTEN_BY_EACH_CALL = [Run, Attempt, CostEvent, Hold, LineToSeal]


class TestIndexes:
    @pytest.mark.postgres
    @pytest.mark.django_db
    def test_are_none_for_conditions_with_like(self) -> None:
        with connection.cursor() as cursor:
            cursor.execute(
                "SELECT indexrelid::regclass::text FROM pg_index JOIN pg_opclass ON pg_opclass.oid = indclass[0] "
                "WHERE opcname LIKE '%_pattern_ops'"
            )
            assert cursor.fetchall() == []

    @pytest.mark.parametrize("model", WRITTEN_BY_EACH_CALL, ids=lambda model: model.__name__)
    def test_none_begins_another_one(self, model: type[Model]) -> None:
        indexes = list(_columns_of_indexes(model))

        assert [
            (shorter, longer) for shorter, longer in permutations(indexes, 2) if longer[: len(shorter)] == shorter
        ] == []


def _columns_of_indexes(model: type[Model]) -> Sequence[list[str]]:
    """List the columns of each index that holds all rows."""
    meta = model._meta
    keys = [[field.attname] for field in meta.concrete_fields if field.db_index or field.unique]
    named = [
        [meta.get_field(name.removeprefix("-")).attname for name in one.fields]
        for one in [*meta.indexes, *meta.constraints]
        if isinstance(one, Index | UniqueConstraint) and one.condition is None and one.fields
    ]
    return keys + named
