"""Finding a model, learning what serves it, and adding one to an organization's catalog."""

from datetime import date

import pytest

from catalog.models import CatalogEntry, CatalogSetting
from catalog.services import (
    EffortNotSupported,
    ModelNotInCatalog,
    ModelRetired,
    check_effort,
    create_entry,
    find_entry,
    not_in_catalog,
    served_entries,
    served_entry,
)
from rensei.audit.models import AuditEvent
from rensei.core.errors import FieldError, NotPermitted

TODAY = date(2026, 11, 23)


@pytest.fixture
def make_entry(db):
    def make(model_id, **fields):
        fields = {"provider": "claude", "display_name": model_id, **fields}
        return CatalogEntry.objects.create(model_id=model_id, **fields)

    return make


@pytest.mark.usefixtures("catalog")
class TestFindEntry:
    @pytest.mark.parametrize(
        "model_id", ["claude-opus-4-1-20250514", "claude-sonnet-4-20250514", "claude-3-5-haiku-20241022"]
    )
    def test_finds_the_documented_models(self, acme, model_id):
        assert find_entry(org=acme, provider="claude", model_id=model_id).model_id == model_id

    def test_needs_no_provider(self, acme):
        assert find_entry(org=acme, model_id="claude-opus-5-5").provider == "claude"

    def test_finds_the_organization_s_own(self, acme, make_entry):
        own = make_entry("claude-next", org=acme)

        assert find_entry(org=acme, model_id="claude-next") == own

    def test_does_not_find_another_organization_s(self, acme, eve, make_entry):
        make_entry("claude-next", org=acme)

        with pytest.raises(ModelNotInCatalog):
            find_entry(org=eve.memberships.get().org, model_id="claude-next")

    def test_prefers_the_platform_s_entry_that_came_later(self, acme, make_entry):
        make_entry("claude-next", org=acme)
        platforms = make_entry("claude-next")

        assert find_entry(org=acme, model_id="claude-next") == platforms

    def test_takes_two_queries(self, acme, django_assert_num_queries):
        with django_assert_num_queries(2):
            find_entry(org=acme, provider="claude", model_id="claude-opus-5-5")

    def test_says_how_to_add_an_unknown_model(self, acme):
        with pytest.raises(ModelNotInCatalog) as refusal:
            find_entry(org=acme, provider="claude", model_id="claude-opus-9", may_create=True)

        assert (refusal.value.code, refusal.value.status) == ("MODEL_NOT_IN_CATALOG", 422)
        assert refusal.value.title == "Model not found in catalog"
        command = 'rensei catalog create --provider claude --model-id "claude-opus-9" --display-name "…"'
        assert command in refusal.value.detail

    @pytest.mark.parametrize("model_id", ["", '"; rm -rf ~; "', "$(id)", "a\nb", "x\0y", "é", "a" * 5000])
    def test_puts_nothing_into_the_command_that_is_no_id(self, acme, model_id):
        with pytest.raises(ModelNotInCatalog) as refusal:
            find_entry(org=acme, provider="claude", model_id=model_id, may_create=True)

        assert '--model-id "…"' in refusal.value.detail

    def test_does_not_advise_a_command_to_those_who_may_not_run_it(self, acme):
        with pytest.raises(ModelNotInCatalog, match="ask an owner or admin") as refusal:
            find_entry(org=acme, provider="claude", model_id="claude-opus-9")

        assert "rensei catalog create" not in refusal.value.detail

    @pytest.mark.parametrize("name", ["claude-nova-9", "claude-nova-9-latest", "claude-nova-9-20260101"])
    def test_does_not_advise_an_entry_of_a_name_that_the_provider_maps_to_another(self, name):
        listed = ["claude-opus-5-5", "claude-nova-9-20261201"]

        refusal = not_in_catalog(provider="claude", model_id=name, may_create=True, listed=listed)

        assert "lists it as 'claude-nova-9-20261201'" in refusal.detail
        assert "rensei catalog create" not in refusal.detail

    def test_advises_an_entry_of_an_id_that_the_provider_lists(self):
        listed = ["claude-nova-9", "claude-nova-9-20261201"]

        refusal = not_in_catalog(provider="claude", model_id="claude-nova-9", may_create=True, listed=listed)

        assert "rensei catalog create" in refusal.detail

    def test_does_not_know_a_model_under_another_provider(self, acme):
        with pytest.raises(ModelNotInCatalog):
            find_entry(org=acme, provider="nobody", model_id="claude-opus-5-5")


