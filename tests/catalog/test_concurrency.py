"""Servers that start at the same moment load the catalog once."""

from concurrent.futures import ThreadPoolExecutor

import pytest
from django.db import connection

from catalog.models import CatalogEntry, Price
from catalog.services import create_entry, load_catalog


@pytest.mark.django_db(transaction=True)
class TestLoadCatalog:
    def test_loads_once_when_asked_by_many(self):
        def load(_):
            try:
                return load_catalog().changed
            finally:
                connection.close()

        with ThreadPoolExecutor(4) as threads:
            changed = list(threads.map(load, range(4)))

        assert sorted(changed) == [False, False, False, True]
        assert (CatalogEntry.objects.count(), Price.objects.count()) == (32, 32)


@pytest.mark.django_db(transaction=True)
class TestCreateEntry:
    def test_adds_one_entry_when_asked_by_many(self, acme, ada, access_of):
        access = access_of(ada)

        def create(_):
            try:
                return create_entry(access, provider="claude", model_id="claude-x", display_name="X")[1]
            finally:
                connection.close()

        with ThreadPoolExecutor(4) as threads:
            created = list(threads.map(create, range(4)))

        assert sorted(created) == [False, False, False, True]
        assert CatalogEntry.objects.count() == 1
