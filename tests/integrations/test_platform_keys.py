from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from integrations.keys import platform
from integrations.models import PlatformKey
from integrations.providers.base import KeyKindRefused
from integrations.vault.errors import CredentialUnreadable
from rensei.audit.models import AuditEvent
from rensei.core.errors import AlreadyExists, FieldError
from rensei.core.secret import Secret
from rensei.orgs.models import User

pytestmark = pytest.mark.django_db

NOW = datetime(2026, 11, 23, 12, tzinfo=UTC)


@pytest.fixture
def add(make_key: Callable[..., str]) -> Callable[..., PlatformKey]:
    def add_key(word: str = "", **fields: Any) -> PlatformKey:
        options = {"actor": None, "provider": "claude", "pool": "metered", "name": "one", **fields}
        options.setdefault("api_key", Secret(make_key(word)))
        if options["pool"] == "shared":
            options = {"model_ids": ["claude-a"], "max_tokens_cap": 1000, **options}
        return platform.add_platform_key(**options)

    return add_key


class TestAddPlatformKey:
    def test_seals_the_key(self, add: Callable[..., PlatformKey], make_key: Callable[..., str], grace: User) -> None:
        text = make_key()

        add(api_key=Secret(text), actor=grace)

        stored = PlatformKey.objects.get()
        assert platform.open_platform_key(stored).secret.reveal() == text
        assert text.encode() not in bytes(stored.sealed_key)
        assert stored.key_hint.endswith(f"…{text[-4:]}")
        event = AuditEvent.objects.get(action="platform_key.added")
        assert (event.actor, event.org_id, event.object_id) == (grace.email, None, stored.id)
        assert text not in str(event.detail)

    @pytest.mark.parametrize(
        ("fields", "pointer"),
        [
            ({"model_ids": []}, "/modelIds"),
            ({"max_tokens_cap": None}, "/maxTokensCap"),
            ({"max_tokens_cap": 0}, "/maxTokensCap"),
        ],
    )
    def test_wants_models_and_a_cap_of_a_shared_key(
        self, add: Callable[..., PlatformKey], fields: dict[str, Any], pointer: str
    ) -> None:
        with pytest.raises(FieldError) as caught:
            add(pool="shared", **fields)

        assert caught.value.errors[0]["pointer"] == pointer

    def test_knows_two_pools(self, add: Callable[..., PlatformKey]) -> None:
        with pytest.raises(FieldError, match="metered, shared"):
            add(pool="private")

    def test_refuses_a_name_that_is_taken_in_the_pool(self, add: Callable[..., PlatformKey]) -> None:
        add()
        add(pool="shared")

        with pytest.raises(AlreadyExists, match="metered key named 'one'"):
            add()

    def test_refuses_keys_of_another_kind(self, add: Callable[..., PlatformKey]) -> None:
        with pytest.raises(KeyKindRefused):
            add(api_key=Secret("sk-ant-" + "admin01-" + "x" * 60))


class TestReplaceKey:
    def test_seals_another_key_and_takes_it_as_healthy(
        self, add: Callable[..., PlatformKey], make_key: Callable[..., str]
    ) -> None:
        key = add()
        key.health = PlatformKey.Health.QUARANTINED
        key.cooling_models, key.refused = {"claude-a": NOW.isoformat()}, {"claude-a": ["org_one", NOW.isoformat()]}
        key.save()
        text = make_key()

        platform.replace_key(key, actor=None, api_key=Secret(text))

        stored = PlatformKey.objects.get()
        assert platform.open_platform_key(stored).secret.reveal() == text
        assert (stored.secret_version, stored.health) == (2, "healthy")
        assert (stored.cooling_models, stored.refused) == ({}, {})


class TestOpenPlatformKey:
    def test_goes_to_the_providers_own_address(self, add: Callable[..., PlatformKey], settings: Any) -> None:
        settings.RENSEI_ANTHROPIC_BASE_URL = "https://api.example"

        assert platform.open_platform_key(add()).base_url == "https://api.example"

    def test_refuses_a_key_that_was_moved_to_the_other_pool(self, add: Callable[..., PlatformKey]) -> None:
        key = add(pool="shared")
        PlatformKey.objects.update(pool="metered")

        with pytest.raises(CredentialUnreadable):
            platform.open_platform_key(PlatformKey.objects.get(pk=key.pk))


