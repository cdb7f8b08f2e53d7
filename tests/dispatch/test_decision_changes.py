"""Every table that a kept decision was made from is watched, on both databases."""

import re
from collections.abc import Iterator
from datetime import timedelta
from functools import partial
from typing import Any

import pytest
from django.conf import settings
from django.core.management import call_command
from django.db import connection
from django.test.utils import CaptureQueriesContext

from billing.models import BillingSetting, BudgetUsage, Entitlement, SharedSpending, SharedUsage
from catalog import services as catalog
from catalog.models import CatalogEntry, CatalogSetting, Identity, Price
from integrations.keys import platform
from integrations.models import DefaultAddress, PlatformKey
from integrations.vault.openings import UNEXPLAINED
from rensei.core.auth_modes import AuthMode
from rensei.core.clock import database_now
from rensei.core.errors import RenseiError
from rensei.core.secret import Secret
from rensei.dispatch.decision_changes import (
    EVERY_ORG,
    NAME,
    TABLES,
    DecisionChanges,
    drop_trigger,
    present_triggers,
    wanted_triggers,
)
from rensei.gateway import routing
from rensei.gateway.routing import Route
from rensei.orgs import kill_switches
from rensei.orgs.access import Access
from rensei.orgs.models import KillSwitch, Org, Project, StoredBytes, User
from rensei.policies import services as policies
from rensei.tokens.look_up import for_token
from rensei.tokens.machines import register_host
from rensei.tokens.services import create_token
from tests.proxy import standing_before
from tests.waiting import wait_until

# Read for a preview only: a call is held to these limits by the statement that takes its share.
LIMITS = {model._meta.db_table for model in (SharedUsage, SharedSpending, BudgetUsage)}
NAMES = [model.__name__ for model in TABLES]
MODEL = "claude-haiku-4-5-20251001"
RETIRED = "claude-opus-4-1"


@pytest.fixture
def token(ada_access: Access) -> str:
    _, secret = create_token(ada_access, name="program")
    return secret.reveal()


@pytest.fixture
def everything(
    ada_access: Access, project: Project, make_profile: Any, make_key: Any, connect: Any, token: str, grace: User
) -> dict[str, Any]:
    """A row in every table, and a profile for each mode that the gateway serves."""
    org = ada_access.org
    connect()
    Entitlement.objects.filter(org=org).update(metered_enabled=True)
    for pool in ("metered", "shared"):
        limits = {"model_ids": [MODEL], "max_tokens_cap": 2000} if pool == "shared" else {}
        platform.add_platform_key(
            actor=None, provider="claude", pool=pool, name=pool, api_key=Secret(make_key()), **limits
        )
    policies.set_policy(ada_access, matrix={"claude": {"host-session": {"allowed": False}}})
    kill_switches.stop(operator=grace, kind=KillSwitch.Kind.MODEL, target="claude-opus-4-8", reason="A test.")
    register_host(ada_access, name="laptop")
    StoredBytes.objects.get_or_create(org=org)
    DefaultAddress.objects.get_or_create(provider="claude", base_url=settings.RENSEI_ANTHROPIC_BASE_URL)
    BillingSetting.objects.get_or_create(pk=1)
    CatalogSetting.objects.get_or_create(pk=1)
    Identity.objects.create(org=org, provider="claude", model_id="own", answered_by=MODEL, run_id="run_1")
    catalog.create_entry(ada_access, provider="claude", model_id="own", display_name="Own")
    made = {mode: make_profile(name=mode, model_id=MODEL, auth_modes=[mode]) for mode in ("byok", "metered", "shared")}
    make_profile(name="all", model_id=MODEL, auth_modes=["byok", "metered", "shared"], is_default=True)
    return made


@pytest.fixture
def changes(transactional_db: None) -> Iterator[DecisionChanges]:
    found = DecisionChanges()
    yield found
    found.close()


def present() -> set[str]:
    with connection.cursor() as cursor:
        return present_triggers(cursor, connection.vendor)


def tables_of(queries: CaptureQueriesContext) -> set[str]:
    return {name for query in queries for name in re.findall(r'\b(?:FROM|JOIN) "(\w+)"', query["sql"])}


@pytest.mark.django_db
class TestTheTables:
    @pytest.mark.parametrize("mode", ["byok", "metered", "shared"])
    def test_are_all_that_a_decision_reads(self, everything: dict[str, Any], token: str, mode: str) -> None:
        with CaptureQueriesContext(connection) as looking_up:
            access = for_token(token=token)
        assert access is not None
        with CaptureQueriesContext(connection) as deciding:
            route = routing.load(access, everything[mode].public_id)
            # A retired model, an alias, an entry of the organization's own, and what exists nowhere.
            for model in (RETIRED, "claude-haiku-4-5", "own", "nothing"):
                routing.load(access, model)
                routing.load(access, everything[mode].public_id, turned_to=model, mode=AuthMode(mode))
            assert isinstance(route, Route), route
            for signer in route.signers:
                assert not isinstance(route.open_signer(signer, why=UNEXPLAINED), RenseiError)

        read = tables_of(looking_up) | tables_of(deciding)

        assert len(read) > 10
        assert read - LIMITS <= {model._meta.db_table for model in TABLES}

    def test_have_their_triggers(self) -> None:
        assert wanted_triggers(connection.vendor).keys() == present()


