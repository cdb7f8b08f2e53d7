"""Saving a profile checks it against provider and model; finding one respects organizations and projects."""

from datetime import date

import pytest

from catalog.models import CatalogEntry, CatalogSetting
from catalog.services import EffortNotSupported, ModelNotInCatalog
from integrations.models import Integration
from profiles.ids import public_id_for
from profiles.models import ModelProfile
from profiles.services import (
    create_profile,
    default_profile,
    delete_profile,
    find_profile,
    update_profile,
    visible_profiles,
)
from rensei.audit.models import AuditEvent
from rensei.core.errors import AlreadyExists, FieldError, NotFound, NotPermitted
from rensei.orgs.models import Project
from rensei.tokens.look_up import for_token
from rensei.tokens.services import create_token

pytestmark = pytest.mark.usefixtures("catalog", "acme")
OPUS = "claude-opus-4-1-20250514"
DEEP = {"name": "anthropic-deep-reasoning", "provider": "claude", "model_id": OPUS, "auth_modes": ["byok", "metered"]}


@pytest.fixture
def other_project(acme):
    return Project.objects.create(org=acme, slug="other", name="Other")


@pytest.fixture
def project_access(access, project):
    """The access of a token that is bound to my-project."""
    _, secret = create_token(access, name="bound", project=project)
    return for_token(token=secret.reveal())


@pytest.fixture
def make_integration(acme):
    def make(org=acme, **fields):
        fields = {"provider": "claude", "name": "key", "sealed_key": b"x", "key_hint": "…", **fields}
        return Integration.objects.create(org=org, **fields)

    return make


def _refused_at(access, **fields):
    with pytest.raises(FieldError) as refusal:
        create_profile(access, **{**DEEP, **fields})
    assert not ModelProfile.objects.exists()
    return refusal.value.errors[0]["pointer"]


class TestPublicIdFor:
    @pytest.mark.parametrize(
        ("name", "public_id"),
        [
            ("anthropic-deep-reasoning", "prof_anthropic_deep_reasoning"),
            ("Deep Reasoning", "prof_deep_reasoning"),
            ("a - b__c", "prof_a_b_c"),
            ("x-", "prof_x"),
            ("7", "prof_7"),
            ("Z" * 63, "prof_" + "z" * 63),
            ("Überblick & Co.", "prof_uberblick_co"),
            ("客户支持", "prof_profile"),
        ],
    )
    def test_is_the_name_in_snake_case(self, name, public_id):
        assert public_id_for(name) == public_id


