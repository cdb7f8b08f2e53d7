"""Search of runs: by the words of prompts and errors, by people and by models, in one organization only."""

import importlib

import pytest
from django.apps import apps
from django.db import connection
from django.test.utils import CaptureQueriesContext
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rensei.core import bounded_queries
from rensei.core.errors import FieldError
from rensei.dispatch import search
from rensei.dispatch.admission import admit
from rensei.dispatch.admission.requests import DispatchRequest, messages_from
from rensei.dispatch.models import Run, RunInput, SearchEntry
from rensei.dispatch.run_filter import FIRST, LAST
from rensei.orgs.models import Org


@pytest.fixture
def dispatch(ada_access, connected, make_profile):
    profile = make_profile(auth_modes=["byok"])

    def make(text: str = "Hello?", access=ada_access, **fields) -> Run:
        messages = fields.pop("messages", None) or messages_from(text=text, messages=None)
        return admit.dispatch(access, DispatchRequest(profile_id=profile.public_id, messages=messages, **fields))

    return make


def found(org: Org, text: str, *, first: str = FIRST, beyond: str = LAST) -> set[str]:
    runs = Run.objects.for_org(org).filter(search.matching(org, text, first=first, beyond=beyond))
    return set(runs.values_list("id", flat=True))


class TestWords:
    @pytest.mark.parametrize(
        ("text", "words"),
        [
            ("Why is the sky blue?", ["why", "is", "the", "sky", "blue"]),
            ("claude-opus-4-8", ["claude", "opus", "4", "8"]),
            ("CAFÉ Ærø straße", ["cafe", "ærø", "strasse"]),
            ("客户支持v2", ["客", "户", "支", "持", "v2"]),
            ("=o12 =u7 a'b\"c\\d:*", ["o12", "u7", "a", "b", "c", "d"]),
            ("snake_case\0and more", ["snake", "case", "and", "more"]),
            ("x" * 100, ["x" * search.WORD_LENGTH]),
            ("Acme\u2122", ["acmetm"]),
            ("\u211d", ["r"]),
            ("\U0001d407", ["h"]),
        ],
    )
    def test_are_cut_without_case_and_accents(self, text, words):
        assert list(search.words_of(text)) == words

    @given(st.text(max_size=200))
    @settings(max_examples=200)
    def test_hold_letters_and_digits_only(self, text):
        for word in search.words_of(text):
            assert word.isalnum()
            assert word == word.casefold()
            assert len(word) <= search.WORD_LENGTH