@pytest.mark.usefixtures("catalog")
class TestServedEntry:
    @pytest.mark.parametrize(
        ("model_id", "served_id"),
        [
            ("claude-opus-4-1-20250514", "claude-opus-5-5"),
            ("claude-sonnet-4-20250514", "claude-sonnet-5-5"),
            ("claude-3-5-haiku-20241022", "claude-haiku-5-5"),
            ("claude-opus-5-5", "claude-opus-5-5"),
            ("claude-opus-4-8", "claude-opus-4-8"),
            ("claude-sonnet-4-5-20250929", "claude-sonnet-4-5-20250929"),
        ],
    )
    def test_is_the_replacement_of_a_retired_model_only(self, acme, model_id, served_id):
        entry = find_entry(org=acme, model_id=model_id)

        assert served_entry(entry, org=acme, today=TODAY).model_id == served_id

    @pytest.mark.parametrize(
        ("today", "served_id"),
        [(date(2026, 11, 29), "claude-sonnet-4-5-20250929"), (date(2026, 11, 30), "claude-sonnet-5-5")],
    )
    def test_changes_on_the_day_of_retirement(self, acme, today, served_id):
        entry = find_entry(org=acme, model_id="claude-sonnet-4-5-20250929")

        assert served_entry(entry, org=acme, today=today).model_id == served_id

    def test_follows_a_chain(self, acme, make_entry):
        first = make_entry("a", retires_on=TODAY, replaced_by="b")
        make_entry("b", retires_on=TODAY, replaced_by="c")
        last = make_entry("c")

        assert served_entry(first, org=acme, today=TODAY) == last

    def test_refuses_a_circle(self, acme, make_entry):
        first = make_entry("a", retires_on=TODAY, replaced_by="b")
        make_entry("b", retires_on=TODAY, replaced_by="a")

        with pytest.raises(ModelRetired):
            served_entry(first, org=acme, today=TODAY)

    def test_refuses_a_model_that_replaces_itself(self, acme, make_entry):
        with pytest.raises(ModelRetired):
            served_entry(make_entry("a", retires_on=TODAY, replaced_by="a"), org=acme, today=TODAY)

    def test_refuses_a_retired_model_without_a_replacement(self, acme, make_entry):
        entry = make_entry("a", retires_on=TODAY)

        with pytest.raises(ModelRetired) as refusal:
            served_entry(entry, org=acme, today=TODAY)

        assert (refusal.value.code, refusal.value.status) == ("MODEL_RETIRED", 409)
        assert refusal.value.detail == "Model 'a' was retired on 2026-11-23. Choose another model."

    def test_refuses_when_the_operator_turned_redirects_off(self, acme):
        CatalogSetting.objects.update(redirect_retired=False)
        entry = find_entry(org=acme, model_id="claude-opus-4-1-20250514")

        with pytest.raises(ModelRetired, match=r"was retired on 2026-08-05\. Use 'claude-opus-5-5' instead\."):
            served_entry(entry, org=acme, today=TODAY)

    def test_serves_active_models_whatever_the_switch_says(self, acme):
        CatalogSetting.objects.update(redirect_retired=False)
        entry = find_entry(org=acme, model_id="claude-opus-5-5")

        assert served_entry(entry, org=acme, today=TODAY) == entry

    def test_does_not_redirect_into_another_organization(self, acme, eve, make_entry):
        entry = make_entry("a", retires_on=TODAY, replaced_by="b")
        make_entry("b", org=eve.memberships.get().org)

        with pytest.raises(ModelRetired):
            served_entry(entry, org=acme, today=TODAY)

    @pytest.mark.parametrize(("model_id", "queries"), [("claude-opus-5-5", 0), ("claude-opus-4-1-20250514", 1)])
    def test_takes_at_most_one_query(self, acme, model_id, queries, django_assert_num_queries):
        entry = find_entry(org=acme, model_id=model_id)

        with django_assert_num_queries(queries):
            served_entry(entry, org=acme, today=TODAY)


