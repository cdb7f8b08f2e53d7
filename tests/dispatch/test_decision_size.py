"""A decision reads what it needs, however many rows the organization has."""

from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
from django.db import connection
from django.db.models.signals import post_init
from django.test.utils import CaptureQueriesContext

from catalog.models import CatalogEntry
from integrations.models import Integration
from profiles.models import ModelProfile
from rensei.core.ids import new_id
from rensei.dispatch import context, pools
from rensei.gateway import routing
from rensei.orgs.models import Host, Project


def fill(org: Any, user: Any, first: int, last: int) -> None:
    """Add rows of the kinds that have a limit, in a number of statements that is small."""
    numbers = range(first, last)
    Project.objects.bulk_create(Project(org=org, slug=f"p-{n}", name="P") for n in numbers)
    Host.objects.bulk_create(Host(id=new_id("host"), org=org, owner=user, name="box") for n in numbers)
    Integration.objects.bulk_create(
        Integration(id=new_id("int"), org=org, provider="claude", name=f"Key {n}", fingerprint=f"{n}") for n in numbers
    )
    CatalogEntry.objects.bulk_create(
        CatalogEntry(org=org, provider="claude", model_id=f"own-{n}", display_name="Own", auth_modes=["byok"])
        for n in numbers
    )
    ModelProfile.objects.bulk_create(
        ModelProfile(
            org=org,
            public_id=f"prof_p_{n}",
            name=f"P {n}",
            provider="claude",
            model_id=f"own-{n}",
            auth_modes=["byok"],
        )
        for n in numbers
    )


def work(act: Callable[[], object]) -> tuple[int, Counter[str]]:
    """Count the statements, and the rows that are made into objects."""
    rows: Counter[str] = Counter()

    def count(sender: Any, **signal: Any) -> None:
        rows[sender.__name__] += 1

    post_init.connect(count)
    try:
        with CaptureQueriesContext(
            connection,
        ) as queries:
            act()
    finally:
        post_init.disconnect(count)
    return len(queries), rows


class TestADecision:
    @pytest.mark.parametrize("model", ["claude-opus-5-5", "prof_deep", "own-3", "claude-unheard-of"])
    def test_at_the_gateway_is_the_same_work_for_10_and_for_500_of_each(self, access, connected, make_profile, model):
        make_profile(name="deep", auth_modes=["byok"], public_id="prof_deep")

        fill(access.org, access.user, 0, 10)
        routing.load(access, model)
        few = work(lambda: routing.load(access, model))
        fill(access.org, access.user, 10, 500)
        many = work(lambda: routing.load(access, model))

        assert many == few

    def test_finds_the_named_machine_among_many(self, access, connected, make_profile):
        profile = make_profile(name="deep", auth_modes=["host-session"])
        fill(access.org, access.user, 0, 60)
        last = Host.objects.order_by("id").last()
        pool = pools.find_pool(access.org, "local")

        (loaded,) = context.load(access, [profile], project=None, pool=pool, host_id=last.pk)
        _, rows = work(lambda: context.load(access, [profile], project=None, pool=pool, host_id=last.pk))

        assert loaded.host == last
        assert rows["Host"] == 1