class TestCreateProfile:
    def test_saves_the_documented_profile(self, access, acme, project):
        profile = create_profile(access, **DEEP, effort="high", scope="project", project=project)

        profile.refresh_from_db()
        assert profile.public_id == "prof_anthropic_deep_reasoning"
        assert (profile.org, profile.project, profile.effort) == (acme, project, "high")
        assert (profile.prompt_caching, profile.is_default) == ("ephemeral", False)

    def test_needs_no_key_and_no_entitlement(self, access):
        assert create_profile(access, **{**DEEP, "auth_modes": ["metered", "shared", "host-session"]}).pk

    def test_keeps_modes_in_the_order_of_preference(self, access):
        profile = create_profile(access, **{**DEEP, "auth_modes": ["host-session", "shared", "byok"]})

        assert profile.auth_modes == ["byok", "shared", "host-session"]

    def test_normalises_the_provider_config(self, access):
        profile = create_profile(access, **DEEP, provider_config={"anthropic": {"context_window": 100_000}})

        assert profile.provider_config == {"anthropic": {"contextWindow": 100_000}}

    def test_is_written_down(self, access, acme, ada):
        create_profile(access, **DEEP)

        event = AuditEvent.objects.get(action="profile.created")
        assert (event.org_id, event.actor, event.object_id) == (acme.pk, ada.email, "prof_anthropic_deep_reasoning")

    @pytest.mark.parametrize("name", ["a", "7", "A b_c-d", "x" * 63, " trimmed ", "-a", "a/b", "é", "客户支持"])
    def test_takes_a_name(self, access, name):
        assert create_profile(access, **{**DEEP, "name": name}).name == name.strip()

    @pytest.mark.parametrize("name", ["", " ", "x" * 64, "a\nb", "a\tb", "a\0", "a\u202eb"])
    def test_refuses_a_name_of_another_shape(self, access, name):
        assert _refused_at(access, name=name) == "/name"

    def test_takes_an_id_of_its_own(self, access):
        assert (
            create_profile(access, **{**DEEP, "name": "客户支持"}, public_id="prof_support").public_id == "prof_support"
        )

    @pytest.mark.parametrize(
        "public_id", ["support", "prof_", "prof_A", "prof__a", "prof_a_", "prof_é", "prof_a b", "prof_" + "a" * 64]
    )
    def test_refuses_an_id_of_another_shape(self, access, public_id):
        assert _refused_at(access, public_id=public_id) == "/id"

    @pytest.mark.parametrize(
        "name", ["anthropic-deep-reasoning", "Anthropic Deep Reasoning", "anthropic_deep_reasoning"]
    )
    def test_refuses_a_name_whose_id_is_taken(self, access, name):
        create_profile(access, **DEEP)

        with pytest.raises(AlreadyExists):
            create_profile(access, **{**DEEP, "name": name})

        assert ModelProfile.objects.count() == 1
        assert AuditEvent.objects.filter(action="profile.created").count() == 1

    def test_lets_two_organizations_have_the_same_id(self, access, access_of, eve):
        create_profile(access, **DEEP)

        assert create_profile(access_of(eve, "evil"), **DEEP).public_id == "prof_anthropic_deep_reasoning"

    @pytest.mark.parametrize("provider", ["", "nobody", "anthropic", "Claude"])
    def test_refuses_an_unknown_provider(self, access, provider):
        assert _refused_at(access, provider=provider) == "/provider"

    @pytest.mark.parametrize("model_id", ["", "claude-opus-9", "CLAUDE-OPUS-5-5"])
    def test_refuses_an_unknown_model(self, access, model_id):
        with pytest.raises(ModelNotInCatalog):
            create_profile(access, **{**DEEP, "model_id": model_id})

    def test_refuses_another_organization_s_model(self, access, access_of, eve):
        eves = access_of(eve, "evil").org
        CatalogEntry.objects.create(
            org=eves, provider="claude", model_id="theirs", display_name="T", auth_modes=["byok"]
        )

        with pytest.raises(ModelNotInCatalog):
            create_profile(access, **{**DEEP, "model_id": "theirs"})

    @pytest.mark.parametrize(
        ("modes", "pointer"),
        [
            ([], "/authModes"),
            (["byok", "byok"], "/authModes/1"),
            (["BYOK"], "/authModes/0"),
            (["byok", "oauth"], "/authModes/1"),
            (["byok", "metered", "local"], "/authModes/2"),
            ([""], "/authModes/0"),
        ],
    )
    def test_refuses_wrong_modes_and_points_at_the_first(self, access, modes, pointer):
        assert _refused_at(access, auth_modes=modes) == pointer

    def test_refuses_a_mode_that_the_model_does_not_offer(self, access):
        CatalogEntry.objects.filter(model_id=OPUS).update(auth_modes=["metered"])

        assert _refused_at(access, auth_modes=["metered", "byok"]) == "/authModes/1"

    @pytest.mark.parametrize("effort", ["", "low", "medium", "high", "xhigh", "max"])
    def test_takes_the_efforts_of_the_model_that_serves(self, access, effort):
        assert create_profile(access, **DEEP, effort=effort).effort == effort

    @pytest.mark.parametrize(
        ("model_id", "effort"),
        [
            (OPUS, "ultra"),
            (OPUS, "High"),
            ("claude-opus-4-6", "xhigh"),
            ("claude-haiku-4-5-20251001", "max"),
        ],
    )
    def test_refuses_an_effort_that_it_lacks(self, access, model_id, effort):
        with pytest.raises(EffortNotSupported):
            create_profile(access, **{**DEEP, "model_id": model_id}, effort=effort)

    def test_judges_by_the_retired_model_itself_when_redirects_are_off(self, access):
        CatalogSetting.objects.update(redirect_retired=False)
        assert create_profile(access, **DEEP, effort="high")

        with pytest.raises(EffortNotSupported, match=OPUS):
            create_profile(access, **{**DEEP, "name": "other"}, effort="max")

    @pytest.mark.parametrize(("tokens", "model_id"), [(1, OPUS), (128_000, OPUS), (64_000, "claude-opus-4-5-20251101")])
    def test_takes_max_tokens_up_to_those_of_the_model_that_serves(self, access, tokens, model_id):
        assert create_profile(access, **{**DEEP, "model_id": model_id}, max_tokens=tokens).max_tokens == tokens

    @pytest.mark.parametrize("tokens", [0, -1, 128_001, 2**63, True, "5", 1.0])
    def test_refuses_other_max_tokens(self, access, tokens):
        assert _refused_at(access, max_tokens=tokens) == "/maxTokens"

    @pytest.mark.parametrize("tokens", [200_001, 0, True, "100000"])
    def test_refuses_a_window_above_the_smaller_of_both(self, access, tokens):
        config = {"anthropic": {"contextWindow": tokens}}

        assert _refused_at(access, provider_config=config) == "/providerConfig/anthropic/contextWindow"

    def test_refuses_an_unknown_prompt_caching(self, access):
        assert _refused_at(access, prompt_caching="always") == "/promptCaching"

    def test_refuses_an_unknown_scope(self, access):
        assert _refused_at(access, scope="team") == "/scope"

    def test_refuses_the_scope_project_without_one(self, access):
        assert _refused_at(access, scope="project") == "/projectId"

    def test_refuses_the_scope_organization_with_a_project(self, access, project):
        assert _refused_at(access, project=project) == "/projectId"

    def test_refuses_another_organization_s_project(self, access_of, eve, project):
        with pytest.raises(NotFound):
            create_profile(access_of(eve, "evil"), **DEEP, scope="project", project=project)

    def test_names_an_integration(self, access, make_integration):
        integration = make_integration()

        assert create_profile(access, **DEEP, integration=integration).integration == integration

    def test_refuses_another_organization_s_integration(self, access, access_of, eve, make_integration):
        theirs = make_integration(org=access_of(eve, "evil").org)

        with pytest.raises(NotFound):
            create_profile(access, **DEEP, integration=theirs)

    def test_refuses_an_integration_of_another_provider(self, access, make_integration):
        assert _refused_at(access, integration=make_integration(provider="other")) == "/integrationId"

    @pytest.mark.parametrize("person", ["alan", "mia"])
    def test_is_for_admins_and_members(self, request, access_of, person):
        assert create_profile(access_of(request.getfixturevalue(person)), **DEEP).pk

    def test_is_not_for_auditors(self, access_of, otto):
        with pytest.raises(NotPermitted):
            create_profile(access_of(otto), **DEEP)

    def test_by_a_project_s_token_stays_in_the_project(self, project_access, project, other_project):
        assert create_profile(project_access, **DEEP, scope="project", project=project).pk

        with pytest.raises(NotPermitted):
            create_profile(project_access, **{**DEEP, "name": "wide"})
        with pytest.raises(NotPermitted):
            create_profile(project_access, **{**DEEP, "name": "wide"}, scope="project", project=other_project)

    def test_takes_few_queries(self, access, django_assert_max_num_queries):
        # The entry, its aliases, what serves it, clock; begin, the organization's lock, the count of profiles, bytes,
        # name, savepoint, insert, release, audit, commit.
        with django_assert_max_num_queries(14):
            create_profile(access, **DEEP)