@pytest.mark.usefixtures("catalog")
class TestServedEntries:
    def test_takes_one_query_for_the_whole_catalog(self, acme, django_assert_num_queries):
        entries = list(CatalogEntry.objects.all())

        with django_assert_num_queries(1):
            served = served_entries(entries, org=acme, today=TODAY)

        assert all(served[entry.pk] is not None for entry in entries)

    def test_answers_none_for_all_retired_ones_when_redirects_are_off(self, acme):
        CatalogSetting.objects.update(redirect_retired=False)
        entries = list(CatalogEntry.objects.all())

        served = served_entries(entries, org=acme, today=TODAY)

        assert sum(served[entry.pk] is None for entry in entries) == 13


class TestCheckEffort:
    @pytest.mark.parametrize("effort", [None, "", "low", "high"])
    def test_accepts_what_the_model_offers(self, effort):
        check_effort(CatalogEntry(model_id="m", effort_levels=["low", "high"]), effort)

    @pytest.mark.parametrize("effort", ["medium", "HIGH", "ultra"])
    def test_refuses_what_it_does_not_and_lists_what_it_does(self, effort):
        with pytest.raises(EffortNotSupported) as refusal:
            check_effort(CatalogEntry(model_id="m", effort_levels=["low", "high"]), effort)

        assert (refusal.value.code, refusal.value.status) == ("EFFORT_NOT_SUPPORTED", 422)
        assert refusal.value.detail == f"Model 'm' does not support effort '{effort}'. It offers low, high."

    def test_refuses_any_on_a_model_without(self):
        with pytest.raises(EffortNotSupported, match="takes no effort: leave the field out"):
            check_effort(CatalogEntry(model_id="m", effort_levels=[]), "low")