@pytest.mark.django_db(transaction=True)
class TestAChange:
    @pytest.mark.parametrize("name", NAMES)
    def test_of_each_column_is_noticed(self, everything: dict[str, Any], changes: DecisionChanges, name: str) -> None:
        model, ignored = next((model, ignored) for model, ignored in TABLES.items() if model.__name__ == name)
        assert model._base_manager.exists()
        table = model._meta.db_table
        changes.orgs()
        noticed = {}
        for field in model._meta.local_concrete_fields:
            assert not changes.orgs()
            with connection.cursor() as cursor:
                cursor.execute(f'UPDATE {table} SET "{field.column}" = "{field.column}"')
            noticed[field.name] = changes.orgs()

        assert {name: bool(orgs) for name, orgs in noticed.items()} == {
            field.name: field.name not in ignored for field in model._meta.local_concrete_fields
        }
        # A write that concerns one organization leaves the decisions of others as they are.
        if model is Org or (
            hasattr(model, "org") and name not in ("CatalogEntry", "KillSwitch", "DataKey", "AccessPolicy")
        ):
            assert frozenset().union(*noticed.values()) == {Org.objects.get().id}

    @pytest.mark.parametrize("model", [CatalogEntry, PlatformKey, KillSwitch])
    def test_of_the_rows_is_noticed(self, everything: dict[str, Any], changes: DecisionChanges, model: Any) -> None:
        found = model._base_manager.order_by("pk").last()
        changes.orgs()
        found.delete()

        assert changes.orgs()
        assert not changes.orgs()

        found.save(force_insert=True)

        assert changes.orgs()
        assert not changes.orgs()

    def test_without_a_write_is_noticed(self, everything: dict[str, Any], changes: DecisionChanges) -> None:
        newest = Price.objects.order_by("pk").last()
        assert newest is not None
        newest.pk, newest.effective_from = None, database_now() + timedelta(seconds=1)
        newest.save(force_insert=True)
        assert changes.orgs()
        assert not changes.orgs()

        wait_until(changes.orgs, what="the beginning of the price")

        assert not changes.orgs()

    def test_of_a_key_that_has_cooled_down_is_noticed(self, everything: Any, changes: DecisionChanges) -> None:
        until = (database_now() + timedelta(seconds=1)).isoformat()
        PlatformKey.objects.update(cooling_models={"claude-opus-5-5": until})
        assert changes.orgs()
        assert not changes.orgs()

        wait_until(changes.orgs, what="the end of the pause")


@pytest.mark.postgres
@pytest.mark.django_db(transaction=True)
def test_anything_may_have_changed_behind_a_pooler(changes: DecisionChanges) -> None:
    """A pooler that shares connections, such as PgBouncer, tells its clients process numbers of its own."""
    changes.orgs()
    assert not changes.orgs()
    direct = connection.settings_dict
    with standing_before(int(direct["PORT"])) as pooler:
        pooler.rewrite = partial(re.compile(rb"(?<=K\0\0\0\x0c)....", re.DOTALL).sub, b"\0\0\0\x07")
        connection.close()
        connection.settings_dict = {**direct, "PORT": str(pooler.port)}
        try:
            found = [changes.orgs() for _ in range(3)]
        finally:
            changes.close()
            connection.settings_dict = direct

    assert found == [{EVERY_ORG}] * 3


@pytest.mark.django_db(transaction=True)
class TestWithoutTriggers:
    @pytest.fixture
    def _incomplete(self, transactional_db: None) -> Iterator[None]:
        trigger = min(present())
        with connection.cursor() as cursor:
            drop_trigger(cursor, trigger, connection.vendor)
        yield
        call_command("migrate", verbosity=0)
        assert present() == wanted_triggers(connection.vendor).keys()

    @pytest.mark.usefixtures("_incomplete")
    def test_anything_may_have_changed(self, changes: DecisionChanges) -> None:
        assert [changes.orgs() for _ in range(3)] == [{EVERY_ORG}] * 3

    @pytest.mark.usefixtures("_incomplete")
    def test_anything_may_have_changed_beside_an_outdated_one(self, changes: DecisionChanges) -> None:
        what = (
            f"FOR EACH STATEMENT EXECUTE FUNCTION {NAME}()"
            if connection.vendor == "postgresql"
            else f"BEGIN DELETE FROM {NAME}; END"
        )
        with connection.cursor() as cursor:
            cursor.execute(f"CREATE TRIGGER {NAME}_outdated AFTER DELETE ON orgs_org {what}")
            if connection.vendor == "postgresql":
                cursor.execute(f"ALTER TABLE orgs_org ENABLE ALWAYS TRIGGER {NAME}_outdated")
        assert f"{NAME}_outdated" in present()

        # The migration after the test drops it, and installs the one that is missing.
        assert [changes.orgs() for _ in range(3)] == [{EVERY_ORG}] * 3

    def test_the_next_migration_installs_them(self, transactional_db: None) -> None:
        with connection.cursor() as cursor:
            for trigger in present():
                drop_trigger(cursor, trigger, connection.vendor)

        call_command("migrate", verbosity=0)

        assert wanted_triggers(connection.vendor).keys() == present()
