"""The one way to look a row up or to answer that it is not there."""

from typing import TypeVar

from django.db.models import Model, QuerySet

from rensei.core.errors import NotFound

M = TypeVar("M", bound=Model)


class Lookups:
    """For query sets: a look-up that refuses as the REST views and the pages do."""

    def get_or_404(self: QuerySet[M], **lookup: object) -> M:  # type: ignore[misc]
        """:raises NotFound: if there is no such row among these"""
        found = self.filter(**lookup).first()
        if found is None:
            raise NotFound
        return found