class TestMatching:
    @pytest.mark.parametrize("asked", ["sky", "BLUE sky", "blu", "ada", "ada sky", "opus", "deep", "system prompt"])
    def test_finds_by_prompt_system_person_model_and_profile(self, acme, dispatch, asked):
        run = dispatch("Why is the sky blue?", system="A system prompt.")
        Run.objects.exclude(id=run.id).delete()

        assert found(acme, asked) == {run.id}

    @pytest.mark.parametrize("asked", ["green", "sky green", "lue", "eve", "=o1", "'", "", "sky:*|green", "mia"])
    def test_finds_nothing_else(self, acme, mia, dispatch, asked):
        dispatch("Why is the sky blue?")

        assert found(acme, asked) == set()

    @pytest.mark.parametrize(
        ("asked", "is_found"), [("w", False), ("wh", False), ("why", True), ("v2", True), ("客", True)]
    )
    def test_finds_a_beginning_of_three_characters_and_a_shorter_word_itself(self, acme, dispatch, asked, is_found):
        run = dispatch("Why is v2 slow? 客户")

        assert found(acme, asked) == ({run.id} if is_found else set())

    def test_takes_a_bounded_number_of_words_and_people(self, acme, ada, mia, dispatch, monkeypatch):
        run = dispatch("one two three four five six seven eight nine ten")
        monkeypatch.setattr(search, "NAMED_MAX", 1)

        assert found(acme, "one two three four five six seven eight absent") == {run.id}
        assert found(acme, "acme") == {run.id}
        assert search._either("acme", [1, 2], "k=").count("==") == 2

    def test_is_refused_where_it_takes_too_long(self, acme, dispatch, monkeypatch):
        run = dispatch("Why is the sky blue?")
        slow = {
            "postgresql": "SELECT pg_sleep(60), %s, %s, %s, %s",
            "sqlite": "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 10000000000) "
            "SELECT count(*), %s, %s, %s, %s FROM n",
        }
        with monkeypatch.context() as patch:
            patch.setattr(bounded_queries, "SEARCH_SECONDS", 0.2)
            patch.setattr(search, "_FIND", slow)
            with pytest.raises(FieldError, match="took longer than"):
                found(acme, "sky")

        assert found(acme, "sky") == {run.id}

    def test_finds_by_every_turn_and_inside_tool_results(self, acme, dispatch):
        run = dispatch(
            messages=[
                {"role": "user", "content": "First alpha."},
                {"role": "assistant", "content": [{"type": "tool_use", "id": "t1", "name": "look", "input": {}}]},
                {
                    "role": "user",
                    "content": [
                        {"type": "tool_result", "tool_use_id": "t1", "content": [{"type": "text", "text": "beta"}]},
                        {"type": "text", "text": "Then gamma."},
                    ],
                },
            ]
        )

        for word in ("alpha", "beta", "gamma"):
            assert found(acme, word) == {run.id}
        assert "gamma" in SearchEntry.objects.get().excerpt

    def test_finds_the_words_of_an_error(self, simulator, acme, connect, make_profile, ada_access, work):
        connect()
        profile = make_profile(name="poor", auth_modes=["byok"])
        run = admit.dispatch(
            ada_access,
            DispatchRequest(
                profile_id=profile.public_id, messages=messages_from(text="[[fault:spendlimit]] Hello?", messages=None)
            ),
        )
        work()
        run.refresh_from_db()
        assert run.error is not None

        for asked in (run.error["code"], run.error["detail"], f"hello {run.error['code']}"):
            assert found(acme, asked) == {run.id}

    def test_never_finds_another_organizations_prompt(self, acme, eve, access_of, dispatch):
        dispatch("The secret plan of Acme")
        evil = access_of(eve, "evil").org
        key = acme.pk

        for asked in (
            "secret",
            "plan acme",
            key,
            f"={key}",
            f"secret ={key}",
            f"{search._key_of(key)}secret",
            f"secret') | '={key}",
            f'secret" OR "={key}',
        ):
            assert found(evil, asked) == set()
            # Not even the words of the index row are read: the condition of the organization is part of the search.
            matching = search.matching(evil, asked, first=FIRST, beyond=LAST)
            assert not Run.objects.filter(matching).exists()

    @given(text=st.text(alphabet="=ou0123456789'\"\\:*|&!()<->ab \0", max_size=40))
    @settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
    def test_takes_any_text_as_words(self, db, text):
        org = Org(pk="org_1", slug="acme", name="Acme")

        assert list(Run.objects.filter(search.matching(org, text, first=FIRST, beyond=LAST))) == []

    def test_finds_a_person_by_the_name_of_now(self, acme, ada, dispatch):
        run = dispatch()
        ada.name = "Augusta King"
        ada.save()

        assert found(acme, "augusta") == {run.id}
        assert found(acme, "king") == {run.id}

    def test_finds_the_newest_within_the_time(self, acme, dispatch, monkeypatch):
        ids = sorted(dispatch("Same words").id for _ in range(4))
        monkeypatch.setattr(search, "MATCHES", 2)

        assert found(acme, "same") == set(ids[2:])
        assert found(acme, "same", beyond=ids[2]) == set(ids[:2])
        assert found(acme, "same", first=ids[1], beyond=ids[3]) == set(ids[1:3])


class TestEntry:
    @pytest.mark.parametrize("model", [RunInput, Run])
    def test_is_deleted_with_the_content(self, acme, dispatch, model):
        run = dispatch("Why is the sky blue?")

        model.objects.filter(pk=run.pk).delete()

        assert not SearchEntry.objects.exists()
        assert found(acme, "sky") == set()
        if connection.vendor == "sqlite":
            with connection.cursor() as cursor:
                cursor.execute("SELECT count(*) FROM dispatch_searchwords WHERE dispatch_searchwords MATCH 'sky'")
                assert cursor.fetchone() == (0,)

    def test_holds_a_bounded_number_of_words(self, dispatch):
        dispatch(" ".join(f"w{number}" for number in range(20_000)))

        assert len(SearchEntry.objects.get().words.split()) <= search.WORDS_MAX + 1

    def test_has_words_of_its_organization_only(self, acme, dispatch):
        dispatch("Why is the sky blue?")

        assert all(word.startswith(search._key_of(acme.pk)) for word in SearchEntry.objects.get().words.split())

    def test_of_an_earlier_version_is_made_with_its_error(self, acme, dispatch):
        """The migration indexes what is stored, in pages."""
        migration = importlib.import_module("rensei.dispatch.migrations.0004_search")
        ids = [dispatch(f"Number n{number}").id for number in range(migration.PAGE_SIZE + 1)]
        Run.objects.filter(id=ids[3]).update(error={"code": "PROVIDER_UNFUNDED", "detail": "No credit.", "fix": ""})
        SearchEntry.objects.all().delete()

        with CaptureQueriesContext(connection) as queries:
            migration._index_stored(apps, None)

        assert found(acme, "number") == set(ids)
        assert found(acme, "provider_unfunded credit") == {ids[3]}
        assert len(queries) <= 10

    def test_is_as_large_for_a_long_prompt_as_for_the_longest(self, dispatch):
        sizes = []
        for repeats in (30_000, 300_000):
            SearchEntry.objects.all().delete()
            dispatch("ab1 " * repeats)
            sizes.append(len(SearchEntry.objects.get().words))

        assert sizes[0] == sizes[1]