@pytest.mark.usefixtures("catalog")
class TestCreateEntry:
    def test_adds_a_model_that_only_the_organization_sees(self, ada, acme, eve, access_of):
        entry, created = create_entry(
            access_of(ada), provider="claude", model_id="claude-opus-9", display_name=" Claude Opus 9 "
        )

        assert created
        assert (entry.org, entry.display_name) == (acme, "Claude Opus 9")
        assert entry.auth_modes == ["byok", "metered", "shared", "host-session"]
        assert entry not in CatalogEntry.objects.visible_to(eve.memberships.get().org)

    def test_leaves_unknown_facts_unknown(self, ada, access_of, acme):
        entry, _ = create_entry(access_of(ada), provider="claude", model_id="claude-opus-9", display_name="Opus 9")

        assert (entry.context_window_tokens, entry.max_output_tokens) == (None, None)
        assert (entry.capabilities, entry.effort_levels) == ({}, [])
        assert not entry.prices.exists()

    @pytest.mark.parametrize(
        ("model_id", "efforts", "window"),
        [
            ("claude-opus-4-5", ["low", "medium", "high"], 200_000),
            ("claude-opus-5-5-20260922", ["low", "medium", "high", "xhigh", "max"], 1_000_000),
            ("claude-opus-4-1", ["low", "medium", "high"], 200_000),
        ],
    )
    def test_knows_the_same_model_under_another_snapshot_date(self, ada, acme, access_of, model_id, efforts, window):
        entry, _ = create_entry(access_of(ada), provider="claude", model_id=model_id, display_name="Same")

        assert (entry.effort_levels, entry.context_window_tokens) == (efforts, window)
        assert entry.capabilities["vision"] is True

    def test_takes_given_facts(self, ada, acme, access_of):
        entry, _ = create_entry(
            access_of(ada),
            provider="claude",
            model_id="claude-opus-9",
            display_name="Opus 9",
            context_window_tokens=2_000_000,
            capabilities={"vision": True, "nativeEffort": True},
            effort_levels=["low", "max"],
        )

        assert (entry.context_window_tokens, entry.effort_levels) == (2_000_000, ["low", "max"])
        assert entry.capabilities == {"vision": True, "nativeEffort": True}

    @pytest.mark.parametrize("model_id", ["claude-opus-4-1-20250514", "claude-opus-5-5"])
    def test_answers_with_the_platform_s_entry_as_it_stands(self, ada, acme, access_of, model_id):
        entry, created = create_entry(access_of(ada), provider="claude", model_id=model_id, display_name="Mine")

        assert not created
        assert entry.org is None
        assert entry.display_name != "Mine"

    def test_answers_with_the_organization_s_entry_the_second_time(self, ada, acme, access_of):
        first, _ = create_entry(access_of(ada), provider="claude", model_id="claude-x", display_name="X")

        second, created = create_entry(access_of(ada), provider="claude", model_id="claude-x", display_name="Y")

        assert (second, second.display_name, created) == (first, "X", False)

    def test_lets_two_organizations_have_the_same_id(self, ada, acme, eve, access_of):
        create_entry(access_of(ada), provider="claude", model_id="claude-x", display_name="X")

        _, created = create_entry(access_of(eve, "evil"), provider="claude", model_id="claude-x", display_name="X")

        assert created

    def test_is_written_down(self, ada, acme, access_of):
        create_entry(access_of(ada), provider="claude", model_id="claude-x", display_name="X")

        event = AuditEvent.objects.get(action="catalog_entry.created")
        assert (event.org_id, event.actor, event.object_id) == (acme.pk, ada.email, "claude-x")

    @pytest.mark.parametrize(
        ("fields", "pointer"),
        [
            ({"provider": "nobody"}, "/provider"),
            ({"model_id": ""}, "/modelId"),
            ({"model_id": "-x"}, "/modelId"),
            ({"model_id": "a b"}, "/modelId"),
            ({"model_id": "a\n"}, "/modelId"),
            ({"model_id": "a" * 129}, "/modelId"),
            ({"display_name": " "}, "/displayName"),
            ({"display_name": "x" * 121}, "/displayName"),
            ({"display_name": "a\u202eb"}, "/displayName"),
            ({"description": "x" * 401}, "/description"),
            ({"context_window_tokens": 0}, "/contextWindow"),
            ({"max_output_tokens": 2**31}, "/maxOutputTokens"),
            ({"capabilities": {"visions": True}}, "/capabilities/visions"),
            ({"capabilities": {"a/b": True}}, "/capabilities/a~1b"),
            ({"capabilities": {"vision": "yes"}}, "/capabilities/vision"),
            ({"capabilities": {"minCacheTokens": True}}, "/capabilities/minCacheTokens"),
            ({"capabilities": {"thinking": {"types": ["deep"], "onByDefault": True}}}, "/capabilities/thinking"),
            ({"effort_levels": ["ultra"], "capabilities": {"nativeEffort": True}}, "/efforts/0"),
            ({"effort_levels": ["low"]}, "/efforts"),
        ],
    )
    def test_refuses_a_wrong_value_and_points_at_it(self, ada, acme, access_of, fields, pointer):
        values = {"provider": "claude", "model_id": "claude-x", "display_name": "X", **fields}

        with pytest.raises(FieldError) as refusal:
            create_entry(access_of(ada), **values)

        assert refusal.value.errors[0]["pointer"] == pointer
        assert not CatalogEntry.objects.filter(org=acme).exists()

    @pytest.mark.parametrize("person", ["mia", "otto"])
    def test_is_for_owners_and_admins(self, request, acme, access_of, person):
        access = access_of(request.getfixturevalue(person))

        with pytest.raises(NotPermitted):
            create_entry(access, provider="claude", model_id="claude-x", display_name="X")