class TestTheDefault:
    def test_is_one_in_the_organization_and_one_in_each_project(self, access, acme, project, other_project):
        wide = create_profile(access, **DEEP, is_default=True)
        own = create_profile(access, **{**DEEP, "name": "own"}, scope="project", project=project, is_default=True)

        assert default_profile(acme, None) == wide
        assert default_profile(acme, project) == own
        assert default_profile(acme, other_project) == wide

    def test_moves_to_the_profile_that_takes_it(self, access, acme):
        first = create_profile(access, **DEEP, is_default=True)
        second = create_profile(access, **{**DEEP, "name": "second"}, is_default=True)
        third = create_profile(access, **{**DEEP, "name": "third"})
        assert default_profile(acme, None) == second

        update_profile(access, first, is_default=True)
        assert default_profile(acme, None) == first

        update_profile(access, third, is_default=True)
        assert default_profile(acme, None) == third
        assert ModelProfile.objects.filter(is_default=True).count() == 1

    def test_moves_with_a_profile_into_a_project(self, access, acme, project):
        own = create_profile(access, **{**DEEP, "name": "own"}, scope="project", project=project, is_default=True)
        wide = create_profile(access, **DEEP, is_default=True)

        update_profile(access, wide, scope="project", project=project)

        own.refresh_from_db()
        assert not own.is_default
        assert default_profile(acme, project) == wide
        assert default_profile(acme, None) is None

    def test_stays_where_it_was_when_the_new_one_is_refused(self, access, acme):
        first = create_profile(access, **DEEP, is_default=True)

        with pytest.raises(AlreadyExists):
            create_profile(access, **{**DEEP, "name": "Anthropic Deep Reasoning"}, is_default=True)

        assert default_profile(acme, None) == first

    def test_is_none_of_another_organization_s(self, access, access_of, eve):
        create_profile(access, **DEEP, is_default=True)

        assert default_profile(access_of(eve, "evil").org, None) is None

    def test_takes_one_query(self, access, acme, project, django_assert_num_queries):
        create_profile(access, **DEEP, is_default=True)

        with django_assert_num_queries(1):
            default_profile(acme, project)


