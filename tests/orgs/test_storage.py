"""The count of what an organization stores: never past its limit, and the same as what is stored."""

import os
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from django.db import connection, transaction
from django.test import Client
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.django import TestCase

from rensei.audit.models import AuditEvent
from rensei.core.limits import MIB
from rensei.core.unknown import take_counts
from rensei.orgs import storage
from rensei.orgs.models import Org, StoredBytes, User
from rensei.orgs.storage import StorageLimitReached
from tests.database import database_url
from tests.orgs import storing

ROOT = Path(__file__).parents[2]


def limit(org: Org, mib: int) -> None:
    StoredBytes.objects.update_or_create(org=org, defaults={"limit_mib": mib})


def counted(org: Org) -> tuple[int, int]:
    row = StoredBytes.objects.get(org=org)
    return row.used, row.held


@pytest.mark.django_db
class TestTake:
    def test_counts_what_is_stored_and_held(self, acme: Org) -> None:
        storage.take(acme.pk, stored=700, held=300)

        assert counted(acme) == (700, 300)

    def test_lets_in_what_fits_to_the_byte_and_nothing_more(self, acme: Org) -> None:
        limit(acme, 1)
        storage.take(acme.pk, stored=MIB - 10, held=4)

        with pytest.raises(StorageLimitReached) as refused:
            storage.take(acme.pk, stored=7)
        storage.take(acme.pk, stored=6)

        assert counted(acme) == (MIB - 4, 4)
        assert refused.value.extra == {"usedBytes": MIB - 10, "heldBytes": 4, "limitBytes": MIB}

    def test_leaves_another_organization_alone(self, acme: Org, eve: User) -> None:
        evil = Org.objects.get(slug="evil")
        limit(evil, 0)
        with pytest.raises(StorageLimitReached):
            storage.take(evil.pk, stored=1)

        storage.take(acme.pk, stored=1)

        assert counted(acme) == (1, 0)

    def test_makes_the_row_that_is_missing(self, acme: Org) -> None:
        StoredBytes.objects.all().delete()

        storage.take(acme.pk, stored=5)
        StoredBytes.objects.filter(org=acme).delete()
        storage.change({acme.pk: (3, 1)})

        assert counted(acme) == (3, 1)

    def test_goes_by_the_servers_default_where_no_limit_is_set(self, acme: Org, settings: Any) -> None:
        settings.RENSEI_ORG_STORAGE_MIB = 1

        with pytest.raises(StorageLimitReached):
            storage.take(acme.pk, stored=MIB + 1)

        assert storage.read(acme.pk).limit == MIB


@pytest.mark.django_db(transaction=True)
class TestManyAtOnce:
    def test_never_pass_the_limit_in_threads(self, acme: Org) -> None:
        limit(acme, 1)

        def contend(_: int) -> int:
            try:
                return storing.main(acme.pk, MIB // 50, 10)
            finally:
                connection.close()

        with ThreadPoolExecutor(6) as pool:
            let_in = sum(pool.map(contend, range(6)))

        assert let_in == 25
        assert counted(acme) == (25 * (MIB // 50), 25 * (MIB // 50))

    def test_never_pass_the_limit_in_processes(self, acme: Org) -> None:
        limit(acme, 1)
        command = [sys.executable, "-m", "tests.orgs.storing", acme.pk, str(MIB // 100), "40"]
        environment = {**os.environ, "DATABASE_URL": database_url(), "DJANGO_SETTINGS_MODULE": "tests.settings"}

        contenders = [
            subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True) for _ in range(2)
        ]
        let_in = [int(process.communicate(timeout=60)[0]) for process in contenders]

        assert sum(let_in) == 50
        assert counted(acme) == (50 * (MIB // 100), 50 * (MIB // 100))


@pytest.mark.django_db
class TestReconcile:
    def test_finds_tells_and_mends_a_difference(self, acme: Org, eve: User) -> None:
        take_counts()
        evil = Org.objects.get(slug="evil")
        storage.change({acme.pk: (100, 20)})

        found = storage.reconcile([lambda: {acme.pk: (60, 20)}, lambda: {acme.pk: (50, 0), evil.pk: (7, 0)}])

        assert found == {acme.pk: (10, 0), evil.pk: (7, 0)}
        assert (counted(acme), counted(evil)) == ((110, 20), (7, 0))
        assert take_counts() == {("stored_bytes", acme.pk): 1, ("stored_bytes", evil.pk): 1}
        assert storage.reconcile([lambda: {acme.pk: (110, 20), evil.pk: (7, 0)}]) == {}

    def test_counts_an_organization_that_stores_nothing_any_more(self, acme: Org) -> None:
        storage.change({acme.pk: (100, 20)})

        storage.reconcile([dict])

        assert counted(acme) == (0, 0)


class TestSizes(TestCase):
    @settings(max_examples=200)
    @given(
        st.recursive(
            st.none() | st.booleans() | st.integers() | st.text(st.characters(codec=None)),
            lambda inner: st.lists(inner, max_size=5) | st.dictionaries(st.text(), inner, max_size=5),
        )
    )
    def test_of_whatever_json_holds_can_be_told(self, value: Any) -> None:
        assert storage.size_of(value) >= 0
        assert storage.size_of(value, value) == 2 * storage.size_of(value)

    @settings(max_examples=50)
    @given(st.lists(st.tuples(st.integers(-50, 60), st.integers(-20, 30)), max_size=20))
    def test_a_refused_take_changes_nothing(self, steps: list[tuple[int, int]]) -> None:
        org = Org.objects.create(name="Steps", slug="steps")
        StoredBytes.objects.create(org=org, limit_mib=0)
        used = held = 0
        for stored, more in steps:
            with transaction.atomic():
                try:
                    storage.take(org.pk, stored=stored, held=more)
                except StorageLimitReached:
                    assert used + held + stored + more > 0
                else:
                    used, held = used + stored, held + more
                    assert used + held <= 0
            assert counted(org) == (used, held)


@pytest.mark.django_db
class TestOperators:
    def test_see_what_is_stored_and_set_a_limit(
        self, acme: Org, grace: User, page_as: Callable[[User], Client]
    ) -> None:
        storage.change({acme.pk: (3 * MIB, 0)})
        browser = page_as(grace)

        listed = browser.get("/admin/orgs/storedbytes/").content.decode()
        answer = browser.post(f"/admin/orgs/storedbytes/{acme.pk}/change/", {"limit_mib": "2"})

        assert "3.0" in listed
        assert "102,400" in listed
        assert answer.status_code == 302
        assert storage.read(acme.pk).limit == 2 * MIB
        assert AuditEvent.objects.filter(org_id=acme.pk, action="storedbytes.changed", actor=grace.email).exists()