class TestHealthyKey:
    def test_finds_one_that_is_active_and_healthy(self, add: Callable[..., PlatformKey]) -> None:
        off, sick, cooling, well = (add(name=str(number)) for number in range(4))
        PlatformKey.objects.filter(pk=off.pk).update(active=False)
        PlatformKey.objects.filter(pk=sick.pk).update(health=PlatformKey.Health.QUARANTINED)
        PlatformKey.objects.filter(pk=cooling.pk).update(
            health=PlatformKey.Health.COOLING, cooling_until=NOW + timedelta(seconds=1)
        )

        assert platform.healthy_key(provider="claude", pool="metered", model_id="any", now=NOW) == well
        assert (
            platform.healthy_key(provider="claude", pool="metered", model_id="any", now=NOW, besides=[well.id]) is None
        )

    def test_takes_a_key_again_once_it_has_cooled_down(self, add: Callable[..., PlatformKey]) -> None:
        key = add()
        PlatformKey.objects.update(health=PlatformKey.Health.COOLING, cooling_until=NOW)

        assert platform.healthy_key(provider="claude", pool="metered", model_id="any", now=NOW) == key

    def test_leaves_out_a_key_for_the_model_that_it_cools_for(self, add: Callable[..., PlatformKey]) -> None:
        key = add()
        PlatformKey.objects.update(cooling_models={"claude-a": (NOW + timedelta(seconds=1)).isoformat()})

        assert platform.healthy_key(provider="claude", pool="metered", model_id="claude-a", now=NOW) is None
        assert platform.healthy_key(provider="claude", pool="metered", model_id="claude-b", now=NOW) == key
        later = NOW + timedelta(seconds=1)
        assert platform.healthy_key(provider="claude", pool="metered", model_id="claude-a", now=later) == key

    def test_chooses_by_weight(self, add: Callable[..., PlatformKey]) -> None:
        heavy, light = add(name="heavy", weight=9), add(name="light", weight=1)

        chosen = [platform.healthy_key(provider="claude", pool="metered", model_id="any", now=NOW) for _ in range(200)]

        assert chosen.count(heavy) > 3 * chosen.count(light)
        assert light in chosen

    def test_serves_any_model_by_a_metered_key_without_a_list(self, add: Callable[..., PlatformKey]) -> None:
        add(name="narrow", model_ids=["claude-a"])
        wide = add(name="wide")

        assert platform.healthy_key(provider="claude", pool="metered", model_id="claude-b", now=NOW) == wide

    def test_serves_only_the_named_models_by_a_shared_key(self, add: Callable[..., PlatformKey]) -> None:
        key = add(pool="shared")

        assert platform.healthy_key(provider="claude", pool="shared", model_id="claude-a", now=NOW) == key
        assert platform.healthy_key(provider="claude", pool="shared", model_id="claude-b", now=NOW) is None

    def test_keeps_pools_and_providers_apart(self, add: Callable[..., PlatformKey]) -> None:
        add()

        assert platform.healthy_key(provider="claude", pool="shared", model_id="claude-a", now=NOW) is None
        assert platform.healthy_key(provider="toy", pool="metered", model_id="claude-a", now=NOW) is None


@pytest.mark.usefixtures("simulator")
class TestCheckPlatformKey:
    def test_stores_what_is_wrong_and_clears_it_when_it_is_right(
        self, add: Callable[..., PlatformKey], make_key: Callable[..., str], grace: User
    ) -> None:
        key = add("revoked-")

        assert not platform.check_platform_key(key, actor=grace).ok
        assert PlatformKey.objects.get().last_error["detail"]

        platform.replace_key(key, actor=None, api_key=Secret(make_key()))
        assert platform.check_platform_key(key, actor=grace).ok
        assert PlatformKey.objects.get().last_error is None