class TestUpdateProfile:
    def test_changes_what_is_named_and_nothing_else(self, access):
        profile = create_profile(access, **DEEP, effort="high", system="Think.")
        before = ModelProfile.objects.values().get()

        update_profile(access, profile, effort="low")

        after = ModelProfile.objects.values().get()
        assert {name for name in after if after[name] != before[name]} == {"effort", "updated_at"}

    def test_does_not_undo_another_person_s_change(self, access):
        profile = create_profile(access, **DEEP)
        stale = ModelProfile.objects.get()
        update_profile(access, profile, system="New.")

        update_profile(access, stale, effort="low")

        assert ModelProfile.objects.values_list("system", "effort").get() == ("New.", "low")

    def test_keeps_the_id_when_the_name_changes(self, access):
        profile = update_profile(access, create_profile(access, **DEEP), name="Renamed")

        assert (profile.name, profile.public_id) == ("Renamed", "prof_anthropic_deep_reasoning")

    def test_refuses_the_name_of_another_profile(self, access):
        create_profile(access, **DEEP)
        other = create_profile(access, **{**DEEP, "name": "other"})

        with pytest.raises(AlreadyExists):
            update_profile(access, other, name="anthropic-deep-reasoning")

    def test_switches_to_the_model_that_serves(self, access):
        profile = create_profile(access, **DEEP, effort="high")

        update_profile(access, profile, model_id="claude-opus-5-5")

        assert ModelProfile.objects.get().model_id == "claude-opus-5-5"

    def test_checks_the_whole_profile_again(self, access):
        profile = create_profile(access, **DEEP, effort="max")

        with pytest.raises(EffortNotSupported):
            update_profile(access, profile, model_id="claude-opus-4-5-20251101")

        assert ModelProfile.objects.get().model_id == OPUS

    def test_is_written_down_with_the_names_of_the_fields(self, access):
        update_profile(access, create_profile(access, **DEEP), effort="low", system="Be brief.")

        assert AuditEvent.objects.get(action="profile.updated").detail == {"changed": ["effort", "system"]}

    def test_is_not_for_auditors(self, access, access_of, otto):
        with pytest.raises(NotPermitted):
            update_profile(access_of(otto), create_profile(access, **DEEP), effort="low")

    def test_by_a_project_s_token_leaves_the_organization_s_alone(self, access, project_access):
        with pytest.raises(NotPermitted):
            update_profile(project_access, create_profile(access, **DEEP), effort="low")

    def test_by_a_project_s_token_does_not_leave_the_project(self, project_access, project):
        profile = create_profile(project_access, **DEEP, scope="project", project=project)

        with pytest.raises(NotPermitted):
            update_profile(project_access, profile, scope="organization", project=None)


