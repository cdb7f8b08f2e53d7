"""Names of models: every spelling means one entry, and a platform entry before an organization's own."""

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from catalog.datafile import read_all
from catalog.lookup import find_named, names_of
from catalog.models import CatalogEntry, ModelAlias
from tests.drawn import examples

PREFIX, LONG = "anthropic/", "[1m]"
LISTED = {model.facts["model_id"]: model for file in read_all() for model in file.models}
OF_NAME = {name: model_id for model_id, model in LISTED.items() for name in (model_id, *model.aliases)}

pytestmark = pytest.mark.usefixtures("catalog")


def meant(name, org):
    entry = find_named([("claude", name)], org=org).get(("claude", name))
    return entry.model_id if entry else None


@pytest.fixture
def make_entry(acme):
    def make(model_id, *, org=acme, **fields):
        return CatalogEntry.objects.create(
            provider="claude", model_id=model_id, display_name=model_id, org=org, **fields
        )

    return make


class TestFindNamed:
    @pytest.mark.parametrize(
        ("name", "model_id"),
        [
            ("claude-haiku-4-5", "claude-haiku-4-5-20251001"),
            ("claude-sonnet-4-5", "claude-sonnet-4-5-20250929"),
            ("claude-opus-4-5", "claude-opus-4-5-20251101"),
            ("claude-opus-4-1", "claude-opus-4-1-20250805"),
            ("claude-opus-4-0", "claude-opus-4-20250514"),
            ("claude-sonnet-4-0", "claude-sonnet-4-20250514"),
            ("claude-3-7-sonnet-latest", "claude-3-7-sonnet-20250219"),
            ("claude-3-5-haiku-latest", "claude-3-5-haiku-20241022"),
            ("anthropic/claude-haiku-4-5", "claude-haiku-4-5-20251001"),
            ("claude-opus-5-5[1m]", "claude-opus-5-5"),
            ("anthropic/claude-opus-4-6[1m]", "claude-opus-4-6"),
        ],
    )
    def test_knows_the_names_that_clients_send(self, acme, name, model_id):
        assert meant(name, acme) == model_id
        assert meant(name, None) == model_id

    @settings(max_examples=examples(500), suppress_health_check=[HealthCheck.function_scoped_fixture])
    @given(st.sampled_from(sorted(OF_NAME)), st.booleans(), st.booleans())
    def test_finds_one_entry_under_every_spelling(self, acme, name, with_prefix, with_window):
        spelled = PREFIX * with_prefix + name + LONG * with_window
        model_id = OF_NAME[name]
        has_window = LISTED[model_id].facts["context_window_tokens"] >= 1_000_000

        assert meant(spelled, acme) == (model_id if has_window or not with_window else None)

    def test_names_of_an_entry_are_those_that_find_it(self, acme):
        for entry in CatalogEntry.objects.prefetch_related("aliases"):
            names = names_of(entry)
            found = {meant(name, acme) for name in names if not name.endswith(LONG)}

            assert found == {entry.model_id}
            assert len(names) == 4 * (1 + entry.aliases.count())

    @settings(max_examples=examples(300), suppress_health_check=[HealthCheck.function_scoped_fixture])
    @given(st.text(max_size=40))
    def test_takes_any_text_and_means_nothing_by_it(self, acme, name):
        assert meant(name, acme) == OF_NAME.get(name)

    @pytest.mark.parametrize(
        "name",
        [
            "claude-haiku-4-5[1m]",
            "Claude-Haiku-4-5",
            "anthropic/anthropic/claude-haiku-4-5",
            "claude-opus-5-5[1m][1m]",
            "openai/claude-haiku-4-5",
            "claude-haiku-4",
            "claude-haiku-4-5\0",
            "[1m]",
            "anthropic/",
        ],
    )
    def test_does_not_guess(self, acme, name):
        assert meant(name, acme) is None

    @pytest.mark.parametrize("spelled", ["claude-haiku-4-5", "anthropic/claude-haiku-4-5", "anthropic/claude-opus-5-5"])
    def test_prefers_the_platform_s_entry_to_an_own_one_of_the_same_name(self, acme, make_entry, spelled):
        own = make_entry(spelled)

        found = find_named([("claude", spelled)], org=acme)["claude", spelled]

        assert found.org_id is None
        assert own != found

    def test_does_not_show_an_own_entry_behind_an_alias(self, acme, make_entry):
        own = make_entry("claude-haiku-4-5")

        assert own not in CatalogEntry.objects.visible_to(acme)

    def test_finds_an_own_entry_under_its_own_name_first(self, acme, make_entry):
        own, prefixed = make_entry("nova"), make_entry("anthropic/nova")

        assert meant("nova", acme) == own.model_id
        assert meant("anthropic/nova", acme) == prefixed.model_id
        assert meant("nova[1m]", acme) == own.model_id

    def test_finds_an_own_entry_behind_the_prefix(self, acme, make_entry):
        make_entry("nova")

        assert meant("anthropic/nova", acme) == "nova"

    def test_finds_nothing_of_another_organization_s(self, eve, make_entry):
        make_entry("nova")

        assert meant("nova", eve.memberships.get().org) is None
        assert meant("nova", None) is None

    def test_takes_two_queries_for_any_number_of_names(self, acme, django_assert_num_queries):
        with django_assert_num_queries(2):
            found = find_named([("claude", name) for name in OF_NAME], org=acme)

        assert {name: entry.model_id for (_, name), entry in found.items()} == OF_NAME


class TestLoadedAliases:
    def test_are_those_of_the_file(self):
        stored = dict(ModelAlias.objects.values_list("name", "entry__model_id"))

        assert stored == {name: model_id for name, model_id in OF_NAME.items() if name != model_id}