class TestDeleteProfile:
    def test_makes_another_the_default_in_the_same_step(self, access):
        first = create_profile(access, **DEEP, is_default=True)
        second = create_profile(access, **{**DEEP, "name": "second"})

        delete_profile(access, first, next_default=second)

        assert [one.public_id for one in ModelProfile.objects.filter(is_default=True)] == ["prof_second"]
        assert AuditEvent.objects.filter(action="profile.updated", object_id="prof_second").exists()

    def test_refuses_a_default_of_another_project(self, access, project):
        first = create_profile(access, **DEEP, is_default=True)
        other = create_profile(access, **{**DEEP, "name": "second"}, scope="project", project=project)

        with pytest.raises(NotFound):
            delete_profile(access, first, next_default=other)

        assert ModelProfile.objects.filter(pk=first.pk).exists()

    def test_removes_it_and_frees_its_id(self, access):
        delete_profile(access, create_profile(access, **DEEP))

        assert create_profile(access, **DEEP).public_id == "prof_anthropic_deep_reasoning"
        assert AuditEvent.objects.get(action="profile.deleted").object_id == "prof_anthropic_deep_reasoning"

    def test_is_not_for_auditors(self, access, access_of, otto):
        with pytest.raises(NotPermitted):
            delete_profile(access_of(otto), create_profile(access, **DEEP))

    def test_by_a_project_s_token_leaves_the_organization_s_alone(self, access, project_access):
        with pytest.raises(NotPermitted):
            delete_profile(project_access, create_profile(access, **DEEP))


class TestFindProfile:
    def test_finds_by_id(self, access):
        profile = create_profile(access, **DEEP)

        assert find_profile(access, "prof_anthropic_deep_reasoning") == profile

    @pytest.mark.parametrize("public_id", ["", "prof_", "prof_x", "a\0b", "x" * 10_000])
    def test_refuses_an_unknown_id(self, access, public_id):
        with pytest.raises(NotFound):
            find_profile(access, public_id)

    def test_does_not_find_another_organization_s(self, access, access_of, eve):
        create_profile(access, **DEEP)

        with pytest.raises(NotFound):
            find_profile(access_of(eve, "evil"), "prof_anthropic_deep_reasoning")

    def test_does_not_find_a_project_s_in_another_project(self, access, project, other_project):
        profile = create_profile(access, **DEEP, scope="project", project=project)

        assert find_profile(access, profile.public_id, project=project) == profile
        assert find_profile(access, profile.public_id) == profile
        with pytest.raises(NotFound):
            find_profile(access, profile.public_id, project=other_project)

    def test_shows_a_project_s_token_the_organization_s_and_its_own(
        self, access, project_access, project, other_project
    ):
        wide = create_profile(access, **DEEP)
        own = create_profile(access, **{**DEEP, "name": "own"}, scope="project", project=project)
        others = create_profile(access, **{**DEEP, "name": "others"}, scope="project", project=other_project)

        assert set(visible_profiles(project_access)) == {wide, own}
        with pytest.raises(NotFound):
            find_profile(project_access, others.public_id)


class TestTheModelLeaving:
    def test_does_not_stop_a_profile_from_being_read(self, access):
        create_profile(access, **DEEP)
        CatalogEntry.objects.all().delete()

        assert find_profile(access, "prof_anthropic_deep_reasoning").model_id == OPUS

    def test_judges_a_model_by_its_lifecycle_today(self, access):
        CatalogEntry.objects.filter(model_id=OPUS).update(retires_on=date(2999, 1, 1))

        with pytest.raises(EffortNotSupported, match=OPUS):
            create_profile(access, **DEEP, effort="max")
